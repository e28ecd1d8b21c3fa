"""The episode log of a report: agent after agent, and of each agent in one order, whichever episode ended first."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

from runtime_check.replay import EpisodeLog, to_json_line


class LogFile:
    """Writes ``episodes.jsonl``, for which memory holds an agent's order and never its logs.

    Agents come as they were checked. Of each, the shadow replay comes first, then solo play, backend after backend;
    within these, seeds ascend. Lines wait in a second file until their agent is done.
    """

    def __init__(self, path: Path, waiting: Path) -> None:
        """Open the log at ``path``, and the file of an agent's unsorted lines at ``waiting``."""
        self._log = path.open("wb")
        try:
            self._waiting = waiting.open("w+b")
        except OSError:
            self._log.close()
            raise
        self._end = 0
        self._lines: list[tuple[bool, str, int, int, int]] = []  # solo, backend, seed, where the line begins, its size

    def __enter__(self) -> Self:
        """Return the log."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        self.close()

    def close(self) -> None:
        """Close the files."""
        try:
            self._waiting.close()
        finally:
            self._log.close()

    def add(self, folder: Path, backend: str, mode: str, log: EpisodeLog) -> None:
        """Add an episode of the agent that is being checked."""
        head = json.dumps({"folder": str(folder), "backend": backend, "mode": mode})
        line = f"{head[:-1]}, {to_json_line(log)[1:]}\n".encode()
        self._waiting.write(line)
        self._lines.append((mode == "solo", backend, log.seed, self._end, len(line)))
        self._end += len(line)

    def finish_agent(self, backends: Collection[str]) -> None:
        """Move the agent's lines into the log, in order.

        Args:
            backends: in their order in the report. One that is not among them comes last.
        """
        rank = {name: place for place, name in enumerate(backends)}
        self._lines.sort(key=lambda line: (line[0], rank.get(line[1], len(rank)), *line[1:]))
        for *_, start, size in self._lines:
            self._waiting.seek(start)
            self._log.write(self._waiting.read(size))
        self._waiting.seek(0)
        self._waiting.truncate()
        self._lines, self._end = [], 0
