"""``atari-play replay``: an episode of an episode log, watched or recorded."""

from __future__ import annotations

from pathlib import Path

import click

from convert.errors import AtariConvertError
from runtime_check.play.options import KEYS, Film, add_film_options, add_mute


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, epilog=KEYS)
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--line", "number", default=1, metavar="N", type=click.IntRange(1), help="Which line of the log, from 1.")
@add_film_options
@add_mute
def command(log: Path, number: int, out: Path | None, film: Film, mute: bool) -> None:
    """Watch an episode of an episode log, or record it with -o. No network is needed.

    LOG is the episodes.jsonl of a report of atari-check. The emulator repeats the episode frame by frame.
    """
    from runtime_check.play.filming import Camera, format_film
    from runtime_check.play.logs import check_return, plan_log, read_line
    from runtime_check.play.pictures import Painter
    from runtime_check.play.scenes import play_episode
    from runtime_check.play.stage import format_episode, show_episode
    from runtime_check.play.window import Window

    try:
        episode = read_line(log, number)
        plan, actions = plan_log(episode)
        painter = Painter(["log"], actions, scale=film.scale, overlay=film.overlay)
        scenes = play_episode([None], plan, 0, lambda step: episode.actions[step])
        if out is None:
            with Window(f"{plan.game} log", painter, mute=mute) as window:
                scene, wish = show_episode(window, scenes)
            click.echo(format_episode(plan.seed, ["log"], scene, wish))
            is_whole = wish is None
        else:
            camera = Camera(out, film, painter, 1)
            with camera.recorder:
                scene, is_cut = camera.film(scenes)
            ends = [] if is_cut or scene is None else [scene]
            click.echo(format_film(out, camera.recorder.frames, plan.game, ["log"], ends, None))
            is_whole = not is_cut
        if is_whole:
            check_return(episode, scene)
    except (AtariConvertError, OSError) as error:
        raise click.UsageError(str(error)) from error
