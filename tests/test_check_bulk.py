"""Many agents checked: in processes, shards, again; what a proof says, what CI reads."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import AGENTS, make_state, plant_weights, to_network
from click.testing import CliRunner, Result
from junitparser import Error, Failure, JUnitXml

import convert
from convert.errors import CheckError, ProofError
from convert.pipeline import convert_checkpoint
from convert.proofs import describe_record
from runtime_check.bulk import run
from runtime_check.cli import main
from runtime_check.proof import publish_proof

FOLDER = "DQN_modern/Pong/0/model_328492"
OTHER = "C51_classic/Breakout/0/model_187420"
FAST = ("--source", str(AGENTS), "--max-steps", "5", "--backend", "onnxruntime")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def agents(converted, tmp_path):
    """A tree of both trained agents, to change."""
    return _copy(converted, tmp_path / "agents")


@pytest.fixture
def tree(converted, tmp_path):
    """Six agents: four good ones, one with other weights, one whose record is damaged."""
    root = tmp_path / "tree"
    for name in ("a", "bad", "c", "d", "e"):
        _copy(converted / FOLDER, root / name)
    plant_weights(root / "bad", "onnx", to_network(make_state(6)))
    (root / "broken").mkdir()
    (root / "broken/agent.json").write_text("{", "utf-8")
    return root


def _copy(folder: Path, to: Path) -> Path:
    """Copy agents without the proofs that other tests may have left with them."""
    return Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns("proof.json")))


def _run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def _read_report(path: Path) -> dict:
    """Return check.json without what may differ from run to run."""
    document = json.loads((path / "check.json").read_text("utf-8"))
    del document["created"]
    return document


def _read_proofs(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("proof.json"))}


def test_a_check_leaves_its_proof_with_the_agent(agents):
    _run(agents, *FAST)
    proof = convert.read_proof(agents / FOLDER)
    assert (proof.result, proof.passed, proof.failed, proof.holds) == ("PASSED", ("reference", "onnxruntime"), (), True)
    statement = proof.statement
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    record = convert.read_record(agents / FOLDER)
    (file,) = record.artifacts["onnx"].files
    assert [(each["name"], each["digest"]["sha256"]) for each in statement["subject"]] == [(file.path, file.sha256)]
    source, told, rom, how = statement["predicate"]["configuration"]
    assert source == {"name": record.agent.source.path, "digest": {"sha256": record.agent.source.sha256}}
    assert (told["name"], told["annotations"]) == ("agent.json", {"artifacts": ["onnx"]})
    assert re.fullmatch("[0-9a-f]{32}", rom["digest"]["md5"])
    assert how["annotations"]["max_steps"] == 5
    assert how["annotations"]["protocol"]["name"] == "modern"
    assert statement["predicate"]["annotations"]["backends"]["onnxruntime"]["steps"] == 5
    text = (agents / FOLDER / "proof.json").read_text("utf-8")
    assert str(agents) not in text
    assert str(time.gmtime().tm_year) not in text.replace(record.agent.source.sha256, "").replace(file.sha256, "")


def test_a_proof_of_an_agent_that_disagrees_says_so(tree):
    _run(tree / "bad", *FAST, code=1)
    proof = convert.read_proof(tree / "bad")
    assert (proof.result, proof.failed, proof.holds) == ("FAILED", ("onnxruntime",), True)
    reasons = proof.statement["predicate"]["annotations"]["backends"]["onnxruntime"]["reasons"]
    assert any("other weights than the checkpoint's" in reason for reason in reasons)


def test_a_proof_holds_for_the_bytes_that_are_there_and_no_others(agents):
    _run(agents, *FAST)
    model = agents / FOLDER / "model.onnx"
    data = bytearray(model.read_bytes())
    model.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert not convert.read_proof(agents / FOLDER).holds
    model.write_bytes(data)
    assert convert.read_proof(agents / FOLDER).holds
    shutil.copy(agents / FOLDER / "proof.json", agents / OTHER / "proof.json")
    assert not convert.read_proof(agents / OTHER).holds


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "no in-toto statement"),
        ('{"_type": "https://in-toto.io/Statement/v1"}', "another predicate"),
        ("x" * 2**21, "expected at most"),
    ],
)
def test_what_is_no_proof_is_told(agents, content, message):
    (agents / FOLDER / "proof.json").write_text(content, "utf-8")
    with pytest.raises(ProofError, match=message):
        convert.read_proof(agents / FOLDER)


def test_a_link_in_the_place_of_a_proof_is_neither_read_nor_written_through(agents, tmp_path):
    (tmp_path / "secret").write_text("{}", "utf-8")
    (agents / FOLDER / "proof.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ProofError, match="symbolic link"):
        convert.read_proof(agents / FOLDER)
    _run(agents / FOLDER, *FAST)
    assert (tmp_path / "secret").read_text("utf-8") == "{}"
    assert convert.read_proof(agents / FOLDER).holds


def test_no_proof_is_written_for_files_that_changed_while_they_were_checked(agents):
    _run(agents / FOLDER, *FAST)
    record, statement = convert.read_record(agents / FOLDER), convert.read_proof(agents / FOLDER).statement
    (agents / FOLDER / "proof.json").unlink()
    with (agents / FOLDER / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckError, match="changed while they were checked"):
        publish_proof(agents / FOLDER, record, statement)
    assert not (agents / FOLDER / "proof.json").exists()


def test_what_is_proven_is_passed_over_and_the_report_is_the_same(tree, tmp_path):
    first = _run(tree, *FAST, "--report", tmp_path / "first", code=1)
    second = _run(tree, *FAST, "--report", tmp_path / "second", code=1)
    assert "known" not in first.stdout
    assert "4 agents agree, 1 disagree, 1 could not be checked; 5 of them known from an earlier run" in second.stdout
    assert _read_report(tmp_path / "first") == _read_report(tmp_path / "second")
    for name in ("episodes.jsonl", "check.html"):
        texts = [(tmp_path / run / name).read_text("utf-8") for run in ("first", "second")]
        assert len({re.sub(r"\d{4}-\d\d-\d\dT[\d:+]+", "", text) for text in texts}) == 1
    assert "known" not in _run(tree / "a", *FAST, "--again").stdout


@pytest.mark.parametrize(
    "change",
    [
        lambda agent: (agent / "proof.json").write_text((agent / "proof.json").read_text().replace("5", "50000")),
        lambda agent: (agent / "model.onnx").touch(),
        lambda agent: (agent / "tf").mkdir(),
        lambda agent: (agent / "proof.json").write_bytes(b""),
    ],
)
def test_an_agent_in_which_anything_has_changed_is_checked_again(agents, change):
    _run(agents / FOLDER, *FAST)
    proof = (agents / FOLDER / "proof.json").read_bytes()
    change(agents / FOLDER)
    assert "known" not in _run(agents / FOLDER, *FAST).stdout
    assert (agents / FOLDER / "proof.json").read_bytes() == proof


def test_a_verdict_on_files_that_were_replaced_meanwhile_is_not_remembered(agents, monkeypatch):
    """Somebody puts another artefact in place, after the proof was published and before the stamps are taken."""

    def publish_and_replace(place, record, statement, publish=run.publish) -> None:
        publish(place, record, statement)
        plant_weights(agents / FOLDER, "onnx", to_network(make_state(6)))

    with monkeypatch.context() as patch:
        patch.setattr(run, "publish", publish_and_replace)
        _run(agents / FOLDER, *FAST)
    done = _run(agents / FOLDER, *FAST, code=1)
    assert "known" not in done.stdout
    assert "other weights than the checkpoint's" in done.stdout


def test_other_options_or_sources_are_another_check(agents, tmp_path):
    _run(agents / FOLDER, *FAST)
    assert "known" in _run(agents / FOLDER, *FAST).stdout
    assert "known" not in _run(agents / FOLDER, *FAST, "--epsilon", 0.1).stdout
    shutil.copytree(AGENTS, tmp_path / "release")
    assert "known" not in _run(agents / FOLDER, *FAST, "--source", tmp_path / "release").stdout


def test_a_forged_proof_is_never_taken_for_a_verdict(tree):
    """On a computer that has checked nothing: the proof of a good agent, in the folder of one with other weights."""
    _run(tree / "a", *FAST)
    forged = json.loads((tree / "a/proof.json").read_text("utf-8"))
    record = convert.read_record(tree / "bad")
    forged["subject"][0]["digest"]["sha256"] = record.artifacts["onnx"].files[0].sha256
    forged["predicate"]["configuration"][1] = describe_record(record, ["onnx"])
    (tree / "bad/proof.json").write_text(json.dumps(forged, indent=2) + "\n", "utf-8")
    assert convert.read_proof(tree / "bad").holds  # it is no signature
    assert "other weights than the checkpoint's" in _run(tree / "bad", *FAST, code=1).stdout


@pytest.mark.slow
def test_processes_and_shards_find_what_one_process_finds(tree, tmp_path):
    _run(tree, *FAST, "--report", tmp_path / "one", "--junitxml", tmp_path / "one.xml", code=1)
    proofs = _read_proofs(tree)
    assert len(proofs) == 5
    for path in tree.rglob("proof.json"):
        path.unlink()
    _run(tree, *FAST, "--again", "-j", 2, "--report", tmp_path / "two", "--junitxml", tmp_path / "two.xml", code=1)
    assert _read_report(tmp_path / "one") == _read_report(tmp_path / "two")
    assert (tmp_path / "one.xml").read_text("utf-8") == (tmp_path / "two.xml").read_text("utf-8")
    assert _read_proofs(tree) == proofs
    found = []
    for number in (1, 2, 3):
        report = tmp_path / f"shard{number}"
        result = CliRunner().invoke(
            main, [str(tree), *FAST, "--again", "--shard", f"{number}/3", "--report", str(report)]
        )
        assert result.exit_code in (0, 1, 2)
        found += _read_report(report)["agents"]
    assert found == _read_report(tmp_path / "one")["agents"]


@pytest.mark.slow
def test_ray_finds_what_one_process_finds(tree, tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    for name, options in {"one": (), "ray": ("--engine", "ray", "-j", 2)}.items():
        command = [sys.executable, "-m", "runtime_check", tree, *FAST, "--again", *options, "--report", tmp_path / name]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
        assert done.returncode == 1, done.stderr
    assert _read_report(tmp_path / "one") == _read_report(tmp_path / "ray")


@pytest.mark.slow
def test_a_run_that_is_killed_loses_the_agents_under_way_at_most(converted, tmp_path):
    root = tmp_path / "tree"
    for number in range(12):
        _copy(converted / FOLDER, root / f"agent{number:02}")
    command = [sys.executable, "-m", "runtime_check", str(root), *FAST, "-j", "2"]
    for kill in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        before = len(_read_proofs(root))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            end = time.monotonic() + 60
            while len(_read_proofs(root)) < before + 2 and time.monotonic() < end:
                time.sleep(0.05)
            os.kill(process.pid, kill)
            _, stderr = process.communicate(timeout=60)
        assert "Traceback" not in stderr
        if kill != signal.SIGKILL:
            assert "rerun the same command to resume" in stderr
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    known = re.search(r"12 agents agree, 0 disagree, 0 could not be checked; (\d+) of them known", done.stdout)
    assert known
    # A verdict is remembered a moment after its proof is published: each kill may lose what two workers had at hand.
    assert int(known[1]) >= 6 - 2 * 3
    assert len(_read_proofs(root)) == 12
    assert not list(root.rglob(".proof*"))


def test_a_verdict_is_kept_where_the_proof_cannot_be_written(agents):
    if os.geteuid() == 0:
        # Root writes everywhere; a folder in the place of the file stands for a disk that refuses.
        (agents / FOLDER / ".proof.json.part").mkdir()
    else:
        (agents / FOLDER).chmod(0o500)
    done = _run(agents / FOLDER, *FAST)
    assert "proof.json cannot be written" in done.stderr
    assert "known" in _run(agents / FOLDER, *FAST).stdout


def test_agents_are_chosen_as_for_conversion(agents, tmp_path):
    def count(*options: str) -> str:
        return _run(agents, *FAST, "--dry-run", *options).stdout.splitlines()[-1]

    assert count() == "2 to check, 0 known from an earlier run"
    assert count("--game", "Po*") == count("--family", "DQN*") == count("--steps", "328492") == count("--shard", "1/2")
    assert count("--game", "Po*") == "1 to check, 0 known from an earlier run"
    assert "fits --game Qbert" in _run(agents, *FAST, "--game", "Qbert", code=2).stderr
    assert "is not K/N" in _run(agents, *FAST, "--shard", "3/2", code=2).stderr
    listed = tmp_path / "list.txt"
    listed.write_text(f"{agents / FOLDER}\n\n", "utf-8")
    assert "1 to check" in _run(*FAST, "--dry-run", "--files-from", listed).stdout
    listed.write_text("nowhere\n", "utf-8")
    assert "nowhere" in _run(*FAST, "--files-from", listed, code=2).stderr
    assert not list(agents.rglob("proof.json"))


def test_fail_fast_stops_at_the_first_problem(tree):
    done = _run(tree, *FAST, "--fail-fast", code=1)
    assert "1 agent agrees, 1 disagree, 0 could not be checked; 4 not reached" in done.stdout


def _find_obeyed(text: str) -> list[str]:
    """Return the commands that GitHub Actions obeys in an output, as its documentation has them."""
    obeyed, end = [], None
    for line in map(str.strip, text.splitlines()):
        if line.startswith("::stop-commands::") and end is None:
            end = f"::{line.removeprefix('::stop-commands::')}::"
        elif line == end:
            end = None
        elif line.startswith("::") and end is None:
            obeyed.append(line)
    assert end is None
    return obeyed


def test_github_obeys_no_name_of_a_folder(tree, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.chdir(tree)
    for name in ("a", "broken"):
        (tree / name).rename(tree / f"::error ::{name}")
    done = _run("::error ::a", "::error ::broken", *FAST, code=2)
    assert any(line.startswith("::error ::a") for line in done.stdout.splitlines())
    assert len(_find_obeyed(done.output)) == 1  # the annotation on the broken one
    assert _find_obeyed(done.output)[0].startswith("::warning title=unchecked%3A")


def test_ci_reads_the_verdicts(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "page.md"))
    junit, summary = tmp_path / "junit.xml", tmp_path / "summary.json"
    done = _run(tree, *FAST, "--junitxml", junit, "--summary", summary, code=1)
    suites = {Path(suite.name).name: suite for suite in JUnitXml.fromfile(str(junit))}
    assert set(suites) == {"a", "bad", "broken", "c", "d", "e"}
    assert {name for name, suite in suites.items() if suite.failures} == {"bad"}
    assert {name for name, suite in suites.items() if suite.errors} == {"broken"}
    cases = {case.name: case.result for case in suites["bad"]}
    assert cases["reference"] == []
    assert isinstance(cases["onnxruntime"][0], Failure)
    assert "other weights" in cases["onnxruntime"][0].text
    (case,) = suites["broken"]
    assert isinstance(case.result[0], Error)
    lines = _find_obeyed(done.stderr)
    assert [line.split(" ")[0] for line in lines] == ["::error", "::warning"]
    assert "other weights" in lines[0]
    document = json.loads(summary.read_text("utf-8"))
    assert (document["agree"], document["disagree"], document["unchecked"], document["total"]) == (4, 1, 1, 6)
    assert [Path(problem["folder"]).name for problem in document["problems"]] == ["bad", "broken"]
    page = (tmp_path / "page.md").read_text("utf-8")
    assert "### atari-check: 4 agents agree, 1 disagree, 1 could not be checked" in page
    assert "other weights" in page


@pytest.mark.parametrize("option", ["--junitxml", "--summary"])
def test_what_could_not_be_written_is_refused_before_the_work(agents, option):
    done = _run(agents, *FAST, option, agents / "nowhere/file", code=2)
    assert "nowhere" in done.stderr
    assert not list(agents.rglob("proof.json"))


def test_a_conversion_leaves_a_proof_that_no_longer_holds(agents):
    _run(agents / FOLDER, *FAST)
    convert_checkpoint(AGENTS / f"{FOLDER}.gz", agents / FOLDER, ["safetensors"])
    assert convert.read_proof(agents / FOLDER).holds  # the files that were checked are the same
    assert "known" not in _run(agents / FOLDER, *FAST).stdout


def test_a_report_is_made_from_proofs_alone(tree, tmp_path):
    for number in (1, 2):
        CliRunner().invoke(main, [str(tree), *FAST, "--shard", f"{number}/2"])
    whole = CliRunner().invoke(main, [str(tree), *FAST, "--report", str(tmp_path / "whole")])
    made = _run("report", tree, "-o", tmp_path / "made", "--junitxml", tmp_path / "made.xml", code=1)
    assert "4 agents agree, 1 disagree, 1 could not be checked" in made.stdout
    assert whole.exit_code == 1
    first, second = _read_report(tmp_path / "whole"), _read_report(tmp_path / "made")
    assert (first.pop("options")["max_steps"], second.pop("options")) == (5, None)
    broken = [document["agents"].pop(2) for document in (first, second)]
    assert [agent["verdict"] for agent in broken] == ["unchecked", "unchecked"]
    assert first == second
    # Pictures and episodes come from what this computer remembers.
    assert (tmp_path / "made/episodes.jsonl").read_text("utf-8") == (tmp_path / "whole/episodes.jsonl").read_text(
        "utf-8"
    )
    assert "<svg" in (tmp_path / "made/check.html").read_text("utf-8")
    assert len(JUnitXml.fromfile(str(tmp_path / "made.xml"))) == 6


def test_another_computer_reports_the_same_verdicts_without_pictures(tree, tmp_path, monkeypatch):
    CliRunner().invoke(main, [str(tree), *FAST])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    moved = tree.rename(tmp_path / "moved")
    done = _run("report", moved, "-o", tmp_path / "report", code=1)
    assert "other weights than the checkpoint's" in done.stdout
    page = (tmp_path / "report/check.html").read_text("utf-8")
    assert "1 disagrees, 4 agree, 1 not checked" in page
    assert "<svg" not in page


def _forge(predicate: dict, path: tuple[str, ...], value: object) -> None:
    *above, name = path
    for part in above:
        predicate = predicate[part]
    predicate[name] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("annotations", "backends", "onnxruntime", "steps"), "<script>", "no valid backends.onnxruntime.steps"),
        (("annotations", "backends", "onnxruntime", "reasons"), ["wrong"], "contradicts itself"),
        (("annotations", "backends", "onnxruntime", "more"), 1, "no valid backends.onnxruntime"),
        (("annotations", "protocol"), {}, "no valid protocol"),
        (("annotations",), None, "no valid "),
        (("failedTests",), ["flax"], "contradicts itself"),
    ],
)
def test_a_damaged_or_forged_proof_is_no_row_of_a_report(agents, path, value, message):
    _run(agents / FOLDER, *FAST)
    proof = agents / FOLDER / "proof.json"
    statement = json.loads(proof.read_text("utf-8"))
    _forge(statement["predicate"], path, value)
    proof.write_text(json.dumps(statement), "utf-8")
    done = _run("report", agents / FOLDER, code=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_report_needs_proofs_of_the_files_that_are_there(agents):
    _run(agents / FOLDER, *FAST)
    assert "run atari-check on the folder to write one" in _run("report", agents / OTHER, code=2).stderr
    with (agents / FOLDER / "model.onnx").open("ab") as file:
        file.write(b"\0")
    assert "not about the agent and the files that are there" in _run("report", agents / FOLDER, code=2).stderr


def test_a_checkpoint_that_was_not_converted_is_told(agents):
    shutil.rmtree(agents / "C51_classic")
    note = f"note: not converted, so not checked: {agents / OTHER}\n"
    assert _run(agents, *FAST).stderr == note
    assert _run(agents, *FAST, "--game", "Pong").stderr == ""
    assert _run(agents / FOLDER, *FAST).stderr == ""
    assert _run(agents, *FAST, "-q").stderr == ""
