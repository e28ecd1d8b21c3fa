"""The command ``atari-convert``: parse, call, print, exit code."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import IO, TYPE_CHECKING, Any

import click

from convert import __version__
from convert.console.command import Command
from convert.console.options import (
    complete_from,
    list_family_names,
    list_game_names,
    list_target_names,
    split_formats,
    split_names,
)
from convert.console.signals import stop_on_signals

if TYPE_CHECKING:
    from convert.agents.agent import Record
    from convert.agents.identity import Identity
    from convert.bulk.run import Engine, Outcome
    from convert.bulk.selection import Filter, Job
    from convert.bulk.summary import Tally

PROGRESS_AFTER = 1.0  # seconds


_EXAMPLES = """\
Convert trained Atari agents. For example:
  atari-convert model_50000000.gz --to onnx        one checkpoint
  atari-convert RELEASE --to onnx,flax             every model_*.gz in and below a folder
  atari-convert RELEASE --to all --dry-run         show the plan without converting
  atari-convert AGENT_FOLDER --to checkpoint       a converted agent, back in the release's format
  atari-convert --help                             every option

The converted agents go to the folder converted."""


def _ends_well(command: Callable[..., None]) -> Callable[..., None]:
    """End with exit code 130 on Ctrl-C, where Click would end with 1, and with a line on what stopped the whole run."""

    @functools.wraps(command)
    def call(**options: Any) -> None:
        from convert.errors import AtariConvertError

        try:
            with stop_on_signals():
                command(**options)
        except KeyboardInterrupt as stop:
            click.echo("interrupted: rerun the same command to resume", err=True)
            sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
        except AtariConvertError as error:
            click.echo(f"failed: {error}", err=True)
            sys.exit(1)

    return call


@click.command(
    cls=Command, examples=_EXAMPLES, exit_unwritten=1, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.argument("sources", nargs=-1, metavar="[SOURCE]...", type=click.Path())
@click.option(
    "--to",
    "to",
    multiple=True,
    metavar="TARGET,...",
    callback=split_formats,
    shell_complete=complete_from(lambda: ["all", *list_target_names()]),
    help="What to write: onnx, flax, tensorflow, dopamine, keras, litert, nnx, orbax, safetensors, torch, or all of "
    "these. Only by name: litert-float16, litert-int8 (rounded weights), checkpoint (the release's format). "
    "Repeatable.",
)
@click.option(
    "-o",
    "--out",
    default="converted",
    show_default=True,
    type=click.Path(file_okay=False),
    help="Folder or URL for the agents' folders.",
)
@click.option(
    "--identity",
    metavar="FAMILY/Game[/SEED[/STEP]]",
    help="Who the agent is. For a single file outside the release's layout.",
)
@click.option(
    "--from",
    "artefact",
    metavar="TARGET",
    shell_complete=complete_from(list_target_names),
    help="The artefact to read where SOURCE is the folder of a converted agent. Default: the one that has changed.",
)
@click.option(
    "--files-from",
    type=click.File(encoding="utf-8", errors="surrogateescape"),
    metavar="FILE|-",
    help="Also convert the paths and URLs listed here.",
)
@click.option(
    "--family",
    "families",
    multiple=True,
    metavar="PATTERN,...",
    callback=split_names,
    shell_complete=complete_from(list_family_names),
    help="Only these families, such as 'DQN*'. Repeatable.",
)
@click.option(
    "--game",
    "games",
    multiple=True,
    metavar="PATTERN,...",
    callback=split_names,
    shell_complete=complete_from(list_game_names),
    help="Only these games, such as 'Space*'. Repeatable.",
)
@click.option(
    "--seed",
    "seeds",
    multiple=True,
    metavar="PATTERN,...",
    callback=split_names,
    help="Only these seeds. Repeatable.",
)
@click.option(
    "--steps",
    multiple=True,
    metavar="WHICH,...",
    callback=split_names,
    shell_complete=complete_from(lambda: ["latest", "final"]),
    help="Only these steps: latest (of each training run), final (50,000,000), A:B, N or a pattern. Repeatable.",
)
@click.option("--shard", metavar="K/N", help="Convert only part K of N. The parts are nearly equal in bytes.")
@click.option("--anonymous", is_flag=True, help="Read gs:// and s3:// sources without credentials, for public buckets.")
@click.option(
    "-j",
    "--jobs",
    "workers",
    default=1,
    show_default=True,
    type=click.IntRange(0),
    help="Number of agents to convert in parallel; 0 means one per processor.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Run local processes or Ray tasks.",
)
@click.option("--ray-address", metavar="ADDRESS", help="Address of a Ray cluster. Default: start one on this machine.")
@click.option("--overwrite", is_flag=True, help="Convert again even if the files are up to date.")
@click.option("--check-hashes", is_flag=True, help="Read and hash every file instead of trusting sizes and times.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first failure.")
@click.option("--dry-run", is_flag=True, help="Show the plan without converting.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
@click.option(
    "--summary",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write a summary as JSON. In GitHub Actions, also add it to the step's summary page.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only failures.")
@click.option("-v", "--verbose", is_flag=True, help="Also print every file with its checksum.")
@click.version_option(__version__, prog_name="atari-convert")
@_ends_well
def main(
    sources: tuple[str, ...],
    to: tuple[str, ...],
    out: str,
    identity: str | None,
    artefact: str | None,
    files_from: IO[str] | None,
    families: tuple[str, ...],
    games: tuple[str, ...],
    seeds: tuple[str, ...],
    steps: tuple[str, ...],
    shard: str | None,
    anonymous: bool,
    workers: int,
    engine: str,
    ray_address: str | None,
    overwrite: bool,
    check_hashes: bool,
    fail_fast: bool,
    dry_run: bool,
    as_json: bool,
    summary: str | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Convert pretrained Atari agents from gzipped PyTorch state dicts to ONNX, Flax, TensorFlow and more.

    SOURCE is a checkpoint, a folder to search for model_*.gz, or a pattern. Each can be a path or a URL (gs://, s3://,
    https://). It can also be the local folder of a converted agent, a folder of such folders, or a base folder that
    Dopamine trained in: with --to checkpoint, they are converted back to the release's format. The default is the
    current folder. Each agent gets one folder, OUT/FAMILY/Game/seed/model_STEP, with agent.json and the files of each
    target. Files that are up to date are left alone: rerun the same command to resume. Repeatable options also take
    several values separated by commas.

    Exit codes: 0 everything is converted or up to date; 1 something failed, everything else is done; 2 the command
    line is wrong; 130 interrupted; 143 terminated.
    """
    from convert.bulk import run as bulk
    from convert.bulk.selection import Filter
    from convert.bulk.summary import Tally
    from convert.names import spell

    artefact = artefact and spell(artefact)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # converting computes nothing, and TensorFlow would take a GPU
    with _usage_errors():
        _check_summary(summary)
        targets = _choose_targets(to)
        who = _parse_identity(identity)
        wanted = Filter(families, games, seeds, steps)
        jobs = _find_jobs(sources, files_from, out, who, wanted, shard, anonymous, artefact)
        run_on = _choose_engine(engine, ray_address, workers, jobs)
        _warn_of_unknown(jobs)
        task = bulk.Work(targets, overwrite, check_hashes, anonymous, artefact)
        work = bulk.rehearse(jobs, task) if dry_run else bulk.run(jobs, task, run_on)
    tally = Tally(len(jobs))
    printer = _JsonPrinter(dry_run) if as_json else _TextPrinter(quiet, verbose, dry_run)
    try:
        _follow(work, tally, printer, fail_fast)
    finally:
        printer.finish(tally)
        about = {"targets": ", ".join(targets), "out": out, "shard": shard, "dry_run": dry_run}
        is_told = not summary or _write_summary(summary, tally, about)
    sys.exit(1 if tally.failed or not is_told else 0)


def _follow(
    work: Generator[Outcome, None, None], tally: Tally, printer: _JsonPrinter | _TextPrinter, fail_fast: bool
) -> None:
    """Print and count each outcome as it comes."""
    with closing(work):
        for outcome in _with_progress(work, tally):
            _print_problems(outcome)
            printer.show(outcome)
            tally.add(outcome)
            if outcome.error and fail_fast:
                break


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn what is wrong with the command line into Click's exit code 2."""
    from convert.errors import SelectionError, TargetError

    try:
        yield
    except (SelectionError, TargetError) as error:
        raise click.UsageError(str(error)) from error


def _parse_identity(text: str | None) -> Identity | None:
    from convert.sources import parse_identity

    try:
        return parse_identity(text) if text else None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--identity") from error


def _find_jobs(
    sources: tuple[str, ...],
    files_from: IO[str] | None,
    out: str,
    identity: Identity | None,
    wanted: Filter,
    shard: str | None,
    anonymous: bool,
    artefact: str | None,
) -> list[Job]:
    from convert.bulk import selection
    from convert.targets import find_target

    if artefact:
        find_target(artefact)
    if not sources and files_from is None:
        sources = (".",)
    part = _parse_shard(shard)
    jobs = selection.find_jobs(sources, out, identity, listed=files_from or (), anonymous=anonymous, artefact=artefact)
    file = next((job for job in jobs if not job.kind and not job.problem), None)
    if artefact and file:
        raise click.UsageError(
            f"--from names the artefact to read in the folder of a converted agent, but {file.source} is no such folder"
        )
    if not wanted.is_empty:
        jobs = selection.keep(jobs, wanted)
    return selection.take_shard(jobs, part) if part else jobs


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    from convert.bulk.selection import parse_shard

    try:
        return parse_shard(text) if text else None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--shard") from error


def _choose_engine(name: str, address: str | None, workers: int, jobs: list[Job]) -> Engine | None:
    """Return where to run; None for this process, which a lone job is best done in."""
    workers = workers or _count_processors()
    if name == "ray":
        _refuse_memory(jobs)
        return _choose_ray(address, workers)
    if address:
        raise click.UsageError("--ray-address needs --engine ray")
    if min(workers, len(jobs)) < 2:
        return None
    _refuse_memory(jobs)
    from convert.bulk.engines import processes

    return processes.make_engine(workers)


def _count_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _choose_ray(address: str | None, workers: int) -> Engine:
    from convert.errors import MissingExtra

    try:
        from convert.bulk.engines import ray
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "ray":
            raise
        raise MissingExtra("--engine ray needs ray: pip install 'atari-convert[ray]'") from error
    return ray.make_engine(address, workers)


def _refuse_memory(jobs: list[Job]) -> None:
    for job in jobs:
        if job.source.startswith("memory://") or job.out.startswith("memory://"):
            raise click.UsageError("memory:// works within one process only: leave out --jobs and --engine")


def _choose_targets(names: Collection[str]) -> tuple[str, ...]:
    """Return the targets to write: those named, and for ``all`` every one of its own that is installed."""
    from convert.targets import find_target, list_targets, missing_extra

    if not names:
        known = ", ".join(target.name for target in list_targets())
        raise click.UsageError(f"no target given: add --to with one or more of {known}, or all, such as --to onnx,flax")
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
    from convert.sources import find_layout

    files = [job for job in jobs if not (job.kind or job.problem or job.identity.is_complete)]
    unknown = [job for job in files if find_layout(job.path)]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        click.echo(
            f"warning: {unknown[0].source}{more}: not in the release's layout {find_layout(unknown[0].path)}; "
            "what is unknown stays null in agent.json (for a single file, use --identity FAMILY/Game/SEED/STEP)",
            err=True,
        )


def _with_progress(outcomes: Iterator[Outcome], tally: Tally) -> Iterator[Outcome]:
    """Show a progress line on a terminal once the run has taken a second."""
    from convert.bulk.summary import tell_progress

    shown = sys.stderr.isatty()
    for outcome in outcomes:
        if shown:
            click.echo("\r\033[K", nl=False, err=True)
        yield outcome
        if shown and tally.seconds > PROGRESS_AFTER and tally.done < tally.total:
            click.echo(tell_progress(tally), nl=False, err=True)


class _TextPrinter:
    """Prints a line for each outcome, and the sum with a hint at loading."""

    def __init__(self, quiet: bool, verbose: bool, dry_run: bool) -> None:
        self._quiet, self._verbose, self._dry_run = quiet, verbose, dry_run
        self._hint = ""

    def show(self, outcome: Outcome) -> None:
        from convert.store.storage import is_url

        if not self._quiet:
            _print_outcome(outcome, verbose=self._verbose, dry_run=self._dry_run)
        if outcome.written and outcome.record and not self._hint and not is_url(outcome.job.folder):
            self._hint = _hint_at_loading(outcome.job.folder, outcome.record)

    def finish(self, tally: Tally) -> None:
        if not self._quiet:
            _print_summary(tally, self._hint, dry_run=self._dry_run)


class _JsonPrinter:
    """Prints one document, row by row, so that memory does not grow with the rows."""

    def __init__(self, dry_run: bool) -> None:
        self._dry_run = dry_run
        self._separator = f'{{"dry_run": {json.dumps(dry_run)}, "agents": ['

    def show(self, outcome: Outcome) -> None:
        row = _to_row(outcome)
        if self._dry_run:
            row["would_write"] = row.pop("written")
            row["status"] = "to convert" if row["would_write"] else row["status"]
        click.echo(f"{self._separator}\n  {json.dumps(row)}", nl=False)
        self._separator = ","

    def finish(self, tally: Tally) -> None:
        counts = {"converted": tally.converted, "current": tally.current, "failed": tally.failed}
        start = "" if tally.done else self._separator
        click.echo(f"{start}\n], {json.dumps(counts)[1:-1]}}}")


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


def _print_summary(tally: Tally, hint: str, *, dry_run: bool) -> None:
    from convert.bulk.summary import tell, tell_bytes

    if dry_run:
        size = f"{tell_bytes(tally.bytes_read)} to read"
        if tally.untold:
            size += f", not counting {tally.untold} of unknown size"
        click.echo(f"{tally.converted} to convert, {tally.current} current, {tally.failed} failed; {size}")
    else:
        click.echo(tell(tally))
    click.echo(hint, nl=False)


def _check_summary(path: str | None) -> None:
    """Refuse before the work what could not be written after it."""
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise click.BadParameter(f"the folder of {path} does not exist", param_hint="--summary")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise click.BadParameter(f"{path} cannot be written", param_hint="--summary")


def _write_summary(path: str, tally: Tally, about: Mapping[str, Any]) -> bool:
    """Write the summary, as a step's page too; say whether that could be done."""
    from convert.bulk import summary

    page = os.environ.get("GITHUB_STEP_SUMMARY")
    try:
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(summary.to_json(tally, about))
        if page:
            with open(page, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(summary.to_markdown(tally, about))
    except OSError as error:
        click.echo(f"failed: {error.filename}: the summary cannot be written ({error.strerror})", err=True)
        return False
    return True


def _hint_at_loading(folder: str, record: Record) -> str:
    lines = ["", "Load one:", "  import convert", f"  agent = convert.load_agent({folder!r}, TARGET)"]
    lines += ["  q_values = agent(observations)  # uint8, oldest frame first, 0–255; for TARGET"]
    by_shape: dict[str, list[str]] = {}
    for name, artifact in sorted(record.artifacts.items()):
        shape = ", ".join(str(size or "N") for size in artifact.inputs[0].shape)
        by_shape.setdefault(shape, []).append(name)
    lines += [f"      [{shape}]: {', '.join(names)}" for shape, names in by_shape.items()]
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
