"""Stable-Baselines3, unpacked: the folder of data and policy.pth that Hub repositories hold beside the zip."""

from __future__ import annotations

from pathlib import Path

from convert.agents.identity import Identity, combine
from convert.errors import ArtefactMissing, UnreadableArtefact
from convert.files.disk import read_file
from convert.files.recognition import HEAD_SIZE
from convert.formats import sb3
from convert.sources import Checkpoint
from convert.sources import sb3 as zips
from convert.store.folders import describe_bytes

EXPECTED = "an unpacked zip of Stable-Baselines3"
MARKS = ("data", "policy.pth")
EXAMPLE = "dqn-PongNoFrameskip-v4"


def recognise(folder: Path) -> bool:
    """Recognise the ``data`` of any algorithm of SB3."""
    try:
        return b'"policy_class"' in read_file(folder / sb3.DATA, sb3.LARGEST_DATA)[:HEAD_SIZE]
    except UnreadableArtefact:
        return False


def read(folder: Path, artefact: str | None = None) -> Checkpoint:
    """Read ``policy.pth``, which is the source for the record, by what ``data`` tells of it.

    Raises:
        ArtefactMissing: an artefact of a target is meant.
        UnreadableArtefact: a file is missing, a link, or too large.
        CheckpointError: see `convert.formats.sb3.read_parts`.
    """
    if artefact is not None:
        raise ArtefactMissing(f"{folder}: is no folder of a converted agent, and holds no {artefact}")
    policy = read_file(folder / sb3.POLICY)
    network, facts = sb3.read_parts(read_file(folder / sb3.DATA, sb3.LARGEST_DATA), policy, str(folder))
    name = folder.absolute().name
    told = zips.identify(f"{name}.zip")
    return Checkpoint(network, combine(told, facts), describe_bytes(policy, f"{name}/{sb3.POLICY}"))


def identify(folder: Path, artefact: str | None = None) -> Identity:
    """Return what the folder's name and its ``data`` tell.

    Raises:
        AtariConvertError: see `read`.
    """
    return read(folder, artefact).facts
