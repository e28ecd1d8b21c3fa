"""Measure a film against the encoding of its frames alone: ``nox -s bench -- play``."""

from __future__ import annotations

import argparse
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from builders import PONG

from runtime_check.play.filming import Camera
from runtime_check.play.opening import Show, open_show
from runtime_check.play.options import Film, Wanted
from runtime_check.play.pictures import Painter, enlarge
from runtime_check.play.recording import FORMATS, FRAMES_PER_SECOND, SAMPLES, SOUND_RATE
from runtime_check.play.scenes import Scene, play_episode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="of the game")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    frames = int(options.seconds * FRAMES_PER_SECOND)
    show = open_show(Wanted(str(PONG), ("reference",), "cpu", None, False, 1, 0, 0.001, None, None, None))
    ready = [scene for scene, _ in zip(play_episode(show.answers, show.plan, 0), range(frames), strict=False)]
    print(f"{options.seconds:g} s of Pong, {320 * options.scale} x {210 * options.scale}, frames/s:")
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for suffix in (".mp4", ".mkv"):
                path = Path(folder, f"film{suffix}")
                for name, seconds in (
                    ("play", measure_play(show, frames)),
                    (f"encode {suffix}", measure_encoding(ready, path, options.scale)),
                    (f"record {suffix}", measure_record(show, path, options)),
                    (f"record {suffix} --overlay", measure_record(show, path, options, overlay=True)),
                ):
                    rows.setdefault(name, []).append(frames / seconds)
    best = {name: float(np.median(speeds)) for name, speeds in rows.items()}
    for name, speed in best.items():
        floor = best.get(name.replace("record", "encode").removesuffix(" --overlay"))
        print(f"{name:24} {speed:8.0f}" + (f"    {speed / floor:.2f} of encoding alone" if "record" in name else ""))


def measure_play(show: Show, frames: int) -> float:
    """Return how long the emulator and the network take, with nobody who films, in seconds."""
    started = time.perf_counter()
    for _ in zip(range(frames), play_episode(show.answers, show.plan, 0), strict=False):
        pass
    return time.perf_counter() - started


def measure_encoding(scenes: list[Scene], path: Path, scale: int) -> float:
    """Return how long PyAV alone takes to write pictures and sound that are ready, in seconds."""
    form = FORMATS[path.suffix]
    started = time.perf_counter()
    with av.open(path, "w", format=form.container, options=form.container_options) as container:
        video = container.add_stream(form.codec, rate=FRAMES_PER_SECOND, options=form.codec_options)
        video.height, video.width = enlarge(scenes[0].frames[0].screen, scale).shape[:2]
        video.pix_fmt = form.pixels
        sound = container.add_stream(form.sound, rate=48_000, layout="mono")
        resampler = av.AudioResampler(format=sound.format.name, layout="mono", rate=48_000)
        for number, scene in enumerate(scenes):
            picture = enlarge(scene.frames[0].screen, scale)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FRAMES_PER_SECOND)
            container.mux(video.encode(frame))
            heard = av.AudioFrame.from_ndarray(scene.frames[0].sound[None], format="u8", layout="mono")
            heard.sample_rate, heard.time_base = SOUND_RATE, Fraction(1, SOUND_RATE)
            heard.pts = number * SAMPLES
            for each in resampler.resample(heard):
                container.mux(sound.encode(each))
        for each in resampler.resample(None):
            container.mux(sound.encode(each))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    return time.perf_counter() - started


def measure_record(show: Show, path: Path, options: argparse.Namespace, *, overlay: bool = False) -> float:
    """Return how long it takes to play and film, in seconds."""
    film = Film(None, options.scale, 1, overlay, options.seconds)
    started = time.perf_counter()
    painter = Painter(show.names, show.actions, scale=film.scale, overlay=film.overlay)
    camera = Camera(path, film, painter, 1)
    with camera.recorder:
        camera.film(play_episode(show.answers, show.plan, 0))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
