"""Flax: the Linen parameters as msgpack, the tree that Dopamine's and CleanRL's JAX networks have.

``params/{Conv_0,Conv_1,Conv_2,Dense_0,Dense_1}/{kernel,bias}`` in H,W,C order, for the modules in
`convert.linen`. A support is not a parameter: it stands in ``agent.json``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from flax import serialization

from convert.agent import Agent
from convert.errors import UnreadableArtefact
from convert.linen import make_policy
from convert.network import Float32, Network
from convert.params import flatten, from_params, support_of, to_params, unflatten
from convert.targets import Policy
from convert.template import Form, Template, extract, form_of, make_template, make_zeros, nature_form, write_file

PATH = "params.msgpack"
AXES = "NHWC"
FORMAT_VERSION = 1
EXTRA = "flax"
PACKAGES = ("flax", "jax")
IN_ALL = True


def write(network: Network, agent: Agent, path: Path) -> None:  # noqa: ARG001
    """Write the parameters with ``flax.serialization``."""
    write_file(path, _find_template(form_of(network)), flatten(to_params(network)))


def read(path: Path, agent: Agent) -> Network:
    """Read the parameters back; the support comes from the agent.

    Raises:
        UnreadableArtefact: it is not msgpack, or holds another tree.
    """
    data = path.read_bytes()
    leaves = extract(_find_template(nature_form(agent.head.actions, agent.head.atoms)), data)
    params = _unpack(data, path) if leaves is None else unflatten(leaves)
    try:
        return from_params(params, support_of(agent))
    except ValueError as error:
        raise UnreadableArtefact(f"{path}: {error}") from error


def _unpack(data: bytes, path: Path) -> Any:
    try:
        return serialization.msgpack_restore(data)
    except Exception as error:  # msgpack raises ValueError and classes of its own for damaged bytes
        raise UnreadableArtefact(f"{path}: not Flax parameters ({error}): convert the agent again") from error


@lru_cache(maxsize=64)
def _find_template(form: Form) -> Template:
    shapes = {name: leaf.shape for name, leaf in flatten(to_params(make_zeros(form))).items()}

    def serialize(leaves: dict[str, Float32]) -> bytes:
        return bytes(serialization.msgpack_serialize(unflatten(leaves)))

    return make_template(serialize, shapes)


def load(path: Path, agent: Agent) -> Policy:
    """Load the parameters into the Linen module, under ``jit``: uint8[N, 84, 84, 4] to its outputs by name."""
    return make_policy(agent, serialization.msgpack_restore(path.read_bytes()))
