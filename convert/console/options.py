"""What several commands take, spelled the same: which agents, where, and lists of names. Loads no framework."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from convert import names

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def split_names(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in the values of a repeatable option. Values without a name are an error."""
    return _check_filled(values, names.split_names(values))


def split_formats(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the targets or backends in the values of a repeatable option, as `split_names` does."""
    return _check_filled(values, names.split_formats(values))


def _check_filled(values: tuple[str, ...], found: tuple[str, ...]) -> tuple[str, ...]:
    if values and not found:
        raise click.BadParameter(f"{values[0]!r} names nothing: leave the option out, or give it a name")
    return found


def complete_from(list_names: Callable[[], Iterable[str]]) -> _Completer:
    """Return a completer for an option that takes names, in any letter case, and several with commas between them."""

    def complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        before, comma, started = incomplete.rpartition(",")
        taken = before.lower().split(",")
        fitting = [name for name in list_names() if name.lower().startswith(started.lower())]
        return [f"{before}{comma}{name}" for name in fitting if name.lower() not in taken]

    return complete


def list_target_names() -> list[str]:
    """Return every target's name."""
    from convert.targets import list_targets

    return [target.name for target in list_targets()]


def list_game_names() -> list[str]:
    """Return the games of the release."""
    from convert.agents.games import load_games

    return list(load_games())


def list_family_names() -> list[str]:
    """Return the families of the release."""
    from convert.formats.atari_agents import FAMILIES

    return list(FAMILIES)


def add_selection_options(command: _Command) -> _Command:
    """Add the options that say which agents: ``families``, ``games``, ``seeds``, ``steps``."""
    options = (
        _make_filter("--family", "families", "PATTERN", list_family_names, "Only these families, such as 'DQN*'."),
        _make_filter("--game", "games", "PATTERN", list_game_names, "Only these games, such as 'Space*'."),
        _make_filter("--seed", "seeds", "PATTERN", list, "Only agents trained with these seeds."),
        _make_filter(
            "--steps",
            "steps",
            "WHICH",
            lambda: ["latest", "final"],
            "Only these steps of training: latest (of each training run), final (50,000,000), a step (250000), a "
            "range (1000000:2000000) or a pattern ('*000000').",
        ),
    )
    return _add(command, options)


def _make_filter(
    flag: str, name: str, kind: str, list_names: Callable[[], Iterable[str]], text: str
) -> Callable[[_Command], _Command]:
    return click.option(
        flag,
        name,
        multiple=True,
        metavar=f"{kind},...",
        callback=split_names,
        shell_complete=complete_from(list_names),
        help=f"{text} Repeatable.",
    )


def add_engine_options(verb: str) -> Callable[[_Command], _Command]:
    """Return what adds the options that say where agents are done: ``workers``, ``engine``, ``ray_address``."""
    options = (
        click.option(
            "-j",
            "--jobs",
            "workers",
            default=1,
            show_default=True,
            type=click.IntRange(0),
            help=f"Number of agents to {verb} in parallel; 0 means one per processor.",
        ),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="Run local processes or Ray tasks.",
        ),
        click.option(
            "--ray-address", metavar="ADDRESS", help="Address of a Ray cluster. Default: start one on this machine."
        ),
    )
    return lambda command: _add(command, options)


def add_episode_options(episodes: int) -> Callable[[_Command], _Command]:
    """Return what adds the options that say which episodes are played: ``episodes``, ``first_seed``.

    Args:
        episodes: how many, by default.
    """
    most = 100_000
    options = (
        click.option(
            "--episodes",
            default=episodes,
            show_default=True,
            metavar="N",
            type=click.IntRange(1, most),
            help="Number of episodes per agent.",
        ),
        click.option(
            "--first-seed",
            default=0,
            show_default=True,
            metavar="N",
            type=click.IntRange(0, 2**31 - most - 1),
            help="Seed of the emulator in the first episode; the next ones count up.",
        ),
    )
    return lambda command: _add(command, options)


def add_ci_options(command: _Command) -> _Command:
    """Add what CI reads of a check: ``--junitxml`` and ``--summary``."""
    option = click.option(
        "--junitxml",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        callback=check_writable,
        help="Write the verdicts as JUnit XML: a suite is an agent, a case a backend.",
    )
    return option(add_summary_option(command))


def add_summary_option(command: _Command) -> _Command:
    """Add ``--summary``."""
    option = click.option(
        "--summary",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        callback=check_writable,
        help="Write a summary as JSON. In GitHub Actions, also add it to the step's summary page.",
    )
    return option(command)


def _add(command: _Command, options: Iterable[Callable[[_Command], _Command]]) -> _Command:
    for option in reversed(list(options)):
        command = option(command)
    return command


def parse_shard(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Return K and N of ``--shard K/N``."""
    from convert.bulk import selection

    try:
        return selection.parse_shard(text) if text else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def format_shard(shard: tuple[int, int] | None) -> str | None:
    """Return ``K/N``."""
    return f"{shard[0]}/{shard[1]}" if shard else None


def check_writable(_context: click.Context, _parameter: click.Parameter, path: str | None) -> str | None:
    """Refuse before the work what could not be written after it."""
    if path is None:
        return None
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise click.BadParameter(f"the folder of {path} does not exist")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise click.BadParameter(f"{path} cannot be written")
    return path
