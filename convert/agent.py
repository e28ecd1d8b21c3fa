"""Who an agent is: its identity from the release's layout, and ``agent.json``, the record of its folder."""

from __future__ import annotations

import difflib
import json
import os
import re
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

from convert.errors import RecordError, UnreadableArtefact
from convert.formats.bounds import LARGEST
from convert.formats.documents import LARGEST_DOCUMENT, read_json, show
from convert.formats.files import read_file
from convert.games import FULL_ACTION_SET, load_games
from convert.network import FRAMES, HEIGHT, LARGEST_ACTIONS, LARGEST_ATOMS, WIDTH, CategoricalHead, Network

Value = TypeVar("Value")

RECORD_NAME = "agent.json"
UNFINISHED_NAME = ".atari-convert-new"  # stands in an agent's folder while the folder is written
RECORD_FORMAT = 1
LARGEST_FILE = LARGEST
LARGEST_NUMBER = 10**15 - 1  # of 15 digits, which every reader of JSON holds exactly


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


_NUMBER = r"(0|[1-9]\d{0,14})"
_LAYOUT = re.compile(rf"(?:^|.*/)([^/]+)/([^/]+)/{_NUMBER}/model_{_NUMBER}\.gz", re.ASCII | re.DOTALL)


def identify(path: str) -> Identity:
    """Return the identity that a path in the release's layout tells; an empty one for any other path.

    Args:
        path: with ``/`` between its parts, such as ``…/DQN_modern/Pong/0/model_50000000.gz``.
    """
    match = _LAYOUT.fullmatch(path)
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
    if not 2 <= len(parts) <= 4 or not all(re.fullmatch(_NUMBER, part, re.ASCII) for part in parts[2:]):
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


def find_path_problem(path: str) -> str | None:
    """Return why a path cannot be recorded; None for a relative one with ``/`` between plain names."""
    if len(path) > 4096:
        return f"is {len(path)} characters long, expected at most 4096"
    if re.search(r"[\x00-\x1f\x7f-\x9f]", path):
        return "has control characters"
    if "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        return "is not a plain relative path without '..', '.', backslashes and empty parts"
    return None


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


def find_contradiction(agent: Agent) -> str | None:
    """Return how an agent contradicts itself; None if it does not.

    Its head must be of the kind that its family has, and its identity that of its source's path, if that path is in the
    release's layout.
    """
    identity, head, path = agent.identity, agent.head, agent.source.path
    if identity.algorithm and (identity.algorithm == "C51") != (head.kind == "categorical"):
        return f"has a {head.kind} head, expected that of {identity.family} ({identity.algorithm})"
    if max(identity.seed or 0, identity.step or 0) > LARGEST_NUMBER:
        return f"has seed {identity.seed} and step {identity.step}, expected at most {LARGEST_NUMBER}"
    told = identify(path)
    if told != Identity() and told != identity:
        found = "/".join("?" if part is None else str(part) for part in astuple(identity))
        return f"claims to be {found}, but the path of its source says {told.folder}"
    return None


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
    return json.dumps(_to_document(record), indent=2, ensure_ascii=False) + "\n"


def _to_document(record: Record) -> dict[str, Any]:
    agent, identity = record.agent, record.agent.identity
    head = agent.head
    support, meanings = head.support, agent.action_meanings
    return {
        "format_version": RECORD_FORMAT,
        "family": identity.family,
        "algorithm": identity.algorithm,
        "protocol": identity.protocol,
        "game": identity.game,
        "rom_id": identity.rom_id,
        "seed": identity.seed,
        "step": identity.step,
        "head": {
            "kind": head.kind,
            "actions": head.actions,
            "atoms": head.atoms,
            "support": None if support is None else list(support),
        },
        "action_meanings": None if meanings is None else list(meanings),
        "observation": OBSERVATION,
        "source": {"file": PurePosixPath(agent.source.path).name, **_file_to_json(agent.source)},
        "derived_from": _file_to_json(agent.derived_from) if agent.derived_from else None,
        "artifacts": {name: _artifact_to_json(record.artifacts[name]) for name in sorted(record.artifacts)},
        "versions": dict(sorted(record.versions.items())),
    }


def _file_to_json(file: File) -> dict[str, Any]:
    return {"path": file.path, "size": file.size, "sha256": file.sha256}


def _tensor_to_json(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "axes": list(tensor.axes)}


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
    if not os.path.lexists(path):
        raise RecordError(f"{folder}: no {RECORD_NAME}: not a folder that atari-convert wrote")
    try:
        text = read_file(path, LARGEST_DOCUMENT).decode("utf-8")
    except UnreadableArtefact as error:
        raise RecordError(str(error)) from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: cannot be read ({error}): convert the agent again") from error
    return from_json(text, str(path))


def from_json(text: str, name: str) -> Record:
    """Return the record that a text of ``agent.json`` holds; nothing in it is trusted.

    Args:
        text: the document.
        name: how messages call it, such as its path.

    Raises:
        RecordError: it is not JSON, its format is another, a field is missing, unknown or wrong, or it contradicts
            itself.
    """
    try:
        document = read_json(text)
    except ValueError as error:
        raise RecordError(f"{name}: not JSON ({error}): the file is damaged, convert the agent again") from None
    found = document.get("format_version") if isinstance(document, dict) else None
    if type(found) is not int or found != RECORD_FORMAT:
        raise RecordError(
            f"{name}: format_version is {_show(found)}, expected {RECORD_FORMAT}: convert the agent again"
        )
    try:
        _check_bounds(document)
        record = _record_from_json(document)
        # Unknown fields, and fields that follow from others, such as the protocol from the family.
        problem = _find_difference(document, _to_document(record)) or find_contradiction(record.agent)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        problem = f"no field {error}" if isinstance(error, KeyError) else str(error)
    if problem:
        raise RecordError(f"{name}: {problem}: the file is damaged, convert the agent again")
    return record


_DEEPEST = 8  # levels; a size in the shape of an artefact's input is on the seventh


def _check_bounds(document: Any) -> None:
    pending = [(document, 1)]
    while pending:
        value, depth = pending.pop()
        if depth > _DEEPEST:
            raise ValueError(f"nested deeper than {_DEEPEST} levels")
        if isinstance(value, dict | list):
            inner = value.values() if isinstance(value, dict) else value
            pending += [(each, depth + 1) for each in inner]
        elif isinstance(value, int | float) and not -1e39 < value < 1e39:
            raise ValueError("a number is outside the range of float32")
        elif isinstance(value, str):
            value.encode()  # half of a surrogate pair has no place in any file


def _find_difference(found: Any, expected: Any, name: str = "") -> str | None:
    """Return the first place where a document is not what is expected of it."""
    if isinstance(found, dict) and isinstance(expected, dict):
        if unknown := sorted(found.keys() - expected.keys()):
            return f"unknown field {_show(unknown[0])}"
        pairs = ((found[key], expected[key], key) for key in expected)
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = ((one, other, name) for one, other in zip(found, expected, strict=True))
    else:
        # 1 is True in Python, and 10 is a way to write 10.0 in JSON.
        is_same = found == expected and isinstance(found, bool) == isinstance(expected, bool)
        return None if is_same else f"{name} is {_show(found)}, expected {_show(expected)}"
    return next((difference for pair in pairs if (difference := _find_difference(*pair))), None)


def _record_from_json(document: dict[str, Any]) -> Record:
    identity = Identity(
        _optional(document, "family", _name),
        _optional(document, "game", _name),
        _optional(document, "seed", _number),
        _optional(document, "step", _number),
    )
    if identity.family is not None:
        check_known("family", identity.family, list(FAMILIES))
    if identity.game is not None:
        check_known("game", identity.game, list(load_games()))
    head = _head_from_json(_field(document, "head", dict))
    agent = Agent(
        identity,
        head,
        _file_from_json(_field(document, "source", dict)),
        _optional(document, "action_meanings", partial(_meanings, actions=head.actions)),
        _optional(document, "derived_from", lambda inner, key: _file_from_json(_field(inner, key, dict))),
    )
    found = _field(document, "artifacts", dict)
    artifacts = {_match(_TARGET, name, "target"): _artifact_from_json(_field(found, name, dict)) for name in found}
    paths = [file.path for artifact in artifacts.values() for file in artifact.files]
    if len(set(paths)) < len(paths):
        raise ValueError(f"a file is listed twice among {_show(paths)}")
    return Record(agent, artifacts, _versions_from_json(document))


def _head_from_json(document: dict[str, Any]) -> HeadSpec:
    kind = _field(document, "kind", str)
    if kind not in ("q", "categorical"):
        raise ValueError(f"head kind is {_show(kind)}, expected 'q' or 'categorical'")
    actions = _number(document, "actions", 1, LARGEST_ACTIONS)
    if kind == "q":
        if document["atoms"] is not None or document["support"] is not None:
            raise ValueError("a q head has no atoms and no support")
        return HeadSpec(kind, actions)
    atoms = _number(document, "atoms", 2, LARGEST_ATOMS)
    support = tuple(map(_to_float32, _field(document, "support", list)))
    if len(support) != atoms:
        raise ValueError(f"support has {len(support)} values, expected as many as atoms, {atoms}")
    if any(low >= high for low, high in pairwise(support)):
        raise ValueError("support does not increase")
    return HeadSpec(kind, actions, atoms, support)


def _to_float32(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"support holds {_show(value)}")
    number = float(value)
    if struct.unpack("<f", struct.pack("<f", number)) != (number,):
        raise ValueError(f"support holds {value}, which is not a float32 value")
    return number


def _meanings(document: dict[str, Any], key: str, *, actions: int) -> tuple[str, ...]:
    meanings = _field(document, key, list)
    if len(meanings) != actions or not all(name in FULL_ACTION_SET and meanings.count(name) == 1 for name in meanings):
        raise ValueError(f"{key} are {_show(meanings)}, expected the names of {actions} different actions in ALE")
    return tuple(meanings)


def _file_from_json(document: dict[str, Any]) -> File:
    path = _field(document, "path", str)
    if problem := find_path_problem(path):
        raise ValueError(f"path {_show(path)} {problem}")
    sha256 = _field(document, "sha256", str)
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"sha256 {_show(sha256)} is not 64 lower-case hex digits")
    return File(path, _number(document, "size", 0, LARGEST_FILE), sha256)


def _tensor_from_json(document: Any) -> Tensor:
    shape = _field(document, "shape", list)
    axes = _field(document, "axes", list)
    if len(shape) != len(axes):
        raise ValueError(f"shape {_show(shape)} has other axes than {_show(axes)}")
    return Tensor(
        _name(document, "name"),
        _name(document, "dtype"),
        tuple(None if size is None else _number({"shape": size}, "shape", 1) for size in shape),
        tuple(_name({"axes": axis}, "axes") for axis in axes),
    )


def _artifact_from_json(document: dict[str, Any]) -> Artifact:
    return Artifact(
        _number(document, "format_version", 1),
        tuple(map(_file_from_json, _filled(document, "files"))),
        tuple(map(_tensor_from_json, _filled(document, "inputs"))),
        tuple(map(_tensor_from_json, _filled(document, "outputs"))),
        _versions_from_json(document),
    )


def _versions_from_json(document: dict[str, Any]) -> dict[str, str]:
    versions = _field(document, "versions", dict)
    return {
        _match(_PACKAGE, name, "package"): _match(_VERSION, _field(versions, name, str), f"version of {name}")
        for name in versions
    }


_NAME = re.compile(r"[A-Za-z0-9_]{1,64}", re.ASCII)
_TARGET = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)
_PACKAGE = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_VERSION = re.compile(r"[!-~]{1,64}", re.ASCII)


def _match(pattern: re.Pattern[str], text: str, what: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"{what} is {_show(text)}, expected {pattern.pattern}")
    return text


def _name(document: dict[str, Any], key: str) -> str:
    return _match(_NAME, _field(document, key, str), key)


def _number(document: dict[str, Any], key: str, lowest: int = 0, highest: int = LARGEST_NUMBER) -> int:
    value: int = _field(document, key, int)
    if not lowest <= value <= highest:
        raise ValueError(f"{key} is {value}, expected {lowest} to {highest}")
    return value


def _filled(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    values = _field(document, key, list)
    if not values or not all(isinstance(value, dict) for value in values):
        raise TypeError(f"{key} is {_show(values)}, expected at least one object, and nothing else")
    return cast(list[dict[str, Any]], values)


def _field(document: dict[str, Any], key: str, kind: type) -> Any:
    value = document[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{key} is {_show(value)}, expected {_KINDS[kind]}")
    return value


_KINDS = {dict: "an object", list: "a list", str: "a text", int: "an integer"}


def _optional(document: dict[str, Any], key: str, take: Callable[[dict[str, Any], str], Value]) -> Value | None:
    return None if document[key] is None else take(document, key)


def _show(value: object) -> str:
    return show(repr(value))
