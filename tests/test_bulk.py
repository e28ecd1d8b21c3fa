"""Runs over many agents: every way to run one gives the same files, and a further run has nothing to do."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from builders import make_state, save_checkpoint
from bulk_release import COUNT, hashes, link, run

from convert.bulk import run as bulk
from convert.bulk.engines import processes
from convert.bulk.selection import find_jobs
from convert.store import journal, storage

pytestmark = pytest.mark.slow

ONNX = bulk.Work(("onnx",))


def test_two_workers_and_shards_write_what_one_process_writes(release, expected, tmp_path):
    result = run(release, "--to", "onnx", "-o", tmp_path / "two", "-j", 2)
    assert f"{COUNT} converted, 0 current, 0 failed" in result.stdout
    assert hashes(tmp_path / "two") == expected
    for number in (1, 2, 3):
        run(release, "--to", "onnx", "-o", tmp_path / "shards", "--shard", f"{number}/3")
    assert hashes(tmp_path / "shards") == expected


def test_a_further_run_reads_no_source_and_no_artefact(release, tmp_path, monkeypatch):
    root, out = link(release, tmp_path / "root"), tmp_path / "out"
    assert all(outcome.written for outcome in bulk.run(find_jobs([root], out), ONNX))
    monkeypatch.setattr(bulk, "convert_job", pytest.fail)
    assert [outcome.status for outcome in bulk.run(find_jobs([root], out), ONNX)] == ["current"] * COUNT
    monkeypatch.undo()
    assert all(outcome.written for outcome in bulk.run(find_jobs([root], out), bulk.Work(("onnx", "flax"))))


@pytest.mark.parametrize("change", ["source", "artefact", "missing", "record", "leftover"])
def test_what_changed_is_done_again(change, release, expected, tmp_path):
    root, out = link(release, tmp_path / "root"), tmp_path / "out"
    jobs = find_jobs([root], out)
    assert all(outcome.written for outcome in bulk.run(jobs, ONNX))
    folder, source = Path(jobs[3].folder), Path(jobs[3].source)
    if change == "source":
        source.unlink()
        save_checkpoint(source, make_state(18, 51 if "C51" in str(source) else None, seed=99))
    elif change == "artefact":
        data = bytearray((folder / "model.onnx").read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "model.onnx").write_bytes(data)
    elif change == "missing":
        (folder / "model.onnx").unlink()
    elif change == "record":
        (folder / "agent.json").write_text('{"format_version": 0, "artifacts": {}}')
    else:
        (folder / ".atari-convert-new").mkdir()
    statuses = {outcome.job.folder: outcome.status for outcome in bulk.run(find_jobs([root], out), ONNX)}
    assert statuses.pop(str(folder)) == ("current" if change == "leftover" else "converted")
    assert set(statuses.values()) == {"current"}
    found = hashes(out)
    assert (found == expected) == (change != "source")
    assert found.keys() == expected.keys()


def test_check_hashes_sees_what_sizes_and_times_hide(release, tmp_path):
    root, out = link(release, tmp_path / "root"), tmp_path / "out"
    jobs = find_jobs([root], out)
    assert all(outcome.written for outcome in bulk.run(jobs, ONNX))
    path = Path(jobs[0].folder, "model.onnx")
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not any(outcome.written for outcome in bulk.run(jobs, ONNX))
    assert sum(bool(outcome.written) for outcome in bulk.run(jobs, bulk.Work(("onnx",), check_hashes=True))) == 1


def test_without_its_journal_a_run_still_finds_all_current(release, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert all(outcome.written for outcome in bulk.run(find_jobs([release], out), ONNX))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert not any(outcome.written for outcome in bulk.run(find_jobs([release], out), ONNX))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not any(outcome.written for outcome in bulk.run(find_jobs([release], out), ONNX))
    damaged = tmp_path / "damaged" / "atari-convert"
    damaged.mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "damaged"))
    (name,) = (path.name for path in (tmp_path / "other" / "atari-convert").glob("*.sqlite"))
    (damaged / name).write_bytes(b"no database " * 1000)
    for _ in range(2):
        assert not any(outcome.written for outcome in bulk.run(find_jobs([release], out), ONNX))
    assert (damaged / name).read_bytes().startswith(b"SQLite format 3")


def test_a_journal_that_holds_nonsense_is_as_none(release, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jobs = find_jobs([release], tmp_path / "out")
    assert all(outcome.written for outcome in bulk.run(jobs, ONNX))
    (path,) = (tmp_path / "cache/atari-convert").glob("*.sqlite")
    for nonsense in ("{x", "[]", '{"source": 1}', '{"source": "", "record": "", "artifacts": []}'):
        with closing(sqlite3.connect(path)) as journal, journal:
            journal.execute("UPDATE agents SET seen = ?", (nonsense,))
        assert [outcome.status for outcome in bulk.run(jobs, ONNX)] == ["current"] * COUNT


def test_the_journal_keeps_what_was_seen_of_other_targets(release, tmp_path, monkeypatch):
    jobs = find_jobs([release], tmp_path / "out")[:2]
    for targets in (("onnx",), ("flax",)):
        assert all(outcome.written for outcome in bulk.run(jobs, bulk.Work(targets)))
    monkeypatch.setattr(bulk, "convert_job", pytest.fail)
    for targets in (("onnx",), ("flax",), ("onnx", "flax")):
        assert [outcome.status for outcome in bulk.run(jobs, bulk.Work(targets))] == ["current", "current"]
    for job in jobs:
        Path(job.folder, "params.msgpack").unlink()
    assert [outcome.status for outcome in bulk.run(jobs, ONNX)] == ["current", "current"]
    monkeypatch.setattr(journal, "__version__", "9.9.9")
    monkeypatch.setattr(bulk, "convert_job", lambda _, job: bulk.Outcome(job, ("onnx",)))
    assert [outcome.status for outcome in bulk.run(jobs, ONNX)] == ["converted", "converted"]


def test_the_output_holds_agents_and_nothing_else(expected):
    assert {Path(path).name for path in expected} == {"agent.json", "model.onnx"}


def test_filters_lists_and_dry_runs_of_the_command(release, tmp_path):
    out = tmp_path / "out"
    result = run(release, "--to", "onnx", "-o", out, "--game", "Pong", "--steps", "latest", "--dry-run")
    assert result.stdout.count("would write onnx") == 2
    size = sum(path.stat().st_size for path in release.rglob("*.gz"))
    result = run(release, "--to", "onnx", "-o", out, "--dry-run", "-q", "--json")
    assert len(json.loads(result.stdout)["agents"]) == COUNT
    result = run(release, "--to", "onnx", "-o", out, "--dry-run")
    assert f"{COUNT} to convert, 0 current, 0 failed; {size / 1e6:.1f} MB to read" in result.stdout
    (tmp_path / "list").write_text("\n".join(map(str, [*release.rglob("model_1*.gz"), tmp_path / "gone.gz"])))
    result = run("--files-from", tmp_path / "list", "--to", "onnx", "-o", out, code=1)
    assert "4 converted, 0 current, 1 failed" in result.stdout
    assert f"failed: {tmp_path}/gone.gz: cannot be read (No such file or directory)" in result.stderr
    assert "is not K/N" in run(release, "--to", "onnx", "--shard", "3/2", code=2).stderr
    assert "no game 'Pnog'" in run(release, "--to", "onnx", "--game", "Pnog", code=2).stderr


def test_a_dry_run_reads_only_what_it_must(release, tmp_path, monkeypatch):
    root, out = link(release, tmp_path / "root"), tmp_path / "out"
    jobs = find_jobs([root], out)
    monkeypatch.setattr(storage, "read_source", pytest.fail)
    assert [outcome.written for outcome in bulk.rehearse(jobs, ONNX)] == [("onnx",)] * COUNT
    assert not out.exists()
    monkeypatch.undo()
    assert all(outcome.written for outcome in bulk.run(jobs, ONNX))
    monkeypatch.setattr(storage, "read_source", pytest.fail)
    assert [outcome.status for outcome in bulk.rehearse(jobs, ONNX)] == ["current"] * COUNT
    monkeypatch.undo()
    os.utime(jobs[0].source, ns=(0, 0))  # its size tells nothing, so it is read
    assert [outcome.status for outcome in bulk.rehearse(jobs, ONNX)] == ["current"] * COUNT


def test_an_output_whose_name_is_not_utf_8(release, tmp_path):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    result = run(next(release.rglob("*.gz")), "--to", "onnx", "-o", out, "--summary", tmp_path / "summary.json")
    assert "1 converted, 0 current, 0 failed" in result.stdout
    assert json.loads((tmp_path / "summary.json").read_text())["out"] == out
    assert run(release, "--to", "onnx", "-o", out).returncode == 0


def test_a_summary_that_cannot_be_written_is_a_failure(release, tmp_path):
    source = next(release.rglob("*.gz"))
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none/summary.json", tmp_path / "folder"):
        assert "--summary" in run(source, "--to", "onnx", "-o", tmp_path / "out", "--summary", path, code=2).stderr
    assert not (tmp_path / "out").exists()
    result = run(source, "--to", "onnx", "-o", tmp_path / "out", "--summary", "/proc/summary.json", code=1)
    assert "1 converted" in result.stdout
    assert "failed: /proc/summary.json: the summary cannot be written" in result.stderr


def test_fail_fast_stops_and_summaries_tell(release, tmp_path):
    root = link(release, tmp_path / "root")
    bad = root / "C51_classic/Asterix/0/model_1.gz"
    bad.write_bytes(b"nothing")
    page = tmp_path / "page.md"
    arguments = (root, "--to", "onnx", "-o", tmp_path / "out", "--summary", tmp_path / "summary.json")
    run(*arguments, "--fail-fast", code=1, GITHUB_STEP_SUMMARY=str(page))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["failed"], summary["total"]) == (1, COUNT + 1)
    assert summary["not_reached"] == COUNT - summary["converted"]
    assert summary["not_reached"] > 0
    (failure,) = summary["failures"]
    assert (failure["source"], failure["kind"]) == (str(bad), "UnreadableCheckpoint")
    assert failure["message"].startswith(f"{bad}: a text file, expected a gzipped checkpoint of this release")
    assert f"| `{bad}` | `{bad}: a text file" in page.read_text()
    run(*arguments, "-j", 2, code=1)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["converted"] + summary["current"], summary["failed"]) == (COUNT, 1)
    assert summary["not_reached"] == 0


def test_a_mistake_of_ours_is_one_jobs_failure(release, tmp_path, monkeypatch):
    def convert(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(bulk, "write_agent", convert)
    outcomes = list(bulk.run(find_jobs([release], tmp_path / "out"), ONNX))
    assert [outcome.status for outcome in outcomes] == ["failed"] * COUNT
    assert "ZeroDivisionError at" in str(outcomes[0].error)
    assert "by zero: a bug of atari-convert, please report it" in str(outcomes[0].error)


def test_a_worker_that_dies_costs_one_try_and_its_job_one_more(release, expected, tmp_path, monkeypatch):
    """An agent's folder that another run holds makes its worker wait, which is killed; and at the second try again."""
    root = link(release, tmp_path / "root")
    trap = root / "DQN_modern/Asterix/0/model_7.gz"
    os.link(next(release.rglob("*.gz")), trap)
    jobs = find_jobs([root], tmp_path / "out")
    held = tmp_path / "out/DQN_modern/Asterix/0/model_7"
    held.mkdir(parents=True)
    lock = os.open(held, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    started = []
    start = processes._start

    def watch(work: bulk.Work) -> processes._Worker:
        started.append(start(work))
        return started[-1]

    monkeypatch.setattr(processes, "_start", watch)
    outcomes = []
    for outcome in bulk.run(jobs, ONNX, engine=processes.make_engine(2)):
        outcomes.append(outcome)
        caught = [worker for worker in started if worker.jobs and worker.jobs[0].source == str(trap)]
        if len(outcomes) >= COUNT // 2:
            for worker in caught:
                worker.process.kill()
    failed = [outcome for outcome in outcomes if outcome.error]
    assert [outcome.job.source for outcome in failed] == [str(trap)]
    assert "its worker died 2 times, the last time by SIGKILL" in str(failed[0].error)
    os.close(lock)
    assert hashes(tmp_path / "out") == expected
    assert all(worker.process.exitcode is not None for worker in started)


def test_when_every_worker_dies_the_run_stops(release, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_serve", _die)
    monkeypatch.setattr(processes, "_DEATHS_IN_A_ROW", 3)
    with pytest.raises(processes.WorkerDied, match="3 workers died one after another, the last by SIGKILL"):
        list(bulk.run(find_jobs([release], tmp_path / "out"), ONNX, engine=processes.make_engine(2)))


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_lone_conversion_pays_for_no_engine_and_no_url(release, tmp_path):
    script = """
import sys
from convert.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""
    command = [sys.executable, "-c", script, next(release.rglob("*.gz")), "--to", "onnx", "--dry-run", "-o", tmp_path]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stderr.split()
    assert not {"fsspec", "ray", "multiprocessing", "concurrent.futures", "torch"} & set(loaded)
