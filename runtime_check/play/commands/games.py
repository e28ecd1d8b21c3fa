"""``atari-play games``: what can be played, with the modes and difficulties of each game."""

from __future__ import annotations

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """List the games, with their modes and difficulties; each begins with the one that is standard."""
    from convert.agents.games import load_games
    from runtime_check.protocols import list_variations

    click.echo(f"{'game':<18}{'difficulties':<14}modes")
    for game in load_games():
        modes, difficulties = list_variations(game)
        click.echo(f"{game:<18}{' '.join(map(str, difficulties)):<14}{' '.join(map(str, modes))}")
