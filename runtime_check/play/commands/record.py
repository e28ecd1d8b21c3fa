"""``atari-play record``: a film of an agent's episodes, with sound."""

from __future__ import annotations

from pathlib import Path

import click

from convert.errors import AtariConvertError


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("source", metavar="AGENT")
@click.option(
    "-o",
    "--out",
    required=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The film: .mp4 plays everywhere, .mkv is without loss.",
)
@click.option(
    "--episodes", default=1, metavar="N", type=click.IntRange(1, 1000), help="Number of episodes, one by one."
)
@click.option("--seed", default=0, metavar="N", type=click.IntRange(0, 2**31 - 1001), help="Seed of the first episode.")
@click.option(
    "--epsilon", default=0.001, metavar="E", type=click.FloatRange(0, 1), help="Probability of a random action."
)
@click.option("--mode", metavar="N", type=int, help="The game's mode; atari-play games lists them.")
@click.option("--difficulty", metavar="N", type=int, help="The game's difficulty.")
@click.option(
    "--backend", default="reference", metavar="NAME", help="What plays: the checkpoint in torch, or an artefact."
)
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "gpu"]), help="Where the network runs.")
@click.option("--identity", metavar="FAMILY/Game[/SEED[/STEP]]", help="Who the agent is, if its path does not tell.")
@click.option(
    "--fps", default="60", type=click.Choice(["60", "15"]), help="Pictures a second: every frame, or one a step."
)
@click.option(
    "--scale", default=2, metavar="N", type=click.IntRange(1, 8), help="Size: 320·N × 210·N pixels, shown as 4:3."
)
@click.option(
    "--max-seconds", default=120.0, metavar="S", type=click.FloatRange(1), help="Cut the film after S seconds."
)
@click.option("--anonymous", is_flag=True, help="Read gs:// and s3:// without credentials, for public buckets.")
def command(
    source: str,
    out: Path,
    episodes: int,
    seed: int,
    epsilon: float,
    mode: int | None,
    difficulty: int | None,
    backend: str,
    device: str,
    identity: str | None,
    fps: str,
    scale: int,
    max_seconds: float,
    anonymous: bool,
) -> None:
    """Record episodes of an agent, with the sound of the game.

    AGENT is a checkpoint or the folder of a converted agent, as a path or a URL. It plays under its own protocol.
    """
    from convert.bulk.selection import find_jobs
    from convert.runtimes import Settings
    from convert.sources import parse_identity
    from runtime_check.backends import find_backend
    from runtime_check.play.recording import FRAMES_PER_SECOND, Recorder, check_name
    from runtime_check.players import open_player
    from runtime_check.protocols import Variation, check_variation
    from runtime_check.replay import Plan, Replay

    try:
        check_name(out)
        jobs = find_jobs([source], "film", parse_identity(identity) if identity else None, anonymous=anonymous)
        if len(jobs) > 1:
            raise click.UsageError(f"{source}: holds {len(jobs)} agents, expected one: name its file or folder")
        player = open_player(jobs[0], find_backend(backend).name, Settings(device), anonymous=anonymous)
        variation = Variation(mode, difficulty)
        check_variation(player.game, variation)
        plan = Plan(
            player.game,
            player.protocol,
            player.agent.head.actions,
            seed,
            episodes,
            epsilon=epsilon,
            variation=variation,
        )
        most, returns = int(max_seconds * FRAMES_PER_SECOND), []
        with Recorder(out, scale=scale, stride=FRAMES_PER_SECOND // int(fps)) as recorder:
            replay = Replay(plan, 1, recorder.add)
            while recorder.frames < most and (batch := replay.observe()):
                actions = player.answer(batch.obs_nchw)["q_values"].argmax(axis=1)
                returns += [log.episode_return for log in replay.act(actions)]
    except (AtariConvertError, OSError) as error:
        raise click.UsageError(str(error)) from error
    seconds = recorder.frames / FRAMES_PER_SECOND
    click.echo(
        f"{out}: {seconds:.1f} s of {player.game}; returns {', '.join(f'{value:g}' for value in returns) or '–'}"
    )
    if len(returns) < episodes:
        click.echo(
            f"note: cut after --max-seconds {max_seconds:g}, in episode {len(returns) + 1} of {episodes}", err=True
        )
