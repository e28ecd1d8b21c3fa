"""The parameter tree that the JAX formats share: ``params/{Conv_0,Conv_1,Conv_2,Dense_0,Dense_1}/{kernel,bias}``.

NumPy arrays in H,W,C order, as Linen names them in Dopamine's and CleanRL's networks; no framework is needed.
A support is not a parameter: it stands in ``agent.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convert import layout
from convert.agent import Agent
from convert.formats.documents import join, show
from convert.network import Float32, Network, from_arrays

_DEEPEST = 8  # dicts within each other; ours has three

Params = dict[str, dict[str, dict[str, Float32]]]


def support_of(agent: Agent) -> Float32 | None:
    """Return the support of a categorical head, float32[atoms]; None for a Q head."""
    return None if agent.head.support is None else np.array(agent.head.support, np.float32)


def to_params(network: Network) -> Params:
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


def flatten(params: Params) -> dict[str, Float32]:
    """Return the leaves of a tree by path: ``Conv_0/kernel`` …"""
    return {f"{layer}/{part}": leaf for layer, parts in params["params"].items() for part, leaf in parts.items()}


def unflatten(leaves: Mapping[str, Float32]) -> Params:
    """Return the tree of leaves, the inverse of `flatten`."""
    layers: dict[str, dict[str, Float32]] = {}
    for path, leaf in leaves.items():
        layer, _, part = path.partition("/")
        layers.setdefault(layer, {})[part] = leaf
    return {"params": layers}


def from_params(params: Any, support: Float32 | None) -> Network:
    """Return the network of a Linen tree, the inverse of `to_params`.

    Raises:
        ValueError: the tree has other layers, or leaves that are not float32 arrays of the release's shapes.
    """
    layers = _check_tree(params)
    channels = layers["Conv_2"]["kernel"].shape[-1]
    named = {f"convs.{index}.kernel": layout.oihw_from_hwio(layers[f"Conv_{index}"]["kernel"]) for index in range(3)}
    named |= {f"convs.{index}.bias": layers[f"Conv_{index}"]["bias"] for index in range(3)}
    named["hidden.kernel"] = layout.o_chw_from_hwc_o(layers["Dense_0"]["kernel"], channels)
    named["hidden.bias"] = layers["Dense_0"]["bias"]
    named["head.kernel"] = layout.oi_from_io(layers["Dense_1"]["kernel"])
    named["head.bias"] = layers["Dense_1"]["bias"]
    return from_arrays(named if support is None else named | {"head.support": support})


def _check_tree(params: Any) -> dict[str, dict[str, Float32]]:
    """Return the layers, or raise and say every leaf that differs from what Linen's Nature-CNN has."""
    found = _leaves(params)
    ranks = {f"params/Conv_{index}/kernel": 4 for index in range(3)}
    ranks |= {f"params/Dense_{index}/kernel": 2 for index in range(2)}
    ranks |= {name.replace("kernel", "bias"): 1 for name in ranks}
    problems = [f"no {name}" for name in sorted(ranks.keys() - found.keys())]
    problems += [f"unexpected {show(name)}" for name in sorted(found.keys() - ranks.keys())]
    for name in sorted(ranks.keys() & found.keys()):
        leaf = found[name]
        if not isinstance(leaf, np.ndarray) or leaf.dtype != np.float32 or leaf.ndim != ranks[name]:
            problems.append(f"{name} is {getattr(leaf, 'dtype', type(leaf).__name__)}{getattr(leaf, 'shape', '')}")
    if not problems and found["params/Dense_0/kernel"].shape[0] != 3136:
        rows = found["params/Dense_0/kernel"].shape[0]
        problems.append(f"params/Dense_0 takes {rows} features, expected 3136 (7744 are those of a padded network)")
    if problems:
        raise ValueError(f"{join(problems)}: not the parameters of a Nature-CNN of this release")
    layers: dict[str, dict[str, Float32]] = params["params"]
    return layers


def _leaves(tree: Any, prefix: str = "", depth: int = 0) -> dict[str, Any]:
    if not isinstance(tree, dict) or depth == _DEEPEST:
        return {prefix: tree}
    return {
        name: leaf
        for key, branch in tree.items()
        for name, leaf in _leaves(branch, f"{prefix}/{key}" if prefix else str(key), depth + 1).items()
    }
