"""Measure checks of many agents: ``nox -s bench -- check-bulk [--agents N] [--jobs N]``.

Beside the command, in the same run: the sum of its parts, each alone (emulators, oracle, checkpoint and backends, with
and without opening them), the same command in one process, a second run over proven agents, and what a user would
write: a loop that opens each agent in every framework and compares the answers to the same observations by
``np.allclose``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does

import numpy as np
from bench_bulk import make_release
from bench_check import open_runtime, plan_of, record, time_emulators

import convert
from convert.agents.layout import nhwc_from_nchw
from convert.bulk import run as conversion
from convert.bulk.selection import find_jobs
from convert.targets import find_target
from runtime_check.backends import REFERENCE, find_backend
from runtime_check.check.options import Options
from runtime_check.oracle import compute_outputs
from runtime_check.originals import read_oracle
from runtime_check.replay import Replay

TARGETS = ("onnx", "flax", "tensorflow")
NAMES = ("onnxruntime", "flax", "tensorflow")
EPISODES, STEPS = 4, 50
SAMPLE = 20  # agents whose parts are timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root, out = Path(name, "release"), Path(name, "out")
        make_release(root, arguments.agents)
        for outcome in conversion.run(find_jobs([root], out), conversion.Work(TARGETS)):
            assert outcome.error is None, outcome.error
        rows = {
            "command": run_command(root, out, name, "--again", "-j", str(arguments.jobs)),
            "command, one process": run_command(root, out, name, "--again"),
            "command, proven agents": run_command(root, out, name, "-j", str(arguments.jobs)),
        }
        folders = [path.parent for path in sorted(out.rglob("agent.json"))][: SAMPLE + 1]
        parts = [time_parts(folder, root / f"{folder.relative_to(out)}.gz") for folder in folders][1:]
        opening = [part["opening"] for part in parts]
        playing = [part["playing"] for part in parts]
        by_hand = [time_by_hand(folder, root / f"{folder.relative_to(out)}.gz") for folder in folders][1:]
    agents, jobs = arguments.agents, arguments.jobs
    for label, seconds in rows.items():
        print(f"{label:<26}{seconds / agents * 1e3:9.1f} ms an agent, {agents / seconds:.2f} agents/s")
    floor = np.mean(playing) / jobs
    print(f"{'parts, opening excluded':<26}{floor * 1e3:9.1f} ms an agent on {jobs} processors")
    print(f"{'parts, opening included':<26}{(floor + np.mean(opening) / jobs) * 1e3:9.1f}")
    print(f"{'by hand, one process':<26}{np.mean(by_hand) * 1e3:9.1f}")
    each = rows["command"] / agents
    print(
        f"ratios: parts {floor / each:.2f}, with opening {(floor + np.mean(opening) / jobs) / each:.2f}; one process "
        f"{rows['command, one process'] / rows['command']:.2f}; by hand {np.mean(by_hand) / each:.2f}; proven "
        f"{rows['command'] / rows['command, proven agents']:.0f}"
    )
    print(f"opening an agent in all backends: median {np.median(opening) * 1e3:.0f} ms")
    if arguments.json:
        arguments.json.write_text(json.dumps({**rows, "opening": opening, "playing": playing, "by_hand": by_hand}))


def run_command(root: Path, out: Path, cache: str, *options: str) -> float:
    """Time the command as a user starts it."""
    how = ("--episodes", str(EPISODES), "--max-steps", str(STEPS), "-q")
    command = [sys.executable, "-m", "runtime_check", str(out), "--source", str(root), *how, *options]
    started = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | {"XDG_CACHE_HOME": cache})
    return time.perf_counter() - started


def time_parts(folder: Path, source: Path) -> dict[str, float]:
    """Time what a check of one agent cannot do without: opening everything, and playing, each part alone."""
    agent, options = convert.read_record(folder).agent, Options(NAMES, EPISODES, STEPS)
    batches, actions = record(agent, source, options)
    started = time.perf_counter()
    judges = [open_runtime(name, folder, source, options).answer for name in (REFERENCE, *NAMES)]
    oracle = read_oracle(source)
    for judge in judges:  # what is compiled for the first batch is part of opening
        judge(batches[0])
    opened = time.perf_counter() - started
    emulating = time_emulators(agent, options, actions)
    started = time.perf_counter()
    for judge in (*judges, lambda obs: compute_outputs(oracle, obs)):
        for batch in batches:
            judge(batch)
    return {"opening": opened + emulating[0], "playing": emulating[1] + time.perf_counter() - started}


def time_by_hand(folder: Path, source: Path) -> float:
    """Time a loop as a user would write it: load each framework's file, and compare on the frames of an episode."""
    agent, options = convert.read_record(folder).agent, Options(NAMES, EPISODES, STEPS)
    started = time.perf_counter()
    reference = open_runtime(REFERENCE, folder, source, options).answer
    loaded = {name: convert.load_agent(folder, find_backend(name).target) for name in NAMES}
    replay = Replay(plan_of(agent, options), options.width)
    while batch := replay.observe():
        expected = reference(batch.obs_nchw)["q_values"]
        for name, answer in loaded.items():
            is_nhwc = find_target(find_backend(name).target).axes == "NHWC"
            q_values = answer(nhwc_from_nchw(batch.obs_nchw) if is_nhwc else batch.obs_nchw)
            assert np.allclose(q_values, expected, atol=1e-4), name
        replay.act(expected.argmax(axis=1))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
    print(f"peak memory of a worker: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MiB")
