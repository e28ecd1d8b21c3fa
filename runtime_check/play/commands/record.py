"""``atari-play record``: a film of an agent's episodes, with sound."""

from __future__ import annotations

from pathlib import Path

import click

from convert.errors import AtariConvertError
from runtime_check.play.options import Film, Wanted, add_film_options, add_player_options


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@add_player_options
@add_film_options
@click.option(
    "--card",
    is_flag=True,
    help="Record replay.mp4 in the huggingface/ of AGENT, a converted agent's folder: the Hugging Face Hub plays it.",
)
def command(wanted: Wanted, out: Path | None, film: Film, card: bool) -> None:
    """Record episodes of an agent, with the sound of the game.

    AGENT is a checkpoint or the folder of a converted agent, as a path or a URL. It plays under its own protocol.
    """
    if (out is None) != card:
        raise click.UsageError("name the film: -o FILE, or --card for the folder of a converted agent")
    try:
        if out is not None:
            _record(wanted, out, film, out)
        else:
            _record_card(wanted, film)
    except (AtariConvertError, OSError) as error:
        raise click.UsageError(str(error)) from error


def _record_card(wanted: Wanted, film: Film) -> None:
    from convert.files.disk import make_temporary_folder
    from convert.targets import find_target
    from runtime_check.card import FILM_NAME, TARGET, add_film, check_card

    folder = Path(wanted.source)
    check_card(folder)
    with make_temporary_folder() as temporary:
        path = Path(temporary, FILM_NAME)
        _record(wanted, path, film, folder / find_target(TARGET).path / FILM_NAME)
        add_film(folder, path.read_bytes())
    click.echo(f"{folder}: {FILM_NAME} is in agent.json; a proof from before no longer holds: check the agent again")


def _record(wanted: Wanted, out: Path, film: Film, shown: Path) -> None:
    """Record a film, and print what it shows under the name of the path where it will be."""
    from runtime_check.play.filming import Camera, format_film
    from runtime_check.play.opening import open_show
    from runtime_check.play.pictures import Painter
    from runtime_check.play.scenes import play_episode

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
    click.echo(format_film(shown, camera.recorder.frames, show.plan.game, show.names, ends, parted))
    if len(ends) < show.plan.episodes:
        click.echo(
            f"note: cut after --max-seconds {film.max_seconds:g}, in episode {len(ends) + 1} of {show.plan.episodes}",
            err=True,
        )
