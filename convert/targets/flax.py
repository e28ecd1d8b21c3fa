"""Flax: the Linen parameters as msgpack, the tree that Dopamine's and CleanRL's JAX networks have.

``params/{Conv_0,Conv_1,Conv_2,Dense_0,Dense_1}/{kernel,bias}`` in H,W,C order, for the modules in
`convert.networks.linen`. A support is not a parameter: it stands in ``agent.json``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from flax import serialization

from convert.agents.agent import Agent
from convert.agents.architecture import Architecture, erase_support
from convert.agents.network import Float32, Network
from convert.errors import UnreadableArtefact
from convert.files.disk import read_file
from convert.formats import msgpack_trees
from convert.formats.parameter_trees import flatten, from_params, list_leaf_shapes, to_params, unflatten
from convert.formats.templates import Template, extract, largest_file, make_template, write_file
from convert.runtimes.jax import Function, make_linen

PATH = "params.msgpack"
AXES = "NHWC"
RUNTIME = "jax"
FORMAT_VERSION = 1
EXTRA = "flax"
PACKAGES = ("flax", "jax", "msgpack")
IN_ALL = True


def write(network: Network, agent: Agent, path: Path) -> None:  # noqa: ARG001
    """Write the parameters with ``flax.serialization``."""
    write_file(path, _find_template(erase_support(network.architecture)), flatten(to_params(network)))


def read(path: Path, agent: Agent) -> Network:
    """Read the parameters back; the support comes from the agent.

    Raises:
        UnreadableArtefact: it is not msgpack, or holds another tree.
    """
    data = read_file(path, largest_file(agent.architecture))
    leaves = extract(_find_template(erase_support(agent.architecture)), data)
    try:
        params = msgpack_trees.unpack(data) if leaves is None else unflatten(leaves)
    except ValueError as error:
        raise UnreadableArtefact(f"{path}: not Flax parameters ({error}): convert the agent again") from error
    try:
        return from_params(params, agent.architecture)
    except ValueError as error:
        raise UnreadableArtefact(f"{path}: {error}") from error


@lru_cache(maxsize=64)
def _find_template(architecture: Architecture) -> Template:
    shapes = list_leaf_shapes(architecture)

    def serialize(leaves: dict[str, Float32]) -> bytes:
        return bytes(serialization.msgpack_serialize(unflatten(leaves)))

    return make_template(serialize, shapes)


def prepare(path: Path, agent: Agent) -> Function:
    """Return the Linen module of the agent with the parameters, which Flax reads."""
    return make_linen(agent, serialization.msgpack_restore(path.read_bytes()))
