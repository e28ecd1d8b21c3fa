"""How far float32 and shorter formats are from the oracle: ``python tests/measure_precision.py [--steps N]``.

The numbers from which docs/verdict.md derives the default tolerances. Rounding is imitated on the CPU: weights or
the inputs of every product are cut to fewer bits, and sums stay in float32, as on a GPU's tensor cores.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F

from convert.sources import identify
from runtime_check.compare import DEFAULT_ATOL, DEFAULT_RTOL, Tolerance, compare_outputs, compute_scale
from runtime_check.oracle import compute_outputs
from runtime_check.originals import read_oracle
from runtime_check.originals.atari_agents import read_state_dict
from runtime_check.protocols import PROTOCOLS
from runtime_check.replay import Plan, Replay
from runtime_check.tally import Tally

AGENTS = Path(__file__).parent / "data/agents"
State = dict[str, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="of each of 8 episodes")
    arguments = parser.parse_args()
    for path in sorted(AGENTS.rglob("model_*.gz")):
        measure(path, arguments.steps)


def measure(path: Path, steps: int) -> None:
    identity = identify(path.as_posix())
    oracle, state = read_oracle(path), read_state_dict(path)
    tolerance = Tolerance(DEFAULT_ATOL, DEFAULT_RTOL, compute_scale(oracle.support))
    tallies = {name: Tally() for name in VARIANTS}
    replay = Replay(
        Plan(identity.game, PROTOCOLS[identity.protocol], oracle.actions, episodes=8, max_steps=steps, epsilon=0.01), 8
    )
    largest = []
    while batch := replay.observe():
        expected = compute_outputs(oracle, batch.obs_nchw)
        largest.append(np.abs(expected["q_values"]).max(axis=1))
        for name, variant in VARIANTS.items():
            comparison = compare_outputs(variant(state, batch.obs_nchw), expected, tolerance)
            tallies[name].add(comparison, batch.episodes, batch.steps)
        replay.act(expected["q_values"].argmax(axis=1))
    sizes = np.concatenate(largest)
    print(f"{path.relative_to(AGENTS)}: {len(sizes)} steps, max |q| {sizes.min():.3g} to {sizes.max():.3g}")
    print(f"  {'':<26}{'max error':>11}{'median':>9}{'/allowed':>10}{'exceeding':>11}{'other actions':>15}")
    for name, tally in tallies.items():
        other = tally.disagreements.ties + tally.disagreements.wrong
        print(
            f"  {name:<26}{tally.max_error:>11.1e}{tally.errors.median():>9.1e}{tally.max_ratio:>10.2g}"
            f"{tally.exceeding / tally.steps:>11.1%}{other / tally.steps:>15.2%}"
        )


def cut(tensor: torch.Tensor, bits: int) -> torch.Tensor:
    """Round float32 to so many bits of mantissa, halves to even."""
    drop = 23 - bits
    whole = tensor.contiguous().view(torch.int32)
    whole = whole + ((1 << (drop - 1)) - 1) + ((whole >> drop) & 1)
    return ((whole >> drop) << drop).view(torch.float32)


def infer(
    state: State,
    obs_nchw: np.ndarray,
    weights: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    inputs: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    dtype: torch.dtype = torch.float32,
) -> dict[str, np.ndarray]:
    """Run the network of the release with its weights, and the inputs of each product, rounded."""
    parts = {name.removeprefix("_AtariNet__"): tensor for name, tensor in state.items()}
    support = parts.pop("support", None)
    parts = {name: (weights(tensor) if "weight" in name else tensor).to(dtype) for name, tensor in parts.items()}
    with torch.inference_mode():
        x = (torch.from_numpy(obs_nchw).float() / 255).to(dtype)
        for layer, stride in ((0, 4), (2, 2), (4, 1)):
            kernel, bias = parts[f"features.{layer}.weight"], parts[f"features.{layer}.bias"]
            x = F.relu(F.conv2d(inputs(x), kernel, bias, stride))
        x = F.relu(F.linear(inputs(x.flatten(1)), parts["head.0.weight"], parts["head.0.bias"]))
        x = F.linear(inputs(x), parts["head.2.weight"], parts["head.2.bias"]).float()
    if support is None:
        return {"q_values": x.numpy()}
    logits = x.unflatten(1, (-1, len(support)))
    return {"q_values": (logits.softmax(-1) * support).sum(-1).numpy(), "logits": logits.numpy()}


VARIANTS: dict[str, Callable[[State, np.ndarray], dict[str, np.ndarray]]] = {
    "float32": infer,
    "TF32 products": lambda state, obs: infer(state, obs, lambda t: cut(t, 10), lambda t: cut(t, 10)),
    "float16 weights": lambda state, obs: infer(state, obs, lambda t: t.half().float()),
    "float16 inference": lambda state, obs: infer(state, obs, dtype=torch.float16),
    "bfloat16 weights": lambda state, obs: infer(state, obs, lambda t: cut(t, 7)),
    "bfloat16 inference": lambda state, obs: infer(state, obs, dtype=torch.bfloat16),
}


if __name__ == "__main__":
    main()
