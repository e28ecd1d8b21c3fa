"""The command ``atari-check``: parse, call, print, exit code."""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import signal
import sys
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import click

from convert import __version__
from convert.console import github
from convert.console.command import Command
from convert.console.options import (
    add_ci_options,
    add_engine_options,
    add_episode_options,
    add_selection_options,
    complete_from,
    format_shard,
    parse_shard,
    split_formats,
)
from convert.files.disk import remove_temporary_folders
from runtime_check.choices import add_protocol, list_backend_names

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from convert.bulk.selection import Filter
    from runtime_check.bulk.jobs import Job
    from runtime_check.bulk.run import Outcome, Work
    from runtime_check.check.options import Options
    from runtime_check.report.sums import Sums

EXIT_DISAGREE, EXIT_UNCHECKED = 1, 2
# What the extra `check` brings.
_PACKAGES = ("ale_py", "cv2", "jinja2", "threadpoolctl")


_EXAMPLES = """\
Replay Atari episodes and compare converted agents with their checkpoints. For example:
  atari-check converted --source RELEASE                    every agent in and below a folder
  atari-check converted --source RELEASE --max-steps 300    in short episodes
  atari-check report converted -o report                    the report from proofs, without playing again
  atari-check --help                                        every option"""


class _PathOrUrl(click.Path):
    """A path that has to exist, or any URL."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if "://" in str(value) else super().convert(value, param, ctx)


def _add_output_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Also print what each backend ran on."),
        click.option("-q", "--quiet", is_flag=True, help="Print only agents that do not agree."),
        click.option("--json", "as_json", is_flag=True, help="Print check.json instead of the table."),
    ):
        command = option(command)
    return command


def _find_report_command() -> click.Command:
    return report_proofs


@click.command(
    cls=Command,
    name="atari-check",
    words={"report": _find_report_command},
    examples=_EXAMPLES,
    exit_unwritten=EXIT_UNCHECKED,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument("agents", nargs=-1, metavar="[AGENT]...", type=_PathOrUrl(exists=True, file_okay=False))
@click.option(
    "--source",
    default=".",
    metavar="PATH",
    type=_PathOrUrl(exists=True),
    help="The original checkpoints to compare with: one file, or the root of the release, as a path or a URL. There, "
    "FAMILY/Game/seed/model_STEP.gz is tried first, then, on disk, any *.gz with the sha256 in agent.json.",
)
@click.option("--anonymous", is_flag=True, help="Read gs:// and s3:// sources without credentials, for public buckets.")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME,...",
    callback=split_formats,
    shell_complete=complete_from(list_backend_names),
    help="What to check: onnxruntime, flax, tensorflow, ...; by default every artefact of the agent. The "
    "reference, which is the checkpoint in torch, always takes part. Repeatable.",
)
@click.option(
    "--files-from",
    type=click.File(encoding="utf-8", errors="surrogateescape"),
    metavar="FILE|-",
    help="Also check the agents' folders listed here.",
)
@add_selection_options
@click.option(
    "--shard",
    metavar="K/N",
    callback=parse_shard,
    help="Check only part K of N. The parts are nearly equal in artefacts to play.",
)
@add_engine_options("check")
@click.option("--again", is_flag=True, help="Also check agents whose proof from an earlier run still holds.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first agent that does not agree or cannot be checked.")
@click.option("--dry-run", is_flag=True, help="Show which agents would be checked, and check none.")
@add_episode_options(1)
@click.option("--max-steps", metavar="N", type=click.IntRange(1), help="Stop each episode after N steps.")
@click.option(
    "--epsilon",
    default=0.0,
    metavar="E",
    type=click.FloatRange(0, 1),
    help="Probability of a random action, drawn by the seed. The release's play.py uses 0.001.",
)
@add_protocol
@click.option(
    "--mode",
    default="shadow",
    type=click.Choice(["shadow", "solo", "both"]),
    help="shadow: the reference acts and every backend answers; solo: each backend plays on its own.",
)
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "gpu"]), help="Where the networks run.")
@click.option("--tf32", is_flag=True, help="Let GPUs use TF32 instead of float32.")
@click.option("--atol", default=2e-5, metavar="X", type=click.FloatRange(0), help="Allowed error, absolute.")
@click.option(
    "--rtol",
    default=2e-5,
    metavar="X",
    type=click.FloatRange(0),
    help="Allowed error, relative to max |q| of an observation.",
)
@click.option(
    "--report",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write check.json, check.html and episodes.jsonl to this folder.",
)
@click.option(
    "--frames",
    default=0,
    metavar="N",
    type=click.IntRange(0, 100_000),
    help="Show the first N steps of each agent in check.html, step by step: about 300 bytes each.",
)
@add_ci_options
@_add_output_options
@click.version_option(__version__, prog_name="atari-check")
def main(
    agents: tuple[str, ...],
    source: str,
    anonymous: bool,
    backends: tuple[str, ...],
    files_from: IO[str] | None,
    families: tuple[str, ...],
    games: tuple[str, ...],
    seeds: tuple[str, ...],
    steps: tuple[str, ...],
    shard: tuple[int, int] | None,
    workers: int,
    engine: str,
    ray_address: str | None,
    again: bool,
    fail_fast: bool,
    dry_run: bool,
    episodes: int,
    max_steps: int | None,
    first_seed: int,
    epsilon: float,
    protocol: str | None,
    mode: str,
    device: str,
    tf32: bool,
    atol: float,
    rtol: float,
    report: Path | None,
    frames: int,
    junitxml: str | None,
    summary: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Replay Atari episodes to prove that converted agents act like their checkpoints.

    AGENT is a folder that atari-convert wrote, or a folder with several of them in or below it, as a path or a URL.
    Every artefact is opened with its own runtime, sees the same episodes, and is compared with the checkpoint in
    float64. What was found is written as proof.json beside agent.json. Agents whose proof still holds are passed over:
    rerun the same command to resume. Repeatable options also take several values separated by commas. `atari-check
    report` makes a report from proofs alone.

    Exit codes: 0 all agree; 1 at least one disagreement, wrong checksum, or artefact that does not load or run; 2 none
    of these, but something could not be checked, or the command line is wrong; 130 interrupted; 143 terminated.
    """
    if not math.isfinite(atol) or not math.isfinite(rtol):
        raise click.UsageError("--atol and --rtol must be finite numbers")
    if frames and (report is None or mode == "solo"):
        raise click.UsageError("--frames needs --report, and --mode shadow or both: it shows what the reference sees")
    if ray_address and engine != "ray":
        raise click.UsageError("--ray-address needs --engine ray")
    if not agents and files_from is None:
        raise click.UsageError("Missing argument 'AGENT...': name a folder that atari-convert wrote")
    with _end_on_errors():
        from convert.bulk.engines import make_engine
        from convert.bulk.selection import Filter
        from convert.store.storage import normalise
        from runtime_check.backends import find_backend
        from runtime_check.bulk import run as bulk
        from runtime_check.check.options import Options
        from runtime_check.progress import Progress
        from runtime_check.protocols import find_protocol
        from runtime_check.report.sums import Sums

        options = Options(
            backends=tuple(find_backend(name).name for name in backends),
            episodes=episodes,
            max_steps=max_steps,
            seed=first_seed,
            epsilon=epsilon,
            shadow=mode in ("shadow", "both"),
            solo=mode in ("solo", "both"),
            device=device,
            tf32=tf32,
            atol=atol,
            rtol=rtol,
            protocol=find_protocol(protocol).name if protocol else None,
            frames=frames,
        )
        listed = [line for line in map(str.strip, files_from or ()) if line]
        wanted = Filter(families, games, seeds, steps)
        jobs = _find_jobs(agents, listed, wanted, shard, len(backends))
        work = bulk.Work(normalise(source), options, again, anonymous)
        with github.obey_nothing():
            if not shard and not quiet:
                _note_unconverted(work.source, agents, jobs, wanted)
            if dry_run:
                _show_plan(jobs, work, quiet=quiet)
                return
        sums = Sums(len(jobs))
        progress = Progress(sums, max_steps)
        run_on = make_engine(engine, ray_address, workers, len(jobs))
        outcomes = bulk.run(jobs, work, run_on, progress.listeners)
        output = _Output(report, as_json, quiet, verbose, fail_fast)
        with github.obey_nothing():
            _follow(progress.show(outcomes), sums, options, output)
        _finish(sums, junitxml, summary, {"source": source, "shard": format_shard(shard)})


@click.command(
    cls=Command,
    examples="""\
Make a report from the proofs of earlier checks, without playing anything again. For example:
  atari-check report converted -o report""",
    exit_unwritten=EXIT_UNCHECKED,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument("agents", nargs=-1, required=True, metavar="AGENT...", type=_PathOrUrl(exists=True, file_okay=False))
@click.option(
    "-o",
    "--out",
    "report",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write check.json, check.html and episodes.jsonl to this folder.",
)
@add_selection_options
@add_ci_options
@_add_output_options
def report_proofs(
    agents: tuple[str, ...],
    report: Path | None,
    families: tuple[str, ...],
    games: tuple[str, ...],
    seeds: tuple[str, ...],
    steps: tuple[str, ...],
    junitxml: str | None,
    summary: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Make a report from the proofs of earlier checks, whatever their runs, shards and options.

    AGENT is a folder with proof.json, or a folder with several of them in or below it. A proof has to be about the
    files that are there. It is no signature: a report says what the proofs say. Agents without one count as not
    checked.

    Exit codes: as of atari-check.
    """
    with _end_on_errors():
        from convert.bulk.selection import Filter
        from runtime_check.bulk.run import recall
        from runtime_check.report.sums import Sums

        jobs = _find_jobs(agents, [], Filter(families, games, seeds, steps), None, 0)
        output = _Output(report, as_json, quiet, verbose, fail_fast=False)
        sums = Sums(len(jobs))
        with github.obey_nothing():
            _follow(recall(jobs), sums, None, output)
        _finish(sums, junitxml, summary, {"report": str(report or "")})


@dataclass(frozen=True)
class _Output:
    """What is to be written and printed."""

    report: Path | None
    as_json: bool
    quiet: bool
    verbose: bool
    fail_fast: bool


def _find_jobs(
    places: tuple[str, ...], listed: list[str], wanted: Filter, shard: tuple[int, int] | None, backends: int
) -> list[Job]:
    from convert.bulk.selection import select_jobs
    from runtime_check.bulk.jobs import make_jobs
    from runtime_check.check.folders import find_agent_folders

    return select_jobs(make_jobs(find_agent_folders(places, listed), backends), wanted, shard)


def _note_unconverted(source: str, places: tuple[str, ...], jobs: list[Job], wanted: Filter) -> None:
    from convert.names import to_printable
    from runtime_check.bulk.jobs import find_unconverted

    if missing := find_unconverted(source, places, [job.folder for job in jobs], wanted):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        click.echo(f"note: not converted, so not checked: {to_printable(missing[0])}{more}", err=True)


def _show_plan(jobs: list[Job], work: Work, *, quiet: bool) -> None:
    from convert.names import to_printable
    from runtime_check.bulk.run import find_known

    known = find_known(jobs, work)
    for job in jobs:
        if not quiet and job.folder not in known:
            click.echo(f"{to_printable(job.folder)}: would be checked")
    click.echo(f"{len(jobs) - len(known)} to check, {len(known)} known from an earlier run")


def _follow(outcomes: Generator[Outcome, None, None], sums: Sums, options: Options | None, output: _Output) -> None:
    """Print each outcome as it comes, and add it to the sums and to the report."""
    from runtime_check.report.writer import ReportWriter

    writer = ReportWriter(output.report, options, sums.total)
    _end_by_signals(writer.discard)
    with writer:
        with closing(outcomes):
            for outcome in outcomes:
                sums.add(outcome.document, is_known=outcome.is_known)
                writer.add_agent(outcome.document, outcome.pictures, outcome.log)
                _print_outcome(outcome, output)
                if output.fail_fast and sums.problems:
                    break
        document = writer.finish()
        if output.as_json:
            for line in document:
                click.echo(line, nl=False)
        elif not output.quiet:
            _print_summary(sums, output.report)


def _finish(sums: Sums, junitxml: str | None, summary: str | None, about: Mapping[str, Any]) -> NoReturn:
    """Write what CI reads, and exit."""
    is_written = _write_extras(sums, junitxml, summary, about)
    sys.exit(_exit_code(sums) or (0 if is_written else EXIT_UNCHECKED))


@contextmanager
def _end_on_errors() -> Iterator[None]:
    """Prepare the process for a check, and end it with one line and exit code 2 after an error."""
    _quiet_runtimes()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a folder need not be UTF-8
    _end_by_signals(lambda: None)
    from convert.errors import AtariConvertError

    try:
        yield
    except (AtariConvertError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_UNCHECKED)
    except Exception as error:  # noqa: BLE001  Python would end with exit code 1, which says that agents disagree
        click.echo(f"error: {_explain_unexpected('atari-check', error)}", err=True)
        sys.exit(EXIT_UNCHECKED)


def _explain_unexpected(name: str, error: Exception) -> str:
    from convert.pipeline import to_known

    if _is_extra_missing(error):
        return f"atari-check needs {getattr(error, 'name', '')}: pip install 'atari-convert[check]'"
    return str(to_known(error, name))


def _is_extra_missing(error: Exception) -> bool:
    return isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _PACKAGES


def _quiet_runtimes() -> None:
    """Set what runtimes read when they are loaded: idle threads sleep, and TensorFlow logs nothing.

    Several runtimes share the cores here, and threads that wait would spin on those of the others.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _end_by_signals(discard: Callable[[], None]) -> None:
    """Let Ctrl-C, or CI that stops a job, end the command at once, without a half report.

    Not by an exception: one that is raised in a runtime's callback is dropped there, and an ordinary exit waits for
    threads.
    """

    def end(number: int, _: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        for worker in multiprocessing.active_children():
            worker.terminate()
        discard()
        remove_temporary_folders()
        # Not through sys.stderr, which may be at work at this moment.
        os.write(2, b"\ninterrupted: no report was written; rerun the same command to resume\n")
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # a shell's job in the background is not for Ctrl-C
            signal.signal(number, end)


def _print_outcome(outcome: Outcome, output: _Output) -> None:
    from convert.names import to_printable
    from runtime_check.report.documents import AGREE, UNCHECKED
    from runtime_check.report.terminal import format_agent

    document = outcome.document
    if outcome.warning:
        click.echo(f"warning: {to_printable(outcome.warning)}", err=True)
    if outcome.verdict == UNCHECKED:
        folder, message = (to_printable(text) for text in (document["folder"], document["error"]["message"]))
        click.echo(f"not checked: {message if message.startswith(folder) else f'{folder}: {message}'}", err=True)
    elif not output.as_json and not (output.quiet and outcome.verdict == AGREE):
        known = "  known from an earlier run: --again repeats the check\n" if outcome.is_known else ""
        click.echo(format_agent(document, verbose=output.verbose) + f"\n{known}")


def _print_summary(sums: Sums, report: Path | None) -> None:
    from runtime_check.report.sums import format_counts
    from runtime_check.report.writer import HTML_NAME

    click.echo(format_counts(sums))
    if report is not None:
        click.echo(f"report: {report / HTML_NAME}")


def _write_extras(sums: Sums, junitxml: str | None, summary: str | None, about: Mapping[str, Any]) -> bool:
    """Write what CI reads, beside the report; return whether that worked."""
    from convert.bulk.summary import write as write_summary
    from runtime_check.report import junit
    from runtime_check.report import sums as words

    if github.is_here():
        for line in words.format_annotations(sums):
            click.echo(line, err=True)
    try:
        if junitxml:
            Path(junitxml).write_text(junit.to_junit(sums.suites), "utf-8", "backslashreplace")
        if summary:
            write_summary(summary, words.to_json(sums, about), words.to_markdown(sums, about))
    except OSError as error:
        click.echo(f"error: {error.filename}: cannot be written ({error.strerror})", err=True)
        return False
    return True


def _exit_code(sums: Sums) -> int:
    from runtime_check.report.documents import DISAGREE, UNCHECKED, combine_verdicts

    return {DISAGREE: EXIT_DISAGREE, UNCHECKED: EXIT_UNCHECKED}.get(combine_verdicts(sums.counts), 0)
