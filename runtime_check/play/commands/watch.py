"""``atari-play watch``: an agent's episodes in a window, with sound."""

from __future__ import annotations

import click

from convert.errors import AtariConvertError
from runtime_check.play.options import KEYS, Wanted, add_player_options, add_window_options


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, epilog=KEYS)
@add_player_options
@click.option("--overlay", is_flag=True, help="Show what the network answers beside the game.")
@add_window_options
def command(wanted: Wanted, overlay: bool, scale: int, mute: bool) -> None:
    """Watch episodes of an agent in a window, with the sound of the game.

    AGENT is a checkpoint or the folder of a converted agent, as a path or a URL. It plays under its own protocol.
    """
    from runtime_check.play.opening import open_show
    from runtime_check.play.pictures import Painter
    from runtime_check.play.scenes import play_episode
    from runtime_check.play.stage import format_episode, show_episode
    from runtime_check.play.window import QUIT, Window

    try:
        show = open_show(wanted)
        painter = Painter(show.names, show.actions, scale=scale, overlay=overlay)
        with Window(show.title, painter, mute=mute) as window:
            for index in range(show.plan.episodes):
                scenes = play_episode(show.answers, show.plan, index, lambda _: window.find_action(show.actions))
                scene, wish = show_episode(window, scenes)
                click.echo(format_episode(wanted.seed + index, show.names, scene, wish))
                if wish == QUIT:
                    break
    except (AtariConvertError, OSError) as error:
        raise click.UsageError(str(error)) from error
