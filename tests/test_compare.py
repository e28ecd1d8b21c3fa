"""The comparison: what counts as agreement, tie, wrong, and what turns a verdict red."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_check.compare import (
    DEFAULT_ATOL,
    DEFAULT_RTOL,
    Tolerance,
    compare_outputs,
    compute_scale,
    find_faults,
)
from runtime_check.tally import MAX_LISTED, Histogram, Profile, Tally, judge

TOLERANCE = Tolerance(atol=1e-3, rtol=1e-2)


def _compare(actual, expected, tolerance=TOLERANCE):
    return compare_outputs({"q_values": np.float32(actual)}, {"q_values": np.float64(expected)}, tolerance)


def _tally(actual, expected, tolerance=TOLERANCE) -> Tally:
    tally = Tally()
    comparison = _compare(actual, expected, tolerance)
    tally.add(comparison, np.zeros(len(expected), np.int64), np.arange(len(expected)))
    return tally


def test_the_allowed_error_grows_with_the_largest_q_value_of_the_observation():
    allowed = TOLERANCE.allow(np.array([[1.0, -5.0], [0.0, 0.0]]))
    np.testing.assert_allclose(allowed, [1e-3 + 5e-2, 1e-3])


@pytest.mark.parametrize(("support", "scale"), [(None, 1), ([-10, 10], 1), ([-1, 0, 1], 0.1), ([0, 400], 20)])
def test_atol_scales_with_the_span_of_the_support(support, scale):
    assert compute_scale(None if support is None else np.float64(support)) == pytest.approx(scale)
    assert Tolerance(1e-3, 0.0, scale).allow(np.zeros((1, 2)))[0] == pytest.approx(1e-3 * scale)


def test_the_same_actions_within_the_allowed_error_agree():
    tally = _tally([[1.0, 2.001], [3.0, 1.0]], [[1.0, 2.0], [3.0, 1.0]])
    assert judge(tally) == []
    assert (tally.steps, tally.disagreements.ties, tally.disagreements.wrong) == (2, 0, 0)
    assert tally.max_error == pytest.approx(1e-3, rel=1e-3)
    assert tally.max_error_at == (0, 0)
    assert tally.smallest_gap == pytest.approx(1.0)


@pytest.mark.parametrize(("gap", "kind"), [(0.0, "tie"), (2 * 0.0199, "tie"), (2 * 0.0201, "wrong")])
def test_another_action_within_twice_the_allowed_error_is_a_tie(gap, kind):
    tally = _tally([[1.9, 2.0]], [[2.0, 2.0 - gap]], Tolerance(0.0, 0.01))
    if gap:
        assert (
            tally.disagreements.listed[0].kind,
            tally.disagreements.listed[0].action,
            tally.disagreements.listed[0].best,
        ) == (kind, 1, 0)
        assert tally.disagreements.listed[0].margin == pytest.approx(gap)
        assert tally.disagreements.listed[0].allowed == pytest.approx(0.02)
    else:
        assert tally.disagreements.ties == 1
    assert any("1 wrong action" in reason for reason in judge(tally)) == (kind == "wrong")


def test_an_error_above_what_is_allowed_fails_although_the_actions_agree():
    tally = _tally([[1.0, 2.1]] * 3, [[1.0, 2.0]] * 3)
    assert judge(tally) == ["error above the allowed on 3 of 3 steps, up to 4.76 times it"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_fail_and_do_not_hide_the_others(value):
    tally = _tally([[value, 2.0], [1.0, 2.001]], [[1.0, 2.0], [1.0, 2.0]])
    assert "1 of 2 answers hold NaN or infinity" in judge(tally)
    assert tally.max_error == pytest.approx(1e-3, rel=1e-3)
    assert tally.errors.median() == pytest.approx(1e-3, rel=2e-2)


def test_nothing_allowed_means_nothing_allowed():
    assert judge(_tally([[0.0, 1.0]], [[0.0, 1.0]], Tolerance(0.0, 0.0))) == []
    assert judge(_tally([[0.0, 1.0]], [[0.0, 1.0 + 1e-9]], Tolerance(0.0, 0.0))) != []


def test_logits_are_judged_too():
    expected = {"q_values": np.ones((1, 2)), "logits": np.ones((1, 2, 3))}
    actual = {name: array.astype(np.float32) for name, array in expected.items()}
    assert compare_outputs(actual, expected, TOLERANCE).ratio[0] == 0
    actual["logits"][0, 1, 2] += 0.1
    assert compare_outputs(actual, expected, TOLERANCE).ratio[0] == pytest.approx(0.1 / 0.011, rel=1e-4)


@pytest.mark.parametrize(
    ("actual", "fault"),
    [
        ({}, "no output 'q_values'"),
        ({"q_values": np.zeros((2, 3), np.float32), "extra": np.zeros(1)}, "unexpected output 'extra'"),
        ({"q_values": np.zeros((2, 4), np.float32)}, r"output 'q_values' is float32[2, 4], expected float32[2, 3]"),
        ({"q_values": np.zeros((2, 3))}, "output 'q_values' is float64[2, 3], expected float32[2, 3]"),
        ({"q_values": np.zeros((1, 3), np.float32)}, "output 'q_values' is float32[1, 3], expected float32[2, 3]"),
    ],
)
def test_outputs_that_cannot_be_compared_are_named(actual, fault):
    assert find_faults(actual, {"q_values": (2, 3)}) == [fault]


def test_good_outputs_have_no_faults():
    assert find_faults({"q_values": np.zeros((2, 3), np.float32)}, {"q_values": (2, 3)}) == []


def test_a_head_of_one_action_has_no_gap():
    tally = _tally([[1.0]], [[1.0]])
    assert tally.smallest_gap == np.inf
    assert judge(tally) == []


def test_lists_are_bounded_and_counts_are_not():
    tally = _tally([[1.0, 2.0]] * 300, [[2.0, 1.0]] * 300)
    assert (tally.disagreements.wrong, len(tally.disagreements.listed)) == (300, MAX_LISTED)


def test_a_wrong_action_is_listed_in_the_place_of_a_tie():
    tally = _tally([[1.0, 2.0]] * MAX_LISTED, [[2.0, 1.99]] * MAX_LISTED)
    assert (tally.disagreements.ties, {entry.kind for entry in tally.disagreements.listed}) == (MAX_LISTED, {"tie"})
    tally.add(_compare([[1.0, 2.0]], [[2.0, 1.0]]), np.zeros(1, np.int64), np.array([500]))
    assert len(tally.disagreements.listed) == MAX_LISTED
    assert (tally.disagreements.listed[-1].kind, tally.disagreements.listed[-1].step) == ("wrong", 500)


def test_the_defaults_are_those_of_the_docs():
    assert (DEFAULT_ATOL, DEFAULT_RTOL) == (2e-5, 2e-5)


@given(
    st.lists(st.lists(st.floats(-100, 100), min_size=3, max_size=3), min_size=1, max_size=8),
    st.integers(0, 2**32 - 1),
)
def test_no_port_within_the_allowed_error_is_ever_wrong(expected, seed):
    """The reason for the rule of ties: an error of at most e moves a margin by at most 2e."""
    expected = np.float64(expected)
    noise = np.random.default_rng(seed).uniform(-1, 1, expected.shape)
    actual = expected + noise * 0.99 * TOLERANCE.allow(expected)[:, None]
    assert judge(_tally(actual, expected)) == []


@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-20, 1e10)), min_size=1, max_size=50))
def test_the_median_is_exact_to_one_percent(values):
    histogram = Histogram()
    histogram.add(np.float64(values))
    exact = sorted(values)[(len(values) - 1) // 2]
    assert histogram.median() == pytest.approx(exact, rel=0.0101)


def test_there_is_no_median_of_nothing():
    assert Histogram().median() is None


@given(st.lists(st.tuples(st.integers(0, 27_000), st.floats(1e-9, 1)), min_size=1, max_size=40), st.integers(1, 7))
def test_the_profile_is_the_envelope_of_what_was_added(points, size):
    profile = Profile()
    for start in range(0, len(points), size):
        steps, values = zip(*points[start : start + size], strict=True)
        profile.add(np.array(steps), np.array(values), np.array(values))
    for place in range(Profile.BINS):
        inside = [value for step, value in points if step // profile.steps_per_bin == place]
        assert profile.error[place] == max(inside, default=0.0)
        assert profile.allowed[place] == min(inside, default=np.inf)
    assert profile.filled == max(step for step, _ in points) // profile.steps_per_bin + 1
