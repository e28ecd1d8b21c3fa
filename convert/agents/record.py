"""``agent.json``, the record of an agent's folder: to it and from it. Nothing in it is trusted."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

from convert.agents.agent import (
    RECORD_NAME,
    Agent,
    Artifact,
    File,
    Record,
    Tensor,
    find_path_problem,
)
from convert.agents.architecture import Architecture, Conv, Head, Observation
from convert.agents.games import FULL_ACTION_SET, load_games
from convert.agents.identity import LARGEST_NUMBER, WORD, Identity, check_known
from convert.errors import RecordError, UnreadableArtefact
from convert.files.bounds import LARGEST
from convert.files.disk import read_file
from convert.files.documents import LARGEST_DOCUMENT, read_json, show

Value = TypeVar("Value")
RECORD_FORMAT = 2
LARGEST_FILE = LARGEST
_MOST_TARGETS = 64
_MOST_SEARCHED = 1000  # folders, for a message


def to_json(record: Record) -> str:
    """Return the text of ``agent.json``. The same record gives the same text: no times, no absolute paths."""
    return json.dumps(_to_document(record), indent=2, ensure_ascii=False) + "\n"


def _to_document(record: Record) -> dict[str, Any]:
    agent, identity = record.agent, record.agent.identity
    meanings = agent.action_meanings
    return {
        "format_version": RECORD_FORMAT,
        "zoo": identity.zoo,
        "algorithm": identity.algorithm,
        "protocol": identity.protocol,
        "game": identity.game,
        "rom_id": identity.rom_id,
        "seed": identity.seed,
        "step": identity.step,
        "architecture": _architecture_to_json(agent.architecture),
        "action_meanings": None if meanings is None else list(meanings),
        "source": {"file": PurePosixPath(agent.source.path).name, **_file_to_json(agent.source)},
        "derived_from": _file_to_json(agent.derived_from) if agent.derived_from else None,
        "artifacts": {name: _artifact_to_json(record.artifacts[name]) for name in sorted(record.artifacts)},
        "versions": dict(sorted(record.versions.items())),
    }


def _architecture_to_json(architecture: Architecture) -> dict[str, Any]:
    observation, head = architecture.observation, architecture.head
    return {
        "observation": {
            "dtype": "uint8",
            "frames": observation.frames,
            "height": observation.size,
            "width": observation.size,
            "order": "oldest first",
            "divided_by": observation.scale,
        },
        "convs": [
            {
                "features": conv.features,
                "kernel": conv.kernel,
                "stride": conv.stride,
                "padding": list(conv.padding),
            }
            for conv in architecture.convs
        ],
        "hidden": list(architecture.hidden),
        "head": {
            "kind": head.kind,
            "actions": head.actions,
            "atoms": head.atoms,
            "support": None if head.support is None else list(head.support),
            "quantiles": head.quantiles,
            "streams": head.streams,
        },
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
        raise RecordError(f"{folder}: {_explain_missing(Path(folder))}")
    try:
        text = read_file(path, LARGEST_DOCUMENT).decode("utf-8")
    except UnreadableArtefact as error:
        raise RecordError(str(error)) from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: cannot be read ({error}): convert the agent again") from error
    return from_json(text, str(path))


def _explain_missing(folder: Path) -> str:
    """Return why a folder has no record, and what may be meant by it."""
    if not folder.is_dir():
        return f"{'is no folder' if folder.exists() else 'does not exist'}, expected the folder of a converted agent"
    found = [Path(place) for place, _, names in islice(os.walk(folder), _MOST_SEARCHED) if RECORD_NAME in names]
    if not found:
        return f"no {RECORD_NAME}: not a folder that atari-convert wrote"
    more = " …" if len(found) > 3 else ""
    return f"no {RECORD_NAME}, but below it are agents: choose one of {', '.join(map(str, sorted(found)[:3]))}{more}"


def from_json(text: str, name: str) -> Record:
    """Return the record that a text of ``agent.json`` holds; nothing in it is trusted.

    Args:
        text: the document.
        name: how messages call it, such as its path.

    Raises:
        RecordError: it is not JSON, its format is another, or a field is missing, unknown or wrong.
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
        # Unknown fields, and fields that follow from others, such as the ROM id from the game.
        problem = _find_difference(document, _to_document(record))
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
        _optional(document, "zoo", _word),
        _optional(document, "algorithm", _word),
        _optional(document, "game", _name),
        _optional(document, "protocol", _word),
        _optional(document, "seed", _number),
        _optional(document, "step", _number),
    )
    if identity.game is not None:
        check_known("game", identity.game, list(load_games()))
    architecture = _architecture_from_json(_field(document, "architecture", dict))
    agent = Agent(
        identity,
        architecture,
        _file_from_json(_field(document, "source", dict)),
        _optional(document, "action_meanings", partial(_meanings, actions=architecture.head.actions)),
        _optional(document, "derived_from", lambda inner, key: _file_from_json(_field(inner, key, dict))),
    )
    found = _field(document, "artifacts", dict)
    if len(found) > _MOST_TARGETS:
        raise ValueError(f"lists {len(found)} targets, expected at most {_MOST_TARGETS}")
    artifacts = {_match(_TARGET, name, "target"): _artifact_from_json(_field(found, name, dict)) for name in found}
    paths = [file.path for artifact in artifacts.values() for file in artifact.files]
    if len(set(paths)) < len(paths):
        raise ValueError(f"a file is listed twice among {_show(paths)}")
    return Record(agent, artifacts, _versions_from_json(document))


def _architecture_from_json(document: dict[str, Any]) -> Architecture:
    observation, head = _field(document, "observation", dict), _field(document, "head", dict)
    return Architecture(
        Observation(_number(observation, "frames"), _number(observation, "height"), _number(observation, "divided_by")),
        tuple(map(_conv_from_json, _filled(document, "convs"))),
        tuple(_number({"hidden": units}, "hidden") for units in _field(document, "hidden", list)),
        Head(
            _field(head, "kind", str),
            _number(head, "actions"),
            _optional(head, "support", lambda inner, key: tuple(map(_to_float32, _field(inner, key, list)))),
            _optional(head, "quantiles", _number),
            _field(head, "streams", str),
        ),
    )


def _conv_from_json(document: dict[str, Any]) -> Conv:
    before, after = (_number({"padding": side}, "padding") for side in _field(document, "padding", list))
    return Conv(
        _number(document, "features"), _number(document, "kernel"), _number(document, "stride"), (before, after)
    )


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


def _word(document: dict[str, Any], key: str) -> str:
    return _match(WORD, _field(document, key, str), key)


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
