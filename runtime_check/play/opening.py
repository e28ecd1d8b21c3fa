"""From what a command line asks for to players that are ready to play."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from convert.agents.games import FULL_ACTION_SET, load_games
from convert.bulk.selection import find_jobs
from convert.errors import CheckError
from convert.names import split_formats
from convert.runtimes import Answer, Settings
from convert.sources import parse_identity
from runtime_check.backends import find_backend
from runtime_check.play.options import Wanted
from runtime_check.players import Player, open_player
from runtime_check.protocols import Variation, check_variation, find_actions, find_protocol, read_rom
from runtime_check.replay import Plan


@dataclass(frozen=True, eq=False)
class Show:
    """Players of one agent, and what they play. actions: the meanings of the head's actions, in its order."""

    players: tuple[Player, ...]
    plan: Plan
    actions: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The backends, in order."""
        return [player.backend for player in self.players]

    @property
    def answers(self) -> list[Answer]:
        """What each answers."""
        return [player.answer for player in self.players]

    @property
    def title(self) -> str:
        """Who plays what."""
        identity = self.players[0].agent.identity
        return " ".join(filter(None, (identity.game, identity.algorithm)))


def open_show(wanted: Wanted) -> Show:
    """Open every backend of an agent.

    Raises:
        AtariConvertError: there is no such agent or backend, it cannot be read, or the game has no such mode.
    """
    identity = parse_identity(wanted.identity) if wanted.identity else None
    backends = [find_backend(name).name for name in split_formats(wanted.backends)]
    jobs = find_jobs([wanted.source], "play", identity, anonymous=wanted.anonymous)
    if len(jobs) > 1:
        raise CheckError(f"{wanted.source}: holds {len(jobs)} agents, expected one: name its file or folder")
    players = tuple(
        open_player(jobs[0], name, Settings(wanted.device), wanted.protocol, anonymous=wanted.anonymous)
        for name in backends
    )
    player, variation = players[0], Variation(wanted.mode, wanted.difficulty)
    count = player.agent.head.actions
    actions = find_actions(player.game, count, player.protocol.action_set)
    check_variation(player.game, variation)
    plan = Plan(
        player.game,
        player.protocol,
        count,
        wanted.seed,
        wanted.episodes,
        epsilon=wanted.epsilon,
        variation=variation,
    )
    return Show(players, plan, actions)


def find_game(name: str) -> str:
    """Return the game of this name, in any letter case.

    Raises:
        CheckError: there is none; the message suggests one.
    """
    known = {game.lower(): game for game in load_games()}
    if name.lower() not in known:
        close = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {known[close[0]]}? " if close else ""
        raise CheckError(f"no game {name!r}: {hint}atari-play games lists them")
    return known[name.lower()]


def plan_human(game: str, wanted: Wanted, opponent: Show | None) -> tuple[Plan, tuple[str, ...]]:
    """Return what a person plays, with every action that the protocol has, and the meanings of the actions.

    Args:
        game: its name in the release's paths.
        wanted: seed, mode, difficulty and protocol, which is by default that of the opponent, or else ``modern``.
        opponent: who plays the same afterwards, if anyone.

    Raises:
        CheckError: there is no such protocol or mode, or the opponent plays another game.
    """
    if opponent is None:
        chosen = find_protocol(wanted.protocol or "modern")
    else:
        chosen = opponent.plan.protocol
        if opponent.plan.game != game:
            raise CheckError(f"{wanted.source}: plays {opponent.plan.game}, not {game}")
    actions = read_rom(game).minimal_actions if chosen.action_set == "minimal" else FULL_ACTION_SET
    variation = Variation(wanted.mode, wanted.difficulty)
    check_variation(game, variation)
    return Plan(game, chosen, len(actions), wanted.seed, variation=variation), actions
