"""A base folder of Dopamine: its own, or one that atari-convert wrote, in which training may have gone on."""

from __future__ import annotations

import os
from pathlib import Path

from convert.agents.identity import Identity
from convert.errors import ArtefactMissing
from convert.files.disk import read_file
from convert.formats import dopamine
from convert.sources import Checkpoint, check_rules
from convert.sources.agent_folder import read_trained, to_checkpoint
from convert.store.folders import describe_bytes
from convert.targets import dopamine as target
from convert.targets import find_target

EXPECTED = "a base folder of Dopamine"
MARKS = ("checkpoints",)
EXAMPLE = "copy_of/dopamine"

_TARGET = "dopamine"


def recognise(folder: Path) -> bool:
    """Recognise a folder with checkpoints of Dopamine, also where none is complete."""
    return any((folder / "checkpoints").glob("ckpt.*"))


def read(folder: Path, artefact: str | None = None) -> Checkpoint:
    """Read the latest complete checkpoint.

    Where there is an ``origin.json``, it tells who the agent was when the folder was written; else the agent is one of
    Dopamine's own.

    Raises:
        ArtefactMissing: there is no complete checkpoint, or an artefact of another target is meant.
        RecordError: ``origin.json`` is damaged.
        CheckpointError, UnreadableArtefact: the checkpoint is damaged, or of another network.
        WeightMismatch: it holds weights that are not finite.
    """
    if artefact not in (None, _TARGET):
        raise ArtefactMissing(f"{folder}: is a base folder of Dopamine: it holds {_TARGET}, not {artefact}")
    if not os.path.lexists(folder / dopamine.ORIGIN_NAME):
        return _read_own(folder)
    origin, _ = target.read_origin(folder)
    check_rules(origin, str(folder / dopamine.ORIGIN_NAME))
    return to_checkpoint(read_trained(find_target(_TARGET), folder, origin), origin)


def _read_own(folder: Path) -> Checkpoint:
    """Read the latest checkpoint, which is the source for the record, as one of Dopamine's own agents."""
    path = dopamine.find_latest(folder)
    data = read_file(path)
    network, facts = dopamine.read(data, str(path))
    source = describe_bytes(data, f"{folder.absolute().name}/{path.relative_to(folder).as_posix()}")
    return Checkpoint(network, facts, source)


def identify(folder: Path, artefact: str | None = None) -> Identity:
    """Return who the agent is now: of other weights, the step is that of the latest checkpoint.

    Raises:
        AtariConvertError: see `read`.
    """
    return read(folder, artefact).facts
