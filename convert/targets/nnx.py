"""NNX: the state of a Flax NNX module, saved with orbax.

For `convert.networks.nnx.NatureCNN`: ``{conv1, conv2, conv3, hidden, head}/{kernel, bias}``, and ``support`` of a C51
agent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from flax import nnx

from convert.agents.agent import Agent
from convert.agents.network import CategoricalHead, Network
from convert.formats import orbax_folders
from convert.formats.parameter_trees import from_params, to_params
from convert.formats.templates import make_zeros, nature_form
from convert.networks.nnx import NatureCNN
from convert.runtimes.jax import Function

PATH = "nnx"
AXES = "NHWC"
RUNTIME = "jax"
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


def prepare(path: Path, agent: Agent) -> Function:
    """Return the module as a function of its state, which orbax reads."""
    return Function(_apply, (agent.head.actions, agent.head.atoms), orbax_folders.restore(path))


def _apply(architecture: tuple[int, int | None], state: Any, obs_nhwc: jax.Array) -> dict[str, jax.Array]:
    module = nnx.eval_shape(lambda: NatureCNN(*architecture, rngs=nnx.Rngs(0)))
    graph, filled = nnx.split(module)
    nnx.replace_by_pure_dict(filled, state)
    outputs: dict[str, jax.Array] = nnx.merge(graph, filled)(obs_nhwc)
    return outputs
