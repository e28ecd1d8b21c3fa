"""Orbax: the Linen parameters as a StandardCheckpointer folder, restorable with orbax alone.

The tree of ``params.msgpack``, see `convert.params`. A support is not a parameter: it stands in ``agent.json``.
"""

from __future__ import annotations

from pathlib import Path

from convert import orbax_folders
from convert.agent import Agent
from convert.errors import UnreadableArtefact
from convert.network import Network
from convert.params import from_params, support_of, to_params
from convert.targets import Policy

PATH = "orbax"
AXES = "NHWC"
FORMAT_VERSION = 1
EXTRA = "orbax"
PACKAGES = ("orbax.checkpoint",)
IN_ALL = True


def write(network: Network, agent: Agent, path: Path) -> None:  # noqa: ARG001
    """Write the parameters as an orbax checkpoint."""
    orbax_folders.save(path, to_params(network))


def read(path: Path, agent: Agent) -> Network:
    """Read the parameters back; the support comes from the agent.

    Raises:
        UnreadableArtefact: the folder is damaged, or holds another tree.
    """
    params = orbax_folders.restore(path)
    try:
        return from_params(params, support_of(agent))
    except ValueError as error:
        raise UnreadableArtefact(f"{path}: {error}") from error


def load(path: Path, agent: Agent) -> Policy:
    """Load the parameters into the Linen module, under ``jit``: uint8[N, 84, 84, 4] to its outputs by name."""
    from convert.linen import make_policy  # the checkpoint alone needs no Flax

    return make_policy(agent, orbax_folders.restore(path))
