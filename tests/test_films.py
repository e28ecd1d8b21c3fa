"""``atari-check --frames``: the first steps of an agent, exact, in the report and nowhere else."""

from __future__ import annotations

import base64
import json
import re
import zlib

import numpy as np
import pytest
from builders import PONG, make_state, plant_weights, to_network
from click.testing import CliRunner

import convert
from convert.pipeline import convert_checkpoint
from runtime_check import Listeners, Options, check_agent
from runtime_check.check.films import KINDS, STEPS_PER_REEL
from runtime_check.cli import main
from runtime_check.protocols import PROTOCOLS, Episode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films") / "agent"
    convert_checkpoint(PONG, folder, ["onnx"])
    return folder


def _check(folder, options):
    logs = []
    listeners = Listeners(episode=lambda name, _, log: logs.append(log) if name == "reference" else None)
    return check_agent(folder, PONG, options, listeners), sorted(logs, key=lambda log: log.seed)


def _play(log) -> tuple[list[np.ndarray], list[float]]:
    """Return the screens on which a logged episode acted, and its return before each step."""
    episode = Episode(log.game, PROTOCOLS[log.protocol], log.seed, log.head_actions)
    screens, returns = [], [0.0]
    for action in log.actions:
        screens.append(episode.read_screen())
        returns.append(returns[-1] + episode.step(action))
    return screens, returns


def _unpack(text, dtype):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def _decode(film) -> np.ndarray:
    """Return the screens of a film in JSON: uint8[S, height, width, 3]."""
    palette, screens = _unpack(film["palette"], "u1").reshape(256, 3), []
    for reel in film["reels"]:
        indices = _unpack(reel, "u1").reshape(-1, film["height"], film["width"])
        screens += list(np.bitwise_xor.accumulate(indices, axis=0))
    return palette[np.array(screens[: film["steps"]])]


def test_a_film_is_what_the_emulator_showed_and_the_networks_answered(folder):
    from runtime_check.report.films import to_json

    result, logs = _check(folder, Options(("onnxruntime",), episodes=2, max_steps=130, frames=200))
    assert [len(film.actions) for film in result.films] == [130, 70]
    for film, log in zip(result.films, logs, strict=True):
        document = json.loads(json.dumps(to_json(film, ("A", "B", "C", "D", "E", "F"))))
        steps = document["steps"]
        screens, returns = _play(log)
        assert np.array_equal(_decode(document), np.array(screens[:steps]))
        assert np.array_equal(film.returns, returns[: steps + 1])
        assert np.array_equal(_unpack(document["taken"], "u1"), log.actions[:steps])
        q_values = _unpack(document["q_values"], "<f4").reshape(steps, 6)
        assert np.array_equal(q_values.argmax(axis=1), log.choices[:steps])
        (reference, onnx) = document["backends"]
        assert (reference["name"], onnx["name"]) == ("reference", "onnxruntime")
        differences = _unpack(onnx["differences"], "<f4").reshape(steps, 6)
        assert np.array_equal(np.abs(differences).max(axis=1), _unpack(onnx["errors"], "<f4"))
        assert 0 < np.abs(differences).max() < 1e-5
        assert not _unpack(onnx["kinds"], "u1").any()
        assert np.allclose(_unpack(document["gaps"], "<f4"), np.diff(np.sort(q_values), axis=1)[:, -1], atol=1e-6)


@pytest.mark.slow
def test_a_wrong_action_is_marked_where_it_happens(tmp_path):
    other = tmp_path / "agent"
    convert_checkpoint(PONG, other, ["onnx"])
    plant_weights(other, "onnx", to_network(make_state(6)))
    result, _ = _check(other, Options(("onnxruntime",), max_steps=40, frames=100))
    kinds = result.films[0].answers["onnxruntime"].kinds
    assert int((kinds == KINDS.index("wrong")).sum()) == result.backends["onnxruntime"].tally.disagreements.wrong > 0


def test_without_frames_nothing_is_kept(folder):
    result, _ = _check(folder, Options(("onnxruntime",), max_steps=20))
    assert result.films == ()


@pytest.mark.slow
def test_frames_change_nothing_that_is_proven(folder, tmp_path):
    def check(*options) -> dict:
        arguments = ["--source", str(PONG), "--backend", "onnxruntime", "--max-steps", "20", "--again", *options]
        done = CliRunner().invoke(main, [str(folder), *arguments])
        assert done.exit_code == 0, done.output
        return convert.read_proof(folder).statement

    plain = check()
    report = tmp_path / "report"
    assert check("--frames", "15", "--report", str(report)) == plain
    page = (report / "check.html").read_text("utf-8")
    (film,) = re.findall(r'<script type="application/json">(.*?)</script>', page)
    assert json.loads(film)["steps"] == 15 < STEPS_PER_REEL
    assert check("--report", str(report)) == plain
    assert "DecompressionStream" not in (report / "check.html").read_text("utf-8")


@pytest.mark.parametrize("options", [("--frames", "5"), ("--frames", "5", "--report", "x", "--mode", "solo")])
def test_frames_need_a_report_and_a_shadow_replay(options, folder):
    done = CliRunner().invoke(main, [str(folder), "--source", str(PONG), *options])
    assert done.exit_code == 2
    assert "--frames needs --report, and --mode shadow or both" in done.stderr
