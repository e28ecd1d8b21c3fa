"""The parameter tree that the JAX formats share: ``params/{Conv_0,Conv_1,Conv_2,Dense_0,Dense_1}/{kernel,bias}``.

NumPy arrays in H,W,C order, as Linen names them in Dopamine's and CleanRL's networks; no framework is needed.
A support is not a parameter: it stands in ``agent.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.agents import layout
from convert.agents.agent import Agent
from convert.agents.network import NATURE_HIDDEN, NATURE_KERNELS, Float32, Network, from_arrays
from convert.files.documents import join, show

_LAYERS = ("Conv_0", "Conv_1", "Conv_2", "Dense_0", "Dense_1")

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
    """Return the layers, or raise and say every leaf that differs from what Linen's Nature-CNN has.

    Only the places of its leaves are looked at: a tree of a stranger may hold its parts billions of times.
    """
    problems = _find_key_problems(params, ("params",), "")
    layers = {} if problems else params["params"]
    problems += [] if problems else _find_key_problems(layers, _LAYERS, "params/")
    for name in _LAYERS:
        if not problems or (isinstance(layers, dict) and name in layers):
            problems += _find_key_problems(layers[name], ("bias", "kernel"), f"params/{name}/")
    if not problems:
        for path, leaf in flatten(params).items():
            rank = 1 if path.endswith("bias") else 4 if path.startswith("Conv") else 2
            if not isinstance(leaf, np.ndarray) or leaf.dtype != np.float32 or leaf.ndim != rank:
                found = f"{leaf.dtype}{leaf.shape}" if isinstance(leaf, np.ndarray) else type(leaf).__name__
                problems.append(f"params/{path} is {found}")
    if not problems and layers["Dense_0"]["kernel"].shape[0] != NATURE_HIDDEN[1]:
        rows = layers["Dense_0"]["kernel"].shape[0]
        problems.append(f"params/Dense_0 takes {rows} features, expected 3136 (7744 are those of a padded network)")
    if not problems:
        expected = _list_shapes(layers["Dense_1"]["bias"].shape[0])
        problems = [
            f"params/{path} is {leaf.shape}, expected {expected[path]}"
            for path, leaf in flatten(params).items()
            if leaf.shape != expected[path]
        ]
    if problems:
        raise ValueError(f"{join(problems)}: not the parameters of a Nature-CNN of this release")
    found_layers: dict[str, dict[str, Float32]] = layers
    return found_layers


def _find_key_problems(tree: Any, names: tuple[str, ...], prefix: str) -> list[str]:
    if not isinstance(tree, dict):
        return [f"{prefix.rstrip('/') or 'it'} is a {type(tree).__name__}"]
    problems = [f"no {prefix}{name}" for name in names if name not in tree]
    return problems + [f"unexpected {prefix}{show(key)}" for key in tree if key not in names]


def _list_shapes(rows: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each leaf by path, for a head of this many rows."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (outputs, inputs, *size) in enumerate(NATURE_KERNELS):
        shapes |= {f"Conv_{index}/kernel": (*size, inputs, outputs), f"Conv_{index}/bias": (outputs,)}
    for name, outputs, inputs in (("Dense_0", *NATURE_HIDDEN), ("Dense_1", rows, NATURE_HIDDEN[0])):
        shapes |= {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}
    return shapes
