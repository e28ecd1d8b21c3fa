"""The report: what it says of results that the trained agents do not show."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from builders import make_architecture

from convert.agents.agent import Agent, File, Record
from convert.errors import RomUnavailable
from convert.formats.atari_agents import make_identity
from convert.runtimes import Description
from runtime_check.backends import Bound, list_backends
from runtime_check.check.exhibits import Exhibit, add_exhibit
from runtime_check.check.options import Options
from runtime_check.check.results import AgentResult, BackendResult
from runtime_check.compare import Tolerance, compare_outputs
from runtime_check.protocols import PROTOCOLS
from runtime_check.replay import EpisodeLog, Plan, from_json_line
from runtime_check.report.documents import combine_verdicts, to_document, to_failure
from runtime_check.report.episode_logs import EpisodeLogs
from runtime_check.report.page import illustrate
from runtime_check.report.plots import draw_plots
from runtime_check.report.terminal import format_agent
from runtime_check.report.writer import ReportWriter
from runtime_check.tally import Returns, Tally

SCHEMA = json.loads(files("runtime_check.report").joinpath("check.schema.json").read_text("utf-8"))
TOLERANCE = Tolerance(1e-5, 1e-5)
OPTIONS = Options()


def _make_result(
    folder: str = "out/agent",
    error: float = 1e-6,
    steps: int = 5,
    tolerance: Tolerance = TOLERANCE,
    bounds: Mapping[str, Bound | None] | None = None,
    **findings: object,
) -> AgentResult:
    """Return the result of an agent whose backends, the reference and those with ``bounds``, are off by ``error``."""
    expected = np.tile([1.0, 0.5], (steps, 1))
    comparison = compare_outputs({"q_values": np.float32(expected + error)}, {"q_values": expected}, tolerance)
    description = Description("torch", "2", "cpu", "float32", "eager", 2, 1)
    backends = {}
    for name, bound in {"reference": None, **(bounds or {})}.items():
        own = Tolerance(bound.atol, bound.rtol, tolerance.scale) if bound else tolerance
        tally = Tally()
        tally.add(comparison, np.zeros(steps, np.int64), np.arange(steps))
        backends[name] = BackendResult(name, own, bound, description, tally=tally)
    backends["reference"].shadow_returns.add(3.0)
    identity = make_identity("DQN_modern", "Pong", 0, 7)
    source = File("DQN_modern/Pong/0/model_7.gz", 1, "0" * 64)
    agent = Agent(identity, make_architecture(2), source, ("NOOP", "FIRE"))
    result = AgentResult(
        folder=Path(folder),
        source=Path("model_7.gz"),
        record=Record(agent, {}, {}),
        plan=Plan("Pong", PROTOCOLS["modern"], 2),
        rom_md5="0" * 32,
        tolerance=tolerance,
        backends=backends,
    )
    return replace(result, **findings)


def _write(tmp_path: Path, *results: AgentResult, options: Options = OPTIONS) -> tuple[dict, str]:
    with ReportWriter(tmp_path / "report", options, len(results)) as writer:
        for result in results:
            writer.add_agent(to_document(result), illustrate(result), "")
        document = json.loads("".join(writer.finish()))
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    assert document == json.loads((tmp_path / "report/check.json").read_text("utf-8"))
    return document, (tmp_path / "report/check.html").read_text("utf-8")


def test_one_disagreement_or_one_unchecked_agent_decides():
    assert combine_verdicts({"agree": 3}) == "agree"
    assert combine_verdicts({"agree": 3, "unchecked": 1}) == "unchecked"
    assert combine_verdicts({"agree": 3, "unchecked": 1, "disagree": 1}) == "disagree"


def test_what_comes_from_outside_is_escaped(tmp_path):
    result = _make_result("out/<script>alert(1)</script>", faults=("agent.json: <img src=x>",))
    _, page = _write(tmp_path, result)
    assert "<script>" not in page
    assert "<img src=x>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_record_that_misleads_has_no_backend_that_agrees(tmp_path):
    result = _make_result(faults=("agent.json: protocol is not that of this agent",), backends={})
    document, page = _write(tmp_path, result)
    assert (document["verdict"], document["agents"][0]["backends"]) == ("disagree", {})
    assert 'class="verdict agree"' not in page
    assert "protocol is not that of this agent" in page
    assert "protocol is not that of this agent" in format_agent(document["agents"][0])


def test_a_report_of_solo_play_alone_says_what_was_measured(tmp_path):
    _, page = _write(tmp_path, _make_result(), options=Options(shadow=False, solo=True))
    assert "Errors were measured on three\nobservations only" in page
    _, page = _write(tmp_path, _make_result(), options=Options(solo=True))
    assert "within the allowed error, on every step that was compared" in page


def test_rounded_weights_are_held_to_a_bound_that_the_report_states(tmp_path):
    document, page = _write(tmp_path, _make_result(error=0.1, bounds={"litert-int8": Bound(0.25, 0.2, 0.9)}))
    outcome = document["agents"][0]["backends"]["litert-int8"]
    assert outcome["tolerance"] == {"atol": 0.25, "rtol": 0.2, "scale": 1.0}
    assert (outcome["least_agreement"], outcome["agreement"]) == (0.9, 1.0)
    sentence = "held to an error of 0.25 + 0.2·max|q| and to the oracle's action on 90% of the steps"
    assert sentence in page.replace("&#39;", "'")
    table = format_agent(document["agents"][0])
    assert "litert-int8: rounded weights" in table
    assert max(map(len, table.splitlines())) <= 100


def test_the_plots_draw_the_bound_of_rounded_weights(tmp_path):
    _, page = _write(tmp_path, _make_result(bounds={"flax": None}))
    assert page.count('<polyline class="limit"') == 1
    assert "the smallest error allowed there." in page
    assert "\nAllowed error: 1e-05" in page
    bounds = {"flax": None, "litert-int8": Bound(0.25, 0.2, 0.9)}
    _, page = _write(tmp_path, _make_result(error=0.1, bounds=bounds))
    assert page.count('<polyline class="limit"') == 2
    assert "the smallest error allowed there; litert-int8, with rounded weights, has other bounds." in page
    assert "another action of float32 weights than" in page
    assert "\nAllowed error of float32 weights: 1e-05" in page


def test_options_and_numbers_are_in_words(tmp_path):
    result = _make_result(plan=Plan("Pong", PROTOCOLS["modern"], 1))
    _, page = _write(tmp_path, result, options=Options(backends=("flax", "onnxruntime")))
    assert "\n1 episode from seed 0" in page
    assert "backends: flax, onnxruntime · episodes: 1 · seed: 0 · epsilon: 0.0 · shadow: yes · solo: no · " in page
    assert "· side by side: 1<" in page


def test_artefacts_without_a_backend_are_named(tmp_path):
    document, page = _write(tmp_path, _make_result(unchecked=("npz",)))
    assert document["agents"][0]["unchecked_targets"] == ["npz"]
    assert "Not checked: npz" in page
    assert "not checked: npz" in format_agent(document["agents"][0])


def test_an_agent_that_could_not_be_checked_has_its_reason(tmp_path):
    with ReportWriter(tmp_path / "report", Options()) as writer:
        writer.add_agent(to_failure(Path("out/agent"), RomUnavailable("no ROM")), {}, "")
        document = json.loads("".join(writer.finish()))
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    assert document["agents"][0]["error"] == {"kind": "RomUnavailable", "message": "no ROM"}
    assert "no ROM" in (tmp_path / "report/check.html").read_text("utf-8")


def test_many_agents_have_one_row_each_the_problems_first(tmp_path):
    bounds = {"flax": None, "onnxruntime": None}
    results = [_make_result(f"out/{number}", bounds=bounds) for number in range(60)]
    results[7] = _make_result("out/7", error=1.0, bounds=bounds)
    _, page = _write(tmp_path, *results)
    _, page = _write(tmp_path, *results)  # in place of the one before
    assert "✗ 1 disagrees, 59 agree" in page
    assert page.index("Problems") < page.index("out/7.html".replace("out", "agents")) < page.index("Agreements")
    assert "<summary>DQN_modern Pong: 59 agree</summary>" in page
    assert page.count("<tr><td>") == 60
    assert "<svg" not in page
    detail = (tmp_path / "report/agents/7.html").read_text("utf-8")
    assert "error above the allowed" in detail
    assert detail.count("<svg") == 3
    assert [path.name for path in (tmp_path / "report/agents").iterdir()] == ["7.html"]
    _, page = _write(tmp_path, _make_result())
    assert not (tmp_path / "report/agents").exists()
    assert "<svg" in page


def test_nothing_is_left_of_a_report_that_was_not_finished(tmp_path):
    with pytest.raises(KeyboardInterrupt), ReportWriter(tmp_path / "report", Options()) as writer:
        writer.add_agent(to_document(_make_result()), {}, "")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_finished_report_replaces_the_one_before(tmp_path):
    _write(tmp_path, _make_result(error=1.0))
    document, page = _write(tmp_path, _make_result())
    assert document["verdict"] == "agree"
    assert "✓ 1 agrees" in page
    assert len(list((tmp_path / "report").iterdir())) == 3


def test_episode_logs_say_whose_they_are(tmp_path):
    log = EpisodeLog("Pong", "modern", 3, 0, 6, (1, 2, 5), (1, 2, 4), -1.0, False)
    logs = EpisodeLogs()
    logs.add("flax", "solo", log)
    with ReportWriter(tmp_path / "report", Options()) as writer:
        writer.add_agent(to_document(_make_result()), {}, logs.to_text(()))
        list(writer.finish())
    line = (tmp_path / "report/episodes.jsonl").read_text("utf-8")
    assert json.loads(line) | {"folder": "out/agent", "backend": "flax", "mode": "solo"} == json.loads(line)
    assert from_json_line(line) == log


def test_episodes_are_in_one_order_whichever_ended_first():
    ended = [("shadow", "reference", 1), ("shadow", "reference", 0)]
    ended += [("solo", backend, seed) for seed in (10, 9, 2) for backend in ("reference", "flax", "gone")]
    logs = EpisodeLogs()
    for mode, backend, seed in ended:
        actions = (1,) * (99 - seed)
        logs.add(backend, mode, EpisodeLog("Pong", "modern", seed, 0, 6, actions, actions, 0.0, True))
    lines = [json.loads(line) for line in logs.to_text(["reference", "flax"]).splitlines()]
    assert [(line["mode"], line["backend"], line["seed"]) for line in lines] == [
        *(("shadow", "reference", seed) for seed in (0, 1)),
        *(("solo", backend, seed) for backend in ("reference", "flax", "gone") for seed in (2, 9, 10)),
    ]
    assert all(len(from_json_line(json.dumps(line)).actions) == 99 - line["seed"] for line in lines)


def test_returns_are_summed_up_without_being_kept():
    returns, values = Returns(), np.random.default_rng(0).normal(200, 50, 800)
    for value in values:
        returns.add(float(value))
    assert returns.count == 800
    assert returns.mean == pytest.approx(values.mean())
    assert returns.std == pytest.approx(values.std())
    assert returns.first == pytest.approx(values[:500])
    assert Returns().std == 0.0


@pytest.mark.parametrize("tolerance", [TOLERANCE, Tolerance(0.0, 0.0)])
@pytest.mark.parametrize(("error", "steps"), [(0.0, 1), (0.0, 40), (1e-6, 1), (np.nan, 3), (1e30, 2)])
def test_plots_take_every_result(error, steps, tolerance):
    result = _make_result(error=error, steps=steps, tolerance=tolerance)
    for plot in draw_plots(result):
        assert plot.svg.startswith("<svg")
        assert not re.search(r"nan|inf", plot.svg)


def test_every_backend_has_a_line_that_is_seen_and_told_from_the_others(tmp_path):
    names = [backend.name for backend in list_backends() if backend.name != "reference"]
    _, page = _write(tmp_path, _make_result(bounds=dict.fromkeys(names)))
    lines = re.findall(r'<polyline class="line ([^"]*)"', page)
    assert len(set(lines)) == len(names) + 1
    assert all(f".{line.split()[0]} {{ stroke: var(--{line.split()[0]}); }}" in page for line in lines)


def test_pictures_are_of_wrong_actions_first_and_of_every_backend():
    def make_exhibit(step: int, kind: str, *backends: str) -> Exhibit:
        return Exhibit("shadow", 0, step, kind, backends, np.full((4, 84, 84), step, np.uint8), {})

    exhibits = ()
    for step in range(2):
        exhibits = add_exhibit(exhibits, make_exhibit(step, "tie", "keras"), most=4)
    for step in range(2, 12):
        exhibits = add_exhibit(exhibits, make_exhibit(step, "wrong", "flax"), most=4)
    assert [exhibit.step for exhibit in exhibits] == [2, 3, 4, 5]
    exhibits = add_exhibit(exhibits, make_exhibit(12, "wrong", "flax", "nnx"), most=4)
    assert [exhibit.step for exhibit in exhibits] == [2, 3, 4, 12]
    exhibits = add_exhibit(exhibits, make_exhibit(13, "tie", "torch"), most=4)
    assert [exhibit.step for exhibit in exhibits] == [2, 3, 4, 12]
    # The same observation is shown once.
    assert add_exhibit(exhibits, make_exhibit(12, "wrong", "torch"), most=9) == exhibits


def test_pictures_show_the_frames_and_whose_action_is_off(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 84, 84), dtype=np.uint8)
    q_values = {"oracle": (0.25, 0.5), "reference": (0.25, 0.5), "flax": (0.75, 0.5)}
    exhibit = Exhibit("shadow", 1, 17, "wrong", ("flax",), frames, q_values)
    _, page = _write(tmp_path, _make_result(error=1.0, exhibits=(exhibit,)))
    assert page.count('src="data:image/png;base64,') == 4
    assert "in shadow play, episode 1, step 17: flax" in page
    assert '<td class="number chosen off">0.7500000</td>' in page
    assert page.count('<td class="number chosen">0.5000000</td>') == 2
