"""NNX: the state of a Flax NNX module, saved with orbax.

For `convert.networks.nnx.NatureCNN`: ``{conv1, conv2, conv3, hidden, head}/{kernel, bias}``, and ``support`` of a
categorical head; names as in `convert.formats.flat_names`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from flax import nnx

from convert.agents.agent import Agent
from convert.agents.architecture import Architecture, erase_support
from convert.agents.network import SUPPORT, Network, make_zeros
from convert.errors import UnreadableArtefact
from convert.formats import orbax_folders
from convert.formats.flat_names import name_layer
from convert.formats.parameter_trees import from_params, list_layers, to_params
from convert.networks.nnx import AgentNetwork
from convert.runtimes.jax import Function

PATH = "nnx"
AXES = "NHWC"
RUNTIME = "jax"
FORMAT_VERSION = 1
EXTRA = "nnx"
PACKAGES = ("flax", "jax", "orbax.checkpoint", "zstandard")
IN_ALL = True


def write(network: Network, agent: Agent, path: Path) -> None:  # noqa: ARG001
    """Write the module's state as an orbax checkpoint."""
    orbax_folders.save(path, _to_state(network))


def read(path: Path, agent: Agent) -> Network:
    """Read the state back.

    Raises:
        UnreadableArtefact: the folder is damaged, or holds the state of another module.
    """
    expected = _to_state(make_zeros(agent.architecture))
    support = expected.pop("support", None)
    shapes = {f"{layer}.{part}": leaf.shape for layer, parts in expected.items() for part, leaf in parts.items()}
    found = orbax_folders.read(path, shapes if support is None else shapes | {"support": support.shape})
    names = _list_names(agent.architecture)
    params = {linen: {part: found[f"{ours}.{part}"] for part in expected[ours]} for linen, ours in names.items()}
    try:
        return from_params({"params": params}, agent.architecture, found.get("support"))
    except ValueError as error:
        raise UnreadableArtefact(f"{path}: {error}: convert the agent again") from error


def _to_state(network: Network) -> dict[str, Any]:
    names = _list_names(network.architecture)
    state: dict[str, Any] = {names[linen]: layer for linen, layer in to_params(network)["params"].items()}
    return state | ({"support": network.arrays[SUPPORT]} if SUPPORT in network.arrays else {})


def _list_names(architecture: Architecture) -> dict[str, str]:
    """Return the attributes of the module by the layers' names in a Linen tree."""
    return {linen: name_layer(layer) for linen, layer in list_layers(architecture).items()}


def prepare(path: Path, agent: Agent) -> Function:
    """Return the module as a function of its state, which orbax reads."""
    return Function(_apply, erase_support(agent.architecture), orbax_folders.restore(path))


def _apply(architecture: Architecture, state: Any, obs_nhwc: jax.Array) -> dict[str, jax.Array]:
    module = nnx.eval_shape(lambda: AgentNetwork(architecture, rngs=nnx.Rngs(0)))
    graph, filled = nnx.split(module)
    nnx.replace_by_pure_dict(filled, state)
    outputs: dict[str, jax.Array] = nnx.merge(graph, filled)(obs_nhwc)
    return outputs
