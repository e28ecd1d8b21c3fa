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
from convert.agent import RECORD_NAME, Artifact, Record, from_json, to_json
from convert.errors import OutputExists, RecordError
from convert.journal import cache_folder
from convert.publish import check_ours, find_record
from convert.selection import Job
from convert.storage import Found

MARKER = ".atari-convert-new"

_Listing = Mapping[str, Found]


def convert_data(
    data: bytes, job: Job, targets: Collection[str], *, overwrite: bool, exact: bool
) -> tuple[tuple[str, ...], Record]:
    """Convert the bytes of a checkpoint into an agent's folder at a URL; what is current there is left alone.

    Args:
        data: the checkpoint.
        job: its source and folder.
        targets: names such as ``onnx``.
        overwrite: write again what is current.
        exact: hash what is there instead of trusting its size.

    Returns:
        The targets that were written, and the folder's record.

    Raises:
        AtariConvertError: see `convert.errors`.
    """
    files = storage.list_files(job.folder)
    record = _find_record(job.folder, files)
    checkpoint = pipeline.describe_source(data, job.path)
    intact = partial(_is_intact, job.folder, files, exact)
    stale = pipeline.choose_stale(
        record, job.identity, checkpoint, targets, overwrite=overwrite or MARKER in files, is_intact=intact
    )
    if record and not stale:
        return (), record
    if record and MARKER in files:  # what a killed run was sending may lie among what the record says
        stale = tuple(dict.fromkeys((*stale, *record.artifacts)))
    with _aside() as folder:
        conversion = pipeline.convert_data(data, job.source, folder, stale, identity=job.identity, path=job.path)
        fresh = conversion.record
        artifacts = {**(record.artifacts if record else {}), **fresh.artifacts}
        merged = Record(fresh.agent, artifacts, fresh.versions)
        _send(folder, job.folder, conversion.record, merged, files)
    return stale, merged


def plan_conversion(job: Job, targets: Collection[str], *, overwrite: bool) -> tuple[str, ...]:
    """Return the targets that a run would write for a job whose source or folder is at a URL, by sizes alone."""
    if storage.is_url(job.folder):
        files: _Listing = storage.list_files(job.folder)
        record = _find_record(job.folder, files)
    else:
        files = _list_local(Path(job.folder))
        record = find_record(Path(job.folder))
        check_ours(Path(job.folder))
    if record is None:
        return tuple(targets)
    if job.size and job.size != record.agent.source.size:
        return tuple(dict.fromkeys((*targets, *record.artifacts)))
    intact = partial(_is_intact, job.folder, files, False)
    source = record.agent.source
    return pipeline.choose_stale(record, job.identity, source, targets, overwrite=overwrite, is_intact=intact)


def _find_record(url: str, files: _Listing) -> Record | None:
    """Return the record at a URL; None where there is none that this version reads.

    Raises:
        OutputExists: the URL holds what this tool did not write.
    """
    if RECORD_NAME not in files:
        if files and MARKER not in files:
            names = sorted(files)
            raise OutputExists(
                f"{url}: holds {', '.join(names[:3])}{' …' if len(names) > 3 else ''} and no {RECORD_NAME} of ours: "
                "nothing was touched; choose another --out or move it away"
            )
        return None
    text = storage.read_bytes(storage.join(url, RECORD_NAME)).decode(errors="replace")
    try:
        return from_json(text, storage.join(url, RECORD_NAME))
    except RecordError:
        return None


def _is_intact(folder: str, files: _Listing, exact: bool, artifact: Artifact) -> bool:
    for file in artifact.files:
        if file.path not in files or files[file.path].size != file.size:
            return False
        if exact:
            data = storage.read_bytes(storage.join(folder, file.path))
            if hashlib.sha256(data).hexdigest() != file.sha256:
                return False
    return True


def _send(folder: Path, url: str, fresh: Record, merged: Record, before: _Listing) -> None:
    storage.write_bytes(storage.join(url, MARKER), b"")
    for artifact in fresh.artifacts.values():
        for file in artifact.files:
            storage.write_bytes(storage.join(url, file.path), (folder / file.path).read_bytes())
    recorded = {file.path for artifact in merged.artifacts.values() for file in artifact.files}
    tops = {path.split("/")[0] for path in recorded}
    for path in before:
        if "/" in path and path.split("/")[0] in tops and path not in recorded:
            storage.remove(storage.join(url, path))  # an older format of an artefact had more files
    storage.write_bytes(storage.join(url, RECORD_NAME), to_json(merged).encode())
    storage.remove(storage.join(url, MARKER))


def _list_local(folder: Path) -> _Listing:
    if not folder.is_dir():
        return {}
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): Found(str(path), path.stat().st_size) for path in paths}


@contextmanager
def _aside() -> Iterator[Path]:
    """Give a folder of this computer to write into; it goes again, and those that killed runs left go too."""
    base = cache_folder() / "aside"
    base.mkdir(parents=True, exist_ok=True)
    _sweep(base)
    with tempfile.TemporaryDirectory(dir=base) as folder:
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(folder, "agent")
        finally:
            os.close(lock)


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
