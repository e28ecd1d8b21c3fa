"""What an agent's network is: its architecture and its arrays in PyTorch's order, and no framework.

Each target is a small interpreter of this value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from convert.agents.architecture import Architecture, Head, Shapes, describe, erase_support, list_shapes, with_support
from convert.errors import WeightMismatch

Float32 = NDArray[np.float32]

SUPPORT = "head.support"


@dataclass(frozen=True, eq=False, repr=False)
class Network:
    """An agent's network: its architecture, and its arrays by name, see `convert.agents.architecture.list_shapes`.

    The arrays are float32 and read-only. `from_arrays` makes one.
    """

    architecture: Architecture
    arrays: Mapping[str, Float32]

    def __post_init__(self) -> None:
        for array in self.arrays.values():
            array.setflags(write=False)

    @property
    def head(self) -> Head:
        """The head of its architecture."""
        return self.architecture.head

    def __repr__(self) -> str:
        """Return one line on its layers, without a weight."""
        return f"Network({describe(self.architecture)})"


def from_arrays(named: Mapping[str, Float32], architecture: Architecture) -> Network:
    """Return the network of these arrays.

    The values of a support are those of ``named``, where it has one, and else those of the architecture.

    Raises:
        ValueError: arrays are missing, unexpected or misshapen, all of which are named, or a support does not increase.
    """
    support = architecture.head.support
    if support is not None and SUPPORT not in named:
        named = {**named, SUPPORT: np.array(support, np.float32)}
    if problems := find_shape_problems({name: np.shape(array) for name, array in named.items()}, architecture):
        raise ValueError(f"{'; '.join(problems)}: not {describe(architecture)}")
    if support is not None:
        architecture = with_support(architecture, tuple(named[SUPPORT].tolist()))
    return Network(architecture, MappingProxyType({name: named[name] for name in list_shapes(architecture)}))


def make_zeros(architecture: Architecture) -> Network:
    """Return the network of an architecture whose weights are all 0."""
    shapes = {name: shape for name, shape in list_shapes(architecture).items() if name != SUPPORT}
    return from_arrays({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, architecture)


def find_shape_problems(shapes: Shapes, architecture: Architecture) -> list[str]:
    """Return how shapes by name differ from those of an architecture: what is missing, unexpected and misshapen."""
    return compare_shapes(shapes, list_shapes(architecture))


def compare_shapes(shapes: Shapes, expected: Shapes) -> list[str]:
    """Return how shapes by name differ from what is expected: what is missing, unexpected and misshapen."""
    problems = [f"no {name_array(name)}" for name in expected if name not in shapes]
    problems += [f"unexpected {name_array(name)}" for name in shapes if name not in expected]
    return problems + [
        f"{name_array(name)} is {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]


def check_network(network: Network, name: str) -> None:
    """Raise once, with all that is wrong, unless every weight is finite.

    Args:
        network: what was read.
        name: how messages call it, such as the checkpoint's path.

    Raises:
        WeightMismatch: a weight is not finite.
    """
    counts = {key: int(np.count_nonzero(~np.isfinite(array))) for key, array in network.arrays.items()}
    problems = [f"{name_array(key)} has {count} values that are not finite" for key, count in counts.items() if count]
    if problems:
        raise WeightMismatch(f"{name}: {'; '.join(problems)}: the file is damaged, take another copy")


def name_array(key: str) -> str:
    """Return what messages call an array: ``convolution 1`` for ``convs.0.kernel``."""
    layer, _, part = key.rpartition(".")
    kind, _, number = layer.partition(".")
    name = {
        "convs": f"convolution {int(number or 0) + 1}",
        "hidden": f"hidden dense layer {int(number) + 1}" if number else "first dense layer",
        "head": "support" if part == "support" else "head",
    }.get(kind, f"{kind} stream")
    of = "the " if kind != "convs" else ""
    return f"bias of {of}{name}" if part == "bias" else name


def find_differences(actual: Network, expected: Network) -> list[str]:
    """Return what differs between two networks, bit for bit; nothing when they are the same.

    -0.0 differs from 0.0 here: every weight has to keep its bits.
    """
    if erase_support(actual.architecture) != erase_support(expected.architecture):
        return [f"is a network of {describe(actual.architecture)}, expected {describe(expected.architecture)}"]
    differences = []
    for key, array in expected.arrays.items():
        other = actual.arrays[key]
        if other.dtype != array.dtype or other.shape != array.shape:
            differences.append(f"{key} is {other.dtype}{list(other.shape)}, expected {array.dtype}{list(array.shape)}")
        elif not np.array_equal(_bits(other), _bits(array)):
            count = int(np.count_nonzero(_bits(other) != _bits(array)))
            differences.append(f"{key} differs in {count} of {array.size} values")
    return differences


def compute_digest(network: Network) -> str:
    """Return a sha256 over names, shapes and bits of all arrays, in lower-case hex."""
    digest = hashlib.sha256()
    for key, array in network.arrays.items():
        digest.update(f"{key} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).astype("<f4", copy=False).data)
    return digest.hexdigest()


def _bits(array: Float32) -> NDArray[np.uint32]:
    return np.ascontiguousarray(array).view(np.uint32)
