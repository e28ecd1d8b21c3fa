"""Plots of an agent's result as inline SVG: error over time, margins, returns. Numbers in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from runtime_check.check.results import AgentResult

Float64 = NDArray[np.float64]

WIDTH, HEIGHT = 460, 250
COLOURS = 12  # in the page's style
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 40
_MARGIN_BINS_PER_DECADE = 6


@dataclass(frozen=True)
class Plot:
    """A plot: what it shows, and its SVG. names: those of its lines, in the order of their colours."""

    title: str
    caption: str
    svg: Markup
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Axis:
    """Values to pixels. low and high: the ends of the axis; of the exponents to ten where it is logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, values: Iterable[float]) -> Float64:
        array = np.asarray(list(values), np.float64)
        array = np.log10(array) if self.log else array
        pixels: Float64 = self.start + (array - self.low) / (self.high - self.low) * (self.end - self.start)
        return pixels

    def ticks(self) -> list[tuple[float, str]]:
        if self.log:
            every = max(1, round((self.high - self.low) / 5))
            exponents = range(int(self.low), int(self.high) + 1, every)
            return [(float(self.place([10.0**exponent])[0]), f"1e{exponent}") for exponent in exponents]
        step = _round_step((self.high - self.low) / 5)
        first = np.ceil(self.low / step) * step
        values = np.arange(first, self.high + step / 1e6, step)
        return [(float(pixel), f"{value:g}") for pixel, value in zip(self.place(values), values.round(9), strict=True)]


def name_colour(index: int) -> str:
    """Return the end of a CSS class for the backend at this place; after the last colour, the first comes ``again``."""
    return str(index) if index < COLOURS else f"{index % COLOURS} again"


def draw_plots(result: AgentResult) -> list[Plot]:
    """Return the plots for which there is something to show."""
    plots = (draw_errors(result), draw_margins(result), draw_returns(result))
    return [plot for plot in plots if plot is not None]


def draw_errors(result: AgentResult) -> Plot | None:
    """Draw each backend's largest error at each step of an episode, and the smallest error that is allowed there.

    Rounded weights have bounds of their own, each of which is a line.
    """
    outcomes = {name: outcome for name, outcome in result.backends.items() if outcome.tally.profile.filled}
    profiles = {name: outcome.tally.profile for name, outcome in outcomes.items()}
    if not profiles:
        return None
    length = max(profile.filled * profile.steps_per_bin for profile in profiles.values())
    floor = min((float(p.error[p.error > 0].min()) for p in profiles.values() if (p.error > 0).any()), default=1e-9)
    limits = list({outcome.tolerance: outcome.tally.profile for outcome in outcomes.values()}.values())
    highest = [float(limit.allowed[np.isfinite(limit.allowed)].max()) for limit in limits]
    ceiling = max(floor, *highest, *(float(profile.error.max()) for profile in profiles.values()))
    x_axis = _Axis(0, max(length, 2), _LEFT, WIDTH - _RIGHT)
    y_axis = _Axis(*_decades(floor, ceiling), HEIGHT - _BOTTOM, _TOP, log=True)
    parts = _draw_axes(x_axis, y_axis, "step of the episode", "error")
    for limit in limits:
        steps = (np.arange(limit.filled) + 0.5) * limit.steps_per_bin
        allowed = limit.allowed[: limit.filled]
        seen = np.isfinite(allowed) & (allowed > 0)
        parts.append(_polyline(x_axis.place(steps[seen]), y_axis.place(allowed[seen]), "limit"))
    for index, profile in enumerate(profiles.values()):
        steps = (np.arange(profile.filled) + 0.5) * profile.steps_per_bin
        shown = profile.error[: profile.filled] > 0
        points = x_axis.place(steps[shown]), y_axis.place(profile.error[: profile.filled][shown])
        parts.append(_polyline(*points, f"line c{name_colour(index)}"))
    caption = "Largest error of any Q-value at each step. Red and dashed: the smallest error allowed there"
    if rounded := [name for name, outcome in outcomes.items() if outcome.bound]:
        caption += (
            f"; {', '.join(rounded)}, with rounded weights, {'has' if len(rounded) == 1 else 'have'} other bounds"
        )
    caption += "."
    return Plot("Error over time", caption, _svg(parts, "Error over time"), tuple(profiles))


def draw_margins(result: AgentResult) -> Plot | None:
    """Draw how far apart the oracle's two best actions are, and where ties begin."""
    tally = next(iter(result.backends.values())).tally
    counts, centres = tally.gaps.counts, tally.gaps.centres
    if not counts.any() or not np.isfinite(tally.smallest_gap):
        return None
    filled = np.flatnonzero(counts)
    tie = 2 * float(tally.profile.allowed.min())
    has_limit = 0 < tie < np.inf
    low, high = _decades(min(centres[filled[0]], tie if has_limit else np.inf), centres[filled[-1]])
    edges = np.linspace(low, high, (high - low) * _MARGIN_BINS_PER_DECADE + 1)
    heights, _ = np.histogram(np.log10(centres), edges, weights=counts)
    x_axis = _Axis(low, high, _LEFT, WIDTH - _RIGHT, log=True)
    y_axis = _Axis(0, float(heights.max()) * 1.05, HEIGHT - _BOTTOM, _TOP)
    parts = _draw_axes(x_axis, y_axis, "oracle's best Q-value minus its second best", "steps")
    lefts, rights = x_axis.place(10.0 ** edges[:-1]), x_axis.place(10.0 ** edges[1:])
    for left, right, top in zip(lefts, rights, y_axis.place(heights), strict=True):
        height = y_axis.start - top
        if height > 0:
            parts.append(f'<rect class="bar" x="{left + 0.5:.1f}" y="{top:.1f}" width="{right - left - 1:.1f}" ')
            parts.append(f'height="{height:.1f}"/>')
    if has_limit:
        limit = float(x_axis.place([tie])[0])
        parts.append(f'<line class="limit" x1="{limit:.1f}" x2="{limit:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
    of = " of float32 weights" if any(outcome.bound for outcome in result.backends.values()) else ""
    caption = f"How close the calls were. Dashed: below it, another action{of} than the oracle's would be a tie."
    return Plot("Margins", caption, _svg(parts, "Margins"), ())


def draw_returns(result: AgentResult) -> Plot | None:
    """Draw each episode's unclipped return, a row for each backend that acted."""
    rows = {
        name: outcome.solo_returns.first or outcome.shadow_returns.first for name, outcome in result.backends.items()
    }
    rows = {name: values for name, values in rows.items() if values}
    if not rows:
        return None
    every = [value for values in rows.values() for value in values]
    pad = (max(every) - min(every)) * 0.08 or 1.0
    x_axis = _Axis(min(every) - pad, max(every) + pad, _LEFT + 28, WIDTH - _RIGHT)
    parts = _draw_ticks(x_axis, "return of an episode")
    space = (HEIGHT - _BOTTOM - _TOP) / len(rows)
    for index, (name, values) in enumerate(rows.items()):
        middle = _TOP + (index + 0.5) * space
        parts.append(f'<text class="row" x="{_LEFT + 20}" y="{middle + 4:.1f}">{escape(name)}</text>')
        for place, pixel in enumerate(x_axis.place(values)):
            height = middle + (place % 5 - 2) * 3  # so that equal returns stay visible beside each other
            parts.append(f'<circle class="dot f{name_colour(index)}" cx="{pixel:.1f}" cy="{height:.1f}" r="3.5"/>')
        mean = float(x_axis.place([float(np.mean(values))])[0])
        parts.append(f'<line class="mean" x1="{mean:.1f}" x2="{mean:.1f}" ')
        parts.append(f'y1="{middle - 11:.1f}" y2="{middle + 11:.1f}"/>')
    caption = "Unclipped returns, a dot for each episode. Bar: their mean."
    return Plot("Returns", caption, _svg(parts, "Returns"), ())


def _draw_axes(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> list[str]:
    parts = []
    for pixel, label in y_axis.ticks():
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{pixel:.1f}" y2="{pixel:.1f}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{pixel + 4:.1f}">{label}</text>')
    middle = (HEIGHT - _BOTTOM + _TOP) / 2
    parts.append(f'<text class="label" transform="translate(13 {middle}) rotate(-90)">{escape(y_label)}</text>')
    return parts + _draw_ticks(x_axis, x_label)


def _draw_ticks(x_axis: _Axis, label: str) -> list[str]:
    base = HEIGHT - _BOTTOM
    parts = [f'<line class="axis" x1="{x_axis.start}" x2="{x_axis.end}" y1="{base}" y2="{base}"/>']
    for pixel, text in x_axis.ticks():
        parts.append(f'<text class="tick mid" x="{pixel:.1f}" y="{base + 15}">{text}</text>')
    centre = (x_axis.start + x_axis.end) / 2
    return [*parts, f'<text class="label" x="{centre}" y="{HEIGHT - 6}">{escape(label)}</text>']


def _polyline(xs: Float64, ys: Float64, css_class: str) -> str:
    if len(xs) == 1:
        xs, ys = np.array([xs[0] - 2, xs[0] + 2]), np.repeat(ys, 2)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    return f'<polyline class="{css_class}" points="{points}"/>'


def _svg(parts: Sequence[str], title: str) -> Markup:
    body = "".join(parts)
    # Everything in it is a number or was escaped above.
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>')  # noqa: S704


def _decades(low: float, high: float) -> tuple[int, int]:
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    return first, max(last, first + 1)


def _round_step(step: float) -> float:
    power = 10.0 ** np.floor(np.log10(step))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9)))
