"""Flax: the Linen parameters as msgpack, the tree that Dopamine's and CleanRL's JAX networks have.

``params/{Conv_0,Conv_1,Conv_2,Dense_0,Dense_1}/{kernel,bias}`` in H,W,C order, for the modules in
`convert.networks.linen`. A support is not a parameter: it stands in ``agent.json``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from flax import serialization

from convert.agents.agent import Agent
from convert.agents.architecture import Architecture, erase_support
from convert.agents.network import Float32, Network
from convert.errors import UnreadableArtefact
from convert.files.disk import read_file
from convert.files.documents import show
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

_NDARRAY = 1  # Flax' extension type
_MOST_ENTRIES = 32  # of a dict; that of the Nature-CNN has five
_MOST_DICTS = 2 * _MOST_ENTRIES  # of a tree; one for each layer, and two around them


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
    params = _unpack(data, path) if leaves is None else unflatten(leaves)
    try:
        return from_params(params, agent.architecture)
    except ValueError as error:
        raise UnreadableArtefact(f"{path}: {error}") from error


def _unpack(data: bytes, path: Path) -> Any:
    """Return the tree of msgpack, as `flax.serialization.msgpack_restore` does, within narrow bounds."""
    limits = {"max_array_len": 0, "max_map_len": _MOST_ENTRIES, "max_str_len": 100, "max_bin_len": 0}
    dicts = 0

    def count(tree: dict[str, Any]) -> dict[str, Any]:
        nonlocal dicts
        dicts += 1
        if dicts > _MOST_DICTS:
            raise ValueError(f"holds more than {_MOST_DICTS} dicts")
        return tree

    try:
        return msgpack.unpackb(data, object_hook=count, ext_hook=_to_array, strict_map_key=True, **limits)
    except Exception as error:  # msgpack raises ValueError and classes of its own for damaged bytes
        raise UnreadableArtefact(
            f"{path}: not Flax parameters ({show(str(error))}): convert the agent again"
        ) from error


def _to_array(code: int, data: bytes) -> Any:
    """Return an array as Flax packs it: its shape, the name of its dtype, its bytes in C order."""
    if code != _NDARRAY:
        raise ValueError(f"holds an extension of type {code}, expected arrays")
    limits = {"max_array_len": 8, "max_map_len": 0, "max_str_len": 20, "max_ext_len": 0}
    shape, dtype, content = msgpack.unpackb(data, **limits)
    if dtype not in ("float16", "float32", "float64") or any(size < 0 for size in shape):
        raise ValueError(f"holds an array of {show(dtype)}, expected float32")
    return np.frombuffer(content, np.dtype(dtype)).reshape(shape)


@lru_cache(maxsize=64)
def _find_template(architecture: Architecture) -> Template:
    shapes = list_leaf_shapes(architecture)

    def serialize(leaves: dict[str, Float32]) -> bytes:
        return bytes(serialization.msgpack_serialize(unflatten(leaves)))

    return make_template(serialize, shapes)


def prepare(path: Path, agent: Agent) -> Function:
    """Return the Linen module of the agent with the parameters, which Flax reads."""
    return make_linen(agent, serialization.msgpack_restore(path.read_bytes()))
