"""What an agent's network is: frozen dataclasses of NumPy arrays in PyTorch's order, and no framework.

Each target is a small interpreter of this value. The architecture is Mnih et al. (2015), "Human-level
control through deep reinforcement learning", as PyTorch lays it out: observations uint8[N, 4, 84, 84]
divided by 255, convolutions with ReLU, flatten in C,H,W order, dense with ReLU, head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convert.errors import UnsupportedArchitecture, WeightMismatch

Float32 = NDArray[np.float32]

FRAMES, HEIGHT, WIDTH = 4, 84, 84
NATURE_STRIDES = (4, 2, 1)
NATURE_PADDINGS = (0, 0, 0)
NATURE_KERNELS = ((32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3))
NATURE_HIDDEN = (512, 3136)
LARGEST_ACTIONS = 18  # all that ALE has
LARGEST_ATOMS = 512  # ten times those of C51


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution followed by ReLU.

    kernel: float32[out, in, height, width] (OIHW). bias: float32[out]. stride: both axes, in pixels.
    padding: zeros added on each side of both axes, in pixels.
    """

    kernel: Float32
    bias: Float32
    stride: int
    padding: int = 0


@dataclass(frozen=True, eq=False)
class Dense:
    """An affine layer. kernel: float32[out, in]. bias: float32[out]."""

    kernel: Float32
    bias: Float32


@dataclass(frozen=True, eq=False)
class QHead:
    """One Q-value for each action: dense.kernel is float32[actions, hidden]."""

    dense: Dense

    @property
    def actions(self) -> int:
        return int(self.dense.bias.shape[0])


@dataclass(frozen=True, eq=False)
class CategoricalHead:
    """A categorical distribution of returns for each action (C51, Bellemare et al. 2017).

    dense.kernel is float32[actions * atoms, hidden], the atoms of one action beside each other.
    support: float32[atoms], increasing. Q = sum(softmax(logits) * support).
    """

    dense: Dense
    support: Float32

    @property
    def atoms(self) -> int:
        return int(self.support.shape[0])

    @property
    def actions(self) -> int:
        return int(self.dense.bias.shape[0]) // self.atoms


Head = QHead | CategoricalHead


@dataclass(frozen=True, eq=False, repr=False)
class Network:
    """An agent's network: convolutions, a hidden dense layer with ReLU, and a head. Arrays are read-only."""

    convs: tuple[Conv, ...]
    hidden: Dense
    head: Head

    def __post_init__(self) -> None:
        for array in arrays(self).values():
            array.setflags(write=False)

    def __repr__(self) -> str:
        """Return one line on its layers, without a weight."""
        head = self.head
        atoms = f" × {head.atoms} atoms" if isinstance(head, CategoricalHead) else ""
        kind = "categorical" if atoms else "Q"
        hidden = self.hidden.bias.shape[0]
        return f"Network({len(self.convs)} convolutions, hidden {hidden}, {kind} head of {head.actions} actions{atoms})"


def arrays(network: Network) -> dict[str, Float32]:
    """Return every array of the network by name, in the order of the forward pass: ``convs.0.kernel`` …"""
    named = {}
    for index, conv in enumerate(network.convs):
        named[f"convs.{index}.kernel"] = conv.kernel
        named[f"convs.{index}.bias"] = conv.bias
    named |= {"hidden.kernel": network.hidden.kernel, "hidden.bias": network.hidden.bias}
    named |= {"head.kernel": network.head.dense.kernel, "head.bias": network.head.dense.bias}
    if isinstance(network.head, CategoricalHead):
        named["head.support"] = network.head.support
    return named


def from_arrays(
    named: Mapping[str, Float32],
    strides: Sequence[int] = NATURE_STRIDES,
    paddings: Sequence[int] = NATURE_PADDINGS,
) -> Network:
    """Return the network of named arrays, the inverse of `arrays`; where there is a support, its head is categorical.

    The geometry is by default that of the Nature-CNN, for formats that store weights alone.

    Raises:
        KeyError: an array is missing.
        ValueError: there are not as many paddings as strides.
    """
    convs = tuple(
        Conv(named[f"convs.{index}.kernel"], named[f"convs.{index}.bias"], stride, padding)
        for index, (stride, padding) in enumerate(zip(strides, paddings, strict=True))
    )
    hidden = Dense(named["hidden.kernel"], named["hidden.bias"])
    head = Dense(named["head.kernel"], named["head.bias"])
    support = named.get("head.support")
    return Network(convs, hidden, QHead(head) if support is None else CategoricalHead(head, support))


def check_network(network: Network, name: str) -> None:
    """Raise once, with all that is wrong, unless this is a Nature-CNN of the release with finite weights.

    Args:
        network: what was read.
        name: how messages call it, such as the checkpoint's path.

    Raises:
        UnsupportedArchitecture: its layers are not those of the release.
        WeightMismatch: a weight is not finite, or a support does not increase.
    """
    problems = find_shape_problems({key: array.shape for key, array in arrays(network).items()})
    if problems:
        raise UnsupportedArchitecture(f"{name}: {'; '.join(problems)}: not a Nature-CNN of this release")
    problems = [f"{_NAMES[key]} has {bad} values that are not finite" for key, bad in _non_finite(network).items()]
    head = network.head
    if isinstance(head, CategoricalHead) and not np.all(np.diff(head.support) > 0):
        problems.append("the support does not increase")
    if problems:
        raise WeightMismatch(f"{name}: {'; '.join(problems)}: the file is damaged, take another copy")


def find_shape_problems(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return how shapes, by the names of `arrays`, differ from the release's. Names that are not there are passed over.

    The number of actions is free up to that of ALE, and so is, within reason, the number of atoms of a support, of
    which the head is a multiple.
    """
    expected: dict[str, tuple[int, ...]] = {f"convs.{i}.kernel": shape for i, shape in enumerate(NATURE_KERNELS)}
    expected |= {f"convs.{i}.bias": shape[:1] for i, shape in enumerate(NATURE_KERNELS)}
    expected |= {"hidden.kernel": NATURE_HIDDEN, "hidden.bias": NATURE_HIDDEN[:1]}
    problems = [
        f"{_NAMES[key]} is {shapes[key]}, expected {shape}"
        for key, shape in expected.items()
        if key in shapes and shapes[key] != shape
    ]
    return problems + _find_head_problems(shapes)


def _find_head_problems(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    kernel, bias, support = (shapes.get(f"head.{part}") for part in ("kernel", "bias", "support"))
    hidden = NATURE_HIDDEN[0]
    if kernel is not None and (len(kernel) != 2 or kernel[0] < 1 or kernel[1] != hidden):
        return [f"head is {kernel}, expected (actions, {hidden}) or (actions x atoms, {hidden})"]
    problems = []
    if kernel is not None and bias is not None and bias != kernel[:1]:
        problems.append(f"bias of the head is {bias}, expected {kernel[:1]}")
    if support is not None and (len(support) != 1 or not 2 <= support[0] <= LARGEST_ATOMS):
        return [*problems, f"support is {support}, expected one row of 2 to {LARGEST_ATOMS} atoms"]
    atoms = 1 if support is None else support[0]
    if kernel is not None and kernel[0] % atoms:
        problems.append(f"head has {kernel[0]} rows, expected a multiple of the {atoms} atoms of its support")
    elif kernel is not None and kernel[0] // atoms > LARGEST_ACTIONS:
        of = "without a support" if support is None else f"with {atoms} atoms each"
        problems.append(f"head has {kernel[0] // atoms} actions {of}, expected at most {LARGEST_ACTIONS}")
    return problems


_NAMES = {
    **{f"convs.{i}.kernel": f"convolution {i + 1}" for i in range(3)},
    **{f"convs.{i}.bias": f"bias of convolution {i + 1}" for i in range(3)},
    "hidden.kernel": "first dense layer",
    "hidden.bias": "bias of the first dense layer",
    "head.kernel": "head",
    "head.bias": "bias of the head",
    "head.support": "support",
}


def _non_finite(network: Network) -> dict[str, int]:
    counts = {key: int(np.count_nonzero(~np.isfinite(array))) for key, array in arrays(network).items()}
    return {key: count for key, count in counts.items() if count}


def find_differences(actual: Network, expected: Network) -> list[str]:
    """Return what differs between two networks, bit for bit; nothing when they are the same.

    -0.0 differs from 0.0 here: every weight has to keep its bits.
    """
    differences = []
    if type(actual.head) is not type(expected.head):
        return [f"head is a {type(actual.head).__name__}, expected a {type(expected.head).__name__}"]
    geometry = [(conv.stride, conv.padding) for conv in actual.convs]
    wanted = [(conv.stride, conv.padding) for conv in expected.convs]
    if geometry != wanted:
        return [f"strides and paddings are {geometry}, expected {wanted}"]
    actual_arrays = arrays(actual)
    for key, array in arrays(expected).items():
        other = actual_arrays[key]
        if other.dtype != array.dtype or other.shape != array.shape:
            differences.append(f"{key} is {other.dtype}{list(other.shape)}, expected {array.dtype}{list(array.shape)}")
        elif not np.array_equal(_bits(other), _bits(array)):
            count = int(np.count_nonzero(_bits(other) != _bits(array)))
            differences.append(f"{key} differs in {count} of {array.size} values")
    return differences


def compute_digest(network: Network) -> str:
    """Return a sha256 over names, shapes and bits of all arrays, in lower-case hex."""
    digest = hashlib.sha256()
    for key, array in arrays(network).items():
        digest.update(f"{key} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).astype("<f4", copy=False).data)
    return digest.hexdigest()


def _bits(array: Float32) -> NDArray[np.uint32]:
    return np.ascontiguousarray(array).view(np.uint32)
