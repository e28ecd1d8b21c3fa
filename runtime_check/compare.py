"""Compare a backend's answers with the oracle's: agreement, margins, and the error allowed to float32. Pure NumPy.

N is observations, A actions. Error of an observation: ``max |actual - expected|`` over its values. Allowed:
``atol * scale + rtol * max |expected|``, the maximum over that observation's values, so that one small Q-value
beside large ones is not held to its own size. Margin: the oracle's best Q-value minus its Q-value of the action
that was chosen. `docs/verdict.md` derives the defaults and says what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Outputs = Mapping[str, NDArray[np.float32]]
Expected = Mapping[str, Float64]

DEFAULT_ATOL = 2e-5
DEFAULT_RTOL = 2e-5
TIE, WRONG = "tie", "wrong"
# atol is meant for Q-values of this span, that of the release's support from -10 to 10.
_UNIT_SPAN = 20.0


@dataclass(frozen=True)
class Tolerance:
    """What error is allowed: ``atol * scale + rtol * max |expected|``. scale: 1 for a Q head."""

    atol: float
    rtol: float
    scale: float = 1.0

    def allow(self, expected: Float64) -> Float64:
        """Return the allowed error of each observation, float64[N], for expected values float64[N, …]."""
        largest: Float64 = np.abs(expected).reshape(len(expected), -1).max(axis=1)
        return self.atol * self.scale + self.rtol * largest


def compute_scale(support: Float64 | None) -> float:
    """Return the scale of ``atol``: 1 for a Q head and the release's support, else the support's share of its span."""
    return 1.0 if support is None else float(support[-1] - support[0]) / _UNIT_SPAN


@dataclass(frozen=True, eq=False)
class Comparison:
    """How a backend answered a batch.

    action: int64[N], its best. best: int64[N], the oracle's. margin, error, allowed: float64[N], of the Q-values.
    ratio: float64[N], the largest error of any output as a multiple of what is allowed there. gap: float64[N],
    between the oracle's two best actions; infinite where there is one. finite: bool[N].
    """

    action: NDArray[np.int64]
    best: NDArray[np.int64]
    margin: Float64
    error: Float64
    allowed: Float64
    ratio: Float64
    gap: Float64
    finite: NDArray[np.bool_]

    @property
    def kinds(self) -> dict[int, str]:
        """By its place in the batch, each action that is not the oracle's: ``tie`` or ``wrong``."""
        places = np.flatnonzero(self.action != self.best).tolist()
        return {
            place: classify(self.margin[place], self.allowed[place]) if self.finite[place] else WRONG
            for place in places
        }


def classify(margin: float, allowed: float) -> str:
    """Tell a tie, which an allowed error of both actions explains, from a wrong action."""
    return TIE if margin <= 2 * allowed else WRONG


def find_faults(actual: Outputs, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return what keeps the outputs from being compared: a missing, extra or misshapen one, or not float32."""
    faults = [f"no output {name!r}" for name in shapes if name not in actual]
    faults += [f"unexpected output {name!r}" for name in actual if name not in shapes]
    for name, shape in shapes.items():
        found = actual.get(name)
        if found is not None and (found.dtype != np.float32 or found.shape != shape):
            faults.append(f"output {name!r} is {found.dtype}{list(found.shape)}, expected float32{list(shape)}")
    return faults


def compare_outputs(actual: Outputs, expected: Expected, tolerance: Tolerance) -> Comparison:
    """Compare outputs that have no faults with the oracle's.

    Args:
        actual: ``q_values`` float32[N, A], and for C51 ``logits`` float32[N, A, atoms].
        expected: the same in float64.
        tolerance: for the Q-values; the other outputs are held to it with a scale of 1.
    """
    q_values = expected["q_values"]
    action, best = actual["q_values"].argmax(axis=1), q_values.argmax(axis=1)
    rows = np.arange(len(q_values))
    errors = {name: _largest_error(actual[name], expected[name]) for name in expected}
    unscaled = Tolerance(tolerance.atol, tolerance.rtol)
    allowed = {name: unscaled.allow(expected[name]) for name in expected} | {"q_values": tolerance.allow(q_values)}
    return Comparison(
        action,
        best,
        q_values[rows, best] - q_values[rows, action],
        errors["q_values"],
        allowed["q_values"],
        np.maximum.reduce([_divide(errors[name], allowed[name]) for name in expected]),
        _gaps(q_values),
        np.logical_and.reduce([np.isfinite(error) for error in errors.values()]),
    )


def _divide(error: Float64, allowed: Float64) -> Float64:
    """Return error / allowed; where nothing is allowed, 0 for no error and infinity for any."""
    limit = np.where(error == 0, 0.0, np.inf)
    return np.divide(error, allowed, out=limit, where=allowed > 0)


def _largest_error(actual: NDArray[np.float32], expected: Float64) -> Float64:
    """Return the largest error of each observation, float64[N]; NaN or infinite where a value is."""
    largest: Float64 = np.abs(actual - expected).reshape(len(expected), -1).max(axis=1)
    return largest


def _gaps(q_values: Float64) -> Float64:
    if q_values.shape[1] == 1:
        return np.full(len(q_values), np.inf)
    two_best = np.partition(q_values, -2, axis=1)[:, -2:]
    gaps: Float64 = two_best[:, 1] - two_best[:, 0]
    return gaps
