"""What a check starts from: agent folders, their checksums, and the checkpoint that each came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from convert.agent import RECORD_NAME, UNFINISHED_NAME, Agent, Artifact, File, Record, Tensor, to_json
from convert.errors import CheckError, CheckpointError
from convert.network import Network
from convert.storage import walk_links
from convert.targets import find_target, import_target, list_targets
from runtime_check.oracle import Oracle
from runtime_check.protocols import find_actions


def find_agent_folders(paths: Iterable[Path]) -> list[Path]:
    """Return each agent's folder once, in order: the given ones and those below them.

    They hold an ``agent.json``, or what atari-convert writes beside one: an agent that has lost its record, or a folder
    that cannot be read, is not passed over in silence but cannot be checked.

    Raises:
        CheckError: a path holds none.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        folders = list(_walk(path))
        if not folders:
            raise CheckError(f"{path}: no {RECORD_NAME} in it or below: expected a folder that atari-convert wrote")
        for folder in folders:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _walk(path: Path) -> Iterator[Path]:
    """Yield the agents' folders in and below a path."""
    closed: list[Path] = []
    for name, subfolders, files in walk_links(path, lambda error: closed.append(Path(error.filename))):
        folder = Path(name)
        if RECORD_NAME in files:
            subfolders.clear()
            yield folder
        elif UNFINISHED_NAME in (*subfolders, *files) or any(_is_artefact(folder / path) for path in _list_paths()):
            yield folder
        # What a conversion has staged is not published.
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
    yield from closed


def _list_paths() -> list[str]:
    return [target.path for target in list_targets()]


def _is_artefact(path: Path) -> bool:
    """Tell an artefact from a folder of agents that has its name, such as ``torch``."""
    try:
        if not path.is_dir():
            return path.is_file()
        return not (path / RECORD_NAME).exists() and any(child.is_file() for child in path.iterdir())
    except OSError:
        return False


class Sources:
    """The checkpoints that ``--source`` names: one file, or a root of the release."""

    def __init__(self, root: Path) -> None:
        """Look at ``root``, a file or a folder."""
        self._root = root

    def find(self, agent: Agent) -> Path:
        """Return the checkpoint that an agent was converted from, by its recorded sha256.

        Its place in the release is tried first, then every ``model_*.gz`` of its size below the root.

        Raises:
            CheckpointError: there is none with this sha256.
        """
        source = agent.source
        if self._root.is_file():
            if _is_intact(self._root, source):
                return self._root
            raise CheckpointError(
                f"{self._root}: sha256 is {_hash(self._root)}, agent.json of {source.path} says {source.sha256}: "
                "another checkpoint; name the one that was converted with --source"
            )
        candidates = [self._root / f"{agent.identity.folder}.gz"] if agent.identity.is_complete else []
        candidates += [self._root / source.path]
        for path in candidates:
            if _is_intact(path, source):
                return path
        for path in self._by_size.get(source.size, []):
            if _is_intact(path, source):
                return path
        raise CheckpointError(
            f"{self._root}: no checkpoint of {source.path} (sha256 {source.sha256}): "
            "expected it at this path or as any model_*.gz below; name its root with --source"
        )

    @cached_property
    def _by_size(self) -> dict[int, list[Path]]:
        by_size: dict[int, list[Path]] = {}
        for path in filter(Path.is_file, sorted(self._root.rglob("model_*.gz"))):
            by_size.setdefault(path.stat().st_size, []).append(path)
        return by_size


def find_artefact(folder: Path, target: str) -> Path:
    """Return the file or folder of a target in an agent's folder: what its users load, whatever the record says."""
    return folder / find_target(target).path


def find_changes(folder: Path, target: str, artifact: Artifact) -> list[str]:
    """Return how the files of an artefact differ from their record: missing, changed, or not recorded."""
    top = find_artefact(folder, target)
    changes = [] if artifact.files else [f"agent.json lists no file of {target}: convert the agent again"]
    for file in artifact.files:
        path = folder / file.path
        if not path.is_relative_to(top):
            changes.append(f"{file.path} is no part of {target}, whose place is {top.name}")
        elif not path.is_file():
            changes.append(f"{file.path} is missing: convert the agent again")
        elif not _is_intact(path, file):
            changes.append(f"checksum: {file.path} has sha256 {_hash(path)}, agent.json says {file.sha256}")
    recorded = {folder / file.path for file in artifact.files}
    for path in (top, *sorted(top.rglob("*"))):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            changes.append(f"{name} is a symbolic link, which atari-convert never writes")
        elif path.is_file() and path not in recorded:
            changes.append(f"{name} is not in agent.json")
    return changes


def find_tensor_faults(target: str, artifact: Artifact, network: Network) -> list[str]:
    """Return where the inputs and outputs of ``agent.json``, which tell users the axes, are not the target's own.

    Raises:
        MissingExtra: the target's framework is not installed.
    """
    inputs, outputs = import_target(target).describe(network)
    pairs = (("inputs", artifact.inputs, inputs), ("outputs", artifact.outputs, outputs))
    return [
        f"agent.json: {name} of {target} are {_format(found)}, expected {_format(expected)}: convert the agent again"
        for name, found, expected in pairs
        if found != expected
    ]


def _format(tensors: Iterable[Tensor]) -> str:
    return "; ".join(f"{tensor.name} {tensor.dtype}{list(tensor.shape)} {tensor.axes}" for tensor in tensors)


def find_record_faults(folder: Path, record: Record, oracle: Oracle) -> list[str]:
    """Return where ``agent.json`` contradicts itself, the checkpoint or the emulator, which would mislead a user.

    Raises:
        CheckError: the head fits no action set of the game.
        RomUnavailable: there is no such game or ROM.
    """
    agent, head = record.agent, record.agent.head
    faults = _find_derived_faults(folder, record)
    found = (head.kind, head.actions)
    expected = ("q" if oracle.support is None else "categorical", oracle.actions)
    if found != expected:
        faults.append(f"agent.json: the head's kind and actions are {found}, the checkpoint's {expected}")
    support = None if head.support is None else np.array(head.support)
    if (support is None) != (oracle.support is None) or not np.array_equal(support, oracle.support):  # type: ignore[arg-type]
        faults.append("agent.json: the support is not the checkpoint's")
    if agent.identity.game is not None:
        meanings = find_actions(agent.identity.game, oracle.actions)
        if agent.action_meanings != meanings:
            faults.append(f"agent.json: action_meanings are {agent.action_meanings}, the emulator's {meanings}")
    return faults


def _find_derived_faults(folder: Path, record: Record) -> list[str]:
    """Compare what follows from other fields, such as the protocol from the family: others may believe what stands."""
    found, expected = json.loads((folder / RECORD_NAME).read_text("utf-8")), json.loads(to_json(record))
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return [f"agent.json: {name} is not that of this agent" for name in names]


def _is_intact(path: Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file.size and _hash(path) == file.sha256


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
