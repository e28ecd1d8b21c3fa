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

from convert import pipeline
from convert.agents.agent import RECORD_NAME, UNFINISHED_NAME, Agent, Artifact, Record, name_actions
from convert.agents.network import Network
from convert.agents.record import from_json, to_json
from convert.artefacts import describes
from convert.bulk.selection import Job
from convert.errors import AtariConvertError, RecordError, UnwritableOutput
from convert.files.disk import write_files
from convert.files.documents import LARGEST_DOCUMENT
from convert.pipeline import Conversion
from convert.store import storage
from convert.store.journal import cache_folder
from convert.store.publication import find_dropped, refuse_foreign
from convert.store.storage import Found
from convert.targets import find_target, list_targets

_CURE = "agents are made on this computer first, and XDG_CACHE_HOME or TMPDIR can name another place"
_Listing = Mapping[str, Found]


def convert_network(
    network: Network, agent: Agent, job: Job, targets: Collection[str], *, overwrite: bool
) -> tuple[tuple[str, ...], Record, Mapping[str, AtariConvertError]]:
    """Convert a network into the agent's folder at a URL; what is current there is left alone.

    Args:
        network: what was read.
        agent: whose it is.
        job: its source and folder.
        targets: names such as ``onnx``.
        overwrite: write again what is current.

    Returns:
        The targets that were written, the folder's record, and why targets failed.

    Raises:
        AtariConvertError: nothing was sent; see `convert.errors`.
    """
    pipeline.check_targets(targets)
    files = storage.list_files(job.folder)
    record, is_exact = _find_record(job.folder, files)
    is_unfinished = UNFINISHED_NAME in files
    stale = pipeline.choose_stale(
        record,
        agent,
        targets,
        overwrite=overwrite or is_unfinished,
        is_exact=is_exact,
        is_intact=partial(_is_intact, job.folder, files),
        is_true=lambda name: record is not None and _is_true(name, job.folder, record),
    )
    if record and not stale:
        return (), record, {}
    if record and is_unfinished:  # what a killed run was sending may lie among what the record says
        stale = tuple(dict.fromkeys((*stale, *record.artifacts)))
    with _aside() as folder:
        fresh = _write_aside(network, agent, stale, folder, job)
        if not fresh.written:
            return (), record or fresh.record, fresh.failures
        kept = record.artifacts if record and record.agent == agent and not is_unfinished else {}
        merged = Record(agent, {**kept, **fresh.record.artifacts}, fresh.record.versions)
        _send(folder, job.folder, fresh.record, merged, record, files)
    return fresh.written, merged, fresh.failures


def _write_aside(network: Network, agent: Agent, targets: Collection[str], folder: Path, job: Job) -> Conversion:
    try:
        return pipeline.write_agent(network, agent, folder, targets)
    except UnwritableOutput as error:
        raise UnwritableOutput(f"{job.folder}: {error}: {_CURE}") from error


def plan_conversion(job: Job, agent: Agent | None, targets: Collection[str], *, overwrite: bool) -> tuple[str, ...]:
    """Return the targets that a run would write at a URL, by sizes alone; ``agent`` is None where it was not read."""
    files = storage.list_files(job.folder)
    record, is_exact = _find_record(job.folder, files)
    agent = agent or guess_agent(job, record)
    return pipeline.choose_stale(
        record,
        agent,
        targets,
        overwrite=overwrite,
        is_exact=is_exact,
        is_intact=partial(_has_sizes, files),
        is_true=lambda _: True,
    )


def guess_agent(job: Job, record: Record | None) -> Agent | None:
    """Return who a checkpoint is without reading it: whom the record tells of, unless the job tells of another."""
    if record is None or job.path != record.agent.source.path or job.size not in (0, record.agent.source.size):
        return None
    source, head = record.agent.source, record.agent.head
    return Agent(job.identity, head, source, name_actions(job.identity.game, head.actions))


def _find_record(url: str, files: _Listing) -> tuple[Record | None, bool]:
    """Return the record at a URL, None where there is none that this version reads, and whether its text is exact.

    Raises:
        OutputExists: the URL holds what this tool did not write.
    """
    place = storage.join(url, RECORD_NAME)
    is_there = RECORD_NAME in files and files[RECORD_NAME].size <= LARGEST_DOCUMENT
    text = storage.read_bytes(place).decode(errors="replace") if is_there else ""
    refuse_foreign(url, files, text)
    try:
        record = from_json(text, place)
    except RecordError:
        return None, False
    return record, to_json(record) == text


def _is_intact(folder: str, files: _Listing, artifact: Artifact) -> bool:
    return _has_sizes(files, artifact) and all(
        hashlib.sha256(storage.read_bytes(storage.join(folder, file.path))).hexdigest() == file.sha256
        for file in artifact.files
    )


def _is_true(name: str, folder: str, record: Record) -> bool:
    """Tell whether an artefact whose files are intact says of its agent what its target writes."""
    target = find_target(name)
    if not target.describes:
        return True
    with tempfile.TemporaryDirectory(prefix="atari-convert-") as copy:
        paths = [file.path for file in record.artifacts[name].files]
        write_files(Path(copy), {path: storage.read_bytes(storage.join(folder, path)) for path in paths})
        return describes(name, Path(copy, target.path), record.agent)


def _has_sizes(files: _Listing, artifact: Artifact) -> bool:
    found = [file.path in files and files[file.path].size == file.size for file in artifact.files]
    return bool(found) and all(found)


def _send(folder: Path, url: str, fresh: Record, merged: Record, former: Record | None, before: _Listing) -> None:
    storage.write_bytes(storage.join(url, UNFINISHED_NAME), b"")
    for artifact in fresh.artifacts.values():
        for file in artifact.files:
            storage.write_bytes(storage.join(url, file.path), (folder / file.path).read_bytes())
    recorded = {file.path for artifact in merged.artifacts.values() for file in artifact.files}
    # An older format of an artefact had more files, or a target that was there is not there any more.
    places = {target.path for target in list_targets() if target.name in merged.artifacts}
    places |= set(find_dropped(former, merged))
    for path in before:
        if path.partition("/")[0] in places and path not in recorded:
            storage.remove(storage.join(url, path))
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
