"""Rows of many episodes as tables: each agent, the best and the last checkpoint of each run, all games together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from convert.names import to_printable
from runtime_check.scores.references import find_reference
from runtime_check.scores.rows import CUT, TIME_LIMIT, Row
from runtime_check.scores.statistics import Interval, estimate_iqm


@dataclass(frozen=True)
class Score:
    """The score of an agent over its episodes; those that were cut are counted and not scored.

    std is that of a population. normalised: the mean where random play is 0 and a person is 1; None for games without
    references. limited: how many episodes ended at the protocol's limit.
    """

    zoo: str
    family: str
    game: str
    seed: int | None
    step: int | None
    source: str
    mean: float | None
    std: float | None
    median: float | None
    n: int
    cut: int
    limited: int
    normalised: float | None

    @property
    def run(self) -> tuple[str, str, str, int]:
        """What tells one run of training from another."""
        return self.zoo, self.family, self.game, -1 if self.seed is None else self.seed


def score_agents(rows: Iterable[Row]) -> list[Score]:
    """Return the score of each agent, in order."""
    ordered = sorted(rows, key=lambda row: (row.agent, row.episode))
    return [_score(list(group)) for _, group in groupby(ordered, key=lambda row: (row.agent, row.key[6:-1]))]


def _score(rows: Sequence[Row]) -> Score:
    first, whole = rows[0], np.array([row.score for row in rows if row.ending != CUT])
    reference = find_reference(first.game)
    has_any = len(whole) > 0
    return Score(
        first.zoo,
        first.family,
        first.game,
        first.seed,
        first.step,
        first.source,
        mean=float(whole.mean()) if has_any else None,
        std=float(whole.std()) if has_any else None,
        median=float(np.median(whole)) if has_any else None,
        n=len(whole),
        cut=len(rows) - len(whole),
        limited=sum(row.ending == TIME_LIMIT for row in rows),
        normalised=reference.normalise(float(whole.mean())) if has_any and reference else None,
    )


def find_best_and_last(scores: Iterable[Score]) -> list[tuple[Score, Score]]:
    """Return for each run of training its best checkpoint by mean, and its last; of runs with several checkpoints."""
    ordered = sorted(
        (score for score in scores if score.mean is not None), key=lambda score: (score.run, score.step or 0)
    )
    runs = [list(group) for _, group in groupby(ordered, key=lambda score: score.run)]
    return [(max(run, key=lambda score: score.mean or 0.0), run[-1]) for run in runs if len(run) > 1]


def group_last(scores: Iterable[Score]) -> dict[str, dict[str, list[float]]]:
    """Return the normalised score of each run's last checkpoint, by family and game, of games that have references."""
    last: dict[tuple[str, str, str, int], Score] = {}
    for score in scores:
        if score.normalised is not None and (score.run not in last or (score.step or 0) >= (last[score.run].step or 0)):
            last[score.run] = score
    families: dict[str, dict[str, list[float]]] = {}
    for score in last.values():
        if score.normalised is not None:
            families.setdefault(score.family, {}).setdefault(score.game, []).append(score.normalised)
    return dict(sorted(families.items()))


def aggregate(scores: Iterable[Score]) -> dict[str, Interval]:
    """Return the IQM of the normalised scores of each family's last checkpoints, where there are several runs."""
    by_family = {family: list(games.values()) for family, games in group_last(scores).items()}
    return {family: estimate_iqm(games) for family, games in by_family.items() if sum(map(len, games)) > 1}


def format_table(scores: Sequence[Score]) -> str:
    """Return a line for each agent, and what its runs and families come to."""
    lines = [f"{'agent':<52}{'mean ± std':>20}{'median':>10}{'n':>5}{'human':>8}"]
    lines += [_format_line(score) for score in scores]
    for best, last in find_best_and_last(scores):
        lines.append(f"{_name(best, with_step=False)}: best {_describe(best)}; last {_describe(last)}")
    for family, found in aggregate(scores).items():
        lines.append(
            f"{family}: interquartile mean {found.value:.3g} of human, 95 % bootstrap interval {found.low:.3g} to "
            f"{found.high:.3g}; n = {found.runs} runs of {found.games} games"
        )
    cut = sum(score.cut for score in scores)
    if cut:
        lines.append(f"{cut} episodes were cut by --max-steps: they do not count as scores, and are left out")
    return "\n".join(lines)


def to_document(scores: Sequence[Score]) -> Mapping[str, Any]:
    """Return the table as JSON's types."""
    return {
        "agents": [asdict(score) for score in scores],
        "aggregate": {family: asdict(found) for family, found in aggregate(scores).items()},
    }


def _name(score: Score, *, with_step: bool = True) -> str:
    parts = [score.family, score.game, "?" if score.seed is None else str(score.seed)]
    parts += [str(score.step)] if with_step and score.step is not None else []
    return to_printable("/".join(parts))


def _describe(score: Score) -> str:
    return f"{_format(score.mean)} at step {score.step:,}" if score.step is not None else _format(score.mean)


def _format_line(score: Score) -> str:
    spread = "no whole episode" if score.mean is None else f"{_format(score.mean)} ± {_format(score.std)}"
    human = "n/a" if score.normalised is None else f"{score.normalised:.1%}"
    name = _name(score)
    name = name if len(name) <= 51 else f"…{name[-50:]}"
    return f"{name:<52}{spread:>20}{_format(score.median):>10}{score.n:>5}{human:>8}"


def _format(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
