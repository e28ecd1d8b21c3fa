"""Who an agent is: its identity from the release's layout, and ``agent.json``, the record of its folder."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from convert.errors import RecordError
from convert.games import FULL_ACTION_SET, load_games
from convert.network import FRAMES, HEIGHT, WIDTH, CategoricalHead, Network

RECORD_NAME = "agent.json"
UNFINISHED_NAME = ".atari-convert-new"  # stands in an agent's folder while the folder is written
RECORD_FORMAT = 1


@dataclass(frozen=True)
class Family:
    """A family of the release: its folder, the algorithm that trained it, the protocol it was trained under."""

    name: str
    algorithm: str
    protocol: str


FAMILIES = {
    family.name: family
    for family in (
        Family("DQN_modern", "DQN", "modern"),
        Family("MDQN_modern", "M-DQN", "modern"),
        Family("C51_classic", "C51", "classic"),
        Family("DQN_classic_adam", "DQN", "classic"),
    )
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Where an agent stands in the release. What is not known is None. step: in agent steps, of 4 frames each."""

    family: str | None = None
    game: str | None = None
    seed: int | None = None
    step: int | None = None

    @property
    def is_complete(self) -> bool:
        return None not in (self.family, self.game, self.seed, self.step)

    @property
    def algorithm(self) -> str | None:
        return FAMILIES[self.family].algorithm if self.family else None

    @property
    def protocol(self) -> str | None:
        return FAMILIES[self.family].protocol if self.family else None

    @property
    def rom_id(self) -> str | None:
        return load_games()[self.game].rom_id if self.game else None

    @property
    def folder(self) -> PurePosixPath:
        """Its folder in the release and under the output, ``FAMILY/Game/seed/model_STEP``, when complete."""
        return PurePosixPath(f"{self.family}/{self.game}/{self.seed}/model_{self.step}")


_LAYOUT = re.compile(r"(?:^|/)([^/]+)/([^/]+)/(0|[1-9]\d*)/model_(0|[1-9]\d*)\.gz$", re.ASCII)


def identify(path: str) -> Identity:
    """Return the identity that a path in the release's layout tells; an empty one for any other path.

    Args:
        path: with ``/`` between its parts, such as ``…/DQN_modern/Pong/0/model_50000000.gz``.
    """
    match = _LAYOUT.search(path)
    if match is None or match[1] not in FAMILIES or match[2] not in load_games():
        return Identity()
    family, game = sys.intern(match[1]), sys.intern(match[2])  # thousands of agents share a few names
    return Identity(family, game, int(match[3]), int(match[4]))


def parse_identity(text: str) -> Identity:
    """Return the identity that ``FAMILY/Game[/SEED[/STEP]]`` tells.

    Raises:
        ValueError: another form, a family or a game that the release does not have.
    """
    parts = text.strip("/").split("/")
    if not 2 <= len(parts) <= 4 or not all(re.fullmatch(r"0|[1-9]\d*", part, re.ASCII) for part in parts[2:]):
        raise ValueError(f"{text!r} is not FAMILY/Game[/SEED[/STEP]], such as DQN_modern/Pong/0/50000000")
    check_known("family", parts[0], list(FAMILIES))
    check_known("game", parts[1], list(load_games()))
    seed, step, *_ = (*map(int, parts[2:]), None, None)
    return Identity(parts[0], parts[1], seed, step)


def check_known(kind: str, name: str, known: list[str]) -> None:
    """Raise unless the release has a family or game of this name.

    Raises:
        ValueError: it has none; the message names the closest one.
    """
    if name not in known:
        folded = {other.casefold(): other for other in known}
        close = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=1)]
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
        raise ValueError(f"no {kind} {name!r} in the release; {hint}")


@dataclass(frozen=True)
class HeadSpec:
    """The head's kind (``q`` or ``categorical``), its number of actions, and for a categorical one its support."""

    kind: str
    actions: int
    atoms: int | None = None
    support: tuple[float, ...] | None = None


def describe_head(network: Network) -> HeadSpec:
    """Return what ``agent.json`` says of the network's head."""
    head = network.head
    if isinstance(head, CategoricalHead):
        return HeadSpec("categorical", head.actions, head.atoms, tuple(head.support.tolist()))
    return HeadSpec("q", head.actions)


def name_actions(game: str | None, actions: int) -> tuple[str, ...] | None:
    """Return the meanings of a head's actions in order; None where the game is unknown or the size fits neither set.

    A head of 18 on a game whose minimal set is smaller means the full set.
    """
    if game is None:
        return None
    minimal = load_games()[game].actions
    if actions == len(minimal):
        return minimal
    return FULL_ACTION_SET if actions == len(FULL_ACTION_SET) else None


@dataclass(frozen=True)
class File:
    """A file by its relative path (``/`` between parts), its size in bytes and its lower-case hex sha256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Agent:
    """An agent: who it is, what its head answers, and which checkpoint it came from.

    source.path is relative to the release's root, or to the folder that was searched. derived_from: the checkpoint
    of the release that it was trained on from, for an agent that came back with other weights.
    """

    identity: Identity
    head: HeadSpec
    source: File
    action_meanings: tuple[str, ...] | None = None
    derived_from: File | None = None


@dataclass(frozen=True)
class Tensor:
    """An input or output of an artefact. Axes are named in order; a free axis has None in its shape."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Artifact:
    """What one target wrote: its format's version, its files, its inputs and outputs, and what wrote it."""

    format_version: int
    files: tuple[File, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """The content of ``agent.json``: the agent, its artefacts by target, and the versions that read its source."""

    agent: Agent
    artifacts: Mapping[str, Artifact]
    versions: Mapping[str, str]


OBSERVATION = {
    "dtype": "uint8",
    "height": HEIGHT,
    "width": WIDTH,
    "stack": FRAMES,
    "order": "oldest first",
    "low": 0,
    "high": 255,
    "scaling": "divided by 255 inside the model",
}


def to_json(record: Record) -> str:
    """Return the text of ``agent.json``. The same record gives the same text: no times, no absolute paths."""
    agent, identity = record.agent, record.agent.identity
    head = agent.head
    document = {
        "format_version": RECORD_FORMAT,
        "family": identity.family,
        "algorithm": identity.algorithm,
        "protocol": identity.protocol,
        "game": identity.game,
        "rom_id": identity.rom_id,
        "seed": identity.seed,
        "step": identity.step,
        "head": {"kind": head.kind, "actions": head.actions, "atoms": head.atoms, "support": head.support},
        "action_meanings": agent.action_meanings,
        "observation": OBSERVATION,
        "source": {"file": PurePosixPath(agent.source.path).name, **_file_to_json(agent.source)},
        "derived_from": _file_to_json(agent.derived_from) if agent.derived_from else None,
        "artifacts": {name: _artifact_to_json(record.artifacts[name]) for name in sorted(record.artifacts)},
        "versions": dict(sorted(record.versions.items())),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _file_to_json(file: File) -> dict[str, Any]:
    return {"path": file.path, "size": file.size, "sha256": file.sha256}


def _tensor_to_json(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape, "axes": tensor.axes}


def _artifact_to_json(artifact: Artifact) -> dict[str, Any]:
    return {
        "format_version": artifact.format_version,
        "files": [_file_to_json(file) for file in artifact.files],
        "inputs": [_tensor_to_json(tensor) for tensor in artifact.inputs],
        "outputs": [_tensor_to_json(tensor) for tensor in artifact.outputs],
        "versions": dict(sorted(artifact.versions.items())),
    }


def read_record(folder: str | Path) -> Record:
    """Read the ``agent.json`` of an agent folder.

    Raises:
        RecordError: there is none, it is not JSON, a field is missing or wrong, or its format is another.
    """
    path = Path(folder, RECORD_NAME)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise RecordError(f"{folder}: no {RECORD_NAME}: not a folder that atari-convert wrote") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read ({error}): convert the agent again") from error
    return from_json(text, str(path))


def from_json(text: str, name: str) -> Record:
    """Return the record that a text of ``agent.json`` holds; nothing in it is trusted.

    Args:
        text: the document.
        name: how messages call it, such as its path.

    Raises:
        RecordError: it is not JSON, a field is missing or wrong, or its format is another.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{name}: not JSON ({error}): the file is damaged, convert the agent again") from None
    found = document.get("format_version") if isinstance(document, dict) else None
    if found != RECORD_FORMAT:
        raise RecordError(f"{name}: format_version is {found!r}, expected {RECORD_FORMAT}: convert the agent again")
    try:
        json.dumps(document, ensure_ascii=False).encode()  # half of a surrogate pair has no place in any file
        return _record_from_json(document)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise RecordError(f"{name}: {what}: the file is damaged, convert the agent again") from None


def _record_from_json(document: dict[str, Any]) -> Record:
    identity = Identity(
        _optional(document, "family", str),
        _optional(document, "game", str),
        _optional(document, "seed", int),
        _optional(document, "step", int),
    )
    if identity.family is not None:
        check_known("family", identity.family, list(FAMILIES))
    if identity.game is not None:
        check_known("game", identity.game, list(load_games()))
    meanings = _optional(document, "action_meanings", list)
    derived_from = _optional(document, "derived_from", dict)
    agent = Agent(
        identity,
        _head_from_json(_field(document, "head", dict)),
        _file_from_json(_field(document, "source", dict)),
        tuple(_each(meanings, str, "action_meanings")) if meanings is not None else None,
        _file_from_json(derived_from) if derived_from is not None else None,
    )
    artifacts = _field(document, "artifacts", dict)
    return Record(
        agent,
        {name: _artifact_from_json(_field(artifacts, name, dict)) for name in artifacts},
        _versions_from_json(document),
    )


def _head_from_json(document: dict[str, Any]) -> HeadSpec:
    kind = _field(document, "kind", str)
    if kind not in ("q", "categorical"):
        raise ValueError(f"head kind is {kind!r}, expected 'q' or 'categorical'")
    support = _optional(document, "support", list)
    return HeadSpec(
        kind,
        _field(document, "actions", int),
        _optional(document, "atoms", int),
        tuple(float(value) for value in _each(support, (int, float), "support")) if support is not None else None,
    )


def _file_from_json(document: dict[str, Any]) -> File:
    path = _field(document, "path", str)
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path or not path:
        raise ValueError(f"path {path!r} leaves its folder")
    sha256 = _field(document, "sha256", str)
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"sha256 {sha256!r} is not 64 lower-case hex digits")
    return File(path, _field(document, "size", int), sha256)


def _tensor_from_json(document: dict[str, Any]) -> Tensor:
    shape = _field(document, "shape", list)
    return Tensor(
        _field(document, "name", str),
        _field(document, "dtype", str),
        tuple(_each(shape, (int, type(None)), "shape")),
        tuple(_each(_field(document, "axes", list), str, "axes")),
    )


def _artifact_from_json(document: dict[str, Any]) -> Artifact:
    return Artifact(
        _field(document, "format_version", int),
        tuple(_file_from_json(file) for file in _each(_field(document, "files", list), dict, "files")),
        tuple(_tensor_from_json(tensor) for tensor in _each(_field(document, "inputs", list), dict, "inputs")),
        tuple(_tensor_from_json(tensor) for tensor in _each(_field(document, "outputs", list), dict, "outputs")),
        _versions_from_json(document),
    )


def _versions_from_json(document: dict[str, Any]) -> dict[str, str]:
    versions = _field(document, "versions", dict)
    return {name: _field(versions, name, str) for name in versions}


def _field(document: dict[str, Any], key: str, kind: type) -> Any:
    value = document[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{key} is {value!r}, expected {kind.__name__}")
    return value


def _optional(document: dict[str, Any], key: str, kind: type) -> Any:
    return None if document[key] is None else _field(document, key, kind)


def _each(values: list[Any], kind: type | tuple[type, ...], key: str) -> list[Any]:
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"{key} holds {value!r}")
    return values
