"""Permutations: inverses on arrays whose axes all differ, and the meaning of each axis by its index."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.agents import layout

sizes = st.lists(st.integers(1, 9), min_size=4, max_size=4, unique=True)


def _numbered(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@given(sizes)
def test_kernel_keeps_each_weight_and_comes_back(shape):
    out, in_, height, width = shape
    kernel = _numbered(out, in_, height, width)
    hwio = layout.hwio_from_oihw(kernel)
    assert hwio.shape == (height, width, in_, out)
    assert hwio[height - 1, 0, in_ - 1, 0] == kernel[0, in_ - 1, height - 1, 0]
    assert np.array_equal(layout.oihw_from_hwio(hwio), kernel)


@given(sizes)
def test_dense_kernel_keeps_each_weight_and_comes_back(shape):
    kernel = _numbered(*shape[:2])
    turned = layout.io_from_oi(kernel)
    assert turned[0, -1] == kernel[-1, 0]
    assert np.array_equal(layout.oi_from_io(turned), kernel)


@given(sizes)
def test_dense_kernel_after_flatten_answers_alike_in_both_orders(shape):
    out, channels, side, _ = shape
    kernel = _numbered(out, channels * side * side)
    features_chw = _numbered(channels, side, side)
    turned = layout.hwc_o_from_o_chw(kernel, channels)
    answer_chw = kernel.astype(np.float64) @ features_chw.reshape(-1)
    answer_hwc = features_chw.transpose(1, 2, 0).reshape(-1) @ turned.astype(np.float64)
    assert np.array_equal(answer_hwc, answer_chw)
    assert np.array_equal(layout.o_chw_from_hwc_o(turned, channels), kernel)


@given(sizes)
def test_observations_keep_each_pixel_and_come_back(shape):
    observations = _numbered(*shape)
    turned = layout.nhwc_from_nchw(observations)
    assert turned.shape == (shape[0], shape[2], shape[3], shape[1])
    assert turned[0, -1, 0, -1] == observations[0, -1, -1, 0]
    assert np.array_equal(layout.nchw_from_nhwc(turned), observations)


def test_every_result_is_contiguous():
    results = [
        layout.hwio_from_oihw(_numbered(2, 3, 4, 5)),
        layout.oihw_from_hwio(_numbered(2, 3, 4, 5)),
        layout.io_from_oi(_numbered(2, 3)),
        layout.oi_from_io(_numbered(2, 3)),
        layout.hwc_o_from_o_chw(_numbered(5, 3 * 4 * 4), 3),
        layout.o_chw_from_hwc_o(_numbered(3 * 4 * 4, 5), 3),
    ]
    assert all(result.flags.c_contiguous for result in results)


def test_a_plane_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="13 inputs are not a square plane of 3 channels"):
        layout.hwc_o_from_o_chw(_numbered(2, 13), 3)
