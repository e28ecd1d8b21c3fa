"""Every axis permutation of this project: pure functions, both shapes in each docstring, and nowhere else.

O is output channels (or rows), I input channels, H height, W width, N observations.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


def hwio_from_oihw(kernel_oihw: NDArray[Scalar]) -> NDArray[Scalar]:
    """Turn PyTorch's kernel [O, I, H, W] into the NHWC frameworks' [H, W, I, O]."""
    return np.ascontiguousarray(kernel_oihw.transpose(2, 3, 1, 0))


def oihw_from_hwio(kernel_hwio: NDArray[Scalar]) -> NDArray[Scalar]:
    """Turn the NHWC frameworks' kernel [H, W, I, O] into PyTorch's [O, I, H, W]."""
    return np.ascontiguousarray(kernel_hwio.transpose(3, 2, 0, 1))


def io_from_oi(kernel_oi: NDArray[Scalar]) -> NDArray[Scalar]:
    """Turn PyTorch's dense kernel [O, I] into the NHWC frameworks' [I, O]."""
    return kernel_oi.T.copy()  # np.ascontiguousarray would keep the strides of a single row, which a program records


def oi_from_io(kernel_io: NDArray[Scalar]) -> NDArray[Scalar]:
    """Turn the NHWC frameworks' dense kernel [I, O] into PyTorch's [O, I]."""
    return kernel_io.T.copy()  # as in `io_from_oi`


def hwc_o_from_o_chw(kernel_o_chw: NDArray[Scalar], channels: int) -> NDArray[Scalar]:
    """Turn the dense kernel after PyTorch's flatten, [O, C·H·W], into the NHWC one, [H·W·C, O].

    The plane is square: H = W = sqrt(I / channels).
    """
    rows, columns = kernel_o_chw.shape
    side = _side(columns, channels)
    kernel_ocp = kernel_o_chw.reshape(rows, channels, side * side)
    kernel_pco = np.empty(kernel_ocp.shape[::-1], kernel_o_chw.dtype)
    for channel in range(channels):  # a piece that fits the cache: half the time of one big copy
        kernel_pco[:, channel] = kernel_ocp[:, channel].T
    return kernel_pco.reshape(columns, rows)


def o_chw_from_hwc_o(kernel_hwc_o: NDArray[Scalar], channels: int) -> NDArray[Scalar]:
    """Turn the dense kernel after an NHWC flatten, [H·W·C, O], into the one after PyTorch's, [O, C·H·W]."""
    columns, rows = kernel_hwc_o.shape
    side = _side(columns, channels)
    kernel_chw_o = np.ascontiguousarray(kernel_hwc_o.reshape(side, side, channels, rows).transpose(2, 0, 1, 3))
    return _transpose_long(kernel_chw_o.reshape(columns, rows))


def actions_first(rows_qa: NDArray[Scalar], quantiles: int) -> NDArray[Scalar]:
    """Turn the rows of a quantile head [quantiles·A, …], actions beside each other, into [A·quantiles, …]."""
    return _swap_rows(rows_qa, quantiles)


def quantiles_first(rows_aq: NDArray[Scalar], quantiles: int) -> NDArray[Scalar]:
    """Turn the rows of a quantile head [A·quantiles, …], quantiles beside each other, into [quantiles·A, …]."""
    return _swap_rows(rows_aq, len(rows_aq) // quantiles)


def nhwc_from_nchw(obs_nchw: NDArray[Scalar]) -> NDArray[Scalar]:
    """Turn observations [N, C, H, W] into [N, H, W, C]."""
    return np.ascontiguousarray(obs_nchw.transpose(0, 2, 3, 1))


def nchw_from_nhwc(obs_nhwc: NDArray[Scalar]) -> NDArray[Scalar]:
    """Turn observations [N, H, W, C] into [N, C, H, W]."""
    return np.ascontiguousarray(obs_nhwc.transpose(0, 3, 1, 2))


def _swap_rows(rows: NDArray[Scalar], outer: int) -> NDArray[Scalar]:
    """Turn rows [outer · inner, …] into [inner · outer, …]."""
    grouped = rows.reshape(outer, -1, *rows.shape[1:])
    return np.ascontiguousarray(grouped.swapaxes(0, 1)).reshape(rows.shape)


def _transpose_long(matrix: NDArray[Scalar]) -> NDArray[Scalar]:
    """Turn a large [M, N], M > N, into [N, M], by bands that fit the cache: a third of the time of one big copy."""
    turned = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), 16):
        turned[:, start : start + 16] = matrix[start : start + 16].T
    return turned


def _side(columns: int, channels: int) -> int:
    side = math.isqrt(columns // channels)
    if side * side * channels != columns:
        raise ValueError(f"{columns} inputs are not a square plane of {channels} channels")
    return side
