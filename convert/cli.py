"""The command ``atari-convert``: parse, call, print, exit code."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convert import __version__

if TYPE_CHECKING:
    from convert.agent import Identity, Record
    from convert.bulk import Job, Outcome

PROGRESS_AFTER = 1.0  # seconds


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("sources", nargs=-1, metavar="[SOURCE]...", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--to", "to", multiple=True, required=True, metavar="TARGET", help="onnx | flax | tensorflow | all; repeatable."
)
@click.option(
    "-o",
    "--out",
    default="converted",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that receives the agents' folders.",
)
@click.option(
    "--identity",
    metavar="FAMILY/Game[/SEED[/STEP]]",
    help="Who the agent is, for one file outside the release's layout.",
)
@click.option("--overwrite", is_flag=True, help="Write again what is current.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
@click.option("-q", "--quiet", is_flag=True, help="Print failures only.")
@click.option("-v", "--verbose", is_flag=True, help="Print every file with its checksum.")
@click.version_option(__version__, prog_name="atari-convert")
def main(
    sources: tuple[Path, ...],
    to: tuple[str, ...],
    out: Path,
    identity: str | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Convert pretrained Atari agents: gzipped PyTorch state dicts to ONNX, Flax and TensorFlow.

    SOURCE is a checkpoint, or a folder that is searched for model_*.gz; without one, the current folder. Each agent
    becomes one folder, OUT/FAMILY/Game/seed/model_STEP, with agent.json and an artefact for each target. What is
    current is left alone.

    Exit code: 0 all is converted or current; 1 something failed, the rest is done; 2 the command line is wrong.
    """
    from convert import bulk

    with _usage_errors():
        targets = _choose_targets(to)
        jobs = bulk.find_jobs(sources or (Path(),), out, _parse_identity(identity))
    _warn_of_unknown(jobs)
    work = bulk.rehearse if dry_run else bulk.run
    outcomes = []
    for outcome in _with_progress(work(jobs, targets, overwrite=overwrite), len(jobs)):
        outcomes.append(outcome)
        _print_problems(outcome)
        if not (quiet or as_json):
            _print_outcome(outcome, verbose=verbose, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(_to_document(outcomes, dry_run=dry_run), indent=2))
    elif not quiet:
        _print_summary(outcomes, dry_run=dry_run)
    sys.exit(1 if any(outcome.error for outcome in outcomes) else 0)


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn what is wrong with the command line into Click's exit code 2."""
    from convert.errors import SelectionError, TargetError

    try:
        yield
    except (SelectionError, TargetError) as error:
        raise click.UsageError(str(error)) from error


def _parse_identity(text: str | None) -> Identity | None:
    from convert.agent import parse_identity

    try:
        return parse_identity(text) if text else None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--identity") from error


def _choose_targets(names: Collection[str]) -> tuple[str, ...]:
    """Return the targets to write: those named, and for ``all`` every one of its own that is installed."""
    from convert.targets import find_target, list_targets, missing_extra

    chosen = [find_target(name) for name in names if name != "all"]
    for target in chosen:
        if not target.is_installed:
            raise missing_extra(target)
    if "all" in names:
        every = [target for target in list_targets() if target.in_all]
        installed = [target for target in every if target.is_installed]
        if not installed:
            raise missing_extra(every[0])
        for target in every:
            if not target.is_installed:
                click.echo(f"skipped {missing_extra(target)}", err=True)
        chosen += installed
    return tuple(dict.fromkeys(target.name for target in chosen))


def _warn_of_unknown(jobs: list[Job]) -> None:
    unknown = [job for job in jobs if not job.identity.is_complete]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        click.echo(
            f"warning: {unknown[0].source}{more}: not in the release's layout FAMILY/Game/seed/model_STEP.gz; "
            "what is not known stays null in agent.json (for one file, --identity tells it)",
            err=True,
        )


def _with_progress(outcomes: Iterable[Outcome], total: int) -> Iterator[Outcome]:
    """Show a progress line on a terminal once the run has taken a second."""
    if not sys.stderr.isatty():
        yield from outcomes
        return
    started = time.monotonic()
    for done, outcome in enumerate(outcomes, start=1):
        click.echo("\r\033[K", nl=False, err=True)
        yield outcome
        elapsed = time.monotonic() - started
        if elapsed > PROGRESS_AFTER and done < total:
            left = elapsed / done * (total - done)
            click.echo(f"{done}/{total} agents, about {left:.0f} s left", nl=False, err=True)


def _print_problems(outcome: Outcome) -> None:
    from convert.pipeline import find_warnings

    if outcome.error:
        click.echo(f"failed: {' '.join(str(outcome.error).split())}", err=True)
    if outcome.record and outcome.written:
        for warning in find_warnings(outcome.record):
            click.echo(f"warning: {warning}", err=True)


def _print_outcome(outcome: Outcome, *, verbose: bool, dry_run: bool) -> None:
    if outcome.written:
        verb = "would write" if dry_run else "wrote"
        click.echo(f"{outcome.job.folder}: {verb} {', '.join(outcome.written)}")
    elif verbose and not outcome.error:
        click.echo(f"{outcome.job.folder}: current")
    if verbose and outcome.record:
        for artifact in outcome.record.artifacts.values():
            for file in artifact.files:
                click.echo(f"  {file.sha256}  {file.size:>9}  {file.path}")


def _print_summary(outcomes: list[Outcome], *, dry_run: bool) -> None:
    counts = _count(outcomes)
    converted = "to convert" if dry_run else "converted"
    click.echo(f"{counts['converted']} {converted}, {counts['current']} current, {counts['failed']} failed")
    hints = (
        _hint_at_loading(outcome.job.folder, outcome.record)
        for outcome in outcomes
        if outcome.record and outcome.written
    )
    click.echo(next(hints, ""), nl=False)


def _hint_at_loading(folder: Path, record: Record) -> str:
    lines = ["", "Load one (observations are uint8, oldest frame first, 0–255):", "  import convert"]
    for name, artifact in record.artifacts.items():
        shape = ", ".join(str(size or "N") for size in artifact.inputs[0].shape)
        lines.append(f"  agent = convert.load_agent({str(folder)!r}, {name!r})  # q_values = agent(uint8[{shape}])")
    return "\n".join(lines) + "\n"


def _count(outcomes: list[Outcome]) -> dict[str, int]:
    return {
        status: sum(outcome.status == status for outcome in outcomes) for status in ("converted", "current", "failed")
    }


def _to_document(outcomes: list[Outcome], *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        **_count(outcomes),
        "agents": [
            {
                "source": str(outcome.job.source),
                "folder": str(outcome.job.folder),
                "status": outcome.status,
                "written": outcome.written,
                "error": {"kind": type(outcome.error).__name__, "message": str(outcome.error)}
                if outcome.error
                else None,
            }
            for outcome in outcomes
        ],
    }
