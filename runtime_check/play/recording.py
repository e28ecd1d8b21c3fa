"""Films of scenes: MP4 for every player and browser, MKV without loss, GIF and WebP for documents."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckError, MissingExtra

FRAMES_PER_SECOND = 60
SAMPLES = 512  # of sound in a frame, which the emulator makes 60 times a second
SOUND_RATE = SAMPLES * FRAMES_PER_SECOND
_FILM_RATE = 48_000  # AAC and FLAC know no 30,720
_MOST_WAITING = 8  # frames


@dataclass(frozen=True)
class Format:
    """How a file is written. sound: its codec, if it has any. rates: pictures a second, the default first."""

    container: str
    codec: str
    pixels: str
    sound: str | None
    rates: tuple[int, ...]
    codec_options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)


FORMATS = {
    ".mp4": Format(
        "mp4",
        "libx264",
        "yuv420p",
        "aac",
        (60, 15),
        {"crf": "18", "preset": "veryfast"},
        {"movflags": "+faststart"},
    ),
    ".mkv": Format("matroska", "libx264rgb", "rgb24", "flac", (60, 15), {"crf": "0", "preset": "veryfast"}),
    ".gif": Format("gif", "gif", "pal8", None, (15,)),  # its times are hundredths of a second, and few viewers keep 60
    ".webp": Format("webp", "libwebp_anim", "bgra", None, (15, 60), {"lossless": "1"}, {"loop": "0"}),
}


def find_format(path: Path) -> Format:
    """Return the format of a film by the suffix of its name.

    Raises:
        CheckError: it is of no known format.
        MissingExtra: PyAV is not installed.
    """
    if path.suffix not in FORMATS:
        raise CheckError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    _import_av()
    return FORMATS[path.suffix]


class Recorder:
    """Writes a film frame by frame, and puts it in place at the end; memory does not grow with its length.

    A context manager: of an exception, no file is left.

    Attributes:
        frames: how many emulator frames it took.
    """

    def __init__(self, path: Path, *, rate: int, speed: int = 1, aspect: Fraction | None = None) -> None:
        """Take what the film is like.

        Args:
            path: where it goes; its suffix is that of the format.
            rate: pictures a second. 15 is one for each step of an agent, and the sound is whole.
            speed: how many times as fast it is shown as the game runs. Faster ones have no sound.
            aspect: width to height of a picture as players show it; None for square pixels.
        """
        self._path, self._format = path, find_format(path)
        self._rate, self._aspect = rate, aspect
        self._stride = FRAMES_PER_SECOND * speed // rate
        self._has_sound = self._format.sound is not None and speed == 1
        self._part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self._filter: Any = None
        # Frames are encoded while the next ones are played.
        self._worker = ThreadPoolExecutor(1, "film")
        self._waiting: deque[Future[None]] = deque()
        self.frames = 0

    def __enter__(self) -> Self:
        """Open the file.

        Raises:
            OSError: it cannot be written.
            CheckError: PyAV was built without a codec.
        """
        av = _import_av()
        form = self._format
        self._container: Any = av.open(self._part, "w", format=form.container, options=form.container_options)
        try:
            self._video: Any = self._container.add_stream(form.codec, rate=self._rate, options=form.codec_options)
            self._video.pix_fmt = form.pixels
            if self._has_sound:
                self._sound: Any = self._container.add_stream(form.sound, rate=_FILM_RATE, layout="mono")
        except av.codec.codec.UnknownCodecError as error:
            self._container.close()
            self._part.unlink(missing_ok=True)
            raise CheckError(f"{self._path}: this PyAV has no codec {error}: pip install -U av") from error
        if self._has_sound:
            self._resampler = av.AudioResampler(format=self._sound.format.name, layout="mono", rate=_FILM_RATE)
        return self

    def add(self, paint: Callable[[], NDArray[np.uint8]], sound: NDArray[np.uint8]) -> None:
        """Add a frame.

        Args:
            paint: returns its picture, uint8[height, width, 3] with even sides; called only if the picture is shown.
            sound: of the frame, uint8[512], see `runtime_check.protocols.Frame`.
        """
        picture = paint() if self.frames % self._stride == 0 else None
        self._waiting.append(self._worker.submit(self._write, self.frames, picture, sound))
        if len(self._waiting) > _MOST_WAITING:
            self._waiting.popleft().result()
        self.frames += 1

    def _write(self, number: int, picture: NDArray[np.uint8] | None, sound: NDArray[np.uint8]) -> None:
        if picture is not None:
            self._write_picture(number, picture)
        if self._has_sound:
            self._write_sound(number, sound)

    def _write_picture(self, number: int, picture: NDArray[np.uint8]) -> None:
        if number == 0:
            height, width = picture.shape[:2]
            self._video.height, self._video.width = height, width
            if self._aspect is not None:
                self._video.sample_aspect_ratio = self._aspect * Fraction(height, width)
            if self._format.pixels == "pal8":
                self._filter = _make_palettes(width, height, self._rate)
        frame = _import_av().VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = number // self._stride, Fraction(1, self._rate)
        self._encode(frame)

    def _encode(self, frame: Any) -> None:
        for filtered in _filter(self._filter, frame) if self._filter else (frame,):
            self._container.mux(self._video.encode(filtered))

    def _write_sound(self, number: int, sound: NDArray[np.uint8]) -> None:
        frame = _import_av().AudioFrame.from_ndarray(sound[None], format="u8", layout="mono")
        frame.sample_rate, frame.time_base = SOUND_RATE, Fraction(1, SOUND_RATE)
        frame.pts = number * SAMPLES
        for resampled in self._resampler.resample(frame):
            self._container.mux(self._sound.encode(resampled))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the film in place; after an exception, or without a frame, remove it."""
        try:
            if kind is None and self.frames:
                for written in self._waiting:
                    written.result()
                self._finish()
                os.replace(self._part, self._path)
        finally:
            self._worker.shutdown(cancel_futures=True)
            self._container.close()
            self._part.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._has_sound:
            for resampled in self._resampler.resample(None):
                self._container.mux(self._sound.encode(resampled))
        if self._filter:
            self._encode(None)
        self._container.mux(self._video.encode(None))
        if self._has_sound:
            self._container.mux(self._sound.encode(None))
        self._container.close()


def _make_palettes(width: int, height: int, rate: int) -> Any:
    """Return filters that give each picture a palette of its own: exact up to 256 colours."""
    graph = _import_av().filter.Graph()
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=Fraction(1, rate))
    split, sink = graph.add("split"), graph.add("buffersink")
    generate = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    use = graph.add("paletteuse", "new=1:dither=none")
    source.link_to(split)
    split.link_to(generate, 0, 0)
    split.link_to(use, 1, 0)
    generate.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


def _filter(graph: Any, frame: Any) -> Iterator[Any]:
    """Yield what filters make of a frame, or of their end."""
    av = _import_av()
    graph.push(frame)
    with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):  # nothing more for now; nothing more at all
        while True:
            yield graph.pull()


def _import_av() -> Any:
    try:
        import av
        import av.filter
    except ModuleNotFoundError as error:
        raise MissingExtra("recording needs PyAV: pip install 'atari-convert[play]'") from error
    return av
