"""NNX: the state of a Flax NNX module, saved with orbax.

For `convert.nnx.NatureCNN`: ``{conv1, conv2, conv3, hidden, head}/{kernel, bias}``, and ``support`` of a C51 agent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from convert import orbax_folders
from convert.agent import Agent
from convert.network import CategoricalHead, Float32, Network
from convert.nnx import NatureCNN
from convert.params import from_params, to_params
from convert.targets import Policy
from convert.template import make_zeros, nature_form

PATH = "nnx"
AXES = "NHWC"
FORMAT_VERSION = 1
EXTRA = "nnx"
PACKAGES = ("flax", "jax", "orbax.checkpoint", "zstandard")
IN_ALL = True

_LAYERS = {"Conv_0": "conv1", "Conv_1": "conv2", "Conv_2": "conv3", "Dense_0": "hidden", "Dense_1": "head"}


def write(network: Network, agent: Agent, path: Path) -> None:  # noqa: ARG001
    """Write the module's state as an orbax checkpoint."""
    orbax_folders.save(path, _to_state(network))


def read(path: Path, agent: Agent) -> Network:
    """Read the state back.

    Raises:
        UnreadableArtefact: the folder is damaged, or holds the state of another module.
    """
    expected = _to_state(make_zeros(nature_form(agent.head.actions, agent.head.atoms)))
    support = expected.pop("support", None)
    shapes = {f"{layer}.{part}": leaf.shape for layer, parts in expected.items() for part, leaf in parts.items()}
    found = orbax_folders.read(path, shapes if support is None else shapes | {"support": support.shape})
    params = {linen: {part: found[f"{ours}.{part}"] for part in expected[ours]} for linen, ours in _LAYERS.items()}
    return from_params({"params": params}, found.get("support"))


def _to_state(network: Network) -> dict[str, Any]:
    state: dict[str, Any] = {_LAYERS[name]: layer for name, layer in to_params(network)["params"].items()}
    return state | ({"support": network.head.support} if isinstance(network.head, CategoricalHead) else {})


def load(path: Path, agent: Agent) -> Policy:
    """Load the state into the module, under ``jit``: uint8[N, 84, 84, 4] to its outputs by name."""
    apply, state = open_module(path, agent)
    compiled = jax.jit(apply)

    def policy(observation: NDArray[np.uint8]) -> Mapping[str, Float32]:
        return {name: np.asarray(value) for name, value in compiled(state, observation).items()}

    return policy


def open_module(path: Path, agent: Agent) -> tuple[Callable[[Any, Any], dict[str, jax.Array]], Any]:
    """Return the module as a function of its state and observations, and its state.

    Raises:
        Exception: Flax's and orbax's own, where the state is that of another module.
    """
    module = nnx.eval_shape(lambda: NatureCNN(agent.head.actions, agent.head.atoms, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(module)
    nnx.replace_by_pure_dict(state, orbax_folders.restore(path))

    def apply(state: Any, observation: Any) -> dict[str, jax.Array]:
        return nnx.merge(graph, state)(observation)

    return apply, state
