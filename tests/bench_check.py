"""What a shadow check costs beside its parts: ``python tests/bench_check.py [--steps N] [--width N] [--json FILE]``.

Each part runs alone on what the whole check sees: the emulators, the oracle, each backend. All are opened afresh,
so that what a runtime compiles on its first batches counts in the part as it does in the whole. Emulators are opened
within the whole, too; a second ratio leaves that out of the parts. A third takes the parts in turns, batch by batch:
then each finds the processor's cache full of the others' weights, as it does in the whole. Memory is the peak of fresh
processes that check few and many episodes, and few and many agents, with all backends.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does

import numpy as np

from convert.agents.agent import Agent
from convert.agents.record import read_record
from convert.pipeline import convert_checkpoint
from convert.runtimes import Runtime, Settings
from runtime_check.backends import REFERENCE, find_backend
from runtime_check.check.opening import open_backend
from runtime_check.check.options import Listeners, Options
from runtime_check.check.pipeline import check_agent
from runtime_check.check.verification import find_artefact
from runtime_check.oracle import compute_outputs
from runtime_check.originals import read_oracle
from runtime_check.protocols import PROTOCOLS
from runtime_check.replay import Plan, Replay

AGENTS = Path(__file__).parent / "data/agents"
TARGETS = ("onnx", "flax", "tensorflow")
NAMES = (REFERENCE, "onnxruntime", "flax", "tensorflow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500, help="of each episode")
    parser.add_argument("--width", type=int, default=16, help="episodes side by side")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "converted"
        for source in AGENTS.rglob("model_*.gz"):
            convert_checkpoint(source, out / source.relative_to(AGENTS).with_suffix(""), TARGETS)
        rows = [measure_speed(path.parent, out, arguments) for path in sorted(out.rglob("agent.json"))]
        if sys.platform == "linux":
            rows.append(measure_memory(out, Path(name)))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure_speed(folder: Path, out: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Time the parts and the whole of one agent, print and return them."""
    agent, source = read_record(folder).agent, AGENTS / f"{folder.relative_to(out)}.gz"
    options = Options(NAMES, arguments.width, arguments.steps)
    batches, actions = record(agent, source, options)
    steps = sum(map(len, batches))
    parts = dict(zip(("opening", "emulators"), time_emulators(agent, options, actions), strict=True))
    oracle = read_oracle(source)
    judges: dict[str, Callable[[np.ndarray], object]] = {"oracle": lambda obs: compute_outputs(oracle, obs)}
    judges |= {name: open_runtime(name, folder, source, options).answer for name in NAMES}
    parts |= {name: time_each([judge], batches) for name, judge in judges.items()}
    turns = parts["emulators"] + time_each(judges.values(), batches)
    whole = time_check(folder, options)
    print(f"{folder.relative_to(out)}: {steps} steps, {arguments.width} side by side")
    for name, seconds in parts.items():
        print(f"  {name:<14}{seconds / steps * 1e3:8.3f} ms a step")
    for name, seconds in (("sum of parts", sum(parts.values())), ("in turns", turns), ("whole check", whole)):
        print(f"  {name:<14}{seconds / steps * 1e3:8.3f} ms a step, {steps / seconds:.0f} steps/s")
    slowest = max(NAMES, key=lambda name: parts[name])
    stepping = sum(parts.values()) - parts["opening"]
    print(
        f"  ratio {sum(parts.values()) / whole:.2f}, {stepping / whole:.2f} with no opening among the parts, ", end=""
    )
    print(f"{turns / whole:.2f} in turns")
    print(f"  oracle {parts['oracle'] / parts[slowest]:.2f} of {slowest}\n")
    return {"agent": str(folder.relative_to(out)), "steps": steps, "parts": parts, "turns": turns, "whole": whole}


def record(agent: Agent, source: Path, options: Options) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return every batch of observations and of actions of the replay that the check will play."""
    runtime, batches, actions = open_runtime(REFERENCE, Path(), source, options, agent), [], []
    replay = Replay(plan_of(agent, options), options.width)
    while batch := replay.observe():
        batches.append(batch.obs_nchw)
        actions.append(runtime.answer(batch.obs_nchw)["q_values"].argmax(axis=1))
        replay.act(actions[-1])
    return batches, actions


def plan_of(agent: Agent, options: Options) -> Plan:
    protocol = PROTOCOLS[agent.identity.protocol]
    return Plan(
        agent.identity.game, protocol, agent.head.actions, episodes=options.episodes, max_steps=options.max_steps
    )


def open_runtime(name: str, folder: Path, source: Path, options: Options, agent: Agent | None = None) -> Runtime:
    record = None if agent else read_record(folder)
    target = find_backend(name).target
    path = source if target is None else find_artefact(folder, target)
    return open_backend(find_backend(name), path, agent or record.agent, Settings(batch=options.width))[0]


def time_emulators(agent: Agent, options: Options, actions: list[np.ndarray]) -> tuple[float, float]:
    """Time the replay itself, with actions that are known: opening the emulators, and their steps."""
    started = time.perf_counter()
    replay = Replay(plan_of(agent, options), options.width)
    opened = time.perf_counter()
    for chosen in actions:
        replay.observe()
        replay.act(chosen)
    return opened - started, time.perf_counter() - opened


def time_each(functions: Collection[Callable[[np.ndarray], object]], batches: list[np.ndarray]) -> float:
    """Time functions of a batch, by turns."""
    started = time.perf_counter()
    for batch in batches:
        for function in functions:
            function(batch)
    return time.perf_counter() - started


def time_check(folder: Path, options: Options) -> float:
    """Time a whole check from the moment at which all its artefacts are open."""
    starts: list[float] = []
    listeners = Listeners(start=lambda _: starts.append(time.perf_counter()))
    result = check_agent(folder, AGENTS, options, listeners)
    if not result.agrees:
        sys.exit(f"{folder}: disagrees")
    return time.perf_counter() - starts[0]


def measure_memory(out: Path, scratch: Path) -> dict[str, int]:
    """Print and return peaks of memory in MiB: one agent with few and many episodes, few and many agents."""
    source = out / "DQN_modern/Pong/0/model_328492"
    for index in range(40):
        shutil.copytree(source, scratch / "many" / str(index), copy_function=os.link)
        if index < 4:
            shutil.copytree(source, scratch / "few" / str(index), copy_function=os.link)
    short = ("--max-steps", "20")
    peak(source, *short)  # what is loaded for the first time counts for nobody
    peaks = {
        "16 episodes": peak(source, *short, "--episodes", "16"),
        "160 episodes": peak(source, *short, "--episodes", "160"),
        "4 agents": peak(scratch / "few", *short),
        "40 agents": peak(scratch / "many", *short),
    }
    print("peak memory: " + ", ".join(f"{name} {megabytes} MiB" for name, megabytes in peaks.items()))
    return peaks


def peak(folder: Path, *options: str) -> int:
    """Return the peak of a check in a process of its own, in MiB. (Linux: ``ru_maxrss`` would count its parent's.)"""
    code = (
        "from pathlib import Path\n"
        "from runtime_check.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(Path('/proc/self/status').read_text())\n"
    )
    with tempfile.TemporaryDirectory() as report:
        arguments = [str(folder), "--source", str(AGENTS), *options, "--report", f"{report}/report"]
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=600
        )
    return int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]) // 1024


if __name__ == "__main__":
    main()
