"""The sums of a run: its progress, its end in one sentence, as JSON, as Markdown, and for GitHub Actions."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convert import __version__
from convert.bulk.summary import format_cell, format_duration
from convert.names import to_printable
from runtime_check.report.documents import AGREE, DISAGREE, UNCHECKED, Document, find_reason
from runtime_check.report.junit import to_suite

_LISTED = 50  # problems in the Markdown; the JSON has all of them
_ANNOTATED = 10  # GitHub shows ten errors and ten warnings of a step


@dataclass(frozen=True)
class Problem:
    """An agent that does not agree, or could not be checked, and why."""

    folder: str
    verdict: str
    reason: str


@dataclass
class Sums:
    """The sums of a run so far. Only problems are kept one by one.

    suites: of each agent, for JUnit. known: how many agents were passed over.
    """

    total: int
    suites: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    known: int = 0
    problems: list[Problem] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        return self.counts.total()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def add(self, document: Document, *, is_known: bool) -> None:
        """Count an agent, by its part of ``check.json``."""
        self.counts[document["verdict"]] += 1
        self.known += is_known
        self.suites.append(to_suite(document))
        if document["verdict"] != AGREE:
            self.problems.append(Problem(document["folder"], document["verdict"], find_reason(document)))


def format_counts(sums: Sums) -> str:
    """Return the run in one sentence."""
    agree, disagree, unchecked = (sums.counts[name] for name in (AGREE, DISAGREE, UNCHECKED))
    noun = "agent agrees" if agree == 1 else "agents agree"
    known = f"; {sums.known} of them known from an earlier run" if sums.known else ""
    left = f"; {sums.total - sums.done} not reached" if sums.done < sums.total else ""
    return f"{agree} {noun}, {disagree} disagree, {unchecked} could not be checked{known}{left}"


def format_progress(sums: Sums) -> str:
    """Return one line on a run in progress."""
    worked = sums.done - sums.known
    left = f", about {format_duration(sums.seconds / worked * (sums.total - sums.done))} left" if worked else ""
    problems = sums.done - sums.counts[AGREE]
    return f"{sums.done}/{sums.total} agents{left}, {problems} with problems"


def to_json(sums: Sums, settings: Mapping[str, Any]) -> str:
    """Return the summary as JSON, with what the run was asked for."""
    document = {
        "version": __version__,
        **settings,
        "total": sums.total,
        **{name: sums.counts[name] for name in (AGREE, DISAGREE, UNCHECKED)},
        "known": sums.known,
        "not_reached": sums.total - sums.done,
        "seconds": round(sums.seconds, 3),
        "problems": [vars(problem) for problem in sums.problems],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def to_markdown(sums: Sums, settings: Mapping[str, Any]) -> str:
    """Return the summary as Markdown: a table, and the problems below it."""
    named = ", ".join(f"{key} {value}" for key, value in settings.items() if value)
    agree, disagree, unchecked = (sums.counts[name] for name in (AGREE, DISAGREE, UNCHECKED))
    lines = [
        f"### atari-check: {format_counts(sums)}",
        "",
        named,
        "",
        "| agree | disagree | not checked | not reached | known before | time |",
        "|---:|---:|---:|---:|---:|---:|",
        f"| {agree:,} | {disagree:,} | {unchecked:,} | {sums.total - sums.done:,} | {sums.known:,} "
        f"| {format_duration(sums.seconds)} |",
        "",
    ]
    if sums.problems:
        lines += ["| agent | verdict | why |", "|---|---|---|"]
        lines += [_format_row(problem) for problem in sums.problems[:_LISTED]]
        if len(sums.problems) > _LISTED:
            lines.append(f"\n… and {len(sums.problems) - _LISTED:,} more.")
        lines.append("")
    return "\n".join(lines)


def format_annotations(sums: Sums) -> list[str]:
    """Return a line for each problem that GitHub Actions is to show, and one that counts the rest."""
    lines = []
    for problem in sums.problems[:_ANNOTATED]:
        level = "error" if problem.verdict == DISAGREE else "warning"
        title = f"{problem.verdict}: {problem.folder}"
        lines.append(f"::{level} title={_escape_property(title)}::{_escape(problem.reason)}")
    if len(sums.problems) > _ANNOTATED:
        lines.append(f"::warning::and {len(sums.problems) - _ANNOTATED} more agents with problems")
    return lines


def _format_row(problem: Problem) -> str:
    # Within backticks Markdown shows everything as it is, entities too.
    folder, reason = (format_cell(to_printable(text)) for text in (problem.folder, problem.reason))
    return f"| `{folder}` | {problem.verdict} | `{reason}` |"


def _escape(text: str) -> str:
    """Return a text as GitHub's workflow commands take it."""
    return to_printable(text).replace("%", "%25")


def _escape_property(text: str) -> str:
    return _escape(text).replace(":", "%3A").replace(",", "%2C")
