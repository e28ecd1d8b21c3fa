"""Agents' folders at URLs. Object stores cannot rename or lock, so a folder is written on this computer and then sent.

Each object is replaced in one step, ``agent.json`` last. ``.atari-convert-new`` is there from before the first object
until after ``agent.json``. Where it is found, a run was killed while it sent, and the agent is sent again. Two runs
that send one agent at once send the same bytes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from convert.agents.agent import RECORD_NAME, UNFINISHED_NAME, Artifact, Record
from convert.errors import UnwritableOutput
from convert.files.disk import make_temporary_folder, write_files
from convert.files.documents import LARGEST_DOCUMENT
from convert.store import storage
from convert.store.folders import (
    FindStamp,
    Folder,
    ListFiles,
    Staging,
    describe_bytes,
    find_dropped,
    find_misplaced,
    parse_record,
    to_checked_json,
)
from convert.store.journal import find_cache_folder
from convert.store.storage import Found
from convert.targets import Target, list_targets

_CURE = "agents are made on this computer first, and XDG_CACHE_HOME or TMPDIR can name another place"


def inspect(place: str) -> Folder:
    """Return what stands in an agent's folder at a URL; see `convert.store.Store`."""
    files = storage.list_files(place)
    is_readable = RECORD_NAME in files and files[RECORD_NAME].size <= LARGEST_DOCUMENT
    data = storage.read_bytes(storage.join(place, RECORD_NAME)) if is_readable else b""
    record, is_exact = parse_record(place, files, data)
    is_settled = UNFINISHED_NAME not in files
    return Folder(place, record, is_exact, is_settled, is_whole=is_settled, files=files)


def has_artifact(found: Folder, target: Target, artifact: Artifact, *, is_rehearsal: bool = False) -> bool:
    """Return whether an artefact's files are there as recorded; see `convert.store.Store`."""
    if not artifact.files or find_misplaced(target, artifact):
        return False
    if not all(_has_size(found.files, file.path, file.size) for file in artifact.files):
        return False
    return is_rehearsal or all(describe_bytes(_read(found, file.path), file.path) == file for file in artifact.files)


@contextmanager
def open_artifact(found: Folder, artifact: Artifact) -> Iterator[Path]:
    """Give a copy of an artefact; see `convert.store.Store`."""
    with make_temporary_folder() as copy:
        write_files(Path(copy), {file.path: _read(found, file.path) for file in artifact.files})
        yield Path(copy)


@contextmanager
def open_folder(found: Folder) -> Iterator[Staging]:
    """Give a folder of this computer to write into; it is removed at the end. See `convert.store.Store`."""
    with _open_aside() as folder:
        try:
            yield Staging(folder, found)
        except OSError as error:
            reason = f"{folder}: cannot be written ({error.strerror or error})"
            raise UnwritableOutput(f"{found.place}: {reason}: {_CURE}") from error


def publish(staging: Staging, record: Record) -> None:
    """Send what is staged, and the record last; see `convert.store.Store`."""
    place, former = staging.found.place, staging.found
    text = to_checked_json(record, storage.join(place, RECORD_NAME))
    storage.write_bytes(storage.join(place, UNFINISHED_NAME), b"")
    recorded = [file.path for artifact in record.artifacts.values() for file in artifact.files]
    for path in recorded:
        if (staging.path / path).exists():
            storage.write_bytes(storage.join(place, path), (staging.path / path).read_bytes())
    # An older format of an artefact had more files, or the record no longer lists a target.
    tops = {target.path for target in list_targets() if target.name in record.artifacts}
    tops |= set(find_dropped(former.record, record))
    for path in former.files:
        if path.partition("/")[0] in tops and path not in recorded:
            storage.remove(storage.join(place, path))
    storage.write_bytes(storage.join(place, RECORD_NAME), text.encode())
    storage.remove(storage.join(place, UNFINISHED_NAME))


def find_stamps(place: str, list_around: ListFiles | None = None) -> FindStamp:
    """Return what finds the stamp of a file; see `convert.store.Store`."""
    around, _, name = place.rpartition("/")
    files, prefix = (list_around(around), f"{name}/") if list_around else (storage.list_files(place), "")
    if prefix + UNFINISHED_NAME in files:
        return lambda _: None
    return lambda path: files[prefix + path].stamp if prefix + path in files else None


def _has_size(files: Mapping[str, Found], path: str, size: int) -> bool:
    return path in files and files[path].size == size


def _read(found: Folder, path: str) -> bytes:
    return storage.read_bytes(storage.join(found.place, path))


@contextmanager
def _open_aside() -> Iterator[Path]:
    """Give a folder of this computer, removed at the end. Also remove those that killed runs have left."""
    base = _make_base()
    try:
        aside = tempfile.TemporaryDirectory(dir=base)
    except OSError as error:
        raise UnwritableOutput(f"{base}: cannot be written ({error.strerror}): {_CURE}") from error
    with aside as folder:
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(folder)
        finally:
            os.close(lock)


def _make_base() -> Path:
    """Return the folder for those of `_open_aside`, swept; the system's temporary folder where it cannot be made."""
    try:
        base = find_cache_folder() / "aside"
        base.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir())
    _sweep(base)
    return base


def _sweep(base: Path) -> None:
    for left in base.iterdir():
        try:
            if time.time() - left.stat().st_mtime < 60:  # seconds; perhaps about to be locked
                continue
            lock = os.open(left, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
