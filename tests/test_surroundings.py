"""Both commands in rough surroundings: streams closed or full, no home, a locked journal, signals, bad lists.

Each runs the real command in a process of its own.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import AGENTS, PONG
from bulk_release import COUNT, run

from convert.store import journal

pytestmark = pytest.mark.slow

CONVERT = f"{shlex.quote(sys.executable)} -m convert {shlex.quote(str(AGENTS))} --to onnx"
CHECK = (
    f"{shlex.quote(sys.executable)} -m runtime_check --source {shlex.quote(str(AGENTS))} --max-steps 2 "
    "--backend onnxruntime"
)
FULL = "standard output cannot be written (No space left on device)"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_closed_streams_are_as_if_to_nowhere(closed, jobs, tmp_path):
    done = shell(f"{CONVERT} -o {tmp_path}/out -j {jobs} --summary {tmp_path}/summary.json {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(tmp_path.rglob("agent.json"))) == 2
    assert json.loads((tmp_path / "summary.json").read_text())["converted"] == 2
    if ">&-" not in closed.split():
        assert "2 converted" in done.stdout


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_check_with_closed_streams_is_done(closed, converted, tmp_path):
    done = shell(f"{CHECK} {converted} --report {tmp_path}/report {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "report" / "check.html").exists()


def test_with_closed_streams_a_failure_is_still_one(tmp_path):
    assert shell(f"{CONVERT} -o {tmp_path}/out {tmp_path}/none 2>&-").returncode == 2
    (tmp_path / "model_1.gz").touch()
    assert shell(f"{CONVERT} -o {tmp_path}/out {tmp_path}/model_1.gz 2>&-").returncode == 1
    (tmp_path / "nothing").mkdir()
    assert shell(f"{CHECK} {tmp_path}/nothing 2>&-").returncode == 2
    assert shell(f"{CONVERT} -o {tmp_path}/out --files-from - <&-").returncode == 0


@pytest.mark.parametrize("pipe", ["| head -1", "| head -0", "2>&1 | head -0", "--json | head -1", "-v | head -1"])
def test_a_reader_that_has_seen_enough_changes_nothing(pipe, tmp_path):
    page = tmp_path / "page.md"
    done = shell(f"{CONVERT} -o {tmp_path}/out --summary {tmp_path}/summary.json {pipe}", GITHUB_STEP_SUMMARY=str(page))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(tmp_path.rglob("agent.json"))) == 2
    assert json.loads((tmp_path / "summary.json").read_text())["converted"] == 2
    assert "2 converted" in page.read_text()


def test_a_check_whose_reader_has_seen_enough_writes_its_report(converted, tmp_path):
    done = shell(f"{CHECK} {converted} --report {tmp_path}/report | head -1")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "report" / "check.html").exists()


@pytest.mark.parametrize("options", ["", "--json", "-j 2"])
def test_output_on_a_full_disk_is_told_once_and_the_work_is_done(options, tmp_path):
    done = shell(f"{CONVERT} -o {tmp_path}/out {options} --summary {tmp_path}/summary.json > /dev/full")
    assert (done.returncode, done.stderr) == (1, f"failed: {FULL}\n")
    assert len(list(tmp_path.rglob("agent.json"))) == 2
    assert json.loads((tmp_path / "summary.json").read_text())["converted"] == 2


@pytest.mark.parametrize("options", ["", "--json"])
def test_a_check_whose_output_is_lost_does_not_say_that_agents_disagree(options, converted):
    done = shell(f"{CHECK} {converted} {options} > /dev/full")
    assert (done.returncode, done.stderr) == (2, f"failed: {FULL}\n")


def test_help_and_usage_errors_do_without_streams_as_well():
    for command, code in ((CONVERT, 1), (CHECK, 2)):
        assert shell(f"{command} --help >&-").returncode == 0
        assert shell(f"{command} --help | head -1").returncode == 0
        done = shell(f"{command} --help > /dev/full")
        assert (done.returncode, done.stderr) == (code, f"failed: {FULL}\n")
        assert shell(f"{command} --nonsense 2> /dev/full").returncode == 2
        assert shell(f"{command} --nonsense 2>&-").returncode == 2


def test_names_are_printed_where_the_terminal_has_no_such_letters(tmp_path):
    done = shell(f"{CONVERT} -o {tmp_path}/Ä", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "wrote onnx" in done.stdout


def test_neither_a_home_nor_a_user_is_needed(converted, tmp_path):
    """Containers run as users that no database knows."""
    nobody = (
        "import os, pwd\n"
        "def unknown(_): raise KeyError('uid not found')\n"
        "pwd.getpwuid = unknown\n"
        "for name in ('HOME', 'USER', 'LOGNAME', 'XDG_CACHE_HOME'): os.environ.pop(name, None)\n"
    )
    for code, arguments in (
        ("from convert.cli import main", [AGENTS, "--to", "onnx", "-o", tmp_path / "out"]),
        ("from convert.cli import main", [AGENTS, "--to", "onnx", "-o", f"local://{tmp_path}/url"]),
        ("from runtime_check.cli import main", [converted, "--source", AGENTS, "--max-steps", 2, "--backend", "flax"]),
    ):
        command = [sys.executable, "-c", f"{nobody}{code}\nmain()", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    assert len(list(tmp_path.rglob("agent.json"))) == 4


@pytest.mark.parametrize("cache", ["/dev/null", "/dev/null/x", "/proc/nothing"])
def test_no_cache_folder_is_needed(cache, tmp_path):
    done = shell(f"{CONVERT} -o {tmp_path}/out", XDG_CACHE_HOME=cache)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(tmp_path.rglob("agent.json"))) == 2


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_locked_journal_costs_seconds_and_is_told_once(mode, jobs, release, tmp_path, monkeypatch):
    """In a WAL the lock is met at the first agent that is to be remembered, else at the opening."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    with journal.open_journal(str(out)):
        pass
    (path,) = (tmp_path / "cache" / "atari-convert").glob("*.sqlite")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute(f"PRAGMA journal_mode = {mode}")
    holder.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    result = run(release, "--to", "onnx", "-o", out, "-j", jobs)
    assert time.monotonic() - started < 40
    assert f"{COUNT} converted" in result.stdout
    assert _own_lines(result.stderr) == [f"warning: {path}: locked by another process: continuing without the journal"]
    holder.execute("ROLLBACK")
    holder.close()
    assert "journal" not in run(release, "--to", "onnx", "-o", out).stderr


def _own_lines(text: str) -> list[str]:
    """Return the lines that are not about the heads of the agents, which are random."""
    return [line for line in text.splitlines() if not line.endswith("taken as the full set")]


@pytest.mark.parametrize("jobs", [1, 2])
def test_impatient_signals_end_with_one_line(jobs, release, tmp_path):
    press, stop = signal.SIGINT, signal.SIGTERM
    for number, (first, *further) in enumerate(
        [(press, press), (press, press, press), (press, stop), (stop, press), (stop, stop), (stop,)]
    ):
        out = tmp_path / str(number)
        process = subprocess.Popen(
            [sys.executable, "-m", "convert", str(release), "--to", "onnx", "-o", str(out), "-j", str(jobs)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while not any(out.rglob("agent.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, first)
        for each in further:
            time.sleep(0.05 * (number % 2))
            os.killpg(process.pid, each)
        _, stderr = process.communicate(timeout=30)
        codes = {128 + first} if number % 2 else {130, 143}  # of two at once, Python heeds the lower number first
        assert process.returncode in codes
        assert _own_lines(stderr) == ["interrupted: rerun the same command to resume"]
        assert not [path for path in out.rglob(".*") if path.is_dir() and any(path.iterdir())]


def test_a_bad_line_of_a_list_fails_as_its_own_entry(tmp_path):
    (tmp_path / ".gz").touch()
    bad = {
        b"a\0b.gz": r"a\x00b.gz: holds a NUL character, expected a path or URL",
        b"a\0c.gz": r"a\x00c.gz: holds a NUL character, expected a path or URL",
        b"\0": r"\x00: holds a NUL character",
        b"http://\0/model_1.gz": "holds a NUL character",
        b"x" * 10**6: "…: has 1000000 characters, expected a path or URL",
        b"y" * 5000 + b".gz": "cannot be read (File name too long)",
        b"\xff\xfe.gz": r"\xff\xfe.gz: cannot be read (No such file or directory)",
        b"http://[bad/model_1.gz": "http://[bad/model_1.gz: not a valid URL",
        b"nonsense://x/model_2.gz": "Protocol not known: nonsense",
        b"http://127.0.0.1:99999/model_3.gz": "Port out of range",
        os.fsencode(tmp_path / ".gz"): ".gz: its name without .gz is no name for a folder",
        b"[": "[: cannot be read (No such file or directory)",
        b"file://": "'' is empty",
    }
    listed = tmp_path / "list"
    listed.write_bytes(b"\xef\xbb\xbf" + os.fsencode(PONG) + b"\r\n \r\n" + b"\r\n".join(bad) + b"\r\n")
    for number, source in enumerate((f"--files-from {listed}", f"--files-from - < {listed}")):
        done = shell(f"{sys.executable} -m convert --to onnx -o {tmp_path}/{number} {source}")
        assert done.returncode == 1
        assert f"1 converted, 0 current, {len(bad)} failed" in done.stdout
        lines = done.stderr.splitlines()
        failures = [line for line in lines if line.startswith("failed: ")]
        assert len(failures) == len(bad)
        for text in bad.values():
            assert any(text in line for line in failures), text
        assert max(map(len, failures)) < 6000


def test_an_agent_that_has_lost_its_record_is_told_and_the_others_are_checked(converted, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(converted, tree)
    record = next(tree.glob("C51*/**/agent.json"))
    record.unlink()
    for name in ("onnx/model.onnx", "flax/params.msgpack", "tensorflow/saved_model/saved_model.pb", "torch/torch/x.pt"):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).touch()
    (tree / "left" / ".atari-convert-new").mkdir(parents=True)
    (tree / "nothing").mkdir()
    done = shell(f"{CHECK} {tree}")
    assert done.returncode == 2
    assert "1 agent agrees, 0 disagree, 6 could not be checked" in done.stdout
    told = {line.split(": ")[1] for line in done.stderr.splitlines()}
    names = ("onnx", "flax", "tensorflow", "torch", "left")
    assert told == {str(record.parent), *(str(tree / name) for name in names)}


def test_an_error_that_nobody_foresaw_is_that_agents_and_the_others_are_checked(converted):
    code = (
        "from runtime_check import cli\n"
        "from runtime_check.check import pipeline\n"
        "verify = pipeline.verify_agent\n"
        "def fail(folder, *rest):\n"
        "    if 'Breakout' in str(folder): raise {error}\n"
        "    return verify(folder, *rest)\n"
        "pipeline.verify_agent = fail\n"
        "cli.main()\n"
    )
    options = ["--source", AGENTS, "--backend", "onnxruntime", "--max-steps", "2"]
    for error in (
        "OverflowError('too large')",
        "MemoryError()",
        "RuntimeError('of a\\nframework')",
        "RecursionError()",
    ):
        command = [sys.executable, "-c", code.replace("{error}", error), *map(str, [converted, *options])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert "1 agent agrees, 0 disagree, 1 could not be checked" in done.stdout
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"not checked: {next(converted.rglob('C51*/Breakout/0/model_*'))}: {error[:7]}")
        assert line.endswith("a bug of atari-convert, please report it")


def test_an_error_that_nobody_foresaw_before_the_first_agent_is_no_disagreement(converted):
    code = (
        "from runtime_check import cli\n"
        "from runtime_check.check import folders\n"
        "def fail(*_): raise OverflowError('too large')\n"
        "folders.find_agent_folders = fail\n"
        "cli.main()\n"
    )
    command = [sys.executable, "-c", code, str(converted)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "a bug of atari-convert, please report it" in done.stderr


def test_what_is_no_path_on_the_command_line_is_a_usage_error():
    for source in ("http://[bad/model_1.gz", "", Path("x" * 40_000)):
        assert "Error:" in run(source, "--to", "onnx", code=2).stderr
