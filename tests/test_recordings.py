"""``atari-play record`` and ``games``: films are decoded again, and hold what the emulator showed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from builders import PONG
from click.testing import CliRunner, Result

from convert.agents.games import load_games
from convert.pipeline import convert_checkpoint
from runtime_check import Options, check_agent
from runtime_check.check.options import Listeners
from runtime_check.play import recording
from runtime_check.play.cli import main
from runtime_check.play.pictures import enlarge, square
from runtime_check.protocols import PROTOCOLS, Episode, Frame, Variation, list_variations

av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")


def _run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def _decode(path):
    """Return the pictures, uint8[N, height, width, 3], and the sound, float[S] at 48,000 Hz."""
    with av.open(path) as film:
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])
    with av.open(path) as film:
        sound = np.concatenate([frame.to_ndarray().astype(np.float64).ravel() for frame in film.decode(audio=0)])
    return pictures, sound


def _play(actions, **options) -> list[Frame]:
    frames: list[Frame] = []
    episode = Episode("Pong", PROTOCOLS["modern"], 0, 6, on_frame=frames.append, **options)
    for action in actions:
        episode.step(action)
    return frames


@pytest.fixture(scope="module")
def actions(tmp_path_factory):
    """What a check of the agent sees it do, with the same seed and the same exploration."""
    folder, logs = tmp_path_factory.mktemp("agent"), []
    convert_checkpoint(PONG, folder, ["onnx"])
    listeners = Listeners(episode=lambda name, _, log: logs.append(log) if name == "reference" else None)
    result = check_agent(folder, PONG, Options(("onnxruntime",), max_steps=100, epsilon=0.001), listeners)
    assert result.agrees
    return logs[0].actions


def test_a_film_without_loss_holds_what_the_check_played(actions, tmp_path):
    _run("record", PONG, "-o", tmp_path / "pong.mkv", "--max-seconds", 6, "--scale", 1)
    pictures, sound = _decode(tmp_path / "pong.mkv")
    frames = _play(actions)[:360]
    assert len(pictures) == len(frames) == 360
    for picture, frame in zip(pictures, frames, strict=True):
        assert np.array_equal(picture, enlarge(frame.screen, 1))
    assert abs(len(sound) / 48_000 - 6) < 1 / 60
    first = next(number for number, frame in enumerate(frames) if (frame.sound != 128).any())
    heard = np.flatnonzero(np.abs(sound - np.median(sound)) > np.abs(sound).max() * 0.02)[0] / 48_000 * 60
    assert abs(heard - first) <= 1.5


def test_a_film_for_browsers_has_the_right_form(tmp_path):
    done = _run("record", PONG, "-o", tmp_path / "pong.mp4", "--max-seconds", 4)
    assert "4.0 s of Pong" in done.stdout
    assert "cut after --max-seconds 4, in episode 1 of 1" in done.stderr
    with av.open(tmp_path / "pong.mp4") as film:
        video, sound = film.streams.video[0], film.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt, video.width, video.height) == ("h264", "yuv420p", 640, 420)
        assert (sound.codec_context.name, sound.rate) == ("aac", 48_000)
        assert video.display_aspect_ratio == pytest.approx(4 / 3)
        assert float(video.duration * video.time_base) == pytest.approx(4, abs=1 / 60)
        assert float(sound.duration * sound.time_base) == pytest.approx(4, abs=1 / 15)
    data = (tmp_path / "pong.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # a browser can begin before it has all


def test_one_picture_a_step_has_the_same_length_and_the_whole_sound(tmp_path):
    _run("record", PONG, "-o", tmp_path / "pong.mkv", "--max-seconds", 4, "--fps", 15, "--scale", 1)
    pictures, sound = _decode(tmp_path / "pong.mkv")
    assert len(pictures) == 60
    assert abs(len(sound) / 48_000 - 4) < 1 / 60


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pong.gif", "pong.webp"])
def test_pictures_for_documents_are_those_of_every_step(name, actions, tmp_path):
    _run("record", PONG, "-o", tmp_path / name, "--max-seconds", 4, "--scale", 1)
    frames = _play(actions)[:240:4]
    with Image.open(tmp_path / name) as film:
        assert film.info["loop"] == 0  # for ever
        shown, ends = [], []
        for number in range(film.n_frames):
            film.seek(number)
            shown.append(np.asarray(film.convert("RGB")))
            ends.append(film.info.get("timestamp", 0) if name.endswith("webp") else film.info["duration"])
    assert ends[-1] > 3900 if name.endswith("webp") else 3900 < sum(ends) < 4300
    expected = [square(frame.screen, 1) for frame in frames]
    if name.endswith("gif"):
        assert len(shown) == 60
    else:  # equal pictures in a row are one
        expected = [
            one for one, after in zip(expected, [*expected[1:], None], strict=True) if not np.array_equal(one, after)
        ]
    assert len(shown) == len(expected)
    assert all(map(np.array_equal, shown, expected))


@pytest.mark.slow
def test_a_fast_film_shows_each_fourth_frame_without_sound(actions, tmp_path):
    _run("record", PONG, "-o", tmp_path / "pong.mkv", "--max-seconds", 4, "--scale", 1, "--speed", 4)
    with av.open(tmp_path / "pong.mkv") as film:
        assert not film.streams.audio
        assert float(film.duration / av.time_base) == pytest.approx(1, abs=1 / 30)
        pictures = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    frames = _play(actions)[:240:4]
    assert len(pictures) == 60
    assert all(
        np.array_equal(picture, enlarge(frame.screen, 1)) for picture, frame in zip(pictures, frames, strict=True)
    )


@pytest.mark.slow
def test_backends_side_by_side_see_the_same(tmp_path):
    """Four of them in a grid of two by two, each with its own answers beside the screen."""
    convert_checkpoint(PONG, tmp_path / "agent", ["onnx", "flax", "torch"])
    names = ["onnxruntime", "flax", "torch", "reference"]
    options = [option for name in names for option in ("--backend", name)]
    done = _run(
        "record", tmp_path / "agent", *options, "-o", tmp_path / "a.mkv", "--overlay", "--max-seconds", 2, "--scale", 1
    )
    assert "returns onnxruntime –; flax –; torch –; reference –" in done.stdout
    assert "parted" not in done.stdout
    pictures, _ = _decode(tmp_path / "a.mkv")
    height, width = pictures.shape[1] // 2, pictures.shape[2] // 2
    tiles = [pictures[-1, y : y + height, x : x + width] for y in (0, height) for x in (0, width)]
    assert all(np.array_equal(tile[40:, :280], tiles[0][40:, :280]) for tile in tiles)


@pytest.mark.slow
def test_a_film_on_the_card_is_part_of_the_record(tmp_path):
    folder = tmp_path / "agent"
    convert_checkpoint(PONG, folder, ["safetensors"])
    done = _run("record", folder, "--card", "--max-seconds", 2, "--scale", 1)
    assert f"{folder / 'huggingface/replay.mp4'}: 2.0 s of Pong" in done.stdout
    with av.open(folder / "huggingface/replay.mp4") as film:
        assert sum(1 for _ in film.decode(video=0)) == 120
    # It is current, agrees, and is proven with the rest.
    assert convert_checkpoint(PONG, folder, ["safetensors"]).written == ()
    result = check_agent(folder, PONG, Options(("safetensors",), max_steps=20))
    assert result.agrees
    (folder / "huggingface/replay.mp4").write_bytes(b"another film")
    changed = check_agent(folder, PONG, Options(("safetensors",), max_steps=20))
    assert not changed.agrees


def test_a_card_needs_a_folder_for_the_hub(tmp_path):
    folder = tmp_path / "agent"
    convert_checkpoint(PONG, folder, ["onnx"])
    assert (
        "has no huggingface/: run atari-convert --to safetensors first"
        in _run("record", folder, "--card", code=2).stderr
    )


def test_a_mode_and_a_difficulty_change_the_game(tmp_path):
    frames = {variation: _play([0] * 20, variation=variation) for variation in (Variation(), Variation(1, 3))}
    standard, other = (np.stack([frame.screen for frame in each]) for each in frames.values())
    assert not np.array_equal(standard, other)
    assert np.array_equal(standard, np.stack([frame.screen for frame in _play([0] * 20, variation=Variation(0, 0))]))
    done = _run("record", PONG, "-o", tmp_path / "x.mp4", "--mode", 7, code=2)
    assert "Pong has no mode 7: expected one of 0, 1" in done.stderr


@pytest.mark.slow
def test_every_variation_of_every_game_can_be_opened():
    """Of the last mode and difficulty of each game, which is not always what it starts with."""
    for game, known in load_games().items():
        modes, difficulties = list_variations(game)
        protocol = PROTOCOLS["classic"]
        Episode(game, protocol, 0, len(known.actions), variation=Variation(modes[-1], difficulties[-1])).step(0)


def test_games_are_listed_with_their_variations():
    lines = _run("games").stdout.splitlines()
    assert len(lines) == 61
    assert "Pong              0 1 2 3       0 1" in lines
    (centipede,) = [line for line in lines if line.startswith("Centipede")]
    assert centipede.split()[1:] == ["0", "22", "86"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.gz", "-o", "{}/a.mp4"), "nowhere.gz"),
        ((PONG, "-o", "{}/a.avi"), "a name that ends in .mp4, .mkv"),
        ((PONG, "-o", "{}/nowhere/a.mp4"), "No such file"),
        ((PONG, "-o", "{}/a.mp4", "--backend", "onnx"), "did you mean"),
        ((PONG.parents[3], "-o", "{}/a.mp4"), "holds 2 agents, expected one"),
    ],
)
def test_mistakes_are_told_and_leave_no_file(arguments, message, tmp_path):
    done = _run("record", *[str(argument).format(tmp_path) for argument in arguments], code=2)
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_recording_leaves_no_file(number, tmp_path):
    code = "import sys; from runtime_check.play.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "record", str(PONG), "-o", str(tmp_path / "a.mp4"), "--max-seconds", "3000"]
    with subprocess.Popen(command, env=os.environ, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(tmp_path.iterdir()):
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_a_codec_that_is_missing_is_named(monkeypatch, tmp_path):
    """As in builds of PyAV without x264."""
    known = recording.FORMATS[".mp4"]
    monkeypatch.setitem(recording.FORMATS, ".mp4", replace(known, codec="libnothing"))
    done = _run("record", PONG, "-o", tmp_path / "a.mp4", code=2)
    assert "this PyAV has no codec libnothing: pip install -U av" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["cv2", "av", "ale_py"])
def test_a_package_that_is_missing_is_named(package, tmp_path):
    code = f"import sys; sys.modules[{package!r}] = None; from runtime_check.play.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "record", str(PONG), "-o", str(tmp_path / "a.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'atari-convert[play]'" in done.stderr
    assert "Traceback" not in done.stderr
