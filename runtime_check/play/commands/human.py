"""``atari-play human``: play a game, under the protocol of the agents."""

from __future__ import annotations

import click

from convert.console.options import complete_from, list_game_names
from convert.errors import AtariConvertError
from runtime_check.choices import list_protocol_names
from runtime_check.play.options import (
    KEYS,
    Wanted,
    add_device,
    add_difficulty,
    add_mode,
    add_seed,
    add_window_options,
)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, epilog=KEYS)
@click.argument("game", shell_complete=complete_from(list_game_names))
@click.option(
    "--against",
    metavar="AGENT",
    help="A checkpoint or the folder of a converted agent: it plays the same seed afterwards.",
)
@click.option(
    "--protocol",
    metavar="NAME",
    shell_complete=complete_from(list_protocol_names),
    help="What you play under, and the agent too.  [default: that of the agent, or else modern]",
)
@add_seed
@add_mode
@add_difficulty
@add_device
@add_window_options
def command(
    game: str,
    against: str | None,
    protocol: str | None,
    seed: int,
    mode: int | None,
    difficulty: int | None,
    device: str,
    scale: int,
    mute: bool,
) -> None:
    """Play a game yourself, with the arrow keys and space, as the agents do: sticky actions and all.

    GAME is a name that atari-play games lists. An action is held for as many frames as an agent's.
    """
    from runtime_check.play.opening import find_game, open_show, plan_human
    from runtime_check.play.pictures import Painter
    from runtime_check.play.scenes import play_episode
    from runtime_check.play.stage import format_episode, show_episode
    from runtime_check.play.window import QUIT, Window

    try:
        name = find_game(game)
        wanted = Wanted(against or "", ("reference",), device, None, False, 1, seed, 0.0, mode, difficulty, protocol)
        show = open_show(wanted) if against else None
        plan, actions = plan_human(name, wanted, show)
        painter = Painter(["you"], actions, scale=scale, overlay=False)
        with Window(f"{name} you", painter, mute=mute, has_taken_over=True) as window:
            scenes = play_episode([None], plan, 0, lambda _: window.find_action(actions))
            mine, wish = show_episode(window, scenes)
            click.echo(format_episode(seed, ["you"], mine, wish))
            if show is None or mine is None or wish == QUIT:
                return
        painter = Painter(show.names, show.actions, scale=scale, overlay=False)
        with Window(show.title, painter, mute=mute) as window:
            theirs, wish = show_episode(window, play_episode(show.answers, show.plan, 0))
        click.echo(format_episode(seed, show.names, theirs, wish))
    except (AtariConvertError, OSError) as error:
        raise click.UsageError(str(error)) from error
