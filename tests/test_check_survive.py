"""Every way to check many agents finds the same: processes, shards, Ray, and a run that is killed again and again.

``CHECK_AGENTS=300 pytest tests/test_check_survive.py`` does it with as many agents as one likes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from bench_bulk import make_release
from builders import make_state, plant_weights, to_network

from convert.bulk import run as conversion
from convert.bulk.selection import find_jobs

pytestmark = pytest.mark.slow

COUNT = int(os.environ.get("CHECK_AGENTS", "18"))
KILLS = 5


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("survive") / "release"
    make_release(root, COUNT)
    return root


@pytest.fixture(scope="module")
def converted_release(release) -> Path:
    """Converted agents, of which three have other weights and three cannot be read."""
    out = release.parent / "out"
    for outcome in conversion.run(find_jobs([release], out), conversion.Work(("onnx",))):
        assert outcome.error is None
    folders = [path.parent for path in sorted(out.rglob("agent.json"))]
    for folder in folders[1::5][:3]:
        atoms = 51 if "C51" in str(folder) else None
        plant_weights(folder, "onnx", to_network(make_state(18, atoms, seed=99)))
    for folder in folders[3::5][:3]:
        (folder / "agent.json").write_text("{", "utf-8")
    return out


@pytest.fixture
def out(converted_release) -> Path:
    for proof in converted_release.rglob("proof.json"):
        proof.unlink()
    return converted_release


def _command(release: Path, out: Path, *options: object) -> list[str]:
    how = ("--source", release, "--max-steps", 3, "--episodes", 2)
    return [sys.executable, "-m", "runtime_check", *map(str, (out, *how, *options))]


def _check(release: Path, out: Path, place: Path, *options: object) -> dict[str, object]:
    """Return what a run leaves: check.json without its time, the JUnit file, and every proof."""
    command = _command(release, out, "--report", place / "report", "--junitxml", place / "junit.xml", *options)
    place.mkdir(exist_ok=True)
    environment = os.environ | {"XDG_CACHE_HOME": str(place / "cache"), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3000)
    assert "Traceback" not in done.stderr
    document = json.loads((place / "report/check.json").read_text("utf-8"))
    del document["created"]
    proofs = {str(path): path.read_bytes() for path in sorted(out.rglob("proof.json"))}
    return {
        "exit code": done.returncode,
        "check.json": document,
        "junit": (place / "junit.xml").read_text("utf-8"),
        "proofs": proofs,
    }


@pytest.fixture(scope="module")
def expected(release, converted_release, tmp_path_factory) -> dict[str, object]:
    """What one process finds that nobody disturbs."""
    found = _check(release, converted_release, tmp_path_factory.mktemp("expected"))
    assert found["exit code"] == 1
    assert found["check.json"]["counts"] == {"agree": COUNT - 6, "disagree": 3, "unchecked": 3}
    assert len(found["proofs"]) == COUNT - 3
    return found


def test_two_processes(expected, release, out, tmp_path):
    assert _check(release, out, tmp_path, "-j", 2) == expected


def test_a_ray_cluster(expected, release, out, tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    assert _check(release, out, tmp_path, "--engine", "ray", "-j", 2) == expected


def test_three_shards_and_their_merger(expected, release, out, tmp_path):
    for number in (1, 2, 3):
        _check(release, out, tmp_path, "--shard", f"{number}/3")
    assert _check(release, out, tmp_path) == expected


def test_a_run_that_is_killed_five_times(expected, release, out, tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_WAIT_POLICY": "PASSIVE"}
    for kill in range(KILLS):
        target = (kill + 1) * (COUNT - 3) // (KILLS + 1)
        with subprocess.Popen(_command(release, out, "-j", 2), env=environment, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and len(list(out.rglob("proof.json"))) < target:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
    assert _check(release, out, tmp_path) == expected


def test_two_checks_and_a_conversion_of_one_tree_at_once(release, out, tmp_path):
    """The conversion adds a target to the records of all agents but those whose record is damaged."""
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_WAIT_POLICY": "PASSIVE"}
    convert = [sys.executable, "-m", "convert", str(release), "--to", "safetensors", "-o", str(copy), "-q"]
    commands = [_command(release, copy, "--backend", "onnxruntime")] * 2
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in (*commands, convert)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=3000)
        assert "Traceback" not in stderr
        assert process.returncode in (0, 1)
    done = subprocess.run(commands[0], env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 1
    assert f"{COUNT - 6} agents agree, 3 disagree, 3 could not be checked" in done.stdout
    assert len(list(copy.rglob("huggingface"))) == COUNT - 3


def _list_children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def _find_ray_workers(pid: int) -> list[int]:
    """Return the workers that are at work just now; Ray names a process after its task."""
    children = _list_children(pid)
    named = [child for child in children if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"ray::do_job")]
    return [*named, *(worker for child in children for worker in _find_ray_workers(child))]


def _find_workers(pid: int) -> list[int]:
    spawned = (child for child in _list_children(pid) if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes())
    return list(spawned)


@pytest.mark.parametrize(
    ("options", "find_workers"), [(("-j", 2), _find_workers), (("--engine", "ray", "-j", 2), _find_ray_workers)]
)
def test_workers_that_are_killed_change_nothing(options, find_workers, expected, release, out, tmp_path):
    if "ray" in options:
        pytest.importorskip("ray", reason="the extra ray is not installed")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_WAIT_POLICY": "PASSIVE"}
    command = _command(release, out, *options)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not list(out.rglob("proof.json")):
            time.sleep(0.05)
        for worker in find_workers(process.pid):
            os.kill(worker, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=3000)
    assert "Traceback" not in stderr
    assert process.returncode == 1
    assert f"{COUNT - 6} agents agree, 3 disagree, 3 could not be checked" in stdout
    assert _check(release, out, tmp_path) == expected


@pytest.fixture
def full_disk(tmp_path, converted_release):
    """A disk that holds the converted agents, and not one byte more."""
    place = tmp_path / "disk"
    place.mkdir()
    size = sum(path.stat().st_size + 4096 for path in converted_release.rglob("*")) + 2**20
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    shutil.copytree(converted_release, place / "out", ignore=shutil.ignore_patterns("proof.json"))
    with suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_loses_no_verdict(expected, full_disk, release, tmp_path):
    out = full_disk / "out"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_WAIT_POLICY": "PASSIVE"}
    command = _command(release, out, "-j", 2, "--report", tmp_path / "report")
    for known in ("", f"; {COUNT - 3} of them known from an earlier run"):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
        assert done.returncode == 1
        assert f"{COUNT - 6} agents agree, 3 disagree, 3 could not be checked{known}" in done.stdout
        warnings = [line for line in done.stderr.splitlines() if line.startswith("warning")]
        assert len(warnings) == (0 if known else COUNT - 3)
        assert all("proof.json cannot be written (No space left on device)" in line for line in warnings)
    assert not list(full_disk.rglob("*proof.json*"))
    document = json.loads((tmp_path / "report/check.json").read_text("utf-8"))
    assert document["counts"] == expected["check.json"]["counts"]
