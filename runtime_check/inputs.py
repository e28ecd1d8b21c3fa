"""What a check starts from: agent folders, their checksums, and the checkpoint that each came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from convert import __version__
from convert.agents.agent import RECORD_NAME, UNFINISHED_NAME, Agent, Artifact, File, HeadSpec, Record, Tensor
from convert.agents.network import CategoricalHead, Float32, Network
from convert.artefacts import Screened
from convert.errors import CheckError, CheckpointError
from convert.formats.atari_agents import locate
from convert.store.publication import find_strangers
from convert.store.storage import walk_links
from convert.targets import describe_tensors, find_target, list_targets
from runtime_check.oracle import Float64, Oracle
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
            if change := _find_change(self._root, source):
                _, found, recorded = change
                raise CheckpointError(
                    f"{self._root}: has {found}, agent.json of {source.path} says {recorded}: another checkpoint; name "
                    "the one that was converted with --source"
                )
            return self._root
        places = (locate(agent.identity), source.path)
        candidates = [self._root / place for place in dict.fromkeys(places) if place]
        for path in candidates:
            if not _find_change(path, source):
                return path
        for path in self._by_size.get(source.size, []):
            if not _find_change(path, source):
                return path
        raise CheckpointError(
            f"{self._root}: no checkpoint of {source.path} ({source.size} bytes, sha256 {source.sha256}): "
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
    changes = find_strange_files(folder, top)
    if changes:  # they may lead anywhere: open nothing
        return changes
    for file in artifact.files:
        path = folder / file.path
        if not path.is_relative_to(top):
            changes.append(f"{file.path} is no part of {target}, whose place is {top.name}")
        elif not path.is_file():
            changes.append(f"{file.path} is missing: convert the agent again")
        elif change := _find_change(path, file):
            kind, found, recorded = change
            changes.append(f"{kind}: {file.path} has {found}, agent.json says {recorded}")
    listed = {folder / file.path for file in artifact.files}
    changes += [
        f"{path.relative_to(folder).as_posix()} is not in agent.json"
        for path in (top, *sorted(top.rglob("*")))
        if path.is_file() and path not in listed
    ]
    return changes


def find_strange_files(folder: Path, path: Path) -> list[str]:
    """Return which files at or below a path are links, pipes or devices."""
    return [
        f"{stranger.relative_to(folder).as_posix()} is {kind}, which atari-convert never writes"
        for stranger, kind in find_strangers(path).items()
    ]


def find_version_faults(target: str, artifact: Artifact) -> list[str]:
    """Return whether another version of the format or of atari-convert wrote an artefact."""
    faults = []
    expected = find_target(target).format_version
    if artifact.format_version != expected:
        faults.append(f"format_version of {target} is {artifact.format_version}, this version writes {expected}")
    wrote = artifact.versions.get("atari-convert")
    if wrote != __version__:
        faults.append(f"{target} was written by atari-convert {wrote}, this is {__version__}")
    return [f"agent.json: {fault}: convert the agent again, or check it with that version" for fault in faults]


def find_content_faults(artifact: Artifact, screened: Screened) -> list[str]:
    """Return where what users load of an artefact is not, byte for byte, what is judged.

    That is what this computer's versions write of the same weights.
    """
    recorded = {file.path: file.sha256 for file in artifact.files}
    if {name: hashlib.sha256(content).hexdigest() for name, content in screened.files.items()} != recorded:
        return ["its files changed while they were checked: check it again"]
    if not screened.changed:
        return []
    versions = ", ".join(f"{name} {version}" for name, version in artifact.versions.items() if name != "atari-convert")
    return [
        f"{', '.join(screened.changed[:3])}: not the bytes that are written here of these weights (the record names "
        f"{versions}): convert the agent again, or check with these versions"
    ]


def find_weight_faults(network: Network | None, oracle: Oracle) -> list[str]:
    """Return which weights are not, bit for bit, the checkpoint's; nothing where weights are rounded (None)."""
    if network is None:
        return []
    support = network.head.support if isinstance(network.head, CategoricalHead) else None
    pairs = [
        *((f"kernel of convolution {i + 1}", conv.kernel, oracle.kernels[i]) for i, conv in enumerate(network.convs)),
        *((f"bias of convolution {i + 1}", conv.bias, oracle.biases[i]) for i, conv in enumerate(network.convs)),
        ("hidden kernel", network.hidden.kernel, oracle.hidden_kernel),
        ("hidden bias", network.hidden.bias, oracle.hidden_bias),
        ("head kernel", network.head.dense.kernel, oracle.head_kernel),
        ("head bias", network.head.dense.bias, oracle.head_bias),
        ("support", support, oracle.support),
    ]
    different = [name for name, found, expected in pairs if not _is_same(found, expected)]
    return [f"other weights than the checkpoint's: {', '.join(different)}"] if different else []


def _is_same(found: Float32 | None, expected: Float64 | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return found.shape == expected.shape and found.tobytes() == expected.astype(np.float32).tobytes()


def find_tensor_faults(target: str, artifact: Artifact, head: HeadSpec) -> list[str]:
    """Return where the inputs and outputs of ``agent.json``, which tell users the axes, are not the target's own."""
    inputs, outputs = describe_tensors(find_target(target), head)
    pairs = (("inputs", artifact.inputs, inputs), ("outputs", artifact.outputs, outputs))
    return [
        f"agent.json: {name} of {target} are {_format(found)}, expected {_format(expected)}: convert the agent again"
        for name, found, expected in pairs
        if found != expected
    ]


def _format(tensors: Iterable[Tensor]) -> str:
    return "; ".join(f"{tensor.name} {tensor.dtype}{list(tensor.shape)} {tensor.axes}" for tensor in tensors)


def find_record_faults(folder: Path, record: Record, oracle: Oracle) -> list[str]:
    """Return where ``agent.json`` contradicts the checkpoint or the emulator, which would mislead a user.

    Raises:
        CheckError: the head fits no action set of the game.
        RomUnavailable: there is no such game or ROM.
    """
    agent, head = record.agent, record.agent.head
    faults = find_strange_files(folder, folder / RECORD_NAME)
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


def _find_change(path: Path, file: File) -> tuple[str, str, str] | None:
    """Return what differs from a file's record, what it is and what was recorded; None if nothing differs."""
    if not path.is_file():
        return "size", "no file", f"{file.size} bytes"
    size = path.stat().st_size
    if size != file.size:
        return "size", f"{size} bytes", f"{file.size} bytes"
    sha256 = _hash(path)
    return None if sha256 == file.sha256 else ("checksum", f"sha256 {sha256}", f"sha256 {file.sha256}")


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
