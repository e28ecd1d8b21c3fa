"""The command ``atari-convert``: parse, call, exit code. What it prints is in `convert.printing`."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import IO, TYPE_CHECKING, Any

import click

from convert import __version__
from convert.console import github
from convert.console.command import Command
from convert.console.options import (
    add_engine_options,
    add_selection_options,
    add_summary_option,
    complete_from,
    format_shard,
    list_target_names,
    parse_shard,
    split_formats,
)
from convert.signals import stop_on_signals

if TYPE_CHECKING:
    from convert.agents.identity import Identity
    from convert.bulk.engines import Engine
    from convert.bulk.run import Outcome
    from convert.bulk.selection import Filter, Job
    from convert.bulk.summary import Tally
    from convert.printing import JsonPrinter, TextPrinter


_EXAMPLES = """\
Convert trained Atari agents. For example:
  atari-convert model_50000000.gz --to onnx        one checkpoint
  atari-convert RELEASE --to onnx,flax             every model_*.gz in and below a folder
  atari-convert RELEASE --to all --dry-run         show the plan without converting
  atari-convert AGENT_FOLDER --to checkpoint       a converted agent, back in the release's format
  atari-convert sources                            agents of other zoos that are read
  atari-convert --help                             every option

The converted agents go to the folder converted."""


def _find_sources_command() -> click.Command:
    return list_sources


def _set_exit_code(command: Callable[..., None]) -> Callable[..., None]:
    """Exit with 130 on Ctrl-C, where Click would exit with 1, and with 1 and one line if the whole run failed."""

    @functools.wraps(command)
    def call(**options: Any) -> None:
        from convert import printing
        from convert.errors import AtariConvertError

        try:
            with stop_on_signals():
                command(**options)
        except KeyboardInterrupt as stop:
            printing.print_interruption()
            sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
        except AtariConvertError as error:
            printing.print_failure(error)
            sys.exit(1)

    return call


@click.command(
    cls=Command,
    name="atari-convert",
    words={"sources": _find_sources_command},
    examples=_EXAMPLES,
    exit_unwritten=1,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("sources", nargs=-1, metavar="[SOURCE]...", type=click.Path())
@click.option(
    "--to",
    "to",
    multiple=True,
    metavar="TARGET,...",
    callback=split_formats,
    shell_complete=complete_from(lambda: ["all", *list_target_names()]),
    help="What to write: onnx, flax, tensorflow, dopamine, keras, litert, nnx, orbax, safetensors, torch, or all: "
    "those of them whose extras are installed. Not part of all: litert-float16, litert-int8 (rounded weights), "
    "checkpoint (the release's format), sb3 (Stable-Baselines3), cleanrl, cleanrl-jax. Repeatable.",
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
    help="Who the agent is. For a single file outside the release's layout; of another zoo, such as sb3/Pong.",
)
@click.option(
    "--from",
    "artefact",
    metavar="TARGET",
    shell_complete=complete_from(list_target_names),
    help="The artefact to read where SOURCE is the folder of a converted agent. Default: the one that has changed "
    "since it was converted, or the first one if none has. Needed if several have changed.",
)
@click.option(
    "--files-from",
    type=click.File(encoding="utf-8", errors="surrogateescape"),
    metavar="FILE|-",
    help="Also convert the paths and URLs listed here.",
)
@add_selection_options
@click.option(
    "--shard",
    metavar="K/N",
    callback=parse_shard,
    help="Convert only part K of N. The parts are nearly equal in bytes.",
)
@click.option("--anonymous", is_flag=True, help="Read gs:// and s3:// sources without credentials, for public buckets.")
@add_engine_options("convert")
@click.option("--overwrite", is_flag=True, help="Convert again even if the files are up to date.")
@click.option("--check-hashes", is_flag=True, help="Read and hash every file instead of trusting sizes and times.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first failure.")
@click.option("--dry-run", is_flag=True, help="Show the plan without converting.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
@add_summary_option
@click.option("-q", "--quiet", is_flag=True, help="Print only failures.")
@click.option("-v", "--verbose", is_flag=True, help="Also print every file with its checksum.")
@click.version_option(__version__, prog_name="atari-convert")
@_set_exit_code
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
    shard: tuple[int, int] | None,
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

    SOURCE is a checkpoint of this release or of another zoo (atari-convert sources lists them), a folder to search for
    such files, or a pattern. Each can be a path or a URL (gs://, s3://, https://). It can also be the local folder of a
    converted agent, a folder of such folders, or a base folder that Dopamine trained in: with --to checkpoint, they are
    converted back to the release's format. The default is the current folder. Each agent gets one folder,
    OUT/FAMILY/Game/seed/model_STEP, with agent.json and the files of each target. Files that are up to date are left
    alone: rerun the same command to resume. Repeatable options also take several values separated by commas.

    Exit codes: 0 all targets that were not skipped are converted or up to date; 1 something failed, everything else is
    done; 2 the command line is wrong; 130 interrupted; 143 terminated.
    """
    from convert import printing
    from convert.bulk import run as bulk
    from convert.bulk.selection import Filter
    from convert.bulk.summary import Tally
    from convert.names import normalise_name

    artefact = artefact and normalise_name(artefact)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # converting computes nothing, and TensorFlow would take a GPU
    with _raise_usage_errors():
        targets = _choose_targets(to)
        who = _parse_identity(identity)
        wanted = Filter(families, games, seeds, steps)
        jobs = _find_jobs(sources, files_from, out, who, wanted, shard, anonymous, artefact)
        run_on = _choose_engine(engine, ray_address, workers, jobs)
        printing.print_unknown(jobs)
        optional = tuple(target for target in targets if target not in to)  # which ``all`` means
        task = bulk.Work(targets, overwrite, check_hashes, anonymous, artefact, optional)
        work = bulk.rehearse(jobs, task) if dry_run else bulk.run(jobs, task, run_on)
    tally = Tally(len(jobs))
    printer = (
        printing.JsonPrinter(dry_run=dry_run)
        if as_json
        else printing.TextPrinter(quiet=quiet, verbose=verbose, dry_run=dry_run)
    )
    try:
        with github.obey_nothing():
            _follow(work, tally, printer, fail_fast)
    finally:
        printer.print_end(tally)
        about = {
            "targets": ", ".join(targets),
            "out": out,
            "shard": format_shard(shard),
            "dry_run": dry_run,
        }
        is_written = not summary or _write_summary(summary, tally, about)
    sys.exit(1 if tally.failed or not is_written else 0)


@click.command(name="sources", context_settings={"help_option_names": ["-h", "--help"]})
def list_sources() -> None:
    """List what atari-convert reads, with an example of each."""
    from convert.printing import print_sources

    print_sources()


def _follow(
    work: Generator[Outcome, None, None], tally: Tally, printer: JsonPrinter | TextPrinter, fail_fast: bool
) -> None:
    """Print and count each outcome as it comes."""
    from convert.printing import print_problems, print_skipped, show_progress

    told: set[str] = set()
    with closing(work):
        for outcome in show_progress(work, tally):
            for target in outcome.skipped.keys() - told:  # thousands of agents of a zoo have one reason
                print_skipped(target, outcome.skipped[target])
            told |= outcome.skipped.keys()
            print_problems(outcome)
            printer.print_outcome(outcome)
            tally.add(outcome)
            if outcome.error and fail_fast:
                break


@contextmanager
def _raise_usage_errors() -> Iterator[None]:
    """Turn errors in the command line into Click's exit code 2."""
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
    shard: tuple[int, int] | None,
    anonymous: bool,
    artefact: str | None,
) -> list[Job]:
    from convert.bulk import selection
    from convert.targets import find_target

    if artefact:
        find_target(artefact)
    if not sources and files_from is None:
        sources = (".",)
    jobs = selection.find_jobs(sources, out, identity, listed=files_from or (), anonymous=anonymous, artefact=artefact)
    file = next((job for job in jobs if not job.kind and not job.problem), None)
    if artefact and file:
        raise click.UsageError(
            f"--from names the artefact to read in the folder of a converted agent, but {file.source} is no such folder"
        )
    return selection.select_jobs(jobs, wanted, shard)


def _choose_engine(name: str, address: str | None, workers: int, jobs: list[Job]) -> Engine:
    from convert.bulk.engines import make_engine, run_here

    if address and name != "ray":
        raise click.UsageError("--ray-address needs --engine ray")
    engine = make_engine(name, address, workers, len(jobs))
    if engine is not run_here:
        _check_not_memory(jobs)
    return engine


def _check_not_memory(jobs: list[Job]) -> None:
    for job in jobs:
        if job.source.startswith("memory://") or job.out.startswith("memory://"):
            raise click.UsageError("memory:// works within one process only: leave out --jobs and --engine")


def _choose_targets(names: Collection[str]) -> tuple[str, ...]:
    """Return the targets to write: those named, and for ``all`` every one of its own that is installed."""
    from convert.frameworks import leaves
    from convert.printing import print_skipped
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
                print_skipped(target.name, leaves.missing_extra("it", target.packages, target.extra))
        chosen += installed
    return tuple(dict.fromkeys(target.name for target in chosen))


def _write_summary(path: str, tally: Tally, about: Mapping[str, Any]) -> bool:
    """Write the summary, and add it to the step's page in GitHub Actions; return whether that worked."""
    from convert.bulk import summary
    from convert.printing import print_failure

    try:
        summary.write(path, summary.to_json(tally, about), summary.to_markdown(tally, about))
    except OSError as error:
        print_failure(f"{error.filename}: the summary cannot be written ({error.strerror})")
        return False
    return True
