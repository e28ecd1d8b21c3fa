"""The command ``atari-check``: parse, call, print, exit code."""

from __future__ import annotations

import gc
import io
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convert import __version__
from convert.console.command import Command
from convert.console.options import complete_from, split_formats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime_check.check.options import Listeners, Options
    from runtime_check.check.results import AgentResult
    from runtime_check.check.sources import Sources
    from runtime_check.replay import EpisodeLog
    from runtime_check.report.documents import Document
    from runtime_check.report.writer import ReportWriter

EXIT_DISAGREE, EXIT_UNCHECKED = 1, 2
# What the extra `check` brings.
_PACKAGES = ("ale_py", "cv2", "jinja2", "threadpoolctl")
_BAR = 24
_REDRAW = 0.2  # seconds


_EXAMPLES = """\
Replay Atari episodes and compare converted agents with their checkpoints. For example:
  atari-check converted --source RELEASE                    every agent in and below a folder
  atari-check converted --source RELEASE --max-steps 300    in short episodes
  atari-check --help                                        every option"""


def _list_backend_names() -> list[str]:
    from runtime_check.backends import list_backends

    return [backend.name for backend in list_backends()]


@click.command(
    cls=Command,
    examples=_EXAMPLES,
    exit_unwritten=EXIT_UNCHECKED,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument(
    "agents", nargs=-1, required=True, metavar="AGENT...", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--source",
    default=".",
    metavar="PATH",
    type=click.Path(exists=True, path_type=Path),
    help="The original checkpoints to compare with: one file, or the root of the release. There, "
    "FAMILY/Game/seed/model_STEP.gz is tried first, then any *.gz with the sha256 in agent.json.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME,...",
    callback=split_formats,
    shell_complete=complete_from(_list_backend_names),
    help="What to check: onnxruntime, flax, tensorflow, ...; by default every artefact of the agent. The "
    "reference, which is the checkpoint in torch, always takes part. Repeatable.",
)
@click.option(
    "--episodes", default=1, metavar="N", type=click.IntRange(1, 100_000), help="Number of episodes per agent."
)
@click.option("--max-steps", metavar="N", type=click.IntRange(1), help="Stop each episode after N steps.")
@click.option(
    "--seed",
    default=0,
    metavar="N",
    type=click.IntRange(0, 2**31 - 100_001),
    help="Seed of the first episode; the next ones count up.",
)
@click.option(
    "--epsilon",
    default=0.0,
    metavar="E",
    type=click.FloatRange(0, 1),
    help="Probability of a random action, drawn by the seed. The release's play.py uses 0.001.",
)
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
@click.option("--json", "as_json", is_flag=True, help="Print check.json instead of the table.")
@click.option("-q", "--quiet", is_flag=True, help="Print only agents that do not agree.")
@click.option("-v", "--verbose", is_flag=True, help="Also print what each backend ran on.")
@click.version_option(__version__, prog_name="atari-check")
def main(
    agents: tuple[Path, ...],
    source: Path,
    backends: tuple[str, ...],
    episodes: int,
    max_steps: int | None,
    seed: int,
    epsilon: float,
    mode: str,
    device: str,
    tf32: bool,
    atol: float,
    rtol: float,
    report: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Replay Atari episodes to prove that converted agents act like their checkpoints.

    AGENT is a folder that atari-convert wrote, or a folder with several of them in or below it. Every artefact is
    opened with its own runtime, sees the same episodes, and is compared with the checkpoint in float64.

    Exit codes: 0 all agree; 1 a disagreement, a wrong checksum, or an artefact that does not load or run; 2 something
    could not be checked; 130 interrupted.
    """
    if not math.isfinite(atol) or not math.isfinite(rtol):
        raise click.UsageError("--atol and --rtol must be finite numbers")
    _quiet_runtimes()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a folder need not be UTF-8
    _end_by_signals(lambda: None)
    try:
        from convert.errors import AtariConvertError
        from runtime_check.backends import find_backend
        from runtime_check.check.folders import find_agent_folders
        from runtime_check.check.options import Options
        from runtime_check.check.sources import Sources
        from runtime_check.report.writer import ReportWriter

        options = Options(
            backends=tuple(find_backend(name).name for name in backends),
            episodes=episodes,
            max_steps=max_steps,
            seed=seed,
            epsilon=epsilon,
            shadow=mode in ("shadow", "both"),
            solo=mode in ("solo", "both"),
            device=device,
            tf32=tf32,
            atol=atol,
            rtol=rtol,
        )
        folders = find_agent_folders(agents)
        writer = ReportWriter(report, options)
        _end_by_signals(writer.discard)
        with writer:
            _check_all(folders, Sources(source), options, writer, _Printer(as_json, quiet, verbose))
            document = writer.finish()
            if as_json:
                for line in document:
                    click.echo(line, nl=False)
            elif not quiet:
                _print_summary(writer, report)
            sys.exit(_exit_code(writer))
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
        discard()
        # Not through sys.stderr, which may be at work at this moment.
        os.write(2, b"\ninterrupted: no report was written\n")
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # a shell's job in the background is not for Ctrl-C
            signal.signal(number, end)


def _check_all(
    folders: Sequence[Path], sources: Sources, options: Options, writer: ReportWriter, printer: _Printer
) -> None:
    progress = _Progress(len(folders), options.max_steps)
    for folder in folders:
        result, document = _check(folder, sources, options, progress.listen(folder, writer))
        progress.finish_agent()
        writer.add_agent(document, result)
        printer.print_agent(document)
        del result
        gc.collect()  # a model of TensorFlow's is a circle of references, and not small


def _check(
    folder: Path, sources: Sources, options: Options, listeners: Listeners
) -> tuple[AgentResult | None, Document]:
    """Return what was found of an agent, and the same for the report; of one that could not be checked, the latter."""
    from convert.errors import AtariConvertError, UnwritableOutput
    from convert.pipeline import to_known
    from runtime_check.check.pipeline import check_agent
    from runtime_check.report.documents import to_document, to_failure

    try:
        result = check_agent(folder, sources, options, listeners)
        return result, to_document(result)
    except UnwritableOutput:
        raise  # of the report
    except (AtariConvertError, OSError) as error:
        return None, to_failure(folder, error)
    except Exception as error:  # a bug, which must not keep other agents from being checked
        if _is_extra_missing(error):
            raise
        return None, to_failure(folder, to_known(error, str(folder)))


class _Printer:
    """Prints agents as they come, as the command line asks for."""

    def __init__(self, as_json: bool, quiet: bool, verbose: bool) -> None:
        self._as_json, self._quiet, self._verbose = as_json, quiet, verbose

    def print_agent(self, document: Document) -> None:
        from convert.names import to_printable
        from runtime_check.report.documents import AGREE, UNCHECKED
        from runtime_check.report.terminal import format_agent

        if document["verdict"] == UNCHECKED:
            folder, message = to_printable(document["folder"]), document["error"]["message"]
            click.echo(f"not checked: {message if message.startswith(folder) else f'{folder}: {message}'}", err=True)
        elif not self._as_json and not (self._quiet and document["verdict"] == AGREE):
            click.echo(format_agent(document, verbose=self._verbose) + "\n")


def _print_summary(writer: ReportWriter, report: Path | None) -> None:
    from runtime_check.report.documents import AGREE, DISAGREE, UNCHECKED
    from runtime_check.report.writer import HTML_NAME

    agree, disagree, unchecked = (writer.counts.get(name, 0) for name in (AGREE, DISAGREE, UNCHECKED))
    noun = "agent agrees" if agree == 1 else "agents agree"
    click.echo(f"{agree} {noun}, {disagree} disagree, {unchecked} could not be checked")
    if report is not None:
        click.echo(f"report: {report / HTML_NAME}")


def _exit_code(writer: ReportWriter) -> int:
    from runtime_check.report.documents import DISAGREE, UNCHECKED, combine_verdicts

    return {DISAGREE: EXIT_DISAGREE, UNCHECKED: EXIT_UNCHECKED}.get(combine_verdicts(writer.counts), 0)


class _Progress:
    """A line on a terminal: agent, episodes, steps/s, time left. How long an episode is, those that ended tell."""

    def __init__(self, agents: int, max_steps: int | None) -> None:
        self._agents, self._max_steps = agents, max_steps
        self._shown = sys.stderr.isatty()
        self._started = self._drawn = time.monotonic()
        self._done = self._steps = 0
        self._episodes = self._ended = self._agent_steps = self._ended_steps = 0

    def listen(self, folder: Path, writer: ReportWriter) -> Listeners:
        """Return listeners for the next agent; its episodes go into the report."""
        from runtime_check.check.options import Listeners

        def end_episode(backend: str, mode: str, log: EpisodeLog) -> None:
            self._ended += 1
            self._ended_steps += len(log.actions)
            writer.add_episode(folder, backend, mode, log)

        return Listeners(self._start, self._add_steps, end_episode)

    def finish_agent(self) -> None:
        self._done += 1
        self._episodes = self._ended = self._agent_steps = self._ended_steps = 0
        self._clear()

    def _start(self, episodes: int) -> None:
        self._episodes = episodes

    def _add_steps(self, count: int) -> None:
        self._steps += count
        self._agent_steps += count
        now = time.monotonic()
        if self._shown and now - self._drawn > _REDRAW:
            self._drawn = now
            self._draw(now - self._started)

    def _draw(self, elapsed: float) -> None:
        fraction = (self._done + self._agent_fraction()) / self._agents
        filled = int(fraction * _BAR)
        left = f"about {elapsed / fraction * (1 - fraction):.0f} s left" if fraction else "time left unknown"
        bar = "█" * filled + "·" * (_BAR - filled)
        ended = f"agent {self._done + 1}/{self._agents}, {self._ended}/{self._episodes} episodes"
        click.echo(f"\r\033[K{bar} {ended}, {self._steps / elapsed:.0f} steps/s, {left}", nl=False, err=True)

    def _agent_fraction(self) -> float:
        if self._ended:
            length = self._ended_steps / self._ended
        elif self._max_steps:
            length = self._max_steps
        else:
            return 0.0
        return min(self._agent_steps / (length * self._episodes), 1.0)

    def _clear(self) -> None:
        if self._shown:
            click.echo("\r\033[K", nl=False, err=True)
