"""The flat names under which PyTorch-ordered formats hold an agent: ``conv1.weight`` … ``head.bias``, ``support``.

conv*.weight: float32[out, in, height, width]; hidden.weight: float32[units, features], columns in C,H,W order;
head.weight: float32[rows, units], the rows of one action beside each other; support: float32[atoms] of a categorical
head. Several hidden layers are hidden1, hidden2 …; a dueling network has advantage and value in place of head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.agents.architecture import Architecture, list_shapes
from convert.agents.network import Float32, Network, find_shape_problems, from_arrays
from convert.files.documents import join, show


def name_layer(layer: str) -> str:
    """Return the flat name of a layer: ``conv1`` for ``convs.0``, ``hidden2`` for ``hidden.1``."""
    kind, _, number = layer.partition(".")
    return f"{kind.removesuffix('s')}{int(number) + 1}" if number else kind


def list_names(architecture: Architecture) -> dict[str, str]:
    """Return the names of an architecture's arrays in the network by their flat names, in the order of files."""
    names = {}
    keys = list(list_shapes(architecture))
    convs = len(architecture.convs)
    for key in (*keys[: 2 * convs : 2], *keys[1 : 2 * convs : 2], *keys[2 * convs :]):  # kernels, biases, the rest
        layer, _, part = key.rpartition(".")
        name = part if part == "support" else f"{name_layer(layer)}.{'weight' if part == 'kernel' else part}"
        names[name] = key
    return names


def to_named(network: Network) -> dict[str, Float32]:
    """Return the network's arrays by flat name."""
    return {name: network.arrays[key] for name, key in list_names(network.architecture).items()}


def from_named(named: Mapping[str, Any], architecture: Architecture) -> Network:
    """Return the network of named arrays, the inverse of `to_named`.

    Raises:
        ValueError: arrays are missing, unexpected, not float32, or misshapen, all of which are named; or a support does
            not increase.
    """
    names = list_names(architecture)
    problems = [f"no {name}" for name in names if name not in named]
    problems += [f"unexpected {show(name)}" for name in sorted(named) if name not in names]
    known = {name: named[name] for name in names if name in named}
    problems += [
        f"{name} is {getattr(array, 'dtype', type(array).__name__)}, expected float32"
        for name, array in known.items()
        if not isinstance(array, np.ndarray) or array.dtype != np.float32
    ]
    arrays = {names[name]: array for name, array in known.items()}
    if not problems:
        problems = find_shape_problems({key: np.shape(array) for key, array in arrays.items()}, architecture)
    if problems:
        raise ValueError(f"{join(problems)}: not the weights of this agent")
    return from_arrays(arrays, architecture)
