"""Many agents: play whole episodes of each on an engine, and keep every row as it comes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import ale_py

from convert.bulk.engines import Engine, Task, run_here
from convert.bulk.selection import Job
from convert.errors import AtariConvertError
from convert.formats.atari_agents import find_family
from convert.pipeline import to_known
from convert.runtimes import Settings
from runtime_check.backends import REFERENCE
from runtime_check.players import Player, open_player
from runtime_check.replay import EpisodeLog, Plan, Replay
from runtime_check.scores.rows import CUT, GAME_OVER, TIME_LIMIT, Row, from_csv, to_csv

SIDE_BY_SIDE = 16


@dataclass(frozen=True)
class Work:
    """How each agent plays.

    episodes: how many, each with the next seed after ``seed``. max_steps: where an episode is cut; None for no bound
    but the protocol's. epsilon: the probability of a random action. backend, device: what answers, and where.
    protocol: the name of the one that is played; None for each agent's own.
    """

    episodes: int = 10
    seed: int = 0
    epsilon: float = 0.001
    max_steps: int | None = None
    backend: str = REFERENCE
    device: str = "auto"
    protocol: str | None = None
    anonymous: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of an agent: its rows, or why it could not play. is_known: its rows are those of an earlier run."""

    job: Job
    rows: tuple[Row, ...] = ()
    error: AtariConvertError | None = None
    is_known: bool = field(default=False)


def run(
    jobs: Sequence[Job], work: Work, known: Collection[Row] = (), engine: Engine = run_here
) -> Generator[Outcome, None, None]:
    """Play with each agent and yield the outcomes as they come; a bad agent never stops the rest.

    Args:
        jobs: checkpoints and agents' folders.
        work: how they play.
        known: rows of earlier runs. An agent whose episodes are all among them is not played again.
        engine: where.
    """
    task = Task(_prepare, partial(play_job, work, frozenset(row.key for row in known)), _fail)
    by_key = {row.key: row for row in known}
    with closing(engine(task, jobs)) as outcomes:
        for outcome in outcomes:
            if outcome.is_known:
                outcome = replace(outcome, rows=tuple(by_key[row.key] for row in outcome.rows))
            yield outcome


def play_job(work: Work, known: Collection[tuple[object, ...]], job: Job) -> Outcome:
    """Play with one agent. Whatever is wrong with it is part of the outcome."""
    try:
        settings = Settings(work.device, batch=min(work.episodes, SIDE_BY_SIDE))
        player = open_player(job, work.backend, settings, work.protocol, anonymous=work.anonymous)
        expected = [_to_row(work, player, seed) for seed in range(work.seed, work.seed + work.episodes)]
        if all(row.key in known for row in expected):
            return Outcome(job, tuple(expected), is_known=True)
        return Outcome(job, tuple(play(work, player)))
    except Exception as error:  # noqa: BLE001  an unexpected error must not stop thousands of agents
        return _fail(job, to_known(error, job.source))


def play(work: Work, player: Player) -> list[Row]:
    """Play whole episodes side by side; return their rows in the order of their seeds."""
    actions = player.agent.head.actions
    plan = Plan(player.game, player.protocol, actions, work.seed, work.episodes, work.max_steps, work.epsilon)
    replay, rows = Replay(plan, min(work.episodes, SIDE_BY_SIDE)), []
    while batch := replay.observe():
        q_values = player.answer(batch.obs_nchw)["q_values"]
        for log in replay.act(q_values.argmax(axis=1)):
            found = _to_row(work, player, log.seed)
            rows.append(
                replace(found, score=log.episode_return, steps=len(log.actions), ending=_find_ending(log, player))
            )
    return sorted(rows, key=lambda row: row.episode)


def _find_ending(log: EpisodeLog, player: Player) -> str:
    if not log.game_over:
        return CUT
    frames = len(log.actions) * player.protocol.frame_skip + log.noops
    return TIME_LIMIT if frames >= player.protocol.max_frames else GAME_OVER


def _to_row(work: Work, player: Player, episode: int) -> Row:
    agent, identity = player.agent, player.agent.identity
    family = find_family(identity) or identity.algorithm or "unknown"
    return Row(
        zoo=identity.zoo or "unknown",
        family=family,
        game=player.game,
        seed=identity.seed,
        step=identity.step,
        source=agent.source.path,
        sha256=agent.source.sha256,
        backend=player.backend,
        protocol=player.protocol.name,
        epsilon=work.epsilon,
        max_steps=work.max_steps,
        ale=ale_py.__version__,
        episode=episode,
        score=0.0,
        steps=0,
        ending=GAME_OVER,
    )


def _prepare() -> None:
    """Nothing to load: which framework an agent needs, its backend tells."""


def _fail(job: Job, error: AtariConvertError) -> Outcome:
    return Outcome(job, error=error)


class Journal:
    """The rows of a run that has not ended, beside the file that it is to write; a killed run leaves it."""

    def __init__(self, path: Path) -> None:
        """Take the path of the file that is to be written."""
        self.path = path.with_name(f"{path.name}.part")

    def read(self) -> list[Row]:
        """Return the rows that a killed run left."""
        try:
            return from_csv(self.path.read_text("utf-8"), str(self.path), is_whole=False)
        except FileNotFoundError:
            return []

    @contextmanager
    def open(self, rows: Iterable[Row]) -> Generator[Callable[[Iterable[Row]], None], None, None]:
        """Begin with these rows, and give what adds those of an agent: a kill of this process keeps what was added."""
        with self.path.open("w", encoding="utf-8") as file:

            def add(rows: Iterable[Row], *, header: bool = False) -> None:
                file.write(to_csv(rows, header=header))
                file.flush()

            add(rows, header=True)
            yield add

    def remove(self) -> None:
        """Remove it: its rows stand in the file now."""
        self.path.unlink(missing_ok=True)
