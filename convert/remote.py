"""Agents' folders at URLs. A store cannot rename or lock, so a folder is written aside here and then sent.

Each object is replaced in one step, ``agent.json`` last. ``.atari-convert-new`` is there from before the first object
until after ``agent.json``: where it is found, a run was killed while it sent, and the agent is sent again. Two runs
that send one agent at once send the same bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from convert import pipeline, storage
from convert.agent import RECORD_NAME, UNFINISHED_NAME, Artifact, File, Record, from_json, to_json
from convert.errors import RecordError, UnwritableOutput
from convert.journal import cache_folder
from convert.publish import refuse_foreign
from convert.selection import Job
from convert.storage import Found

_CURE = "agents are made on this computer first, and XDG_CACHE_HOME or TMPDIR can name another place"
_Listing = Mapping[str, Found]


def convert_data(data: bytes, job: Job, targets: Collection[str], *, overwrite: bool) -> tuple[tuple[str, ...], Record]:
    """Convert the bytes of a checkpoint into an agent's folder at a URL; what is current there is left alone.

    Args:
        data: the checkpoint.
        job: its source and folder.
        targets: names such as ``onnx``.
        overwrite: write again what is current.

    Returns:
        The targets that were written, and the folder's record.

    Raises:
        AtariConvertError: see `convert.errors`.
    """
    files = storage.list_files(job.folder)
    record = _find_record(job.folder, files)
    checkpoint = pipeline.describe_source(data, job.path)
    intact = partial(_is_intact, job.folder, files)
    stale = pipeline.choose_stale(
        record, job.identity, checkpoint, targets, overwrite=overwrite or UNFINISHED_NAME in files, is_intact=intact
    )
    if record and not stale:
        return (), record
    if record and UNFINISHED_NAME in files:  # what a killed run was sending may lie among what the record says
        stale = tuple(dict.fromkeys((*stale, *record.artifacts)))
    with _aside() as folder:
        fresh = _convert_aside(data, job, stale, folder)
        merged = Record(fresh.agent, {**(record.artifacts if record else {}), **fresh.artifacts}, fresh.versions)
        _send(folder, job.folder, fresh, merged, files)
    return stale, merged


def _convert_aside(data: bytes, job: Job, targets: Collection[str], folder: Path) -> Record:
    try:
        return pipeline.convert_data(data, job.source, folder, targets, identity=job.identity, path=job.path).record
    except UnwritableOutput as error:
        raise UnwritableOutput(f"{job.folder}: {error}: {_CURE}") from error


def plan_conversion(job: Job, targets: Collection[str], *, overwrite: bool) -> tuple[str, ...]:
    """Return the targets that a run would write at a URL, by sizes alone."""
    files = storage.list_files(job.folder)
    record = _find_record(job.folder, files)
    source = guess_source(job, record)
    intact = partial(_has_sizes, files)
    return pipeline.choose_stale(record, job.identity, source, targets, overwrite=overwrite, is_intact=intact)


def guess_source(job: Job, record: Record | None) -> File:
    """Return a source without reading it: as the record has it, unless their sizes differ."""
    if record and job.size in (0, record.agent.source.size):
        return record.agent.source
    return File(job.path, job.size, "")


def _find_record(url: str, files: _Listing) -> Record | None:
    """Return the record at a URL; None where there is none that this version reads.

    Raises:
        OutputExists: the URL holds what this tool did not write.
    """
    place = storage.join(url, RECORD_NAME)
    text = storage.read_bytes(place).decode(errors="replace") if RECORD_NAME in files else ""
    refuse_foreign(url, files, text)
    try:
        return from_json(text, place)
    except RecordError:
        return None


def _is_intact(folder: str, files: _Listing, artifact: Artifact) -> bool:
    return _has_sizes(files, artifact) and all(
        hashlib.sha256(storage.read_bytes(storage.join(folder, file.path))).hexdigest() == file.sha256
        for file in artifact.files
    )


def _has_sizes(files: _Listing, artifact: Artifact) -> bool:
    found = [file.path in files and files[file.path].size == file.size for file in artifact.files]
    return bool(found) and all(found)


def _send(folder: Path, url: str, fresh: Record, merged: Record, before: _Listing) -> None:
    storage.write_bytes(storage.join(url, UNFINISHED_NAME), b"")
    for artifact in fresh.artifacts.values():
        for file in artifact.files:
            storage.write_bytes(storage.join(url, file.path), (folder / file.path).read_bytes())
    recorded = {file.path for artifact in merged.artifacts.values() for file in artifact.files}
    tops = {path.split("/")[0] for path in recorded}
    for path in before:
        if "/" in path and path.split("/")[0] in tops and path not in recorded:
            storage.remove(storage.join(url, path))  # an older format of an artefact had more files
    storage.write_bytes(storage.join(url, RECORD_NAME), to_json(merged).encode())
    storage.remove(storage.join(url, UNFINISHED_NAME))


@contextmanager
def _aside() -> Iterator[Path]:
    """Give a folder of this computer to write into; it goes again, and those that killed runs left go too."""
    base = _make_base()
    try:
        aside = tempfile.TemporaryDirectory(dir=base)
    except OSError as error:
        raise UnwritableOutput(f"{base}: cannot be written ({error.strerror}): {_CURE}") from error
    with aside as folder:
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(folder, "agent")
        finally:
            os.close(lock)


def _make_base() -> Path:
    """Return a swept folder for those of `_aside`; the system's own, unswept, where none can be made."""
    try:
        base = cache_folder() / "aside"
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
