"""How many steps it takes to notice a fault, by its size: ``python tests/measure_steps.py [--steps N] [--places N]``.

The numbers from which docs/verdict.md derives how much to play when thousands of agents are checked. A fault is one
weight of the checkpoint that is off by a part of the standard deviation of its layer. It is noticed
where the error of an answer is above the allowed one. Four episodes play side by side.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from measure_precision import State, infer

from convert.sources import identify
from runtime_check.compare import DEFAULT_ATOL, DEFAULT_RTOL, Tolerance, compare_outputs, compute_scale
from runtime_check.oracle import compute_outputs
from runtime_check.originals import read_oracle
from runtime_check.originals.atari_agents import read_state_dict
from runtime_check.protocols import PROTOCOLS
from runtime_check.replay import Plan, Replay

AGENTS = Path(__file__).parent / "data/agents"
EPISODES = 4
LAYERS = ("features.0", "features.2", "features.4", "head.0", "head.2")
SIZES = (1.0, 0.1, 1e-2, 1e-3, 1e-4)
AFTER = (1, 3, 10, 50, 200)  # steps of each episode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=max(AFTER), help="of each of 4 episodes")
    parser.add_argument("--places", type=int, default=20, help="of a single weight in each layer, drawn at random")
    arguments = parser.parse_args()
    for path in sorted(AGENTS.rglob("model_*.gz")):
        measure(path, arguments.steps, arguments.places)


def measure(path: Path, steps: int, places: int) -> None:
    identity = identify(path.as_posix())
    oracle, state = read_oracle(path), read_state_dict(path)
    tolerance = Tolerance(DEFAULT_ATOL, DEFAULT_RTOL, compute_scale(oracle.support))
    batches, expected = [], []
    replay = Replay(Plan(identity.game, PROTOCOLS[identity.protocol], oracle.actions, 0, EPISODES, steps), EPISODES)
    while batch := replay.observe():
        batches.append(batch)
        expected.append(compute_outputs(oracle, batch.obs_nchw))
        replay.act(expected[-1]["q_values"].argmax(axis=1))
    obs = np.concatenate([batch.obs_nchw for batch in batches])
    step = np.concatenate([batch.steps for batch in batches])
    told = {name: np.concatenate([each[name] for each in expected]) for name in expected[0]}
    rng = np.random.default_rng(0)
    print(f"{path.relative_to(AGENTS)}, {len(obs)} observations: share of faults noticed after so many steps")
    print(f"  {'one weight off by':<34}" + "".join(f"{after:>7}" for after in AFTER))
    for layer in LAYERS:
        for size in SIZES:
            firsts = []
            for _ in range(places):
                faulty = plant(state, layer, size, rng)
                answers = answer(faulty, obs)
                ratio = compare_outputs(answers, told, tolerance).ratio
                firsts.append(step[ratio > 1].min() + 1 if (ratio > 1).any() else np.inf)
            shares = [np.mean(np.array(firsts) <= after) for after in AFTER]
            print(f"  {layer:<12}{size:>8g} standard deviations" + "".join(f"{share:>7.0%}" for share in shares))


def plant(state: State, layer: str, size: float, rng: np.random.Generator) -> State:
    """Return the state with one weight of a layer moved by ``size`` standard deviations of the layer."""
    name = f"_AtariNet__{layer}.weight"
    weight = state[name].clone()
    place = int(rng.integers(weight.numel()))
    weight.view(-1)[place] += size * float(weight.std())
    return {**state, name: weight}


def answer(state: State, obs_nchw: np.ndarray) -> dict[str, np.ndarray]:
    """Return the answers in float32, a part of the observations at a time."""
    with torch.inference_mode():
        parts = [infer(state, part) for part in np.array_split(obs_nchw, max(1, len(obs_nchw) // 128))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


if __name__ == "__main__":
    main()
