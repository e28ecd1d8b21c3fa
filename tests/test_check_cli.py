"""The command: exit codes, what it prints, what it leaves behind."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from builders import AGENTS, BREAKOUT, PONG, make_state, plant_weights, to_network
from click.testing import CliRunner, Result

from convert.pipeline import convert_checkpoint
from runtime_check.cli import main
from runtime_check.replay import from_json_line, replay_log

SCHEMA = json.loads(files("runtime_check.report").joinpath("check.schema.json").read_text("utf-8"))
FOLDER = "DQN_modern/Pong/0/model_328492"
ENVIRONMENT = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}


def _run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "runtime_check", *map(str, arguments)]


def _validate(document: dict) -> None:
    jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(document)


@pytest.fixture(scope="module")
def checked(converted, tmp_path_factory):
    """One run over the trained agents, all backends, both modes, as a user starts it."""
    report = tmp_path_factory.mktemp("check") / "deep/report"
    options = ("--episodes", 3, "--max-steps", 25, "--mode", "both", "--epsilon", 0.1)
    command = _command(converted, "--source", AGENTS, *options, "--report", report, "-v")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, report


def test_good_agents_pass(checked):
    stdout, report = checked
    assert "2 agents agree, 0 disagree, 0 could not be checked" in stdout
    document = json.loads((report / "check.json").read_text("utf-8"))
    _validate(document)
    assert document["verdict"] == "agree"
    assert document["counts"] == {"agree": 2, "disagree": 0, "unchecked": 0}
    for agent in document["agents"]:
        assert set(agent["backends"]) == {"reference", "flax", "onnxruntime", "tensorflow"}
        for name, outcome in agent["backends"].items():
            assert outcome["reasons"] == []
            assert (outcome["steps"], outcome["wrong"]) == (150, 0)
            assert 0 < outcome["max_error"] < 3e-6
            assert 0 < outcome["median_error"] <= outcome["max_error"]
            assert 0 < outcome["max_ratio"] < 0.2
            assert outcome["solo"] == {"episodes": 3, "identical": 3, "steps": 75}
            assert outcome["returns"]["solo"]["n"] == 3
            assert (outcome["returns"]["shadow"] is not None) == (name == "reference")
            assert outcome["runtime"]["batch"] == 32


@pytest.mark.slow
def test_good_agents_pass_on_five_seeds(converted, tmp_path):
    report = tmp_path / "report"
    options = ("--episodes", 5, "--max-steps", 200, "--mode", "both")
    command = _command(converted, "--source", AGENTS, *options, "--report", report)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0
    # Without a terminal, a line every half minute.
    assert all(
        re.fullmatch(r"\d/2 agents(, about .* left)?, 0 with problems", line) for line in done.stderr.splitlines()
    )
    for agent in json.loads((report / "check.json").read_text("utf-8"))["agents"]:
        assert agent["verdict"] == "agree"
        assert set(agent["backends"]) == {"reference", "flax", "onnxruntime", "tensorflow"}
        for outcome in agent["backends"].values():
            assert outcome["steps"] == 5 * 200 * 2
            assert outcome["wrong"] == 0


def test_the_table_fits_100_columns(checked):
    stdout, _ = checked
    assert max(map(len, stdout.splitlines())) <= 100
    assert re.search(r"onnxruntime +agree +150 +0 +0 ", stdout)
    assert "modern protocol, seeds 0 to 2, allowed error 2e-05 + 2e-05·max|q|" in stdout
    assert "onnxruntime: library onnxruntime, version" in stdout


def test_the_episode_log_replays(checked):
    _, report = checked
    lines = (report / "episodes.jsonl").read_text("utf-8").splitlines()
    documents = [json.loads(line) for line in lines]
    # For each of two agents: three episodes in shadow mode, and three of each of four backends alone.
    assert len(documents) == 2 * (3 + 4 * 3)
    assert {document["mode"] for document in documents} == {"shadow", "solo"}
    assert {Path(document["folder"]).name for document in documents} == {"model_187420", "model_328492"}
    log = from_json_line(lines[0])
    assert len(list(replay_log(log))) == len(log.actions) == 25
    keys = [(Path(line["folder"]).name, line["mode"], line["backend"], line["seed"]) for line in documents]
    backends = ["reference", "flax", "onnxruntime", "tensorflow"]
    parts = [("shadow", "reference"), *(("solo", backend) for backend in backends)]
    agents = ["model_187420", "model_328492"]
    assert keys == [(agent, *part, seed) for agent in agents for part in parts for seed in range(3)]


def test_the_page_needs_nothing_from_outside(checked):
    _, report = checked
    page = (report / "check.html").read_text("utf-8")
    assert "✓ 2 agree" in page
    references = re.findall(r"""(?:src|href|action|data)=["']([^"']*)""", page)
    assert references
    assert all(reference.startswith(("#", "data:")) for reference in references)
    assert not re.search(r"https?://|@import|url\(|<script", page)
    assert page.count("<svg") == 6


def test_nothing_but_the_report_is_left(checked):
    _, report = checked
    assert sorted(path.name for path in report.iterdir()) == ["check.html", "check.json", "episodes.jsonl"]
    assert list(report.parent.iterdir()) == [report]


@pytest.fixture(scope="module")
def faulty(converted, tmp_path_factory):
    """A tree of three: one whose model has other weights, one that is good, one whose record is damaged."""
    root = tmp_path_factory.mktemp("faulty")
    shutil.copytree(converted / FOLDER, root / "bad")
    plant_weights(root / "bad", "onnx", to_network(make_state(6)))
    shutil.copytree(converted / FOLDER, root / "good")
    (root / "broken").mkdir()
    (root / "broken/agent.json").write_text("{", "utf-8")
    return root


def test_a_disagreement_exits_with_1_and_the_rest_is_checked(faulty, tmp_path):
    report = tmp_path / "report"
    done = _run(faulty, "--source", AGENTS, "--backend", "onnxruntime", "--max-steps", 20, "--report", report)
    assert done.exit_code == 1
    assert "1 agent agrees, 1 disagree, 1 could not be checked" in done.stdout
    assert re.search(r"onnxruntime: \d+ wrong actions", done.stdout)
    assert "broken/agent.json: not JSON" in done.stderr
    document = json.loads((report / "check.json").read_text("utf-8"))
    _validate(document)
    assert [agent["verdict"] for agent in document["agents"]] == ["disagree", "unchecked", "agree"]
    listed = document["agents"][0]["backends"]["onnxruntime"]["listed"]
    assert {entry["kind"] for entry in listed} == {"wrong"}
    page = (report / "check.html").read_text("utf-8")
    assert "✗ 1 disagrees, 1 agrees, 1 not checked" in page
    assert page.count('src="data:image/png;base64,') % 4 == 0
    assert 'src="data:image/png;base64,' in page
    for name in ("oracle", "reference", "onnxruntime", "RIGHTFIRE"):
        assert name in page


def test_json_goes_to_stdout_and_nothing_else_does(faulty):
    done = _run(faulty / "bad", "--source", AGENTS, "--backend", "onnxruntime", "--max-steps", 2, "--json")
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    _validate(document)
    assert document["verdict"] == "disagree"


def test_quiet_prints_what_does_not_agree_only(faulty):
    options = ("--source", AGENTS, "--backend", "onnxruntime", "--max-steps", 2, "-q")
    assert _run(faulty / "good", *options).output == ""
    assert "wrong" in _run(faulty / "bad", *options).stdout


def test_an_agent_that_could_not_be_checked_exits_with_2(faulty, tmp_path):
    done = _run(faulty / "broken", "--source", AGENTS, "--report", tmp_path / "report")
    assert done.exit_code == 2
    assert "0 agents agree, 0 disagree, 1 could not be checked" in done.stdout
    document = json.loads((tmp_path / "report/check.json").read_text("utf-8"))
    _validate(document)
    assert document["agents"][0]["error"]["kind"] == "RecordError"


def test_a_checksum_that_does_not_match_exits_with_1(converted, tmp_path):
    folder = tmp_path / "agent"
    shutil.copytree(converted / FOLDER, folder)
    data = bytearray((folder / "model.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "model.onnx").write_bytes(data)
    done = _run(folder, "--source", AGENTS, "--backend", "onnxruntime", "--max-steps", 2)
    assert done.exit_code == 1
    assert "onnxruntime: checksum: model.onnx has sha256" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "atari-check converted --source RELEASE "),
        (("--seed", "1"), "Missing argument 'AGENT...'"),
        (("nowhere",), "'nowhere' does not exist"),
        (("{out}", "--episodes", "0"), "--episodes"),
        (("{out}", "--max-steps", "0"), "--max-steps"),
        (("{out}", "--first-seed", "-1"), "--first-seed"),
        (("{out}", "--first-seed", "2147483648"), "--first-seed"),
        (("{out}", "--epsilon", "1.5"), "--epsilon"),
        (("{out}", "--atol", "-1"), "--atol"),
        (("{out}", "--rtol", "nan"), "finite"),
        (("{out}", "--mode", "mirror"), "--mode"),
        (("{out}", "--source", "nowhere"), "'nowhere' does not exist"),
        (("{out}", "--backend", "tensorrt"), "no backend 'tensorrt'; Known: "),
        (("{out}", "--backend", "onnx"), "no backend 'onnx'; did you mean onnxruntime? Known: "),
        (("{out}", "--backend", "flax, TF"), "no backend 'tf'; did you mean tensorflow? Known: "),
        (("{out}", "--backend", "jax"), "no backend 'jax'; did you mean flax (or nnx, orbax)? Known: "),
        (("{out}", "--backend", ""), "Invalid value for '--backend': '' names nothing"),
        (("{out}", "--backend", "all"), "no backend 'all'; leave out --backend to check every artefact"),
        (("{tmp}",), "no agent.json in it or below"),
        (("{out}", "--source", "{tmp}"), "no checkpoint of"),
        (("{out}", "--source", str(BREAKOUT), "--backend", "onnxruntime"), "another checkpoint"),
        (("{pong}/agent.json",), "is a file"),
        (("{out}", "--source", "{agents}", "--report", "{pong}/agent.json"), "is a file"),
        (("{out}", "--source", "{agents}", "--report", "{pong}/agent.json/report"), "agent.json"),
    ],
)
def test_a_check_that_cannot_be_done_exits_with_2(arguments, message, converted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"out": converted, "tmp": tmp_path, "agents": AGENTS, "pong": converted / FOLDER}
    arguments = [argument.format(**places) for argument in arguments]
    done = _run(*arguments, *(["--max-steps", "1"] if "--max-steps" not in arguments and arguments else []))
    assert done.exit_code == 2
    assert message in done.output


WHO = ("zoo", "algorithm", "protocol", "game", "rom_id", "seed", "step", "action_meanings")
NOBODY = {**dict.fromkeys(WHO), "path": "mine.gz"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (NOBODY, "says neither game nor protocol"),
        ({"game": "Tetris"}, "no game 'Tetris'"),
        (
            {"game": "Breakout", "rom_id": "breakout", "path": "DQN_modern/Breakout/0/model_328492.gz"},
            "the head has 6 actions, the game's minimal set 4",
        ),
        (
            {"game": "Carnival", "rom_id": "carnival"},
            "claims to be DQN_modern/Carnival/0/328492, but the path of its source says",
        ),
        ({"notes": "mine"}, "unknown field 'notes'"),
        ({"artifacts": {}}, "lists no artefact"),
        ({"format_version": 9}, "format_version is 9, expected "),
    ],
)
def test_a_record_that_cannot_be_checked_exits_with_2(change, message, converted, tmp_path):
    record = json.loads((converted / FOLDER / "agent.json").read_text("utf-8"))
    if path := change.get("path"):
        record["source"] |= {"path": path, "file": Path(path).name}
    record |= {name: value for name, value in change.items() if name != "path"}
    shutil.copy(converted / FOLDER / "model.onnx", tmp_path)
    (tmp_path / "agent.json").write_text(json.dumps(record), "utf-8")
    backend = ("--backend", "onnxruntime") if change.get("artifacts") is None else ()
    done = _run(tmp_path, "--source", PONG, *backend, "--max-steps", 1)
    assert done.exit_code == 2
    assert message in done.stderr


def test_backends_are_named_with_commas_in_any_letter_case(converted):
    done = _run(converted / FOLDER, "--source", PONG, "--backend", "Flax, onnxruntime,flax", "--max-steps", 2)
    assert re.findall(r"^  (\w+) +agree", done.stdout, re.MULTILINE) == ["reference", "flax", "onnxruntime"]


def test_a_backend_without_its_artefact_is_named(tmp_path):
    convert_checkpoint(PONG, tmp_path / "agent", ["onnx"])
    done = _run(tmp_path, "--source", PONG, "--backend", "flax", "--max-steps", 1)
    assert done.exit_code == 2
    assert "holds onnx, not flax: atari-convert --to flax writes it" in done.stderr


def test_a_backend_without_its_runtime_is_named_and_the_others_run(converted):
    """From a checkout in which only some of the backends are installed."""
    code = (
        "import sys\n"
        "sys.modules['jax'] = sys.modules['tensorflow'] = None\n"
        "from runtime_check.cli import main\n"
        "main()\n"
    )
    arguments = [str(converted / FOLDER), "--source", str(AGENTS), "--max-steps", "2"]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2
    assert re.search(r"needs jax: pip install 'atari-convert\[flax\]'", done.stderr)
    done = subprocess.run([*command, "--backend", "onnxruntime"], capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_runtime_that_one_agent_lacks_keeps_the_results_of_the_others(faulty, converted, tmp_path):
    tree, report = tmp_path / "tree", tmp_path / "report"
    shutil.copytree(faulty / "bad", tree / "a")
    shutil.copytree(converted / FOLDER, tree / "b")
    record = json.loads((tree / "a/agent.json").read_text("utf-8"))
    (tree / "a/agent.json").write_text(json.dumps(record | {"artifacts": {"onnx": record["artifacts"]["onnx"]}}))
    code = "import sys\nsys.modules['jax'] = None\nfrom runtime_check.cli import main\nmain()\n"
    command = [sys.executable, "-c", code, tree, "--source", AGENTS, "--max-steps", "2", "--report", report]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1
    assert "0 agents agree, 1 disagree, 1 could not be checked" in done.stdout
    assert "needs jax: pip install 'atari-convert[flax]'" in done.stderr
    document = json.loads((report / "check.json").read_text("utf-8"))
    assert [agent["verdict"] for agent in document["agents"]] == ["disagree", "unchecked"]


def test_help_is_quick_and_loads_no_framework():
    code = (
        "import sys\n"
        "from runtime_check.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'jax', 'tensorflow', 'onnxruntime', 'numpy', 'cv2', 'ale_py', 'jinja2'}\n"
        "assert not heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Exit codes: 0 all agree" in done.stdout


def test_the_defaults_of_the_tolerances_are_those_of_the_comparison():
    from runtime_check.compare import DEFAULT_ATOL, DEFAULT_RTOL

    defaults = {option.name: option.default for option in main.params}
    assert (defaults["atol"], defaults["rtol"]) == (DEFAULT_ATOL, DEFAULT_RTOL)


def _start_on_terminal(*arguments: object) -> tuple[subprocess.Popen, int]:
    parent, child = pty.openpty()
    process = subprocess.Popen(
        _command(*arguments), stdout=subprocess.PIPE, stderr=child, text=True, env=ENVIRONMENT, start_new_session=True
    )
    os.close(child)
    return process, parent


@pytest.mark.parametrize(("pressed", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_progress_on_a_terminal_and_a_clean_end_by_a_signal(converted, tmp_path, pressed, code):
    report = tmp_path / "report"
    options = ("--source", AGENTS, "--backend", "onnxruntime", "--episodes", 2, "--report", report)
    process, terminal = _start_on_terminal(converted / FOLDER, *options)
    shown = ""
    while "steps/s" not in shown:
        shown += os.read(terminal, 4096).decode()
    os.killpg(process.pid, pressed)
    since = time.monotonic()
    stdout, _ = process.communicate(timeout=30)
    assert time.monotonic() - since < 5
    assert re.search(r"agent 1/1, 0/2 episodes, \d+ steps/s, time left unknown", shown)
    assert process.returncode == code
    assert stdout == ""
    assert list(tmp_path.iterdir()) == []
    os.close(terminal)


FLAX_AND_TENSORFLOW = ("--backend", "flax", "--backend", "tensorflow")


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0.0, 0.2, 0.7])
def test_no_press_is_lost_in_a_runtime(converted, tmp_path, wait):
    options = ("--source", AGENTS, *FLAX_AND_TENSORFLOW, "--episodes", 2, "--report", tmp_path / "report")
    process, terminal = _start_on_terminal(converted / FOLDER, *options)
    while b"steps/s" not in os.read(terminal, 4096):
        pass
    time.sleep(wait)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []
    os.close(terminal)


@pytest.mark.slow
def test_a_press_within_a_callback_of_the_garbage_collector_ends_the_check(converted, tmp_path):
    """JAX has such a callback, and an exception that is raised in one is dropped."""
    code = (
        "import gc, os, signal, jax\n"
        "from runtime_check import cli\n"
        "def press(phase, info):\n"
        "    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "gc.callbacks.append(press)\n"
        "cli.main()\n"
    )
    options = ["--source", AGENTS, "--max-steps", "2", "--report", tmp_path / "report"]
    command = [sys.executable, "-c", code, *map(str, [converted / FOLDER, *FLAX_AND_TENSORFLOW, *options])]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines() == ["", "interrupted: no report was written; rerun the same command to resume"]
    assert list(tmp_path.iterdir()) == []


def test_a_press_while_the_report_is_put_in_place_waits_for_it(converted, tmp_path):
    code = (
        "import os, signal, sys\n"
        "from runtime_check.cli import main\n"
        "def press(event, arguments):\n"
        "    if event == 'os.rename' and 'check.html' in str(arguments):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.addaudithook(press)\n"
        "main()\n"
    )
    report = tmp_path / "report"
    options = ["--source", AGENTS, "--backend", "onnxruntime", "--max-steps", "2", "--report", report]
    command = [sys.executable, "-c", code, *map(str, [converted / FOLDER, *options])]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert (done.returncode, done.stderr) == (
        130,
        "\ninterrupted: no report was written; rerun the same command to resume\n",
    )
    assert sorted(path.name for path in report.iterdir()) == ["check.html", "check.json", "episodes.jsonl"]


@pytest.mark.parametrize("package", ["ale_py", "cv2", "jinja2", "threadpoolctl"])
def test_a_missing_extra_is_one_line(package, converted):
    code = f"import sys\nsys.modules[{package!r}] = None\nfrom runtime_check.cli import main\nmain()\n"
    command = [sys.executable, "-c", code, str(converted), "--source", str(AGENTS)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: atari-check needs {package}: pip install 'atari-convert[check]'\n"


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_report_goes_to_where_a_disk_is_mounted_and_a_full_one_is_not_the_agents_fault(converted, small_disk):
    check = (converted / FOLDER, "--source", AGENTS, "--backend", "onnxruntime")
    assert _run(*check, "--max-steps", 2, "--report", small_disk).exit_code == 0
    names = ["check.html", "check.json", "episodes.jsonl"]
    assert sorted(path.name for path in small_disk.iterdir()) == names
    first = (small_disk / "check.json").read_bytes()
    done = _run(*check, "--max-steps", 100, "--episodes", 40, "--report", small_disk)
    assert done.exit_code == 2
    error = done.stderr.splitlines()[-1]  # after a line on the progress, on a busy computer
    assert re.fullmatch(rf"error: {small_disk}: the report cannot be written .*No space left.*--report", error)
    assert sorted(path.name for path in small_disk.iterdir()) == names
    assert (small_disk / "check.json").read_bytes() == first


def test_a_folder_whose_name_is_not_text_is_reported(converted, tmp_path):
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/p\xffng"))
    folder.mkdir()
    for name in ("agent.json", "model.onnx"):
        shutil.copy(converted / FOLDER / name, folder)
    report = tmp_path / "report"
    options = ("--source", AGENTS, "--backend", "onnxruntime", "--max-steps", 2, "--report", report)
    done = subprocess.run(_command(folder, *options), capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "p\\udcffng" in done.stdout
    assert "p\\udcffng" in (report / "check.html").read_text("utf-8")
    document = json.loads((report / "check.json").read_text("utf-8"))
    assert Path(document["agents"][0]["folder"]) == folder


@pytest.mark.slow
def test_another_protocol_is_played_and_said_and_proves_nothing(tmp_path):
    folder = tmp_path / "agent"
    convert_checkpoint(PONG, folder, ["onnx"])
    arguments = ["--source", str(PONG), "--max-steps", "20"]

    def check(*options, code=0):
        done = CliRunner().invoke(main, [str(folder), *arguments, *options])
        assert done.exit_code == code, done.output
        return done

    first = check("--protocol", "sb3", "--report", str(tmp_path / "report"))
    assert "sb3 protocol (its own is modern; no proof is written)" in first.stdout
    assert "its own is modern" in (tmp_path / "report/check.html").read_text("utf-8")
    (agent,) = json.loads((tmp_path / "report/check.json").read_text("utf-8"))["agents"]
    assert (agent["protocol"]["name"], agent["own_protocol"]) == ("sb3", "modern")
    assert not (folder / "proof.json").exists()
    assert "known from an earlier run" not in check().stdout
    assert (folder / "proof.json").exists()
    proof = (folder / "proof.json").read_bytes()
    assert "its own is modern" in check("--protocol", "classic").stdout
    assert (folder / "proof.json").read_bytes() == proof
    assert "known from an earlier run" in check().stdout
    assert (
        "no protocol 'sb4' can be played: expected one of modern, classic" in check("--protocol", "sb4", code=2).stderr
    )
