"""``atari-play score``: the returns of whole episodes, of one agent or thousands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from convert.console import github
from convert.console.command import Command
from convert.console.options import add_engine_options, add_episode_options, add_selection_options, parse_shard
from convert.errors import AtariConvertError, CheckError
from convert.names import to_printable
from runtime_check.choices import add_protocol

if TYPE_CHECKING:
    from convert.bulk.engines import Engine
    from convert.bulk.selection import Job
    from runtime_check.scores.rows import Row
    from runtime_check.scores.run import Outcome, Work
    from runtime_check.scores.summary import Score

_EXAMPLES = """\
Measure the returns of whole episodes. For example:
  atari-play score model_50000000.gz --identity DQN_modern/Pong/0/50000000
  atari-play score RELEASE --game Pong -j 8 -o scores.csv      resumes where it was interrupted
  atari-play score --rows scores.csv --plots plots             tables and plots of what was measured
  atari-play score --help                                      every option"""


@click.command(
    cls=Command,
    examples=_EXAMPLES,
    exit_unwritten=1,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument("sources", nargs=-1, metavar="[AGENT]...")
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a row for each episode to this .csv or .parquet file. Rows that are there are kept, and their "
    "episodes not played again.",
)
@click.option(
    "--rows",
    "more",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also take the rows of this file, such as another shard's. Repeatable.",
)
@add_episode_options(10)
@click.option(
    "--epsilon",
    default=0.001,
    metavar="E",
    type=click.FloatRange(0, 1),
    help="Probability of a random action, drawn by the seed.",
)
@click.option(
    "--max-steps",
    metavar="N",
    type=click.IntRange(1),
    help="Cut each episode after N steps. The return of a cut episode is no score.",
)
@click.option(
    "--backend",
    default="reference",
    metavar="NAME",
    help="What plays: the checkpoint in torch, or an artefact of a converted agent.",
)
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "gpu"]), help="Where the network runs.")
@add_protocol
@click.option(
    "--identity",
    metavar="FAMILY/Game[/SEED[/STEP]]",
    help="Who the agent is, for a single one whose path does not tell.",
)
@click.option(
    "--files-from",
    type=click.File(encoding="utf-8", errors="surrogateescape"),
    metavar="FILE|-",
    help="Also play with the agents listed here.",
)
@click.option("--anonymous", is_flag=True, help="Read gs:// and s3:// without credentials, for public buckets.")
@add_selection_options
@click.option("--shard", metavar="K/N", callback=parse_shard, help="Play with part K of N only.")
@add_engine_options("play with")
@click.option(
    "--plots",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write learning curves, the interquartile mean over games and the performance profile to this folder, as SVG "
    "and PNG.",
)
@click.option(
    "--baseline",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw the training returns of Dopamine's baselines/atari/data/GAME.json beside. Repeatable.",
)
@click.option(
    "--card",
    is_flag=True,
    help="Write the score of each agent into the model card in its huggingface/, for converted agents.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print problems only.")
def command(
    sources: tuple[str, ...],
    out: Path | None,
    more: tuple[Path, ...],
    episodes: int,
    first_seed: int,
    epsilon: float,
    max_steps: int | None,
    backend: str,
    device: str,
    protocol: str | None,
    identity: str | None,
    files_from: IO[str] | None,
    anonymous: bool,
    families: tuple[str, ...],
    games: tuple[str, ...],
    seeds: tuple[str, ...],
    steps: tuple[str, ...],
    shard: tuple[int, int] | None,
    workers: int,
    engine: str,
    ray_address: str | None,
    plots: Path | None,
    baseline: tuple[Path, ...],
    card: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure unclipped returns of whole episodes, under the agent's own protocol.

    AGENT is a checkpoint, the folder of a converted agent, or a folder to search, as a path or a URL. Scores are
    shown as mean ± standard deviation over episodes, and normalised: random play is 0 %, a person 100 %; five games of
    the release have no references. Rerun the same command with -o to resume.

    Exit codes: 0 all agents played; 1 some could not; 2 the command line is wrong; 130 interrupted.
    """
    from convert.bulk.engines import make_engine
    from convert.bulk.selection import Filter, find_jobs, select_jobs
    from convert.sources import parse_identity
    from runtime_check.backends import find_backend
    from runtime_check.scores import rows as files
    from runtime_check.scores.run import Work, run
    from runtime_check.scores.summary import format_table, score_agents, to_document

    if not sources and files_from is None and not more:
        raise click.UsageError(
            "Missing argument 'AGENT...': name a checkpoint or a folder, or --rows of an earlier run"
        )
    try:
        if out is not None:
            files.check_name(out)
        if card:
            _check_card(epsilon, max_steps)
        work = Work(episodes, first_seed, epsilon, max_steps, find_backend(backend).name, device, protocol, anonymous)
        known = [row for path in more for row in files.read(path)]
        jobs: list[Job] = []
        if sources or files_from is not None:
            who = parse_identity(identity) if identity else None
            found = find_jobs(sources, "scores", who, listed=files_from or (), anonymous=anonymous)
            jobs = select_jobs(found, Filter(families, games, seeds, steps), shard)
        run_on = make_engine(engine, ray_address, workers, len(jobs))
    except AtariConvertError as error:
        raise click.UsageError(str(error)) from error
    with github.obey_nothing():
        outcomes = _keep(jobs, work, known, run_on, out) if out else run(jobs, work, known, run_on)
        rows, failed = _play(outcomes, len(jobs), _write_card if card else None)
        scores = score_agents({row.key: row for row in (*known, *rows)}.values())
        if as_json:
            click.echo(json.dumps(to_document(scores), indent=2))
        elif not quiet:
            click.echo(format_table(scores))
    if plots is not None and scores:
        _draw(plots, scores, baseline)
    sys.exit(1 if failed else 0)


def _keep(jobs: list[Job], work: Work, known: list[Row], run_on: Engine, out: Path) -> Generator[Outcome, None, None]:
    """Play, and keep every row in a file."""
    from runtime_check.scores import rows as files
    from runtime_check.scores.run import Journal, run

    journal = Journal(out)
    before = [*(files.read(out) if out.exists() else ()), *journal.read()]
    every = {row.key: row for row in before}
    with journal.open(every.values()) as add:
        for outcome in run(jobs, work, [*known, *every.values()], run_on):
            new = [row for row in outcome.rows if row.key not in every]
            every |= {row.key: row for row in new}
            add(new)
            yield outcome
        files.write(out, sorted(every.values(), key=lambda row: (row.agent, row.key[6:])))
    journal.remove()


def _check_card(epsilon: float, max_steps: int | None) -> None:
    from runtime_check.card import check_epsilon

    check_epsilon(epsilon)
    if max_steps is not None:
        raise click.UsageError("--card: returns of episodes that --max-steps cuts are no scores")


def _write_card(outcome: Outcome) -> None:
    """Write what an agent scored into its model card.

    Raises:
        AtariConvertError: it is not the folder of a converted agent with a card, or was changed.
    """
    from convert.formats.model_cards import Returns
    from convert.sources import read_record
    from runtime_check.card import add_returns
    from runtime_check.scores.summary import score_agents

    if outcome.job.kind is None:
        raise CheckError(f"{outcome.job.source}: a checkpoint has no model card: name the folder of a converted agent")
    (score,) = score_agents(outcome.rows)
    if outcome.rows[0].protocol != read_record(outcome.job.source).agent.identity.protocol:
        raise CheckError(f"{outcome.job.source}: no card for returns under another protocol: leave out --protocol")
    if score.mean is not None and score.std is not None:
        returns = Returns(score.mean, score.std, score.n, outcome.rows[0].epsilon)
        add_returns(Path(outcome.job.source), returns)


def _play(
    outcomes: Generator[Outcome, None, None], total: int, finish: Callable[[Outcome], None] | None
) -> tuple[list[Row], int]:
    """Print problems and progress as outcomes come; return the rows, and how many agents could not play.

    Args:
        outcomes: of the agents.
        total: how many agents there are.
        finish: is called with each outcome of an agent that played. Its errors are problems of the agent.
    """
    rows: list[Row] = []
    failed = 0
    with closing(outcomes):
        for number, outcome in enumerate(outcomes, 1):
            rows += outcome.rows
            error = outcome.error
            if error is None and finish is not None:
                try:
                    finish(outcome)
                except AtariConvertError as problem:
                    error = problem
            if error is not None:
                failed += 1
                click.echo(f"failed: {to_printable(str(error))}", err=True)
            elif total > 1 and not outcome.is_known:
                click.echo(f"{number}/{total} {to_printable(outcome.job.source)}", err=True)
    return rows, failed


def _draw(folder: Path, scores: Sequence[Score], baseline: Sequence[Path]) -> None:
    from runtime_check.scores.plots import draw

    try:
        for path in draw(folder, scores, baseline):
            click.echo(f"plot: {path}", err=True)
    except (AtariConvertError, OSError) as error:
        raise click.ClickException(str(error)) from error
