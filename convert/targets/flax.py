"""Flax: the Linen parameters as msgpack, the tree that Dopamine's and CleanRL's JAX networks have.

``params/{Conv_0,Conv_1,Conv_2,Dense_0,Dense_1}/{kernel,bias}`` in H,W,C order, for the modules in
`convert.linen`. A support is not a parameter: it stands in ``agent.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization

from convert import layout
from convert.agent import Agent, Tensor
from convert.errors import UnreadableArtefact
from convert.linen import NatureC51, NatureDQN
from convert.network import Dense, Float32, Network, make_head, nature_network
from convert.targets import OBSERVATION_NHWC, Policy, describe_outputs

PATH = "params.msgpack"
FORMAT_VERSION = 1
EXTRA = "flax"
PACKAGES = ("flax", "jax")
IN_ALL = True


def write(network: Network, agent: Agent, path: Path) -> None:  # noqa: ARG001
    """Write the parameters with ``flax.serialization``."""
    path.write_bytes(serialization.msgpack_serialize(to_params(network)))


def read(path: Path, agent: Agent) -> Network:
    """Read the parameters back; the support comes from the agent.

    Raises:
        UnreadableArtefact: it is not msgpack, or holds another tree.
    """
    try:
        params = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack raises ValueError and classes of its own for damaged bytes
        raise UnreadableArtefact(f"{path}: not Flax parameters ({error}): convert the agent again") from error
    try:
        return from_params(params, support_of(agent))
    except ValueError as error:
        raise UnreadableArtefact(f"{path}: {error}") from error


def load(path: Path, agent: Agent) -> Policy:
    """Load the parameters into the Linen module, under ``jit``: uint8[N, 84, 84, 4] to its outputs by name."""
    params = serialization.msgpack_restore(path.read_bytes())
    module, arguments = make_module(agent)
    apply = jax.jit(module.apply)
    names = ("q_values",) if isinstance(module, NatureDQN) else ("q_values", "logits")

    def policy(observation: np.ndarray[Any, Any]) -> Mapping[str, Float32]:
        outputs = apply(params, observation, *arguments)
        return {name: np.asarray(getattr(outputs, name)) for name in names}

    return policy


def describe(network: Network) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the module's inputs and outputs; it also takes one observation without the batch axis."""
    return (OBSERVATION_NHWC,), describe_outputs(network)


def make_module(agent: Agent) -> tuple[NatureDQN | NatureC51, tuple[Float32, ...]]:
    """Return the Linen module of an agent, and what its call takes after the observation (C51: the support)."""
    support = support_of(agent)
    if support is None:
        return NatureDQN(agent.head.actions), ()
    return NatureC51(agent.head.actions, len(support)), (support,)


def support_of(agent: Agent) -> Float32 | None:
    """Return the support of a categorical head, float32[atoms]; None for a Q head."""
    return None if agent.head.support is None else np.array(agent.head.support, np.float32)


def to_params(network: Network) -> dict[str, dict[str, dict[str, Float32]]]:
    """Return the network as Linen's tree: kernels HWIO and [in, out], the first dense one in H,W,C order."""
    layers = {
        f"Conv_{index}": {"kernel": layout.hwio_from_oihw(conv.kernel), "bias": conv.bias}
        for index, conv in enumerate(network.convs)
    }
    channels = network.convs[-1].kernel.shape[0]
    hidden, head = network.hidden, network.head.dense
    layers["Dense_0"] = {"kernel": layout.hwc_o_from_o_chw(hidden.kernel, channels), "bias": hidden.bias}
    layers["Dense_1"] = {"kernel": layout.io_from_oi(head.kernel), "bias": head.bias}
    return {"params": layers}


def from_params(params: Any, support: Float32 | None) -> Network:
    """Return the network of a Linen tree, the inverse of `to_params`.

    Raises:
        ValueError: the tree has other layers, or leaves that are not float32 arrays of the release's shapes.
    """
    layers = _check_tree(params)
    kernels = [layout.oihw_from_hwio(layers[f"Conv_{index}"]["kernel"]) for index in range(3)]
    biases = [layers[f"Conv_{index}"]["bias"] for index in range(3)]
    hidden = Dense(
        layout.o_chw_from_hwc_o(layers["Dense_0"]["kernel"], kernels[-1].shape[0]), layers["Dense_0"]["bias"]
    )
    head = Dense(layout.oi_from_io(layers["Dense_1"]["kernel"]), layers["Dense_1"]["bias"])
    return nature_network(kernels, biases, hidden, make_head(head, support))


def _check_tree(params: Any) -> dict[str, dict[str, Float32]]:
    """Return the layers, or raise and say every leaf that differs from what Linen's Nature-CNN has."""
    found = _leaves(params)
    ranks = {f"params/Conv_{index}/kernel": 4 for index in range(3)}
    ranks |= {f"params/Dense_{index}/kernel": 2 for index in range(2)}
    ranks |= {name.replace("kernel", "bias"): 1 for name in ranks}
    problems = [f"no {name}" for name in sorted(ranks.keys() - found.keys())]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - ranks.keys())]
    for name in sorted(ranks.keys() & found.keys()):
        leaf = found[name]
        if not isinstance(leaf, np.ndarray) or leaf.dtype != np.float32 or leaf.ndim != ranks[name]:
            problems.append(f"{name} is {getattr(leaf, 'dtype', type(leaf).__name__)}{getattr(leaf, 'shape', '')}")
    if not problems and found["params/Dense_0/kernel"].shape[0] != 3136:
        rows = found["params/Dense_0/kernel"].shape[0]
        problems.append(f"params/Dense_0 takes {rows} features, expected 3136 (7744 are those of a padded network)")
    if problems:
        raise ValueError(f"{'; '.join(problems)}: not the parameters of a Nature-CNN of this release")
    layers: dict[str, dict[str, Float32]] = params["params"]
    return layers


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: leaf
        for key, branch in tree.items()
        for name, leaf in _leaves(branch, f"{prefix}/{key}" if prefix else str(key)).items()
    }
