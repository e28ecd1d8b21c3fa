"""A converted agent's folder: any of its float32 artefacts, as it was written or as somebody has trained it on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from convert.agents.agent import RECORD_NAME, Agent, File, Record
from convert.agents.architecture import is_dqn_or_c51
from convert.agents.identity import Identity
from convert.agents.network import Network, check_network, compute_digest
from convert.errors import ArtefactMissing, AtariConvertError, UnreadableArtefact
from convert.files.disk import read_file
from convert.files.documents import LARGEST_DOCUMENT
from convert.sources import Checkpoint, read_record
from convert.store.folders import describe_bytes
from convert.store.local import find_strangers, is_intact
from convert.targets import Target, Trained, check_architecture, find_target, import_target, missing_extra

EXPECTED = "the folder of a converted agent"
MARKS = ("agent.json",)
EXAMPLE = "converted/DQN_modern/Pong/0/model_50000000"


def recognise(folder: Path) -> bool:
    """Recognise a record of any format, also a damaged one."""
    try:
        record = read_file(folder / RECORD_NAME, LARGEST_DOCUMENT)
    except UnreadableArtefact:
        return False
    return b'"format_version"' in record and b'"artifacts"' in record


def read(folder: Path, artefact: str | None = None) -> Checkpoint:
    """Read an artefact: the one that is named, the one that has changed, or else the first that can be read.

    Raises:
        ArtefactMissing: there is no such artefact, or several have changed.
        RecordError: the folder has no readable record.
        MissingExtra: the target's framework is not installed.
        UnreadableArtefact: the artefact is damaged, quantised, or of another network.
        WeightMismatch: it holds weights that are not finite.
    """
    record = read_record(folder)
    target = _choose(folder, record) if artefact is None else _find(folder, record, artefact)
    trained = read_trained(target, folder / target.path, record.agent)
    if trained.is_changed is None:
        trained = replace(trained, is_changed=not is_intact(folder, target, record.artifacts[target.name]))
    return to_checkpoint(trained, record.agent)


def identify(folder: Path, artefact: str | None = None) -> Identity:
    """Return who the agent is now: of other weights than those that were converted, the step may not be known.

    Raises:
        AtariConvertError: see `read`.
    """
    return read(folder, artefact).facts


def read_trained(target: Target, path: Path, agent: Agent) -> Trained:
    """Read the artefact of a target, which is not trusted.

    Args:
        target: what wrote it.
        path: its file or folder.
        agent: whose it was when it was written.

    Raises:
        UnreadableArtefact: it is damaged, quantised, holds a link, or is of another network.
        WeightMismatch: it holds weights that are not finite.
        MissingExtra: the target's framework is not installed.
    """
    if target.is_quantized:
        raise UnreadableArtefact(f"{path}: {target.name} has rounded weights: choose a float32 artefact with --from")
    if strangers := find_strangers(path):
        first, kind = next(iter(strangers.items()))
        raise UnreadableArtefact(f"{first}: {kind}, which is not read: copy in its place what it leads to")
    module = import_target(target.name)
    read_on = getattr(module, "read_trained", None)
    trained: Trained = read_on(path, agent) if read_on else Trained(module.read(path, agent))
    check_network(trained.network, str(path))
    check_architecture(trained.network, agent, path)
    return trained


def to_checkpoint(trained: Trained, agent: Agent) -> Checkpoint:
    """Return what was read of an artefact of ``agent``. With other weights it is an agent of its own."""
    if not trained.is_changed:
        return Checkpoint(trained.network, agent.identity, agent.source, agent.derived_from)
    identity = replace(agent.identity, step=trained.step)
    source = _describe_own_checkpoint(trained.network, identity)
    return Checkpoint(trained.network, identity, source, agent.derived_from or agent.source)


def _describe_own_checkpoint(network: Network, identity: Identity) -> File:
    """Describe the checkpoint of a trained agent in the release's format, which need not have been written.

    Of a network that this format cannot hold, there is none: its weights stand for it.
    """
    if not is_dqn_or_c51(network.architecture):
        size = sum(array.nbytes for array in network.arrays.values())
        return File("trained.weights", size, compute_digest(network))
    from convert.targets import checkpoint  # it needs torch

    data = checkpoint.to_bytes(network)
    return describe_bytes(data, str(checkpoint.name_checkpoint(identity)))


def _find(folder: Path, record: Record, name: str) -> Target:
    target = find_target(name)
    if name not in record.artifacts:
        found = ", ".join(record.artifacts) or "nothing"
        raise ArtefactMissing(f"{folder}: holds {found}, not {name}")
    return target


def _choose(folder: Path, record: Record) -> Target:
    candidates = [target for target in map(find_target, record.artifacts) if not target.is_quantized]
    changed = [target for target in candidates if _has_changed(folder, record, target)]
    if len(changed) > 1:
        names = ", ".join(target.name for target in changed)
        raise ArtefactMissing(f"{folder}: {names} differ from their record: say with --from which one to take")
    for target in changed or candidates:
        if target.is_installed:
            return target
    if candidates:
        raise missing_extra((changed or candidates)[0])
    raise ArtefactMissing(f"{folder}: holds no float32 artefact: convert the checkpoint again")


def _has_changed(folder: Path, record: Record, target: Target) -> bool:
    """Tell whether an artefact has other weights than when it was written. Only one whose files differ is opened."""
    artifact, path = record.artifacts[target.name], folder / target.path
    if find_strangers(path):  # no link is followed: reading it in earnest will tell
        return True
    has_changed = not is_intact(folder, target, artifact)
    found = {file.relative_to(folder).as_posix() for file in path.rglob("*") if file.is_file()}
    if not has_changed and found <= {file.path for file in artifact.files}:
        return False
    if target.is_installed and hasattr(import_target(target.name), "read_trained"):
        try:
            is_changed = read_trained(target, path, record.agent).is_changed
        except AtariConvertError:  # reading it in earnest will tell
            return True
        return has_changed if is_changed is None else is_changed
    return has_changed
