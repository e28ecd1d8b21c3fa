"""Measure 51 stacked agents under ``jax.vmap`` and ``jax.lax.map`` against a Python loop: ``nox -s bench -- stack``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np
from builders import make_observations, make_state, to_network

from convert.agents import layout
from convert.formats.parameter_trees import to_params
from convert.networks.linen import NatureDQN
from convert.networks.stacking import stack_params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=51)
    parser.add_argument("--batch", type=int, default=1, help="observations that each agent answers")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    networks = [to_network(make_state(18, seed=seed)) for seed in range(options.agents)]
    observations = layout.nhwc_from_nchw(make_observations(options.batch))
    module = NatureDQN(18)
    apply = jax.jit(lambda params, obs: module.apply(params, obs).q_values)
    trees = [jax.device_put(to_params(network)) for network in networks]
    started = time.perf_counter()
    stacked = jax.device_put(stack_params(networks))
    print(f"stacking {options.agents} agents: {time.perf_counter() - started:.2f} s, once")
    mapped = jax.jit(jax.vmap(lambda params, obs: module.apply(params, obs).q_values, in_axes=(0, None)))
    looped = jax.jit(lambda stacked, obs: jax.lax.map(lambda params: module.apply(params, obs).q_values, stacked))

    loop = measure(lambda: np.stack([apply(tree, observations) for tree in trees]), options.repeats)
    vmap = measure(lambda: np.asarray(mapped(stacked, observations)), options.repeats)
    lax_map = measure(lambda: np.asarray(looped(stacked, observations)), options.repeats)
    device = jax.devices()[0]
    print(f"{options.agents} agents x {options.batch} observations on {device.platform} ({device.device_kind}):")
    for name, seconds in (("Python loop", loop), ("jax.vmap", vmap), ("jax.lax.map", lax_map)):
        print(f"{name:12} {seconds * 1e3:8.1f} ms    {loop / seconds:5.2f} times as fast as the loop")


def measure(answer: Callable[[], np.ndarray], repeats: int) -> float:
    """Return the median time of one call in seconds, compilation left out."""
    answer()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        answer()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


if __name__ == "__main__":
    main()
