"""CleanRL for JAX: the .cleanrl_model of dqn_atari_jax, or of c51_atari_jax, which its evaluation loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization

from convert.agents.agent import Agent
from convert.agents.network import Network
from convert.errors import TargetError, UnreadableArtefact
from convert.files.disk import read_file
from convert.formats import cleanrl, msgpack_trees
from convert.formats.parameter_trees import from_params, support_of, to_params
from convert.runtimes.jax import Function, make_linen

PATH = "agent_jax.cleanrl_model"
AXES = "NHWC"
RUNTIME = "jax"
FORMAT_VERSION = 1
EXTRA = "flax"
PACKAGES = ("flax", "jax", "msgpack")
IN_ALL = False
DESCRIBES = True

find_obstacle = cleanrl.find_obstacle


def write(network: Network, agent: Agent, path: Path) -> None:
    """Write the parameters, for C51 with the script's arguments beside them.

    Raises:
        TargetError: the script cannot compute the support by its ends.
    """
    support = support_of(agent)
    if support is not None:
        low, high = float(support[0]), float(support[-1])
        even = np.linspace(low, high, len(support))
        if not np.allclose(support, even, rtol=0, atol=1e-6 * (high - low)):
            raise TargetError(f"{agent.source.path}: a support that is not evenly spaced has no place in c51_atari_jax")
    path.write_bytes(_to_bytes(network, agent))


def read(path: Path, agent: Agent) -> Network:
    """Read the parameters back; the support comes from the agent.

    Raises:
        UnreadableArtefact: it is damaged, or holds what ``write`` does not write.
    """
    content = read_file(path)
    try:
        network = from_params(_find_params(msgpack_trees.unpack(content)), agent.architecture)
    except ValueError as error:
        raise UnreadableArtefact(f"{path}: not a model of CleanRL ({error}): convert the agent again") from error
    if content != _to_bytes(network, agent):
        raise UnreadableArtefact(f"{path}: not what atari-convert writes for it: convert it again")
    return network


def prepare(path: Path, agent: Agent) -> Function:
    """Return the Linen module of the agent with the parameters, which Flax reads."""
    return make_linen(agent, _find_params(serialization.msgpack_restore(path.read_bytes())))


def _find_params(tree: Any) -> Any:
    return tree.get(cleanrl.WEIGHTS, tree) if isinstance(tree, dict) else tree


def _to_bytes(network: Network, agent: Agent) -> bytes:
    tree: dict[str, Any] = dict(to_params(network))
    if network.head.support is not None:
        tree = {cleanrl.WEIGHTS: tree, cleanrl.ARGS: cleanrl.to_args(agent)}
    return bytes(serialization.msgpack_serialize(tree))
