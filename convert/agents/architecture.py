"""The shape of an agent's network, as a value: what is divided, convolved, multiplied, and what the head answers.

A source decides the architecture, a `convert.agents.network.Network` carries it, ``agent.json`` records it, and each
target, runtime and judge interprets it. ReLU follows every layer but those of the head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

LARGEST_ACTIONS = 18  # all that ALE has
LARGEST_ATOMS = 512  # ten times those of C51; of quantiles too
LARGEST_WEIGHTS = 2**24  # values, five times those of the largest public networks
LARGEST_PLANES = 2**21  # values between two layers, a hundred times those of the Nature-CNN
LARGEST_COST = 2**28  # multiplications for one observation, thirty times those of the Nature-CNN

SCALES = (255, 1)
KINDS = ("q", "categorical", "quantile")
STREAMS = ("single", "shared", "split")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Observation:
    """What the network takes: uint8[N, frames, size, size], 0–255, oldest frame first, divided by ``scale``."""

    frames: int = 4
    size: int = 84
    scale: int = 255


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution followed by ReLU, the same on both axes.

    features: channels that it gives. kernel: its side, stride, padding: in pixels; zeros are added (before, after).
    TensorFlow's SAME on 84 pixels is (2, 2), (1, 2), (1, 1) for the three convolutions of the Nature-CNN.
    """

    features: int
    kernel: int
    stride: int
    padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Head:
    """What the last layers answer.

    kind: ``q``, one value for each action; ``categorical``, a distribution over the values of ``support`` (C51,
    Bellemare et al. 2017, https://arxiv.org/abs/1707.06887); or ``quantile``, the values at ``quantiles`` even
    fractions of the distribution (QR-DQN, Dabney et al. 2017, https://arxiv.org/abs/1710.10044), whose mean is q.
    support: float32 values, increasing.
    streams: ``single``, one dense layer; or two of them, an advantage for each action and a value (Wang et al. 2015,
    https://arxiv.org/abs/1511.06581): ``shared``, both take all hidden units; ``split``, the advantage takes the
    first half of them and the value the second.
    """

    kind: str
    actions: int
    support: tuple[float, ...] | None = None
    quantiles: int | None = None
    streams: str = "single"

    @property
    def atoms(self) -> int | None:
        """The number of values of the support; None where there is none."""
        return None if self.support is None else len(self.support)

    @property
    def width(self) -> int:
        """The number of rows of the head for each action; those of one action lie beside each other."""
        return self.atoms or self.quantiles or 1

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the dense layers that answer."""
        return ("head",) if self.streams == "single" else ("advantage", "value")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what is answered."""
        return {"q": ("q_values",), "categorical": ("q_values", "logits"), "quantile": ("q_values", "quantiles")}[
            self.kind
        ]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network without its weights: convolutions, a flatten in C,H,W order, hidden dense layers, a head.

    hidden: the number of units of each dense layer before the head.

    Raises:
        ValueError: no such network can be, or it is larger than any that this tool holds.
    """

    observation: Observation
    convs: tuple[Conv, ...]
    hidden: tuple[int, ...]
    head: Head

    def __post_init__(self) -> None:
        """Refuse what is not a network, or a too large one: what is read from files allocates by these numbers."""
        _check_numbers(self)
        _check_head(self.head, self.hidden[-1])
        if min(sides_of(self)) < 1:
            raise ValueError(f"convolutions leave planes of {list(sides_of(self))} pixels")
        if count_values(self) > LARGEST_PLANES:
            raise ValueError(f"computes {count_values(self)} values in one layer, expected at most {LARGEST_PLANES}")
        weights = sum(map(math.prod, list_shapes(self).values()))
        if weights > LARGEST_WEIGHTS or count_products(self) > LARGEST_COST:
            raise ValueError(f"has {weights} weights, expected at most {LARGEST_WEIGHTS}, or computes too much")

    @property
    def hidden_layers(self) -> tuple[str, ...]:
        """The names of the hidden dense layers."""
        return ("hidden",) if len(self.hidden) == 1 else tuple(f"hidden.{index}" for index in range(len(self.hidden)))

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of all layers, in the order of the forward pass."""
        return (*(f"convs.{index}" for index in range(len(self.convs))), *self.hidden_layers, *self.head.layers)


def make_head(actions: int, atoms: int | None = None) -> Head:
    """Return a Q head, or with a number of atoms a categorical one, whose support is 0, 1, 2 …"""
    return Head("q", actions) if atoms is None else Head("categorical", actions, tuple(map(float, range(atoms))))


def nature_cnn(head: Head, units: int = 512) -> Architecture:
    """Return the network of Mnih et al. (2015) with a head: that of the release, and what modules have by default.

    Zoos that call theirs so may have other ``units`` in the hidden layer.

    "Human-level control through deep reinforcement learning", Methods, https://doi.org/10.1038/nature14236.
    """
    return Architecture(Observation(), (Conv(32, 8, 4), Conv(64, 4, 2), Conv(64, 3, 1)), (units,), head)


def is_nature_cnn(architecture: Architecture) -> bool:
    """Tell whether all but the head is that of `nature_cnn`."""
    return architecture == nature_cnn(architecture.head)


def is_dqn_or_c51(architecture: Architecture) -> bool:
    """Tell whether this is the Nature-CNN with a Q or categorical head of one stream, as DQN and C51 have it."""
    head = architecture.head
    return is_nature_cnn(architecture) and head.kind in ("q", "categorical") and head.streams == "single"


def with_support(architecture: Architecture, support: tuple[float, ...] | None) -> Architecture:
    """Return an architecture with other values in its support."""
    return replace(architecture, head=replace(architecture.head, support=support))


def erase_support(architecture: Architecture) -> Architecture:
    """Return an architecture with 0, 1, 2 … in its support: the same for agents that differ in its values alone."""
    head = architecture.head
    support = make_head(head.actions, head.atoms).support
    return architecture if support is None else with_support(architecture, support)


def sides_of(architecture: Architecture) -> tuple[int, ...]:
    """Return the side in pixels of the plane that each convolution gives."""
    sides = [architecture.observation.size]
    for conv in architecture.convs:
        sides.append((sides[-1] + sum(conv.padding) - conv.kernel) // conv.stride + 1)
    return tuple(sides[1:])


def list_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array of such a network by name, in the order of the forward pass.

    ``convs.N.kernel`` [out, in, height, width]; ``hidden.kernel`` (``hidden.N.kernel`` of several) [out, in], the
    first one's columns in C,H,W order; ``head.kernel`` [rows, in], or ``advantage.kernel`` and ``value.kernel``;
    each with its ``bias`` [out]; and ``head.support`` [atoms].
    """
    shapes: dict[str, tuple[int, ...]] = {}
    head, channels = architecture.head, architecture.observation.frames
    for index, conv in enumerate(architecture.convs):
        shapes[f"convs.{index}.kernel"] = (conv.features, channels, conv.kernel, conv.kernel)
        channels = conv.features
    inputs = channels * sides_of(architecture)[-1] ** 2
    for name, units in zip(architecture.hidden_layers, architecture.hidden, strict=True):
        shapes[f"{name}.kernel"] = (units, inputs)
        inputs = units
    for name in head.layers:
        rows = head.width if name == "value" else head.actions * head.width
        shapes[f"{name}.kernel"] = (rows, inputs // 2 if head.streams == "split" else inputs)
    arrays: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        arrays |= {name: shape, name.replace("kernel", "bias"): shape[:1]}
    return arrays if head.atoms is None else arrays | {"head.support": (head.atoms,)}


def count_values(architecture: Architecture) -> int:
    """Return how many values the largest planes have that one observation takes, zeros of padding included."""
    side, features = architecture.observation.size, architecture.observation.frames
    largest = 0
    for conv, given in zip(architecture.convs, sides_of(architecture), strict=True):
        largest = max(largest, features * (side + sum(conv.padding)) ** 2, conv.features * given**2)
        side, features = given, conv.features
    return largest


def count_products(architecture: Architecture) -> int:
    """Return how many multiplications of weights one observation takes."""
    sizes = {f"convs.{index}.kernel": side**2 for index, side in enumerate(sides_of(architecture))}
    return sum(math.prod(shape) * sizes.get(name, 1) for name, shape in list_shapes(architecture).items())


def describe(architecture: Architecture) -> str:
    """Return an architecture in a few words, such as for a message."""
    convs = ", ".join(f"{conv.features} {conv.kernel}×{conv.kernel}/{conv.stride}" for conv in architecture.convs)
    padded = " padded" if any(any(conv.padding) for conv in architecture.convs) else ""
    hidden = ", ".join(map(str, architecture.hidden))
    scale = (
        "" if architecture.observation.scale == SCALES[0] else f", input divided by {architecture.observation.scale}"
    )
    return f"convolutions {convs}{padded}, hidden {hidden}, {describe_head(architecture.head)}{scale}"


def describe_head(head: Head) -> str:
    """Return a head in a few words, such as for a message."""
    width = {"q": "", "categorical": f" × {head.atoms} atoms", "quantile": f" × {head.quantiles} quantiles"}[head.kind]
    kind = "Q" if head.kind == "q" else head.kind
    streams = "" if head.streams == "single" else f"dueling ({head.streams}) "
    return f"{streams}{kind} head of {head.actions} actions{width}"


def _check_numbers(architecture: Architecture) -> None:
    observation, convs, hidden = architecture.observation, architecture.convs, architecture.hidden
    if observation.scale not in SCALES:
        raise ValueError(f"scale is {observation.scale}, expected {' or '.join(map(str, SCALES))}")
    for name, number, most in (
        ("number of frames", observation.frames, 16),
        ("size", observation.size, 256),
        ("number of convolutions", len(convs), 8),
        ("number of hidden layers", len(hidden), 8),
        *(("number of features", conv.features, 4096) for conv in convs),
        *(("kernel", conv.kernel, 32) for conv in convs),
        *(("stride", conv.stride, conv.kernel) for conv in convs),
        *(("number of hidden units", units, 2**14) for units in hidden),
    ):
        if not 1 <= number <= most:
            raise ValueError(f"{name} is {number}, expected 1 to {most}")
    for conv in convs:
        if not all(0 <= side < conv.kernel for side in conv.padding):
            raise ValueError(f"padding is {list(conv.padding)}, expected less than the kernel, {conv.kernel}")


def _check_head(head: Head, units: int) -> None:
    if head.kind not in KINDS or head.streams not in STREAMS:
        raise ValueError(f"head is {head.kind[:20]!r}, {head.streams[:20]!r}, expected {', '.join((*KINDS, *STREAMS))}")
    if not 1 <= head.actions <= LARGEST_ACTIONS:
        raise ValueError(f"actions is {head.actions}, expected 1 to {LARGEST_ACTIONS}")
    given = (head.support is not None, head.quantiles is not None)
    if given != (head.kind == "categorical", head.kind == "quantile"):
        raise ValueError(f"a {head.kind} head has a support if it is categorical and quantiles if it is quantile")
    if head.support is not None:
        if not 2 <= len(head.support) <= LARGEST_ATOMS:
            raise ValueError(f"support has {len(head.support)} values, expected 2 to {LARGEST_ATOMS}")
        if not all(low < high for low, high in pairwise(head.support)):  # which NaN is not
            raise ValueError("support does not increase")
    if head.quantiles is not None and not 1 <= head.quantiles <= LARGEST_ATOMS:
        raise ValueError(f"quantiles is {head.quantiles}, expected 1 to {LARGEST_ATOMS}")
    if head.streams == "split" and units % 2:
        raise ValueError(f"{units} hidden units cannot be split into two streams")
