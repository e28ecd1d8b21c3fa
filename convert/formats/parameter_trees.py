"""The parameter tree that the JAX formats share: ``params/{Conv_0,Conv_1,Conv_2,Dense_0,Dense_1}/{kernel,bias}``.

NumPy arrays in H,W,C order, as Linen names them in Dopamine's and CleanRL's networks; no framework is needed. The
dense layers are the hidden ones and then those of the head: of a dueling network the advantage, then the value. A
support is not a parameter: it stands in ``agent.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.agents import layout
from convert.agents.agent import Agent
from convert.agents.architecture import Architecture, list_shapes
from convert.agents.network import SUPPORT, Float32, Network, from_arrays
from convert.files.documents import join, show

Params = dict[str, dict[str, dict[str, Float32]]]


def support_of(agent: Agent) -> Float32 | None:
    """Return the support of a categorical head, float32[atoms]; None for any other."""
    return None if agent.head.support is None else np.array(agent.head.support, np.float32)


def list_layers(architecture: Architecture) -> dict[str, str]:
    """Return an architecture's layers by their names in a tree: ``Conv_0``, …, ``Dense_0``, …"""
    convs, layers = len(architecture.convs), architecture.layers
    return {
        (f"Conv_{index}" if index < convs else f"Dense_{index - convs}"): layer for index, layer in enumerate(layers)
    }


def to_params(network: Network) -> Params:
    """Return the network as Linen's tree: kernels HWIO and [in, out], the first dense one in H,W,C order."""
    arrays, architecture = network.arrays, network.architecture
    return {
        "params": {
            name: {
                "kernel": kernel_to_nhwc(arrays[f"{layer}.kernel"], name, architecture),
                "bias": arrays[f"{layer}.bias"],
            }
            for name, layer in list_layers(architecture).items()
        }
    }


def kernel_to_nhwc(kernel: Float32, name: str, architecture: Architecture) -> Float32:
    """Return the kernel of a layer, named as in a tree, in the order of the NHWC frameworks."""
    if name.startswith("Conv"):
        return layout.hwio_from_oihw(kernel)
    if name == "Dense_0":
        return layout.hwc_o_from_o_chw(kernel, architecture.convs[-1].features)
    return layout.io_from_oi(kernel)


def kernel_from_nhwc(kernel: Float32, name: str, architecture: Architecture) -> Float32:
    """Return the kernel of a layer in PyTorch's order, the inverse of `kernel_to_nhwc`."""
    if name.startswith("Conv"):
        return layout.oihw_from_hwio(kernel)
    if name == "Dense_0":
        return layout.o_chw_from_hwc_o(kernel, architecture.convs[-1].features)
    return layout.oi_from_io(kernel)


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


def list_leaf_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of each leaf of an architecture's tree by path: ``Conv_0/kernel`` …"""
    shapes = list_shapes(architecture)
    leaves: dict[str, tuple[int, ...]] = {}
    for name, layer in list_layers(architecture).items():
        outputs, inputs, *size = shapes[f"{layer}.kernel"]
        leaves |= {f"{name}/kernel": (*size, inputs, outputs), f"{name}/bias": (outputs,)}
    return leaves


def from_params(params: Any, architecture: Architecture, support: Float32 | None = None) -> Network:
    """Return the network of a Linen tree, the inverse of `to_params`.

    Args:
        params: the tree.
        architecture: what it has to be the tree of.
        support: other values than those of the architecture.

    Raises:
        ValueError: the tree has other layers, or leaves that are not float32 arrays of the architecture's shapes; or
            the support does not increase.
    """
    tree = _check_tree(params, architecture)
    named = {} if support is None else {SUPPORT: support}
    for name, layer in list_layers(architecture).items():
        named[f"{layer}.kernel"] = kernel_from_nhwc(tree[name]["kernel"], name, architecture)
        named[f"{layer}.bias"] = tree[name]["bias"]
    return from_arrays(named, architecture)


def _check_tree(params: Any, architecture: Architecture) -> dict[str, dict[str, Float32]]:
    """Return the layers, or raise and say every leaf that differs from what the architecture has.

    Only the places of its leaves are looked at: a tree of a stranger may hold its parts billions of times.
    """
    names = tuple(list_layers(architecture))
    problems = _find_key_problems(params, ("params",), "")
    layers = {} if problems else params["params"]
    problems += [] if problems else _find_key_problems(layers, names, "params/")
    for name in names:
        if not problems or (isinstance(layers, dict) and name in layers):
            problems += _find_key_problems(layers[name], ("bias", "kernel"), f"params/{name}/")
    if not problems:
        expected = list_leaf_shapes(architecture)
        for path, leaf in flatten(params).items():
            if not isinstance(leaf, np.ndarray) or leaf.dtype != np.float32:
                found = f"{leaf.dtype}{leaf.shape}" if isinstance(leaf, np.ndarray) else type(leaf).__name__
                problems.append(f"params/{path} is {found}, expected float32{expected[path]}")
            elif leaf.shape != expected[path]:
                problems.append(f"params/{path} is {leaf.shape}, expected {expected[path]}")
    if problems:
        raise ValueError(f"{join(problems)}: not the parameters of this agent")
    found_layers: dict[str, dict[str, Float32]] = layers
    return found_layers


def _find_key_problems(tree: Any, names: tuple[str, ...], prefix: str) -> list[str]:
    if not isinstance(tree, dict):
        return [f"{prefix.rstrip('/') or 'it'} is a {type(tree).__name__}"]
    problems = [f"no {prefix}{name}" for name in names if name not in tree]
    return problems + [f"unexpected {prefix}{show(key)}" for key in tree if key not in names]
