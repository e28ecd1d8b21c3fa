"""The sums of a run, while it goes on and at its end: the progress line, and a summary as text, JSON and Markdown."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from convert import __version__

if TYPE_CHECKING:
    from convert.bulk.run import Outcome

_LISTED = 50  # failures in the Markdown; the JSON has all of them


@dataclass(frozen=True)
class Failure:
    """A source that was not converted, or not to every target, and why."""

    source: str
    kind: str
    message: str


@dataclass
class Tally:
    """The sums of a run so far. Only failures are kept one by one.

    untold: how many sizes are missing from ``bytes_read``, because a server did not tell them.
    """

    total: int
    converted: int = 0
    current: int = 0
    failed: int = 0
    bytes_read: int = 0
    untold: int = 0
    bytes_written: int = 0
    failures: list[Failure] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        return self.converted + self.current + self.failed

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        if outcome.error:
            self.failed += 1
            error = outcome.error
            self.failures.append(Failure(outcome.job.source, type(error).__name__, " ".join(str(error).split())))
        elif outcome.written:
            self.converted += 1
        else:
            self.current += 1
        if outcome.written:  # perhaps by a job of which some targets failed
            size = outcome.record.agent.source.size if outcome.record else outcome.job.size
            self.bytes_read += size
            self.untold += not size
            self.bytes_written += outcome.bytes_written


def to_json(tally: Tally, settings: Mapping[str, Any]) -> str:
    """Return the summary as JSON, with what the run was asked for."""
    document = {
        "version": __version__,
        **settings,
        "total": tally.total,
        "converted": tally.converted,
        "current": tally.current,
        "failed": tally.failed,
        "not_reached": tally.total - tally.done,
        "bytes_read": tally.bytes_read,
        "bytes_written": tally.bytes_written,
        "seconds": round(tally.seconds, 3),
        "failures": [vars(failure) for failure in tally.failures],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def to_markdown(tally: Tally, settings: Mapping[str, Any]) -> str:
    """Return the summary as Markdown: a table, and the failures below it."""
    named = ", ".join(f"{key} {value}" for key, value in settings.items() if value)
    lines = [
        f"### atari-convert: {format_counts(tally)}",
        "",
        named,
        "",
        "| converted | current | failed | not reached | read | written | time | agents/s |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
        f"| {tally.converted:,} | {tally.current:,} | {tally.failed:,} | {tally.total - tally.done:,} "
        f"| {format_bytes(tally.bytes_read)} | {format_bytes(tally.bytes_written)} | {format_duration(tally.seconds)} "
        f"| {tally.converted / tally.seconds:.1f} |",
        "",
    ]
    if tally.failures:
        lines += ["| failed | why |", "|---|---|"]
        lines += [_format_row(failure) for failure in tally.failures[:_LISTED]]
        if len(tally.failures) > _LISTED:
            lines.append(f"\n… and {len(tally.failures) - _LISTED:,} more.")
        lines.append("")
    return "\n".join(lines)


def write(path: str, document: str, page: str) -> None:
    """Write a summary, and add its page to that of the step in GitHub Actions.

    Args:
        path: of the file for the document.
        document: the summary as JSON.
        page: the summary as Markdown.

    Raises:
        OSError: a file cannot be written.
    """
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(document)
    if step := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(step, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(page)


def format_counts(tally: Tally) -> str:
    """Return the run in one sentence."""
    return f"{tally.converted} converted, {tally.current} current, {tally.failed} failed"


def format_progress(tally: Tally) -> str:
    """Return one line on a run in progress."""
    worked = tally.converted + tally.failed
    if not worked:
        return f"{tally.done}/{tally.total} agents, all current so far"
    seconds = max(tally.seconds, 1e-9)
    left = seconds / worked * (tally.total - tally.done)
    megabytes = (tally.bytes_read + tally.bytes_written) / 1e6
    return (
        f"{tally.done}/{tally.total} agents, about {format_duration(left)} left, "
        f"{worked / seconds:.1f} agents/s, {megabytes / seconds:.0f} MB/s, {tally.failed} failed"
    )


def format_bytes(count: int) -> str:
    """Return a size for people, in powers of 1000."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_duration(seconds: float) -> str:
    """Return a duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _format_row(failure: Failure) -> str:
    # Within backticks Markdown shows everything as it is, entities too.
    return f"| `{format_cell(failure.source)}` | `{format_cell(failure.message)}` |"


def format_cell(text: str) -> str:
    """Return a text for a cell of a table in Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'")
