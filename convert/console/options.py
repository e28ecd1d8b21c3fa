"""What both commands take: lists of names, and their completion in a shell. Loads no framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from convert import names

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
