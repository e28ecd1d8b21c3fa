"""Agents, proofs and lists of strangers: they claim no more than was proven, and end no run."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from builders import AGENTS, make_state, save_checkpoint
from click.testing import CliRunner, Result
from junitparser import JUnitXml

import convert
from convert.agents.identity import Identity
from convert.pipeline import convert_checkpoint
from convert.proofs import describe_record
from runtime_check.bulk import run
from runtime_check.cli import main

FOLDER = "DQN_modern/Pong/0/model_328492"
FAST = ("--source", str(AGENTS), "--max-steps", "5", "--backend", "onnxruntime")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


@pytest.fixture
def agent(converted, tmp_path):
    """A converted agent, to change."""
    ignore = shutil.ignore_patterns("proof.json")
    return Path(shutil.copytree(converted / FOLDER, tmp_path / "agent", ignore=ignore))


@pytest.fixture
def web(tmp_path):
    """A web server, and the folder that it serves."""
    root = tmp_path / "web"
    root.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", root
        server.shutdown()


def _run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def _edit(path: Path, change) -> None:
    document = json.loads(path.read_text("utf-8"))
    change(document)
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


@pytest.mark.parametrize(
    "path", ["%2e%2e/evil/x.gz", "%2E%2E/evil/x.gz", "y/%2e%2e/%2e%2e/evil/x.gz", "x.gz?/../../evil/x.gz"]
)
def test_no_path_of_a_record_leads_out_of_a_source_at_a_url(web, tmp_path, path):
    """A stranger's agent, whose checkpoint is on the same server, and not below the source that was named."""
    url, root = web
    (root / "release").mkdir()
    (root / "evil").mkdir()
    evil = save_checkpoint(root / "evil/x.gz", make_state(6))
    folder = tmp_path / "agent"
    identity = Identity(zoo="atari-agents", algorithm="DQN", game="Pong", protocol="modern", seed=0, step=1)
    convert_checkpoint(evil, folder, ["onnx"], identity=identity)
    _edit(folder / "agent.json", lambda record: record["source"].update(path=path, file="x.gz"))
    done = _run(folder, "--source", f"{url}/release", "--max-steps", 2, code=2)
    assert "cannot be read (not found)" in done.stderr or "is not a plain relative path" in done.stderr


def test_a_checkpoint_at_a_url_may_have_any_name(web, tmp_path):
    url, root = web
    source = root / "my agents" / "100% ?#.gz"
    source.parent.mkdir()
    shutil.copy(AGENTS / f"{FOLDER}.gz", source)
    identity = Identity(zoo="atari-agents", algorithm="DQN", game="Pong", protocol="modern")
    convert_checkpoint(source, tmp_path / "agent", ["onnx"], identity=identity, path="my agents/100% ?#.gz")
    assert "1 agent agrees" in _run(tmp_path / "agent", "--source", url, "--max-steps", 2).stdout


NUMBER = ("annotations", "backends", "onnxruntime", "max_error")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (NUMBER, 10**400, "holds a number that is too large"),
        (("annotations", "backends", "onnxruntime", "steps"), 10**400, "holds a number that is too large"),
        (("annotations", "episodes", "first_seed"), 10**400, "holds a number that is too large"),
        (("annotations", "backends", "onnxruntime", "runtime", "library"), "\x1b[2J", r"holds the text '\x1b[2J'"),
        (
            ("annotations", "backends", "onnxruntime", "runtime", "library"),
            "x\n::error::y",
            "too long or not printable",
        ),
        (("annotations", "backends", "onnxruntime", "runtime", "library"), "x" * 3000, "too long or not printable"),
        (("annotations", "protocol", "name"), "::error::x", "has not the protocol that agent.json names"),
        (("annotations", "protocol", "frame_skip"), 5, "has not the protocol that agent.json names"),
        (("annotations", "rom_md5"), "0" * 32 + "\n", "no valid rom_md5"),
    ],
)
def test_a_forged_value_is_one_line_and_no_row(agent, tmp_path, path, value, message):
    _run(agent, *FAST)

    def forge(statement: dict) -> None:
        *above, name = path
        part = statement["predicate"]
        for each in above:
            part = part[each]
        part[name] = value

    good = Path(shutil.copytree(agent, tmp_path / "good"))
    _edit(agent / "proof.json", forge)
    done = _run("report", agent, good, "-o", tmp_path / "report", code=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "\x1b" not in done.output
    assert "1 agent agrees, 0 disagree, 1 could not be checked" in done.stdout


@pytest.mark.parametrize("name", ["flax", "::error::x", "\x00", "keras\n"])
def test_a_proof_tells_of_no_backend_whose_files_it_does_not_name(agent, tmp_path, name):
    _run(agent, *FAST)

    def forge(statement: dict) -> None:
        predicate = statement["predicate"]
        backends = predicate["annotations"]["backends"]
        backends[name] = backends["onnxruntime"]
        predicate["passedTests"].append(name)

    _edit(agent / "proof.json", forge)
    done = _run("report", agent, "--junitxml", tmp_path / "junit.xml", code=2)
    assert len(done.stderr.splitlines()) == 1
    assert len(JUnitXml.fromfile(str(tmp_path / "junit.xml"))) == 1


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"seed": 7}, "DQN_modern/Pong/7/model_328492.gz"),
        ({"step": 3}, "DQN_modern/Pong/0/model_3.gz"),
        ({"game": "Phoenix", "rom_id": "phoenix"}, "DQN_modern/Phoenix/0/model_328492.gz"),
        ({"action_meanings": ["NOOP", "UP", "DOWN", "LEFT", "RIGHT", "FIRE"]}, "DQN_modern/Pong/0/model_328492.gz"),
    ],
)
def test_a_proof_does_not_hold_for_a_record_that_tells_of_another_agent(agent, change, path):
    _run(agent, *FAST)

    def claim(record: dict) -> None:
        record.update(change)
        record["source"].update(path=path, file=Path(path).name)

    _edit(agent / "agent.json", claim)
    assert not convert.read_proof(agent).holds
    assert "is not about the agent and the files" in _run("report", agent, code=2).stderr


def test_a_report_names_the_artefacts_that_the_proof_says_nothing_of(agent, tmp_path):
    _run(agent, *FAST)
    done = _run("report", agent, "-o", tmp_path / "report")
    (document,) = json.loads((tmp_path / "report/check.json").read_text("utf-8"))["agents"]
    others = sorted(set(convert.read_record(agent).artifacts) - {"onnx"})
    assert sorted(document["unchecked_targets"]) == others
    assert "  not checked: " in done.stdout
    assert others[0] in (tmp_path / "report/check.html").read_text("utf-8")


def test_a_report_is_not_made_of_a_folder_with_an_artefact_that_is_not_recorded(agent):
    _run(agent, *FAST)

    def forget(record: dict) -> None:
        del record["artifacts"]["flax"]

    _edit(agent / "agent.json", forget)
    record = convert.read_record(agent)
    assert convert.read_proof(agent).holds
    assert describe_record(record, ["onnx"]) in convert.read_proof(agent).statement["predicate"]["configuration"]
    assert "params.msgpack is not in agent.json" in _run("report", agent, code=2).stderr


def test_a_checkpoint_that_is_replaced_during_the_check_is_not_remembered(agent, tmp_path, monkeypatch):
    source = Path(shutil.copy(AGENTS / f"{FOLDER}.gz", tmp_path / "model.gz"))

    def check_and_replace(*arguments, check=run.check_agent):
        result = check(*arguments)
        save_checkpoint(source, make_state(6))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(run, "check_agent", check_and_replace)
        done = _run(agent, "--source", source, "--max-steps", 2, "--backend", "onnxruntime", code=2)
    assert "changed while" in done.stderr
    assert not (agent / "proof.json").exists()


def test_a_proof_that_somebody_deleted_is_written_again(agent):
    _run(agent, *FAST)
    proof = (agent / "proof.json").read_bytes()
    (agent / "proof.json").unlink()
    assert "known" not in _run(agent, *FAST).stdout
    assert (agent / "proof.json").read_bytes() == proof


def test_a_file_that_was_replaced_with_its_size_and_time_kept_is_seen(agent):
    _run(agent, *FAST)
    model = agent / "model.onnx"
    status, data = model.stat(), bytearray(model.read_bytes())
    data[-5] ^= 1
    model.write_bytes(data)
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "checksum" in _run(agent, *FAST, code=1).stdout


def test_what_this_computer_remembers_may_be_damaged(agent, cache):
    _run(agent, *FAST)
    (path,) = cache.rglob("verdicts.sqlite")
    for column, value in {"found": b"damaged", "stamps": "7", "how": "another"}.items():
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(f"UPDATE checks SET {column} = ?", (value,))  # noqa: S608
        assert "known" not in _run(agent, *FAST).stdout
        assert "known" in _run(agent, *FAST).stdout


def test_folders_within_folders_end_no_run(agent, tmp_path):
    """A thousand of them, in an agent that was checked before and beside it."""
    good = Path(shutil.copytree(agent, tmp_path / "good"))
    _run(agent, *FAST)
    for place in (agent, tmp_path):
        _nest(place / "x", 1100)
    try:
        done = _run(tmp_path, *FAST, code=2)
        assert "more than 100 levels in it: move away what is not the agent's" in done.stderr
        assert "1 agent agrees, 0 disagree, 1 could not be checked" in done.stdout
        assert (good / "proof.json").exists()
    finally:
        for place in (agent, tmp_path):
            subprocess.run(["rm", "-rf", place / "x"], check=True)


def _nest(top: Path, levels: int) -> None:
    """Make folders within each other, too deep for a path."""
    here = os.getcwd()
    top.mkdir()
    os.chdir(top)
    for _ in range(levels):
        os.mkdir("x")
        os.chdir("x")
    os.chdir(here)


def test_a_bad_line_of_a_list_ends_no_run(agent, tmp_path):
    (tmp_path / "list").write_text(f"nowhere\n{agent}\nwith\0zero\nhttp://127.0.0.1:1/x\n", "utf-8")
    done = _run("--files-from", tmp_path / "list", *FAST, code=2)
    assert "1 agent agrees, 0 disagree, 3 could not be checked" in done.stdout
    assert len(done.stderr.splitlines()) == 3


def _start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "runtime_check", *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | environment, text=True, stderr=subprocess.PIPE)


def _wait_for(condition, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def _list_children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_end_with_a_killed_run_and_the_next_one_clears_up(agent, tmp_path):
    folders = [Path(shutil.copytree(agent, tmp_path / f"agents/{number}")) for number in range(4)]
    options = ("--source", AGENTS, "--max-steps", 20_000, "--report", tmp_path / "report", "-j", 2)
    with _start(tmp_path / "agents", *options) as process:
        assert _wait_for(lambda: len(_list_children(process.pid)) >= 3)  # the resource tracker is one
        time.sleep(8)  # until they play
        workers = _list_children(process.pid)
        process.kill()
        process.wait()
    assert _wait_for(lambda: not any(map(_is_alive, workers)), 20)
    assert not [folder for folder in folders if (folder / "proof.json").exists()]
    assert len(list((tmp_path / "report").iterdir())) == 1
    _run(folders[0], *FAST, "--report", tmp_path / "report")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"check.json", "check.html", "episodes.jsonl"}


def test_an_interrupted_run_leaves_no_copy_of_what_is_at_a_url(agent, web, tmp_path):
    url, root = web
    shutil.copytree(AGENTS, root, dirs_exist_ok=True)
    (tmp_path / "temp").mkdir()
    options = ("--source", url, "--max-steps", 100_000, "--backend", "onnxruntime")
    with _start(agent, *options, TMPDIR=str(tmp_path / "temp")) as process:
        assert _wait_for(lambda: list((tmp_path / "temp").rglob("*.gz")))
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert list((tmp_path / "temp").iterdir()) == []
