"""Episode logs that are played once more."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from convert.errors import CheckError
from convert.files.documents import show
from runtime_check.play.scenes import Scene
from runtime_check.protocols import draw_noops, find_actions, find_protocol
from runtime_check.replay import EpisodeLog, Plan, from_json_line

_LONGEST_LINE = 2**20  # bytes; the longest episode, of 27,000 steps, takes 54,000


def read_line(path: Path, number: int) -> EpisodeLog:
    """Return the episode in a line of a log, from 1.

    Raises:
        CheckError: there is no such line, it is not an episode, or it was played by another emulator.
        OSError: the file cannot be read.
    """
    line = b""
    with path.open("rb") as file:
        for place in range(1, number + 1):
            line = file.readline(_LONGEST_LINE + 1)
            if not line:
                raise CheckError(f"{path}: has {place - 1} lines, expected line {number}")
            if len(line) > _LONGEST_LINE:
                raise CheckError(f"{path}: line {place} is longer than {_LONGEST_LINE} bytes: not an episode log")
    try:
        log = from_json_line(line.decode("utf-8", "replace"))
    except CheckError as error:
        raise CheckError(f"{path}, line {number}: {error}") from error
    here = version("ale-py")
    if log.ale not in (None, here):
        raise CheckError(
            f"{path}: played with ale-py {show(log.ale)}, here is {here}: install that version to replay it"
        )
    return log


def plan_log(log: EpisodeLog) -> tuple[Plan, tuple[str, ...]]:
    """Return what plays a log once more, and the meanings of its actions.

    Raises:
        CheckError: it is not of a game that can be played here, or began otherwise than its seed does here.
    """
    protocol = find_protocol(log.protocol)
    actions = find_actions(log.game, log.head_actions, protocol.action_set)
    noops = draw_noops(protocol, log.seed)
    if log.noops != noops:
        raise CheckError(f"the log of {log.game}, seed {log.seed}, began with {log.noops} no-ops, here it is {noops}")
    return Plan(log.game, protocol, log.head_actions, log.seed, max_steps=len(log.actions)), actions


def check_return(log: EpisodeLog, end: Scene | None) -> None:
    """Raise unless a log that was played once more had the return that it tells.

    Raises:
        CheckError: it had another one.
    """
    played = 0.0 if end is None else end.returns[0]
    if played != log.episode_return:
        raise CheckError(
            f"the log tells a return of {log.episode_return:g}, its replay had {played:g}: not the same game"
        )
