"""What folders on disk and folders at URLs have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from convert.agents.agent import RECORD_NAME, UNFINISHED_NAME, Artifact, File, Record
from convert.agents.record import from_json, to_json
from convert.errors import OutputExists, RecordError, RoundTripError
from convert.files.hashes import compute_sha256
from convert.store.storage import Found
from convert.targets import Target, list_targets

FindStamp = Callable[[str], str | None]
ListFiles = Callable[[str], Mapping[str, Found]]


@dataclass(frozen=True)
class Folder:
    """What was found in an agent's folder.

    place: its path or URL.
    record: its ``agent.json``; None where there is none that this version reads.
    is_exact: whether the text of ``agent.json`` is, to the byte, what this tool writes of the record.
    is_settled: whether no killed run has left anything.
    is_whole: whether every file is the record's own. False if a killed run may have replaced some of them.
    files: every file at a URL by its relative path; empty for a path.
    """

    place: str
    record: Record | None
    is_exact: bool
    is_settled: bool
    is_whole: bool = True
    files: Mapping[str, Found] = field(default_factory=dict)


@dataclass(frozen=True)
class Staging:
    """An agent's folder that is open for writing.

    path: the folder to write into. found: what stands in the agent's folder; no other local run can change it now.
    """

    path: Path
    found: Folder


def parse_record(place: str, names: Collection[str], data: bytes) -> tuple[Record | None, bool]:
    """Return the record that an ``agent.json`` holds, and whether it is exact; see `Folder`.

    Args:
        place: the agent's folder.
        names: of the files in it.
        data: the content of its agent.json; empty where it cannot be read.

    Raises:
        OutputExists: the folder holds something that this tool did not write.
    """
    try:
        record = from_json(data.decode("utf-8"), f"{place}/{RECORD_NAME}")
    except (RecordError, UnicodeDecodeError):
        check_ours(place, names, data)
        return None, False
    return record, to_json(record).encode() == data


def check_ours(place: str, names: Collection[str], data: bytes) -> None:
    """Raise if a folder holds files of these names, and ``data``, the content of its agent.json, is not ours.

    A record of another format is ours. Where a run was killed, there may be none yet.

    Raises:
        OutputExists: it holds something that this tool did not write.
    """
    if not names or UNFINISHED_NAME in names or (b'"format_version"' in data and b'"artifacts"' in data):
        return
    first = ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")
    problem = f"; its {RECORD_NAME} is damaged or not ours" if RECORD_NAME in names else f" and no {RECORD_NAME}"
    raise OutputExists(f"{place}: holds {first}{problem}: nothing was touched; choose another --out or move it away")


def to_checked_json(record: Record, name: str) -> str:
    """Return the text of ``agent.json``, which reads back as the record; ``name`` is how messages call it.

    Raises:
        RoundTripError: it does not.
    """
    text = to_json(record)
    try:
        is_read_back = from_json(text, name) == record
    except RecordError as error:
        raise RoundTripError(f"{error}; a bug of atari-convert, please report it; nothing was published") from error
    if not is_read_back:
        raise RoundTripError(f"{name}: does not read back as it was written: a bug of atari-convert, please report it")
    return text


def find_misplaced(target: Target, artifact: Artifact) -> list[str]:
    """Return the recorded paths of an artefact that do not lie in its target's place, where its users load it.

    A record may be a stranger's. Such a path may lead anywhere, through a link beside the artefact: it is not opened.
    """
    return [file.path for file in artifact.files if not f"{file.path}/".startswith(f"{target.path}/")]


def find_dropped(former: Record | None, record: Record) -> list[str]:
    """Return the paths of the targets that the former record lists and the new one does not."""
    dropped = former.artifacts.keys() - record.artifacts.keys() if former else ()
    return [target.path for target in list_targets() if target.name in dropped]


def describe_bytes(data: bytes, path: str) -> File:
    """Return what a record says of a file: its relative path, its size and its sha256."""
    return File(path, len(data), compute_sha256(data))
