"""What the commands take that show an agent: who plays, and which episodes. Loads no framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from convert.console.options import complete_from
from runtime_check.choices import add_protocol, list_backend_names

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Wanted:
    """Who is to play, and which episodes, as the command line has it."""

    source: str
    backends: tuple[str, ...]
    device: str
    identity: str | None
    anonymous: bool
    episodes: int
    seed: int
    epsilon: float
    mode: int | None
    difficulty: int | None
    protocol: str | None


@dataclass(frozen=True)
class Film:
    """How a film is made, as the command line has it. fps: None for the first rate of the format."""

    fps: int | None
    scale: int
    speed: int
    overlay: bool
    max_seconds: float


KEYS = """\b
Keys of the window:
  P    pause, and go on      N    next episode
  .    one step              O    what the network answers, on and off
  - +  slower, faster        S    save a picture
  T    take over with the arrow keys and space (FIRE), and give back
  M    sound off, and on     Esc  quit
"""


add_mute = click.option("--mute", is_flag=True, help="Open no sound device.")
add_seed = click.option(
    "--seed", default=0, metavar="N", type=click.IntRange(0, 2**31 - 1001), help="Seed of the first episode."
)
add_mode = click.option("--mode", metavar="N", type=int, help="The game's mode; atari-play games lists them.")
add_difficulty = click.option("--difficulty", metavar="N", type=int, help="The game's difficulty.")
add_device = click.option(
    "--device", default="auto", type=click.Choice(["auto", "cpu", "gpu"]), help="Where the network runs."
)
add_identity = click.option(
    "--identity", metavar="FAMILY/Game[/SEED[/STEP]]", help="Who the agent is, if its path does not tell."
)
add_anonymous = click.option(
    "--anonymous", is_flag=True, help="Read gs:// and s3:// without credentials, for public buckets."
)


def add_window_options(command: _Command) -> _Command:
    """Add the options of a window: ``scale``, ``mute``."""
    scale = click.option(
        "--scale", default=3, metavar="N", type=click.IntRange(1, 8), help="Size of the window: 280·N × 210·N."
    )
    return scale(add_mute(command))


def add_player_options(command: _Command) -> _Command:
    """Add the argument AGENT and the options that say what plays; the command gets them as ``wanted``, a `Wanted`."""
    options = (
        click.argument("source", metavar="AGENT"),
        click.option(
            "--backend",
            "backends",
            multiple=True,
            default=("reference",),
            metavar="NAME",
            shell_complete=complete_from(list_backend_names),
            help="What plays: the checkpoint in torch, or an artefact. Several play the same episode, side by side.",
        ),
        add_device,
        add_identity,
        add_anonymous,
        click.option(
            "--episodes", default=1, metavar="N", type=click.IntRange(1, 1000), help="Number of episodes, one by one."
        ),
        add_seed,
        click.option(
            "--epsilon", default=0.001, metavar="E", type=click.FloatRange(0, 1), help="Probability of a random action."
        ),
        add_mode,
        add_difficulty,
        add_protocol,
    )
    return _add_packed(command, Wanted, "wanted", options)


def add_film_options(command: _Command) -> _Command:
    """Add the options that say how a film is made; the command gets ``out``, which may be None, and ``film``."""
    out = click.option(
        "-o",
        "--out",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The film: .mp4 plays everywhere, .mkv is without loss, .gif and .webp have no sound.",
    )
    options = (
        click.option(
            "--fps",
            type=click.Choice([60, 15]),
            help="Pictures a second: every frame, or one a step.  [default: 60; of .gif and .webp 15]",
        ),
        click.option(
            "--scale",
            default=2,
            metavar="N",
            type=click.IntRange(1, 8),
            help="Size: 320·N × 210·N pixels, shown as 4:3.",
        ),
        click.option(
            "--speed",
            default=1,
            metavar="N",
            type=click.IntRange(1, 60),
            help="Show the game N times as fast, without sound.",
        ),
        click.option("--overlay", is_flag=True, help="Show what the network answers beside the game."),
        click.option(
            "--max-seconds",
            default=120.0,
            metavar="S",
            type=click.FloatRange(1),
            help="Cut the film after S seconds of the game.",
        ),
    )
    return out(_add_packed(command, Film, "film", options))


def _add_packed(command: _Command, kind: type[Any], name: str, options: Sequence[Callable[..., Any]]) -> _Command:
    """Add options to a command, which gets their values as one, a dataclass with a field for each."""

    @wraps(command)
    def pack(**values: Any) -> Any:
        packed = kind(**{each.name: values.pop(each.name) for each in fields(kind)})
        return command(**{name: packed}, **values)

    with_options: Any = pack
    for option in reversed(options):
        with_options = option(with_options)
    return with_options  # type: ignore[no-any-return]
