"""The judge's arithmetic: any network of this kind in float64 NumPy, written from its description.

It shares no code with ``convert`` and permutes nothing: weights are in PyTorch's order. `originals` reads them, for
each source in a file of its own. Architecture: Mnih et al. (2015), "Human-level control through deep reinforcement
learning", Methods. Heads: Bellemare et al. (2017), "A Distributional Perspective on Reinforcement Learning"; Dabney et
al. (2018), "Distributional Reinforcement Learning with Quantile Regression". Streams: Wang et al. (2016), "Dueling
Network Architectures for Deep Reinforcement Learning".

======================================  ==============================================================
layer                                   what it computes
======================================  ==============================================================
observation / scale                     frames × size × size
convolutions, each with ReLU            zeros are padded before and after, the same on both axes
flatten in C,H,W; dense layers, ReLU    hidden widths
head, ``single``                        A × n rows of outputs, those of one action beside each other
head, ``shared``                        value (n rows) + advantage (A × n rows) − its mean over actions
head, ``split``                         the same; the advantage sees the first half of the last hidden
                                        layer, the value the second
``q``: n = 1                            Q = output
``categorical``: n atoms                Q = Σ softmax(logits) · support
``quantile``: n quantiles               Q = their mean
======================================  ==============================================================
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

Float64 = NDArray[np.float64]

Q, CATEGORICAL, QUANTILE = "q", "categorical", "quantile"
SINGLE, SHARED, SPLIT = "single", "shared", "split"


@dataclass(frozen=True)
class Observation:
    """What the network sees: ``frames`` of size × size, divided by ``scale`` (255, or 1 for none)."""

    frames: int = 4
    size: int = 84
    scale: int = 255


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution and a ReLU. kernel: float64[out, in, k, k]; bias: float64[out]; padding: (before, after)."""

    kernel: Float64
    bias: Float64
    stride: int
    padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True, eq=False)
class Dense:
    """A dense layer. kernel: float64[out, in]; bias: float64[out]."""

    kernel: Float64
    bias: Float64


@dataclass(frozen=True, eq=False)
class Head:
    """The last layer, and how its rows become Q-values.

    kind: ``q``, ``categorical`` or ``quantile``. actions: how many. dense: the only stream, or that of the advantage;
    (actions · n) rows, the n of one action beside each other. value: the other stream, n rows; None for ``single``.
    streams: ``single``, ``shared`` or ``split``. support: float64[n] for ``categorical``, else None.
    """

    kind: str
    actions: int
    dense: Dense
    value: Dense | None = None
    streams: str = SINGLE
    support: Float64 | None = None

    @property
    def size(self) -> int:
        """How many rows an action has: 1, or its atoms or quantiles."""
        return len(self.dense.bias) // self.actions


@dataclass(frozen=True, eq=False)
class Oracle:
    """A network in float64.

    Raises:
        ValueError: its layers do not fit each other; all that is wrong is named.
    """

    observation: Observation
    convs: tuple[Conv, ...]
    hidden: tuple[Dense, ...]
    head: Head

    def __post_init__(self) -> None:
        """Refuse layers that do not fit each other."""
        if problems := _find_problems(self):
            raise ValueError("; ".join(problems))

    @property
    def actions(self) -> int:
        return self.head.actions

    @property
    def support(self) -> Float64 | None:
        return self.head.support

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The outputs for one observation, with their shapes."""
        shapes: dict[str, tuple[int, ...]] = {"q_values": (self.actions,)}
        if self.head.kind != Q:
            shapes[_DETAILS[self.head.kind]] = (self.actions, self.head.size)
        return shapes


_DETAILS = {CATEGORICAL: "logits", QUANTILE: "quantiles"}


def _find_problems(oracle: Oracle) -> list[str]:
    problems = []
    channels, side = oracle.observation.frames, oracle.observation.size
    for number, conv in enumerate(oracle.convs, 1):
        shape = conv.kernel.shape
        if len(shape) != 4 or shape[1] != channels or shape[2] != shape[3] or conv.bias.shape != shape[:1]:
            return [f"convolution {number} is {shape} with a bias {conv.bias.shape}, expected (n, {channels}, k, k)"]
        channels, side = shape[0], (side + sum(conv.padding) - shape[2]) // conv.stride + 1
        if side < 1:
            return [f"convolution {number} has a kernel of {shape[2]}, larger than what it sees"]
    features = channels * side * side
    for number, dense in enumerate(oracle.hidden, 1):
        problems += _find_dense_problems(f"hidden layer {number}", dense, features)
        features = len(dense.bias)
    return problems + _find_head_problems(oracle.head, features)


def _find_dense_problems(name: str, dense: Dense, features: int) -> list[str]:
    shape = dense.kernel.shape
    if len(shape) == 2 and shape[1] == features and dense.bias.shape == shape[:1]:
        return []
    return [f"{name} is {shape} with a bias {dense.bias.shape}, expected (n, {features})"]


def _find_head_problems(head: Head, features: int) -> list[str]:
    if head.kind not in (Q, CATEGORICAL, QUANTILE) or head.streams not in (SINGLE, SHARED, SPLIT):
        return [f"the head is {head.kind!r} with streams {head.streams!r}, which is not known"]
    rows, atoms = len(head.dense.bias), None if head.support is None else len(head.support)
    if head.streams == SPLIT and features % 2:
        return [f"the head splits {features} features, expected an even number"]
    features = features // 2 if head.streams == SPLIT else features
    problems = _find_dense_problems("the head", head.dense, features)
    if head.actions < 1 or rows % head.actions or not rows:
        return [*problems, f"the head has {rows} rows for {head.actions} actions"]
    if (head.kind == CATEGORICAL) != (atoms is not None) or atoms not in (None, head.size):
        problems.append(f"a {head.kind} head of {head.size} rows for an action has a support of {atoms}")
    if head.kind == Q and head.size != 1:
        problems.append(f"a q head has {head.size} rows for an action, expected 1")
    if (head.streams == SINGLE) != (head.value is None):
        problems.append(f"a head with streams {head.streams!r} and {'no' if head.value is None else 'a'} value stream")
    if head.value is not None:
        problems += _find_dense_problems("the value stream", head.value, features)
        if len(head.value.bias) != head.size:
            problems.append(f"the value stream has {len(head.value.bias)} rows, expected {head.size}")
    return problems


def compute_q_values(oracle: Oracle, obs_nchw: NDArray[np.uint8]) -> Float64:
    """Return the Q-values of a batch of observations.

    Args:
        oracle: the network.
        obs_nchw: uint8[N, frames, size, size], oldest frame first, 0–255.

    Returns:
        float64[N, actions].
    """
    return compute_outputs(oracle, obs_nchw)["q_values"]


def compute_outputs(oracle: Oracle, obs_nchw: NDArray[np.uint8]) -> dict[str, Float64]:
    """Return all that the network answers to a batch of observations.

    A value depends on the rest of its batch by no more than the rounding of float64, 1e-13 of it.

    Args:
        oracle: the network.
        obs_nchw: uint8[N, frames, size, size], oldest frame first, 0–255.

    Returns:
        ``q_values`` float64[N, actions]; for a categorical head ``logits`` float64[N, actions, atoms], for a quantile
        head ``quantiles`` float64[N, actions, quantiles].
    """
    # Products this small gain nothing from BLAS's own threads, which wait for each other by spinning.
    with _find_blas().limit(limits=1, user_api="blas"):
        blocks = np.array_split(obs_nchw, min(os.cpu_count() or 1, len(obs_nchw)) or 1)
        # Another thread's cache is cold: one block is done sooner here.
        map_blocks = map if len(blocks) == 1 else _open_pool().map
        outputs = np.concatenate(list(map_blocks(partial(_compute_head, oracle), blocks)))
    if oracle.head.kind == Q:
        return {"q_values": outputs[:, :, 0]}
    if oracle.head.support is None:
        return {"q_values": outputs.mean(axis=-1), "quantiles": outputs}
    return {"q_values": (_softmax(outputs) * oracle.head.support).sum(axis=-1), "logits": outputs}


@cache
def _find_blas() -> ThreadpoolController:
    return ThreadpoolController()


@cache
def _open_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "oracle")


def _compute_head(oracle: Oracle, obs_nchw: NDArray[np.uint8]) -> Float64:
    """Return float64[N, actions, n]: Q-values (n = 1), logits or quantiles."""
    features = obs_nchw / oracle.observation.scale
    for conv in oracle.convs:
        features = _convolve(features, conv.kernel, conv.stride, conv.padding)
        features += conv.bias[:, None, None]
        np.maximum(features, 0.0, out=features)
    flat = features.reshape(len(features), int(np.prod(features.shape[1:])))
    for dense in oracle.hidden:
        flat = np.maximum(_multiply(flat, dense), 0.0)
    head = oracle.head
    first, second = np.split(flat, 2, axis=1) if head.streams == SPLIT else (flat, flat)
    outputs = _multiply(first, head.dense).reshape(len(flat), head.actions, head.size)
    if head.value is not None:
        outputs += _multiply(second, head.value)[:, None, :] - outputs.mean(axis=1, keepdims=True)
    return outputs


def _multiply(features: Float64, dense: Dense) -> Float64:
    outputs: Float64 = features @ dense.kernel.T + dense.bias
    return outputs


def _convolve(features: Float64, kernel: Float64, stride: int, padding: tuple[int, int] = (0, 0)) -> Float64:
    """Correlate features[N, in, H, W] with kernel[out, in, k, k] as one product of matrices each.

    windows is [N, in, k, k, h, w], the patch under each output pixel; columns holds those of one observation at a
    time, [in · k · k, h · w], so that they stay in the cache.
    """
    if any(padding):
        features = np.pad(features, ((0, 0), (0, 0), padding, padding))
    side = kernel.shape[-1]
    windows = sliding_window_view(features, (side, side), axis=(2, 3))[:, :, ::stride, ::stride]
    windows = windows.transpose(0, 1, 4, 5, 2, 3)
    height, width = windows.shape[-2:]
    columns = np.empty(windows.shape[1:])
    products = np.empty((len(features), len(kernel), height * width))
    for patches, product in zip(windows, products, strict=True):
        np.copyto(columns, patches)
        np.matmul(kernel.reshape(len(kernel), -1), columns.reshape(-1, height * width), out=product)
    return products.reshape(len(features), len(kernel), height, width)


def _softmax(logits: Float64) -> Float64:
    """Return the softmax over the last axis; the maximum is taken off first, so that nothing overflows."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Float64 = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities
