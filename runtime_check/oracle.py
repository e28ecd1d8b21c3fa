"""The judge: a checkpoint of the release in float64 NumPy, written from the network's description.

It shares no code with ``convert`` and permutes nothing: the checkpoint stores PyTorch's order, and so does
this file. Architecture: Mnih et al. (2015), "Human-level control through deep reinforcement learning",
Methods. Categorical head: Bellemare et al. (2017), "A Distributional Perspective on Reinforcement Learning".

============================  ================  ======  ===========
layer                         kernel            stride  output
============================  ================  ======  ===========
observation / 255                                       4 × 84 × 84
convolution, ReLU             (32, 4, 8, 8)     4       32 × 20 × 20
convolution, ReLU             (64, 32, 4, 4)    2       64 × 9 × 9
convolution, ReLU             (64, 64, 3, 3)    1       64 × 7 × 7
flatten in C,H,W; dense, ReLU (512, 3136)               512
dense                         (A, 512)                  A Q-values
or, for C51                   (A · atoms, 512)          A × atoms logits; Q = Σ softmax(logits) · support
============================  ================  ======  ===========
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from runtime_check.originals.atari_agents import read_state_dict

Float64 = NDArray[np.float64]

_STRIDES = (4, 2, 1)
_SHAPES = {
    "_AtariNet__features.0.weight": (32, 4, 8, 8),
    "_AtariNet__features.0.bias": (32,),
    "_AtariNet__features.2.weight": (64, 32, 4, 4),
    "_AtariNet__features.2.bias": (64,),
    "_AtariNet__features.4.weight": (64, 64, 3, 3),
    "_AtariNet__features.4.bias": (64,),
    "_AtariNet__head.0.weight": (512, 3136),
    "_AtariNet__head.0.bias": (512,),
}
_HEAD_WEIGHT, _HEAD_BIAS, _SUPPORT = "_AtariNet__head.2.weight", "_AtariNet__head.2.bias", "_AtariNet__support"
_LARGEST_WEIGHT = 2**23  # values; a head of 18 actions and 512 atoms has 4.7 million
_NAMES = (*_SHAPES, _HEAD_WEIGHT, _HEAD_BIAS, _SUPPORT)


@dataclass(frozen=True, eq=False)
class Oracle:
    """A checkpoint's weights in float64, in the order in which the file stores them.

    kernels: float64[out, in, height, width] of the three convolutions. hidden_kernel: float64[512, 3136],
    columns in C,H,W order. head_kernel: float64[actions, 512], or float64[actions * atoms, 512] with the
    atoms of one action beside each other. support: float64[atoms] for C51, else None.
    """

    kernels: tuple[Float64, Float64, Float64]
    biases: tuple[Float64, Float64, Float64]
    hidden_kernel: Float64
    hidden_bias: Float64
    head_kernel: Float64
    head_bias: Float64
    support: Float64 | None

    @property
    def actions(self) -> int:
        atoms = 1 if self.support is None else len(self.support)
        return len(self.head_bias) // atoms


def read_oracle(path: Path) -> Oracle:
    """Read a checkpoint of the release as its float64 oracle.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is not a checkpoint of this network; the message names every weight that is off.
    """
    state = read_state_dict(path)
    problems = _find_problems({name: tuple(tensor.shape) for name, tensor in state.items()})
    # Tensors of any number and size may share a storage, and would each become an array.
    known = [name for name in _NAMES if name in state and state[name].numel() <= _LARGEST_WEIGHT]
    arrays = {name: state[name].to(torch.float64).numpy() for name in known}
    problems += [f"{name} is not finite" for name, array in arrays.items() if not np.isfinite(array).all()]
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"{path}: {'; '.join(problems[:10])}{more}")
    weights, biases = (
        tuple(arrays[f"_AtariNet__features.{layer}.{kind}"] for layer in (0, 2, 4)) for kind in ("weight", "bias")
    )
    return Oracle(
        (weights[0], weights[1], weights[2]),
        (biases[0], biases[1], biases[2]),
        arrays["_AtariNet__head.0.weight"],
        arrays["_AtariNet__head.0.bias"],
        arrays[_HEAD_WEIGHT],
        arrays[_HEAD_BIAS],
        arrays.get(_SUPPORT),
    )


def _find_problems(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    expected: dict[str, tuple[int, ...]] = dict(_SHAPES)
    head_bias, support = shapes.get(_HEAD_BIAS), shapes.get(_SUPPORT)
    rows = head_bias[0] if head_bias is not None and len(head_bias) == 1 else -1
    expected |= {_HEAD_WEIGHT: (rows, 512), _HEAD_BIAS: (rows,)}
    problems = [f"{name} is missing" for name in expected if name not in shapes]
    problems += [f"{ascii(name)[1:-1][:80]} is unexpected" for name in shapes if name not in _NAMES]
    problems += [
        f"{name} is {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if support is not None and (len(support) != 1 or not support[0] or rows % support[0]):
        problems.append(f"{_SUPPORT} is {support}, the head has {rows} rows")
    if rows == 0:
        problems.append("the head has no actions")
    return problems


def compute_q_values(oracle: Oracle, obs_nchw: NDArray[np.uint8]) -> Float64:
    """Return the Q-values of a batch of observations.

    Args:
        oracle: the checkpoint.
        obs_nchw: uint8[N, 4, 84, 84], oldest frame first, 0–255.

    Returns:
        float64[N, actions].
    """
    return compute_outputs(oracle, obs_nchw)["q_values"]


def compute_outputs(oracle: Oracle, obs_nchw: NDArray[np.uint8]) -> dict[str, Float64]:
    """Return all that the network answers to a batch of observations.

    A value depends on the rest of its batch by no more than the rounding of float64, 1e-13 of it.

    Args:
        oracle: the checkpoint.
        obs_nchw: uint8[N, 4, 84, 84], oldest frame first, 0–255.

    Returns:
        ``q_values`` float64[N, actions], and for C51 ``logits`` float64[N, actions, atoms].
    """
    # Products this small gain nothing from BLAS's own threads, which wait for each other by spinning.
    with _find_blas().limit(limits=1, user_api="blas"):
        blocks = np.array_split(obs_nchw, min(os.cpu_count() or 1, len(obs_nchw)) or 1)
        # Another thread's cache is cold: one block is done sooner here.
        map_blocks = map if len(blocks) == 1 else _open_pool().map
        outputs = np.concatenate(list(map_blocks(partial(_compute_head, oracle), blocks)))
    if oracle.support is None:
        return {"q_values": outputs}
    logits = outputs.reshape(len(obs_nchw), oracle.actions, len(oracle.support))
    return {"q_values": (_softmax(logits) * oracle.support).sum(axis=-1), "logits": logits}


@cache
def _find_blas() -> ThreadpoolController:
    return ThreadpoolController()


@cache
def _open_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "oracle")


def _compute_head(oracle: Oracle, obs_nchw: NDArray[np.uint8]) -> Float64:
    features = obs_nchw / 255.0
    for kernel, bias, stride in zip(oracle.kernels, oracle.biases, _STRIDES, strict=True):
        features = _convolve(features, kernel, stride)
        features += bias[:, None, None]
        np.maximum(features, 0.0, out=features)
    flat = features.reshape(-1, oracle.hidden_kernel.shape[1])
    hidden = np.maximum(flat @ oracle.hidden_kernel.T + oracle.hidden_bias, 0.0)
    outputs: Float64 = hidden @ oracle.head_kernel.T + oracle.head_bias
    return outputs


def _convolve(features: Float64, kernel: Float64, stride: int) -> Float64:
    """Correlate features[N, in, H, W] with kernel[out, in, k, k], without padding, as one product of matrices each.

    windows is [N, in, k, k, h, w], the patch under each output pixel; columns holds those of one observation at a
    time, [in · k · k, h · w], so that they stay in the cache.
    """
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
