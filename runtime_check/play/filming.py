"""Scenes onto film."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckError
from runtime_check.play.options import Film
from runtime_check.play.pictures import Painter, enlarge
from runtime_check.play.recording import FRAMES_PER_SECOND, Recorder, find_format
from runtime_check.play.scenes import Scene


class Camera:
    """Films scenes. A context manager, as its `Recorder` is.

    The bare screen of one player is filmed as the emulator shows it, each pixel for itself, and shown as 4:3. Formats
    that know no shape of pixels, and pictures with more than the screen, have square ones.
    """

    def __init__(self, out: Path, film: Film, painter: Painter, players: int) -> None:
        """Take what is filmed.

        Args:
            out: where the film goes.
            film: how it is made.
            painter: makes the pictures.
            players: how many are shown.

        Raises:
            CheckError: the format is not known, or has no such rate.
            MissingExtra: PyAV is not installed.
        """
        form = find_format(out)
        rate = film.fps or form.rates[0]
        if rate not in form.rates:
            raise CheckError(f"{out}: {out.suffix} holds {form.rates[0]} pictures a second, not {rate}")
        self._film, self._painter = film, painter
        self._is_bare = form.sound is not None and players == 1 and not film.overlay
        self.recorder = Recorder(out, rate=rate, speed=film.speed, aspect=Fraction(4, 3) if self._is_bare else None)

    @property
    def is_full(self) -> bool:
        """Whether the film is as long as it may be."""
        return self.recorder.frames >= int(self._film.max_seconds * FRAMES_PER_SECOND)

    def film(self, scenes: Iterable[Scene]) -> tuple[Scene | None, bool]:
        """Film an episode; return the last scene that was filmed, and whether the film was full before its end."""
        last = None
        for scene in scenes:
            if self.is_full:
                return last, True
            self._painter.remember(scene)
            self.recorder.add(self._make_paint(scene), scene.frames[0].sound)
            last = scene
        return last, False

    def _make_paint(self, scene: Scene) -> Callable[[], NDArray[np.uint8]]:
        if self._is_bare:
            return lambda: enlarge(scene.frames[0].screen, self._film.scale)
        return lambda: self._painter.paint(scene)


def format_film(
    out: Path, frames: int, game: str, names: Sequence[str], ends: Sequence[Scene], parted: int | None
) -> str:
    """Return a line on a film.

    Args:
        out: where it is.
        frames: how many emulator frames it holds.
        game: that was played.
        names: of the players.
        ends: the last scene of each whole episode.
        parted: the first frame of an episode on which players saw different screens.
    """
    lists = {name: ", ".join(f"{end.returns[place]:g}" for end in ends) or "–" for place, name in enumerate(names)}
    returns = next(iter(lists.values())) if len(names) == 1 else "; ".join(map(" ".join, lists.items()))
    line = f"{out}: {frames / FRAMES_PER_SECOND:.1f} s of {game}; returns {returns}"
    return line if parted is None else f"{line}; parted at frame {parted}"
