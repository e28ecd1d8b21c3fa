"""A base folder of Dopamine that atari-convert wrote, or a copy of one, in which training may have gone on."""

from __future__ import annotations

from pathlib import Path

from convert.agents.identity import Identity
from convert.errors import ArtefactMissing
from convert.sources import Checkpoint, check_rules
from convert.sources.agent_folder import read_trained, to_checkpoint
from convert.targets import dopamine, find_target

EXPECTED = "a base folder of Dopamine that atari-convert wrote"
MARKS = ("checkpoints", "origin.json")
EXAMPLE = "copy_of/dopamine"

_TARGET = "dopamine"


def recognise(folder: Path) -> bool:
    """Recognise a folder with checkpoints of Dopamine, also where none is complete."""
    return any((folder / "checkpoints").glob("ckpt.*"))


def read(folder: Path, artefact: str | None = None) -> Checkpoint:
    """Read the latest complete checkpoint, and from ``origin.json`` who the agent was when the folder was written.

    Raises:
        ArtefactMissing: there is no complete checkpoint, no ``origin.json``, or an artefact of another target is meant.
        RecordError: ``origin.json`` is damaged.
        UnreadableArtefact: the checkpoint is damaged, or of another network.
        WeightMismatch: it holds weights that are not finite.
    """
    if artefact not in (None, _TARGET):
        raise ArtefactMissing(f"{folder}: is a base folder of Dopamine: it holds {_TARGET}, not {artefact}")
    origin, _ = dopamine.read_origin(folder)
    check_rules(origin, str(folder / dopamine.ORIGIN_NAME))
    return to_checkpoint(read_trained(find_target(_TARGET), folder, origin), origin)


def identify(folder: Path, artefact: str | None = None) -> Identity:
    """Return who the agent is now: of other weights, the step is that of the latest checkpoint.

    Raises:
        AtariConvertError: see `read`.
    """
    return read(folder, artefact).facts
