"""What a run over many agents survives. After each accident the same command is run again, and the files are those
of a run that nothing happened to: none missing, none half-written, none left over.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from builders import make_state, save_checkpoint
from bulk_release import COUNT, hashes, link, run

from convert.agents.record import read_record
from convert.bulk import run as bulk
from convert.bulk.selection import find_jobs
from convert.errors import UnreadableCheckpoint
from convert.store import storage

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("SURVIVE_KILLS", "5"))
TARGETS = ("onnx", "dopamine")  # a file and a folder
ARGUMENTS = [argument for target in TARGETS for argument in ("--to", target)]


@pytest.fixture(scope="module")
def whole(release, tmp_path_factory) -> dict[str, str]:
    """The files of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole")
    assert resume(release, out) == ["converted"] * COUNT
    return hashes(out)


@pytest.fixture(scope="module")
def outdated(release, tmp_path_factory) -> Path:
    """An output of other checkpoints at the same places. Not to be changed."""
    root, out = tmp_path_factory.mktemp("others"), tmp_path_factory.mktemp("outdated")
    for path in release.rglob("*.gz"):
        other = save_checkpoint(root / "one.gz", make_state(18, 51 if "C51" in str(path) else None, seed=77))
        (root / path.relative_to(release)).parent.mkdir(parents=True, exist_ok=True)
        os.replace(other, root / path.relative_to(release))
    assert [outcome.status for outcome in bulk.run(find_jobs([root], out), bulk.Work(TARGETS))] == ["converted"] * COUNT
    return out


@contextmanager
def started(*arguments: object):
    """Start the command as the leader of a process group, and leave nothing of it behind."""
    command = [sys.executable, "-m", "convert", *map(str, arguments)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def resume(release: Path, out: Path) -> list[str]:
    return [outcome.status for outcome in bulk.run(find_jobs([release], out), bulk.Work(TARGETS))]


@pytest.mark.parametrize("trial", range(KILLS))
def test_a_kill_at_a_random_instant(trial, release, whole, outdated, tmp_path):
    """The whole process group dies at once, while it converts; every second trial replaces an older output."""
    out = tmp_path / "out"
    if trial % 2:
        shutil.copytree(outdated, out)
    else:
        out.mkdir()
    rng = random.Random()
    with started(release, *ARGUMENTS, "-o", out, "-j", 2) as process:
        wait_for(lambda: any(out.rglob(".atari-convert-new")) or process.poll() is not None)
        time.sleep(rng.uniform(0, 1.0))
        was_running = process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found = hashes(out)
    finished = {
        str(Path(path).parent) for path in found if path.endswith("agent.json") and found[path] == whole.get(path)
    }
    statuses = resume(release, out)
    assert len(statuses) == COUNT
    assert statuses.count("converted") <= COUNT - len(finished)
    assert "failed" not in statuses
    assert hashes(out) == whole
    assert resume(release, out) == ["current"] * COUNT
    assert was_running or len(finished) == COUNT


def test_the_workers_of_a_run_that_was_killed_end_too(release, whole, tmp_path):
    out = tmp_path / "out"
    with started(release, *ARGUMENTS, "-o", out, "-j", 2) as process:
        wait_for(lambda: any(out.rglob("agent.json")))
        workers = _children_of(process.pid)
        assert len(workers) >= 2  # and the resource tracker of multiprocessing
        process.kill()
        process.wait()
        wait_for(lambda: not any(_is_running(worker) for worker in workers), 20)
    assert "failed" not in resume(release, out)
    assert hashes(out) == whole


def _children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_is_quick_and_clean(workers, release, whole, tmp_path):
    out = tmp_path / "out"
    with started(release, *ARGUMENTS, "-o", out, "-j", workers) as process:
        wait_for(lambda: any(out.rglob("agent.json")))
        at = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
        assert time.monotonic() - at < 10  # a loaded computer; it takes tenths of a second
        assert process.returncode == 130
    assert "interrupted: rerun the same command to resume" in stderr
    assert "Traceback" not in stderr
    assert {Path(path).name for path in hashes(out) if "/." in path} == set()
    statuses = resume(release, out)
    assert "failed" not in statuses
    assert "current" in statuses
    assert hashes(out) == whole


def test_ctrl_c_while_workers_start_is_clean_as_well(release, tmp_path):
    codes = []
    for moment in range(8):
        with started(release, *ARGUMENTS, "-o", tmp_path / f"out{moment}", "-j", 2) as process:
            wait_for(lambda process=process: _children_of(process.pid))
            time.sleep(moment / 12)
            os.killpg(process.pid, signal.SIGINT)
            _, stderr = process.communicate(timeout=20)
            codes.append(process.returncode)
            lines = [
                line for line in stderr.splitlines() if not line.startswith("warning: ")
            ]  # of agents that were done
            # A fast machine may be done before the signal comes.
            assert lines == (["interrupted: rerun the same command to resume"] if process.returncode == 130 else [])
    assert codes[0] == 130
    assert set(codes) <= {0, 130}


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk(small_disk, release, whole):
    out = small_disk / "out"
    result = run(release, *ARGUMENTS, "-o", out, "-j", 2, code=1)
    failures = [line for line in result.stderr.splitlines() if line.startswith("failed")]
    assert 0 < len(failures) < COUNT
    assert all("cannot be written (No space left on device)" in line for line in failures)
    found = hashes(out)
    assert found.items() <= whole.items()
    assert len({Path(path).parts[:4] for path in found}) == COUNT - len(failures)
    subprocess.run(["mount", "-o", "remount,size=500m", small_disk], check=True)
    assert resume(release, out).count("converted") == len(failures)
    assert hashes(out) == whole


def test_two_runs_into_one_folder_share_the_work(release, whole, tmp_path):
    out = tmp_path / "out"
    with started(release, *ARGUMENTS, "-o", out) as one, started(release, *ARGUMENTS, "-o", out, "-j", 2) as two:
        texts = [process.communicate(timeout=240) for process in (one, two)]
        assert (one.returncode, two.returncode) == (0, 0), texts
    counts = [int(stdout.split(" converted")[0].split()[-1]) for stdout, _ in texts]
    assert sum(counts) == COUNT
    assert hashes(out) == whole


def test_damaged_sources_among_good_ones(release, whole, tmp_path):
    root, out = link(release, tmp_path / "root"), tmp_path / "out"
    good = next(root.rglob("*.gz")).read_bytes()
    middle = len(good) // 2
    bad = {
        "cut": good[:middle],
        "flipped": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        "empty": b"",
    }
    for index, content in enumerate(bad.values()):
        path = root / f"DQN_modern/Pong/{index + 1}/model_1.gz"
        path.parent.mkdir()
        path.write_bytes(content)
    result = run(root, *ARGUMENTS, "-o", out, "-j", 2, code=1)
    assert f"{COUNT} converted, 0 current, {len(bad)} failed" in result.stdout
    for index in range(len(bad)):
        assert f"failed: {root}/DQN_modern/Pong/{index + 1}/model_1.gz: " in result.stderr
    assert hashes(out) == whole


def test_a_source_that_is_replaced_while_it_is_read(tmp_path):
    """Whichever of the two is read, the record and the artefact are of that one."""
    sources = [save_checkpoint(tmp_path / f"{seed}.gz", make_state(6, seed=seed)) for seed in (1, 2)]
    expected = {}
    for source in sources:
        (outcome,) = bulk.run(find_jobs([source], tmp_path / "apart"), bulk.Work(("onnx",)))
        expected[outcome.record.agent.source.sha256] = outcome.record.artifacts["onnx"].files[0].size
    place = tmp_path / "DQN_modern/Pong/0/model_1.gz"
    place.parent.mkdir(parents=True)
    shutil.copy(sources[0], place)
    done = threading.Event()

    def replace() -> None:
        while not done.is_set():
            for source in sources:
                shutil.copy(source, tmp_path / "next")
                os.replace(tmp_path / "next", place)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        (job,) = find_jobs([place], tmp_path / "out")
        seen = set()
        for _ in range(8):
            (outcome,) = bulk.run([job], bulk.Work(("onnx",), overwrite=True))
            assert outcome.status == "converted"
            record = read_record(Path(job.folder))
            seen.add(record.agent.source.sha256)
    finally:
        done.set()
        thread.join()
    assert seen <= expected.keys()


def test_a_source_that_is_still_being_written(tmp_path):
    path = tmp_path / "model_1.gz"
    path.write_bytes(bytes(100_000_000))
    done = threading.Event()

    def append() -> None:
        with path.open("ab", buffering=0) as file:
            while not done.is_set():
                file.write(b"more")
                time.sleep(0.0005)

    thread = threading.Thread(target=append)
    thread.start()
    try:
        with pytest.raises(UnreadableCheckpoint, match="changes while it is read: convert it when it is complete"):
            storage.read_source(str(path))
    finally:
        done.set()
        thread.join()


def test_an_address_where_no_ray_cluster_answers_is_refused_at_once(release, tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    result = run(release, "--to", "onnx", "-o", tmp_path, "--engine", "ray", "--ray-address", address, code=2)
    assert f"--ray-address {address}: nothing answers there" in result.stderr


def test_ray_writes_the_same_files_though_its_workers_are_killed(release, whole, tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    out = tmp_path / "out"
    with started(release, *ARGUMENTS, "-o", out, "--engine", "ray", "-j", 2) as process:
        wait_for(lambda: any(out.rglob("agent.json")))
        wait_for(lambda: _find_ray_workers(process.pid))
        for worker in _find_ray_workers(process.pid):
            os.kill(worker, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stdout + stderr
    assert "0 failed" in stdout
    assert hashes(out) == whole


def _find_ray_workers(pid: int) -> list[int]:
    """Return the workers that are at work just now; Ray names a process after its task."""
    children = _children_of(pid)
    named = [child for child in children if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"ray::do_job")]
    return [*named, *(worker for child in children for worker in _find_ray_workers(child))]
