"""Plots of scores, as SVG and PNG: learning curves, the interquartile mean over games, the performance profile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import CheckError, MissingExtra
from convert.files.documents import read_json
from runtime_check.scores.statistics import compute_profile
from runtime_check.scores.summary import Score, aggregate, group_last

_BASELINE = "DQN (Adam + MSE in JAX)"  # the twin of the release's DQN_modern
_STEPS_PER_ITERATION = 250_000
_LARGEST_BASELINE = 16 * 2**20  # bytes; the largest of Dopamine has 0.1 MB


def draw(folder: Path, scores: Sequence[Score], baselines: Sequence[Path] = ()) -> Iterator[Path]:
    """Draw everything that the scores tell, and yield the paths of the pictures.

    Args:
        folder: where they go; it is made if it is missing.
        scores: of agents.
        baselines: files of Dopamine's ``baselines/atari/data``, named after their games.

    Raises:
        CheckError: a baseline is none.
        MissingExtra: matplotlib is not installed.
        OSError: a picture cannot be written.
    """
    pyplot = _import_pyplot()
    curves = {path.stem: read_baseline(path) for path in baselines}
    known = [score for score in scores if score.mean is not None]
    folder.mkdir(parents=True, exist_ok=True)
    for game, group in groupby(sorted(known, key=lambda score: score.game), key=lambda score: score.game):
        of_game = list(group)
        if len({score.step for score in of_game}) > 1:
            yield from _save(pyplot, folder / f"curve-{game}", _draw_curve(pyplot, game, of_game, curves.get(game)))
    if aggregate(known):
        yield from _save(pyplot, folder / "iqm", _draw_iqm(pyplot, known))
        yield from _save(pyplot, folder / "profile", _draw_profile(pyplot, known))


def read_baseline(path: Path) -> Mapping[str, Any]:
    """Read a file of Dopamine's published curves.

    Returns:
        ``steps`` and ``mean``, float64[199]: agent steps, and the mean training return over its five runs.

    Raises:
        CheckError: it is no such file.
    """
    try:
        rows = read_json(path.read_bytes(), _LARGEST_BASELINE)
        points = [(float(row["Iteration"]), float(row["Value"])) for row in rows if row["Agent"] == _BASELINE]
        iterations, values = np.array(points, np.float64).T
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckError(
            f"{path}: no curve of {_BASELINE!r} as in Dopamine's baselines/atari/data ({error!r})"
        ) from error
    steps, places = np.unique(iterations, return_inverse=True)
    return {
        "steps": (steps + 1) * _STEPS_PER_ITERATION,
        "mean": np.bincount(places, values) / np.bincount(places),
    }


def _draw_curve(pyplot: Any, game: str, scores: Sequence[Score], baseline: Mapping[str, Any] | None) -> Any:
    """Draw the mean return over steps: every run thin, and the mean over the runs of a family."""
    figure, axes = pyplot.subplots(figsize=(7, 4))
    families = sorted({score.family for score in scores})
    for number, family in enumerate(families):
        of_family = [score for score in scores if score.family == family and score.step is not None]
        by_step: dict[int, list[float]] = {}
        runs = sorted({score.run for score in of_family})
        for run in runs:
            points = sorted((score.step or 0, score.mean or 0.0) for score in of_family if score.run == run)
            steps, means = np.array(points).T
            axes.plot(steps / 1e6, means, color=f"C{number}", linewidth=0.8, alpha=0.5)
            for step, mean in points:
                by_step.setdefault(step, []).append(mean)
        n = sorted({score.n for score in of_family})
        episodes = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
        label = (
            f"{family}: mean of {len(runs)} {'run' if len(runs) == 1 else 'runs'}, evaluated over {episodes} episodes"
        )
        axes.plot(
            np.array(sorted(by_step)) / 1e6,
            [np.mean(by_step[step]) for step in sorted(by_step)],
            color=f"C{number}",
            label=label,
        )
    if baseline is not None:
        axes.plot(
            baseline["steps"] / 1e6,
            baseline["mean"],
            "k--",
            linewidth=1,
            label=f"Dopamine, {_BASELINE}: training returns",
        )
    axes.set(title=game, xlabel="agent steps, millions", ylabel="unclipped return")
    axes.legend(fontsize="small")
    return figure


def _draw_iqm(pyplot: Any, scores: Sequence[Score]) -> Any:
    """Draw the interquartile mean of each family with its interval."""
    found = aggregate(scores)
    figure, axes = pyplot.subplots(figsize=(7, 1 + 0.5 * len(found)))
    for place, interval in enumerate(found.values()):
        axes.plot([interval.low, interval.high], [place, place], color=f"C{place}", linewidth=6, alpha=0.4)
        axes.plot([interval.value], [place], "|", color=f"C{place}", markersize=18, markeredgewidth=2)
    labels = [f"{family}\nn = {each.runs} runs, {each.games} games" for family, each in found.items()]
    axes.set_yticks(range(len(found)), labels)
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set(
        title="Interquartile mean of the last checkpoints", xlabel="human-normalised return, 95 % bootstrap interval"
    )
    return figure


def _draw_profile(pyplot: Any, scores: Sequence[Score]) -> Any:
    """Draw the share of runs above each normalised return."""
    figure, axes = pyplot.subplots(figsize=(7, 4))
    by_family = group_last(scores)
    largest = max(value for games in by_family.values() for values in games.values() for value in values)
    thresholds = np.linspace(0, max(1.0, min(largest * 1.05, 8.0)), 400)
    for family, games in by_family.items():
        n = sum(map(len, games.values()))
        label = f"{family}: n = {n} runs, {len(games)} games"
        axes.step(thresholds, compute_profile(list(games.values()), thresholds), where="post", label=label)
    axes.set(xlabel="human-normalised return τ", ylabel="share of runs above τ", ylim=(-0.02, 1.02))
    axes.legend(fontsize="small")
    return figure


def _save(pyplot: Any, path: Path, figure: Any) -> Iterable[Path]:
    figure.tight_layout()
    pictures = [path.with_name(f"{path.name}{suffix}") for suffix in (".svg", ".png")]
    for picture in pictures:
        figure.savefig(picture, dpi=150)
    pyplot.close(figure)
    return pictures


def _import_pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise MissingExtra("plots need matplotlib: pip install 'atari-convert[play]'") from error
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "atari-play"  # the same numbers give the same file
    from matplotlib import pyplot

    return pyplot
