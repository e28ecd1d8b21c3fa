"""Films of emulator frames with their sound: MP4 for every player and browser, MKV without loss."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckError, MissingExtra
from runtime_check.protocols import Frame

FRAMES_PER_SECOND = 60
SAMPLES = 512  # of sound in a frame, which the emulator makes 60 times a second
_SOUND_RATE = SAMPLES * FRAMES_PER_SECOND
_FILM_RATE = 48_000  # AAC and FLAC know no 30,720
# By suffix: container, codec and pixels of the pictures, their options, codec of the sound.
_FORMATS = {
    ".mp4": ("mp4", "libx264", "yuv420p", {"crf": "18", "preset": "veryfast"}, "aac"),
    ".mkv": ("matroska", "libx264rgb", "rgb24", {"crf": "0", "preset": "veryfast"}, "flac"),
}


def check_name(path: Path) -> None:
    """Raise unless a film of this name can be written.

    Raises:
        CheckError: its suffix is of no known format.
        MissingExtra: PyAV is not installed.
    """
    if path.suffix not in _FORMATS:
        raise CheckError(f"{path}: expected a name that ends in {' or '.join(_FORMATS)}")
    _import_av()


class Recorder:
    """Writes a film frame by frame, and puts it in place at the end; memory does not grow with its length.

    A context manager: of an exception, no file is left.
    """

    def __init__(self, path: Path, *, scale: int = 2, stride: int = 1) -> None:
        """Take what the film is like.

        Args:
            path: where it goes; its suffix is that of the format.
            scale: the size of a picture: 320 · scale × 210 · scale pixels. Players show it as 4:3.
            stride: of how many frames one is shown: 4 is one for each step of an agent. The sound is whole.
        """
        self._path, self._scale, self._stride = path, scale, stride
        self._part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self.frames = 0

    def __enter__(self) -> Self:
        """Open the file.

        Raises:
            OSError: it cannot be written.
        """
        av = _import_av()
        container, codec, pixels, options, sound_codec = _FORMATS[self._path.suffix]
        flags = {"movflags": "+faststart"} if container == "mp4" else {}
        self._container: Any = av.open(self._part, "w", format=container, options=flags)
        self._video: Any = self._container.add_stream(
            codec, rate=Fraction(FRAMES_PER_SECOND, self._stride), options=options
        )
        self._video.pix_fmt = pixels
        self._sound: Any = self._container.add_stream(sound_codec, rate=_FILM_RATE, layout="mono")
        self._resampler = av.AudioResampler(format=self._sound.format.name, layout="mono", rate=_FILM_RATE)
        return self

    def add(self, frame: Frame) -> None:
        """Add a frame and its sound."""
        av = _import_av()
        if self.frames % self._stride == 0:
            picture = av.VideoFrame.from_ndarray(enlarge(frame.screen, self._scale), format="rgb24")
            if self.frames == 0:
                height, width = frame.screen.shape[:2]
                self._video.width, self._video.height = 2 * width * self._scale, height * self._scale
                self._video.sample_aspect_ratio = Fraction(4 * height, 3 * 2 * width)
            picture.pts = self.frames // self._stride
            picture.time_base = Fraction(self._stride, FRAMES_PER_SECOND)
            self._container.mux(self._video.encode(picture))
        sound = av.AudioFrame.from_ndarray(frame.sound[None], format="u8", layout="mono")
        sound.sample_rate, sound.time_base = _SOUND_RATE, Fraction(1, _SOUND_RATE)
        sound.pts = self.frames * SAMPLES
        for resampled in self._resampler.resample(sound):
            self._container.mux(self._sound.encode(resampled))
        self.frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the film in place; after an exception, or without a frame, remove it."""
        try:
            if kind is None and self.frames:
                for resampled in self._resampler.resample(None):
                    self._container.mux(self._sound.encode(resampled))
                self._container.mux(self._video.encode(None))
                self._container.mux(self._sound.encode(None))
                self._container.close()
                os.replace(self._part, self._path)
        finally:
            self._container.close()
            self._part.unlink(missing_ok=True)


def enlarge(screen: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Return a screen, uint8[height, width, 3], with each pixel 2 · scale wide and scale high.

    The console's pixels are nearly twice as wide as they are high.
    """
    return np.ascontiguousarray(screen.repeat(scale, axis=0).repeat(2 * scale, axis=1))


def _import_av() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingExtra("recording needs PyAV: pip install 'atari-convert[play]'") from error
    return av
