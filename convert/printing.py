"""Where and when ``atari-convert`` prints: results on standard output; failures, warnings, progress on standard error.

The words of the progress line and of the sums are in `convert.bulk.summary`. No other module of `convert` prints. This
one loads no framework.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from convert.bulk.summary import Tally, format_bytes, format_counts, format_progress
from convert.frameworks.leaves import missing_extra
from convert.names import to_printable
from convert.sources import find_layout, list_sources
from convert.store.storage import is_url

if TYPE_CHECKING:
    from convert.agents.agent import Record
    from convert.bulk.run import Outcome
    from convert.bulk.selection import Job

PROGRESS_AFTER = 1.0  # seconds


class TextPrinter:
    """Prints a line for each outcome. At the end prints the sum, and how to load what was written."""

    def __init__(self, *, quiet: bool, verbose: bool, dry_run: bool) -> None:
        self._quiet, self._verbose, self._dry_run = quiet, verbose, dry_run
        self._hint = ""

    def print_outcome(self, outcome: Outcome) -> None:
        """Print what became of one agent."""
        if not self._quiet:
            for line in _format_outcome(outcome, verbose=self._verbose, dry_run=self._dry_run):
                click.echo(line)
        if outcome.written and outcome.record and not self._hint and not is_url(outcome.job.folder):
            self._hint = _format_hint(outcome.job.folder, outcome.written[0], outcome.record)

    def print_end(self, tally: Tally) -> None:
        """Print the sum of the run."""
        if not self._quiet:
            click.echo(_format_plan(tally) if self._dry_run else format_counts(tally))
            click.echo(self._hint, nl=False)


class JsonPrinter:
    """Prints one JSON document, row by row, so that memory does not grow with the rows."""

    def __init__(self, *, dry_run: bool) -> None:
        self._dry_run = dry_run
        self._separator = f'{{"dry_run": {json.dumps(dry_run)}, "agents": ['

    def print_outcome(self, outcome: Outcome) -> None:
        """Print the row of one agent."""
        row = _to_row(outcome)
        if self._dry_run:
            row["would_write"] = row.pop("written")
            row["status"] = "to convert" if row["would_write"] else row["status"]
        click.echo(f"{self._separator}\n  {json.dumps(row)}", nl=False)
        self._separator = ","

    def print_end(self, tally: Tally) -> None:
        """Print the counts, and close the document."""
        counts = {"converted": tally.converted, "current": tally.current, "failed": tally.failed}
        start = "" if tally.done else self._separator
        click.echo(f"{start}\n], {json.dumps(counts)[1:-1]}}}")


def print_failure(error: BaseException | str) -> None:
    """Print one line on what failed."""
    click.echo(f"failed: {to_printable(str(error))}", err=True)


def print_interruption() -> None:
    """Print that the run was interrupted, and how to resume it."""
    click.echo("interrupted: rerun the same command to resume", err=True)


def print_skipped(target: str, reason: BaseException) -> None:
    """Print why a target of ``--to all`` is left out."""
    click.echo(f"skipped {target}: {reason}", err=True)


def print_problems(outcome: Outcome) -> None:
    """Print why an agent failed, and what its user should know if it was converted all the same."""
    from convert.pipeline import find_warnings

    if outcome.error:
        print_failure(outcome.error)
    if outcome.record and outcome.written:
        for warning in find_warnings(outcome.record):
            click.echo(f"warning: {warning}", err=True)


def print_sources() -> None:
    """Print what is read: the name of each source, what it is, how one is converted, and what has to be installed."""
    sources = sorted(list_sources(), key=lambda source: (not source.is_file, source.name))
    width = max(len(source.name) for source in sources)
    for source in sources:
        click.echo(f"{source.name:<{width}}  {source.summary}")
        if source.example:
            identity = f" --identity {source.name}/Pong" if source.protocol and "Pong" not in source.example else ""
            click.echo(f"{'':<{width}}  atari-convert {source.example}{identity} --to onnx")
        if not source.is_installed:
            click.echo(f"{'':<{width}}  {missing_extra('it', source.packages, source.extra)}")


def print_unknown(jobs: Sequence[Job]) -> None:
    """Warn of checkpoints whose place does not tell who they are."""
    files = [job for job in jobs if not (job.kind or job.problem or job.identity.is_complete)]
    unknown = [job for job in files if find_layout(job.path)]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        click.echo(
            f"warning: {to_printable(unknown[0].source)}{more}: not in the release's layout "
            f"{find_layout(unknown[0].path)}; "
            "what is unknown stays null in agent.json (for a single file, use --identity FAMILY/Game/SEED/STEP)",
            err=True,
        )


def show_progress(outcomes: Iterator[Outcome], tally: Tally) -> Iterator[Outcome]:
    """Pass outcomes on; once the run has taken a second, show a progress line between them on a terminal."""
    shown = sys.stderr.isatty()
    for outcome in outcomes:
        if shown:
            click.echo("\r\033[K", nl=False, err=True)
        yield outcome
        if shown and tally.seconds > PROGRESS_AFTER and tally.done < tally.total:
            click.echo(format_progress(tally), nl=False, err=True)


def _format_outcome(outcome: Outcome, *, verbose: bool, dry_run: bool) -> Iterator[str]:
    if outcome.written:
        verb = "would write" if dry_run else "wrote"
        yield f"{to_printable(outcome.job.folder)}: {verb} {', '.join(outcome.written)}"
    elif verbose and not outcome.error:
        yield f"{to_printable(outcome.job.folder)}: current"
    if verbose and outcome.record:
        for artifact in outcome.record.artifacts.values():
            yield from (f"  {file.sha256}  {file.size:>9}  {file.path}" for file in artifact.files)


def _format_plan(tally: Tally) -> str:
    size = f"{format_bytes(tally.bytes_read)} to read"
    if tally.untold:
        size += f", not counting {tally.untold} of unknown size"
    return f"{tally.converted} to convert, {tally.current} current, {tally.failed} failed; {size}"


def _format_hint(folder: str, target: str, record: Record) -> str:
    lines = ["", "Load one:", "  import convert", f"  agent = convert.load_agent({folder!r}, {target!r})"]
    lines += ["  q_values = agent(observations)  # uint8, oldest frame first, 0–255:"]
    by_shape: dict[str, list[str]] = {}
    for name, artifact in sorted(record.artifacts.items()):
        shape = ", ".join(str(size or "N") for size in artifact.inputs[0].shape)
        by_shape.setdefault(shape, []).append(name)
    lines += [f"  #   [{shape}] for {', '.join(names)}" for shape, names in by_shape.items()]
    return "\n".join(lines) + "\n"


def _to_row(outcome: Outcome) -> dict[str, Any]:
    error = outcome.error
    return {
        "source": outcome.job.source,
        "folder": outcome.job.folder,
        "status": outcome.status,
        "written": outcome.written,
        "error": {"kind": type(error).__name__, "message": str(error)} if error else None,
    }
