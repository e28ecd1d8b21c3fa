"""How far a check is: a line on a terminal, or a line every half minute where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import click

from runtime_check.check.options import Listeners
from runtime_check.replay import EpisodeLog
from runtime_check.report.sums import Sums, format_progress

if TYPE_CHECKING:
    from runtime_check.bulk.run import Outcome

_BAR = 24
_REDRAW = 0.2  # seconds
_REMINDER = 30.0  # seconds between lines in a log


class Progress:
    """Shows agents, and where they are checked in this process the episodes of the one under way.

    How long an episode is, those that ended tell.
    """

    def __init__(self, sums: Sums, max_steps: int | None) -> None:
        """Begin a run.

        Args:
            sums: of the run; who takes an outcome adds it.
            max_steps: the bound of an episode.
        """
        self._sums, self._max_steps = sums, max_steps
        self._is_terminal = sys.stderr.isatty()
        self._started = self._shown = time.monotonic()
        self._steps = self._episodes = self._ended = self._agent_steps = self._ended_steps = 0
        self.listeners = Listeners(self._start, self._add_steps, self._end_episode)

    def show(self, outcomes: Generator[Outcome, None, None]) -> Generator[Outcome, None, None]:
        """Pass outcomes on, and show the progress between them."""
        with closing(outcomes):
            yield from self._show(outcomes)

    def _show(self, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
        for outcome in outcomes:
            self._episodes = self._ended = self._agent_steps = self._ended_steps = 0
            if self._is_terminal:
                click.echo("\r\033[K", nl=False, err=True)
            yield outcome
            self._remind()

    def _start(self, episodes: int) -> None:
        self._episodes = episodes

    def _add_steps(self, count: int) -> None:
        self._steps += count
        self._agent_steps += count
        if not self._is_terminal:
            self._remind()
        elif time.monotonic() - self._shown > _REDRAW:
            self._shown = time.monotonic()
            self._draw(self._shown - self._started)

    def _end_episode(self, _backend: str, _mode: str, log: EpisodeLog) -> None:
        self._ended += 1
        self._ended_steps += len(log.actions)

    def _remind(self) -> None:
        """Print a line now and then, so that a log shows that something goes on."""
        now = time.monotonic()
        if self._is_terminal:
            if self._sums.done < self._sums.total and now - self._started > 1:
                click.echo(format_progress(self._sums), nl=False, err=True)
        elif now - self._shown > _REMINDER:
            self._shown = now
            click.echo(format_progress(self._sums), err=True)

    def _draw(self, elapsed: float) -> None:
        done, total = self._sums.done, self._sums.total
        fraction = (done + self._agent_fraction()) / total
        filled = int(fraction * _BAR)
        left = f"about {elapsed / fraction * (1 - fraction):.0f} s left" if fraction else "time left unknown"
        bar = "█" * filled + "·" * (_BAR - filled)
        ended = f"agent {done + 1}/{total}, {self._ended}/{self._episodes} episodes"
        click.echo(f"\r\033[K{bar} {ended}, {self._steps / elapsed:.0f} steps/s, {left}", nl=False, err=True)

    def _agent_fraction(self) -> float:
        if self._ended:
            length = self._ended_steps / self._ended
        elif self._max_steps:
            length = self._max_steps
        else:
            return 0.0
        return min(self._agent_steps / (length * self._episodes), 1.0)
