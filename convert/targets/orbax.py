"""Orbax: the Linen parameters as a StandardCheckpointer folder, restorable with orbax alone.

The tree of ``params.msgpack``, see `convert.params`. A support is not a parameter: it stands in ``agent.json``.
"""

from __future__ import annotations

from pathlib import Path

from convert import orbax_folders
from convert.agent import Agent
from convert.network import Network
from convert.params import flatten, from_params, support_of, to_params, unflatten
from convert.targets import Policy
from convert.template import make_zeros, nature_form

PATH = "orbax"
AXES = "NHWC"
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
    zeros = flatten(to_params(make_zeros(nature_form(agent.head.actions, agent.head.atoms))))
    names = {f"params.{leaf.replace('/', '.')}": leaf for leaf in zeros}
    leaves = orbax_folders.read(path, {name: zeros[leaf].shape for name, leaf in names.items()})
    return from_params(unflatten({names[name]: array for name, array in leaves.items()}), support_of(agent))


def load(path: Path, agent: Agent) -> Policy:
    """Load the parameters into the Linen module, under ``jit``: uint8[N, 84, 84, 4] to its outputs by name."""
    from convert.linen import make_policy  # the checkpoint alone needs no Flax

    return make_policy(agent, orbax_folders.restore(path))
