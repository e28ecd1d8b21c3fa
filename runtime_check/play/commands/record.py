"""``atari-play record``: a film of an agent's episodes, with sound."""

from __future__ import annotations

from pathlib import Path

import click

from convert.errors import AtariConvertError
from runtime_check.play.options import Film, Wanted, add_film_options, add_player_options


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@add_player_options
@add_film_options(required=True)
def command(wanted: Wanted, out: Path, film: Film) -> None:
    """Record episodes of an agent, with the sound of the game.

    AGENT is a checkpoint or the folder of a converted agent, as a path or a URL. It plays under its own protocol.
    """
    from runtime_check.play.filming import Camera, format_film
    from runtime_check.play.opening import open_show
    from runtime_check.play.pictures import Painter
    from runtime_check.play.scenes import play_episode

    try:
        show = open_show(wanted)
        painter = Painter(show.names, show.actions, scale=film.scale, overlay=film.overlay)
        camera, ends, parted = Camera(out, film, painter, len(show.names)), [], None
        with camera.recorder:
            for index in range(show.plan.episodes):
                scene, is_cut = camera.film(play_episode(show.answers, show.plan, index))
                parted = parted if parted is not None or scene is None else scene.parted
                if is_cut or scene is None:
                    break
                ends.append(scene)
    except (AtariConvertError, OSError) as error:
        raise click.UsageError(str(error)) from error
    click.echo(format_film(camera, show.plan.game, show.names, ends, parted))
    if len(ends) < show.plan.episodes:
        click.echo(
            f"note: cut after --max-seconds {film.max_seconds:g}, in episode {len(ends) + 1} of {show.plan.episodes}",
            err=True,
        )
