"""Orbax: the Linen parameters as a StandardCheckpointer folder, restorable with orbax alone.

The tree of ``params.msgpack``, see `convert.formats.parameter_trees`. A support is not a parameter: it stands in
``agent.json``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convert.agents.agent import Agent
from convert.agents.network import Network
from convert.formats import orbax_folders
from convert.formats.parameter_trees import from_params, list_leaf_shapes, to_params, unflatten

PATH = "orbax"
AXES = "NHWC"
RUNTIME = "jax"
FORMAT_VERSION = 1
EXTRA = "orbax"
PACKAGES = ("orbax.checkpoint", "zstandard")
IN_ALL = True


def write(network: Network, agent: Agent, path: Path) -> None:  # noqa: ARG001
    """Write the parameters as an orbax checkpoint."""
    orbax_folders.save(path, to_params(network))


def read(path: Path, agent: Agent) -> Network:
    """Read the parameters back; the support comes from the agent.

    Raises:
        UnreadableArtefact: the folder is damaged, or holds another tree.
    """
    shapes = list_leaf_shapes(agent.architecture)
    names = {f"params.{leaf.replace('/', '.')}": leaf for leaf in shapes}
    leaves = orbax_folders.read(path, {name: shapes[leaf] for name, leaf in names.items()})
    params = unflatten({names[name]: array for name, array in leaves.items()})
    return from_params(params, agent.architecture)


def prepare(path: Path, agent: Agent) -> Any:
    """Return the Linen module of the agent with the parameters, which orbax reads."""
    from convert.runtimes.jax import make_linen  # the checkpoint alone needs no Flax

    return make_linen(agent, orbax_folders.restore(path))
