"""The episodes of an agent, in one order, whichever ended first: its part of ``episodes.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Collection

from runtime_check.replay import EpisodeLog, to_json_line


class EpisodeLogs:
    """Collects the episodes of an agent as they end. A step takes two bytes.

    The shadow replay comes first, then solo play, backend after backend; within these, seeds ascend.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._lines: list[tuple[bool, str, int, str]] = []  # solo, backend, seed, line

    def add(self, backend: str, mode: str, log: EpisodeLog) -> None:
        """Add an episode that has ended."""
        head = json.dumps({"backend": backend, "mode": mode})
        self._lines.append((mode == "solo", backend, log.seed, f"{head[:-1]}, {to_json_line(log)[1:]}\n"))

    def to_text(self, backends: Collection[str]) -> str:
        """Return the lines in order.

        Args:
            backends: in their order in the report. One that is not among them comes last.
        """
        rank = {name: place for place, name in enumerate(backends)}
        lines = sorted(self._lines, key=lambda line: (line[0], rank.get(line[1], len(rank)), *line[1:]))
        return "".join(line[-1] for line in lines)


def add_folder(text: str, folder: str) -> str:
    """Return the lines of an agent with its folder in each."""
    head = json.dumps({"folder": folder})[:-1]
    return "".join(f"{head}, {line[1:]}" for line in text.splitlines(keepends=True))
