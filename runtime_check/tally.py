"""Sum up comparisons in bounded memory, and say why a backend fails; the limits are given to it. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from runtime_check.compare import TIE, Comparison, Float64

MAX_LISTED = 100
MAX_RETURNS = 500


@dataclass(frozen=True)
class Disagreement:
    """One step on which a backend chose another action than the oracle.

    kind: ``tie`` or ``wrong``. mode: ``shadow`` or ``solo``. episode and step count from 0.
    """

    kind: str
    mode: str
    episode: int
    step: int
    action: int
    best: int
    margin: float
    allowed: float


@dataclass
class Disagreements:
    """Counts of ties and wrong actions. listed: the first 100 wrong actions, and ties while there is room."""

    ties: int = 0
    wrong: int = 0
    listed: list[Disagreement] = field(default_factory=list)

    def add(self, disagreement: Disagreement) -> None:
        """Count a tie or wrong action, and list it while there is room; a wrong action takes the room of a tie."""
        if disagreement.kind == TIE:
            self.ties += 1
        else:
            self.wrong += 1
        self._list(disagreement)

    def _list(self, disagreement: Disagreement) -> None:
        if disagreement.kind != TIE and len(self.listed) == MAX_LISTED:
            ties = [other for other in self.listed if other.kind == TIE]
            if ties:
                self.listed.remove(ties[-1])
        if len(self.listed) < MAX_LISTED:
            self.listed.append(disagreement)

    def joined(self, later: Disagreements) -> Disagreements:
        """Return these and later ones as one."""
        both = Disagreements(self.ties + later.ties, self.wrong + later.wrong, list(self.listed))
        for disagreement in later.listed:
            both._list(disagreement)
        return both


@dataclass
class Tally:
    """All that is kept of a backend's answers; its size does not depend on how many there were.

    agreeing: on how many of the steps the action was the oracle's. max_error and where it was: (episode, step).
    max_ratio: the largest error of any output as a multiple of what was allowed there.
    """

    steps: int = 0
    agreeing: int = 0
    exceeding: int = 0
    non_finite: int = 0
    max_error: float = 0.0
    max_error_at: tuple[int, int] | None = None
    max_ratio: float = 0.0
    smallest_gap: float = np.inf
    disagreements: Disagreements = field(default_factory=Disagreements)
    errors: Histogram = field(default_factory=lambda: Histogram())
    gaps: Histogram = field(default_factory=lambda: Histogram())
    profile: Profile = field(default_factory=lambda: Profile())

    @property
    def agreement(self) -> float | None:
        """The share of the steps of a shadow replay on which the action was the oracle's; None of none."""
        return self.agreeing / self.steps if self.steps else None

    def add(self, comparison: Comparison, episodes: NDArray[np.int64], steps: NDArray[np.int64]) -> None:
        """Add the answers to a batch of a shadow replay."""
        finite = comparison.finite
        self.steps += len(finite)
        self.agreeing += int((comparison.action == comparison.best).sum())
        self.non_finite += int((~finite).sum())
        self.exceeding += int((comparison.ratio[finite] > 1).sum())
        self.smallest_gap = min(self.smallest_gap, float(comparison.gap.min()))
        self.gaps.add(comparison.gap)
        if finite.any():
            error, allowed = comparison.error[finite], comparison.allowed[finite]
            worst = int(error.argmax())
            if self.max_error_at is None or error[worst] > self.max_error:
                self.max_error = float(error[worst])
                self.max_error_at = (int(episodes[finite][worst]), int(steps[finite][worst]))
            self.max_ratio = max(self.max_ratio, float(comparison.ratio[finite].max()))
            self.errors.add(error)
            self.profile.add(steps[finite], error, allowed)
        for place, kind in comparison.kinds.items():
            self.disagreements.add(
                Disagreement(
                    kind,
                    "shadow",
                    int(episodes[place]),
                    int(steps[place]),
                    int(comparison.action[place]),
                    int(comparison.best[place]),
                    float(comparison.margin[place]),
                    float(comparison.allowed[place]),
                )
            )


@dataclass
class Returns:
    """Unclipped returns of episodes: their number, mean and deviation (Welford's sums), and the first 500."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    first: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        """Add an episode's return."""
        self.count += 1
        deviation = value - self.mean
        self.mean += deviation / self.count
        self.squares += deviation * (value - self.mean)
        if len(self.first) < MAX_RETURNS:
            self.first.append(value)

    @property
    def std(self) -> float:
        """The standard deviation over the episodes, that of a population."""
        return float((self.squares / self.count) ** 0.5) if self.count else 0.0


def judge(tally: Tally, least_agreement: float | None = None) -> list[str]:
    """Return why the answers are not those of the checkpoint; nothing when they are.

    Args:
        tally: its answers.
        least_agreement: where weights are rounded, the share of actions that have to be the oracle's, from 0 to 1;
            None: all of them, but for ties.
    """
    reasons = []
    if tally.non_finite:
        reasons.append(f"{tally.non_finite} of {tally.steps} answers hold NaN or infinity")
    if least_agreement is not None:
        if tally.agreement is not None and tally.agreement < least_agreement:
            reasons.append(f"{tally.agreement:.1%} of the actions are the oracle's, fewer than {least_agreement:.0%}")
    elif wrong := tally.disagreements.wrong:
        reasons.append(f"{wrong} wrong {'action' if wrong == 1 else 'actions'}")
    if tally.exceeding:
        reasons.append(
            f"error above the allowed on {tally.exceeding} of {tally.steps} steps, up to {tally.max_ratio:.3g} times it"
        )
    return reasons


class Histogram:
    """Counts of positive values over many magnitudes, in bins whose edges are 2 % apart.

    What it has to forget is the place of a value within its bin: a median is exact to 1 %.
    """

    _PER_OCTAVE = 35
    _LOWEST, _HIGHEST = -80, 40  # octaves: 1e-24 to 1e12

    def __init__(self) -> None:
        """Start with no values."""
        self.zeros = 0
        self.counts = np.zeros((self._HIGHEST - self._LOWEST) * self._PER_OCTAVE, np.int64)

    def add(self, values: Float64) -> None:
        """Add values that are not negative; infinite ones count as the largest."""
        positive = values[values > 0]
        self.zeros += len(values) - len(positive)
        places = ((np.log2(positive) - self._LOWEST) * self._PER_OCTAVE).clip(0, len(self.counts) - 1)
        np.add.at(self.counts, places.astype(np.int64), 1)

    @property
    def centres(self) -> Float64:
        """The values for which the bins stand, float64[bins], increasing."""
        centres: Float64 = 2.0 ** (self._LOWEST + (np.arange(len(self.counts)) + 0.5) / self._PER_OCTAVE)
        return centres

    def median(self) -> float | None:
        """Return the median to within 1 %, or None of nothing."""
        total = self.zeros + int(self.counts.sum())
        if not total:
            return None
        rank = (total + 1) // 2
        if rank <= self.zeros:
            return 0.0
        return float(self.centres[np.searchsorted(self.zeros + np.cumsum(self.counts), rank)])


class Profile:
    """The largest error and the smallest allowed one over the steps of an episode, in at most 256 bins.

    When an episode outgrows the bins, each two become one: the envelope stays exact, its steps get coarser.
    """

    BINS = 256

    def __init__(self) -> None:
        """Start with bins of one step."""
        self.steps_per_bin = 1
        self.error = np.zeros(self.BINS)
        self.allowed = np.full(self.BINS, np.inf)

    def add(self, steps: NDArray[np.int64], error: Float64, allowed: Float64) -> None:
        """Add one value of each for each of the steps."""
        while steps.max(initial=0) >= self.BINS * self.steps_per_bin:
            self._coarsen()
        bins = steps // self.steps_per_bin
        np.maximum.at(self.error, bins, error)
        np.minimum.at(self.allowed, bins, allowed)

    def _coarsen(self) -> None:
        self.steps_per_bin *= 2
        half = self.BINS // 2
        self.error = np.concatenate([self.error.reshape(-1, 2).max(axis=1), np.zeros(half)])
        self.allowed = np.concatenate([self.allowed.reshape(-1, 2).min(axis=1), np.full(half, np.inf)])

    @property
    def filled(self) -> int:
        """How many bins from the first have been reached."""
        reached = np.flatnonzero(np.isfinite(self.allowed))
        return int(reached[-1]) + 1 if len(reached) else 0
