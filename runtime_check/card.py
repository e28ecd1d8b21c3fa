"""Write measured returns into model cards: ``python -m runtime_check.card REPORT/check.json``.

For each agent of a report that has a ``huggingface/`` folder, the card's ``model-index`` gets the return of the
checkpoint's episodes, under the agent's own protocol.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from convert.agents.agent import Record
from convert.errors import AtariConvertError, CheckError
from convert.formats.model_cards import Returns, to_model_card
from convert.sources import read_record
from convert.store.local import describe_files, inspect, open_folder, publish
from convert.targets import find_target
from runtime_check.backends import REFERENCE
from runtime_check.check.verification import find_changes
from runtime_check.report.documents import AGREE

TARGET = "safetensors"
CARD_NAME = "README.md"
FILM_NAME = "replay.mp4"
LARGEST_FILM = 64 * 2**20  # bytes
LARGEST_EPSILON = 0.01  # the release's own evaluation explores with 0.001, Dopamine's too


def add_returns(folder: Path, returns: Returns) -> None:
    """Write the card of an agent's ``huggingface/`` anew, and its checksum into ``agent.json``.

    Raises:
        AtariConvertError: the folder has no readable record, cannot be written, or holds other files than recorded.
    """
    agent = read_record(folder).agent
    _add(folder, CARD_NAME, to_model_card(agent, returns).encode())


def add_film(folder: Path, film: bytes) -> None:
    """Put a film into an agent's ``huggingface/``, where the Hub plays it, and its checksum into ``agent.json``.

    Args:
        folder: of the agent.
        film: an MP4 file.

    Raises:
        AtariConvertError: the folder has no readable record or no such artefact, cannot be written, or holds other
            files than recorded; or the film is too large.
    """
    if len(film) > LARGEST_FILM:
        raise CheckError(
            f"{folder}: the film has {len(film)} bytes, expected at most {LARGEST_FILM}: make it shorter, or smaller "
            "with --fps 15"
        )
    _add(folder, FILM_NAME, film)


def check_card(folder: Path) -> Record:
    """Return the record of an agent whose ``huggingface/`` is as recorded.

    Raises:
        AtariConvertError: it has no readable record or no such artefact, or holds other files than recorded.
    """
    record = read_record(folder)
    if TARGET not in record.artifacts:
        raise CheckError(f"{folder}: has no {find_target(TARGET).path}/: run atari-convert --to {TARGET} first")
    changes = find_changes(folder, TARGET, record.artifacts[TARGET])
    if changes:
        raise CheckError(f"{folder}: {'; '.join(changes)}: convert the agent again, then write its card")
    return record


def _add(folder: Path, name: str, content: bytes) -> None:
    """Write a file into an agent's ``huggingface/``, and publish it with its checksum."""
    record, path = check_card(folder), find_target(TARGET).path
    with open_folder(inspect(folder)) as staging:
        shutil.copytree(folder / path, staging.path / path)
        (staging.path / path / name).write_bytes(content)
        artifact = replace(record.artifacts[TARGET], files=describe_files(staging.path, path))
        publish(staging, replace(record, artifacts={**record.artifacts, TARGET: artifact}))


def read_returns(report: Path) -> dict[Path, Returns]:
    """Return what a report measured, by agent folder.

    Raises:
        CheckError: it is not a report, or its returns are not the agent's: it does not agree, its episodes were cut
            short, or it seldom acted itself.
    """
    try:
        document = json.loads(report.read_text("utf-8"))
        agents = [agent for agent in document["agents"] if "returns" in _reference(agent)]
        epsilon = document["options"]["epsilon"]
        measured = {Path(agent["folder"]): _measured(agent, epsilon) for agent in agents}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckError(f"{report}: {error!r}: expected the check.json of atari-check --report") from error
    for agent in agents:
        if agent["verdict"] != AGREE:
            raise CheckError(f"{report}: {agent['folder']} does not agree with its checkpoint: convert it again")
        if agent["protocol"]["name"] != agent["own_protocol"]:
            raise CheckError(f"{report}: {agent['folder']} played another protocol: check without --protocol")
        if agent["episodes"]["max_steps"] is not None:
            raise CheckError(f"{report}: episodes of {agent['folder']} were cut short: check without --max-steps")
    check_epsilon(epsilon)
    return measured


def check_epsilon(epsilon: float) -> None:
    """Raise if a random action is so likely that the returns are not the agent's.

    Raises:
        CheckError: they are not.
    """
    if epsilon > LARGEST_EPSILON:
        raise CheckError(f"--epsilon {epsilon} plays by chance: a card takes at most {LARGEST_EPSILON}")


def _reference(agent: dict[str, Any]) -> dict[str, Any]:
    reference: dict[str, Any] = agent["backends"].get(REFERENCE, {})
    return reference


def _measured(agent: dict[str, Any], epsilon: float) -> Returns:
    returns = _reference(agent)["returns"]
    measured = returns["shadow"] or returns["solo"]
    return Returns(measured["mean"], measured["std"], measured["n"], epsilon)


@click.command()
@click.argument("report", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(report: Path) -> None:
    """Write the returns of REPORT, a check.json, into the model cards of its agents."""
    try:
        for folder, returns in read_returns(report).items():
            if TARGET in read_record(folder).artifacts:
                add_returns(folder, returns)
                click.echo(f"{folder}: {returns.mean:.2f} ± {returns.std:.2f} over {returns.episodes} episodes")
    except AtariConvertError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
