"""Agents and checkpoints at paths and URLs. Those at URLs are copied to this computer, one agent at a time.

A copy holds every file of the agent, within bounds, and its checkpoint; it is removed when the agent is done.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.agents.agent import Agent, Record, find_path_problem
from convert.errors import AtariConvertError, CheckError, CheckpointError, UnreadableArtefact, UnwritableOutput
from convert.files.bounds import LARGEST
from convert.files.disk import MOST_FILES, make_temporary_folder, read_file, write_files
from convert.files.documents import LARGEST_DOCUMENT, show
from convert.proofs import PROOF_NAME, to_json
from convert.sources import is_file_name, locate, read_record
from convert.store import storage
from runtime_check.check.sources import Sources, find_change
from runtime_check.proof import check_unchanged, publish_proof

Stamps = Mapping[str, str | None]

_DEEPEST = 100  # levels of folders
_MOST_ENTRIES = 100_000  # files and folders of an agent on disk
_LARGEST_AGENT = 8 * LARGEST  # bytes; an agent with every target has 250 MB


@dataclass(frozen=True)
class Place:
    """An agent on this computer.

    name: what the user calls it, a path or a URL. folder: where it is, or its copy. sources: where its checkpoint is.
    files: the stamps of its files, taken before anything was read, see `stamp_files`. checkpoint: the stamp of that at
    a URL, as it was copied.
    """

    name: str
    folder: Path
    sources: Sources
    files: Stamps
    checkpoint: str | None = None

    def restore(self, value: Any) -> Any:
        """Return texts, and what holds texts, with the name of the agent in place of that of its copy."""
        if str(self.folder) == self.name:
            return value
        if isinstance(value, dict):
            return {key: self.restore(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.restore(each) for each in value]
        return value.replace(str(self.folder), self.name) if isinstance(value, str) else value


@contextmanager
def open_place(name: str, source: str, sources: Sources | None, *, anonymous: bool) -> Iterator[Place]:
    """Give an agent with its checkpoint on this computer.

    Args:
        name: the agent's folder, a path or a URL.
        source: the checkpoint or what holds it, a path or a URL.
        sources: the same, if it is a path.
        anonymous: read checkpoints at URLs without credentials.

    Raises:
        AtariConvertError: something at a URL cannot be read, or is too large.
    """
    if sources is not None and not storage.is_url(name):
        yield Place(name, Path(name), sources, stamp_files(name))
        return
    with make_temporary_folder() as copy:
        if storage.is_url(name):
            folder = Path(copy, "agent")
            files = _copy_agent(name, folder)
        else:
            folder, files = Path(name), stamp_files(name)
        try:
            if sources is not None:
                yield Place(name, folder, sources, files)
                return
            stamp = _copy_checkpoint(source, read_record(folder).agent, Path(copy, "source"), anonymous)
            yield Place(name, folder, Sources(Path(copy, "source")), files, stamp)
        except AtariConvertError as error:
            error.args = tuple(
                str(each).replace(str(folder), name).replace(f"{copy}/source", source) for each in error.args
            )
            raise


def publish(place: Place, record: Record, statement: Mapping[str, Any]) -> None:
    """Put ``proof.json`` in place, if the files there are still those that were checked.

    Raises:
        CheckError: they are not; nothing was written.
        UnwritableOutput, OSError: it cannot be written.
    """
    if not storage.is_url(place.name):
        publish_proof(place.folder, record, statement)
        return
    check_unchanged(place.folder, record, statement)
    if stamp_files(place.name) != place.files:
        raise CheckError(f"{place.name}: its files changed while they were checked: check it again")
    storage.write_bytes(storage.join(place.name, PROOF_NAME), to_json(statement).encode())


def stamp_files(name: str) -> dict[str, str | None]:
    """Return what changes with the content of an agent's files, by relative path; None where a server tells nothing.

    Folders on disk are among them: they change where a file is added. ``proof.json`` is not: its bytes are compared.

    Args:
        name: the agent's folder, a path or a URL.

    Raises:
        CheckError: there are too many files, or folders below each other.
    """
    if storage.is_url(name):
        return _to_stamps(storage.list_files(name))
    stamps: dict[str, str | None] = {}
    waiting = [""]
    while waiting:
        place = waiting.pop()
        if place.count("/") > _DEEPEST or len(stamps) > _MOST_ENTRIES:
            limit = f"{_DEEPEST} levels" if place.count("/") > _DEEPEST else f"{_MOST_ENTRIES} files and folders"
            raise CheckError(f"{name}: more than {limit} in it: move away what is not the agent's")
        for path, entry in _list_entries(name, place):
            stamps[path] = _stamp(entry)
            if entry.is_dir(follow_symlinks=False):
                waiting.append(f"{path}/")
    stamps.pop(PROOF_NAME, None)
    return stamps


def _list_entries(folder: str, place: str) -> list[tuple[str, os.DirEntry[str]]]:
    try:
        with os.scandir(os.path.join(folder, place)) as entries:
            return [(place + entry.name, entry) for entry in entries]
    except OSError:  # closed, or another run is at work there: its own stamp tells of changes
        return []


def has_proof(name: str, text: str | None) -> bool:
    """Return whether an agent's ``proof.json`` is this text; of None, whether there is no such file."""
    path = storage.join(name, PROOF_NAME)
    try:
        if text is None:
            return PROOF_NAME not in storage.list_files(name) if storage.is_url(name) else not os.path.lexists(path)
        found = storage.read_bytes(path) if storage.is_url(name) else read_file(Path(path), LARGEST_DOCUMENT)
    except (UnreadableArtefact, UnwritableOutput):
        return False
    return found == text.encode()


def stamp_source(place: Place, path: Path, agent: Agent, source: str) -> tuple[str, str | None]:
    """Return the absolute path or the URL of the checkpoint that an agent was compared with, and its stamp.

    Args:
        place: of the agent.
        path: where the checkpoint was found in it.
        agent: whose record has the checksum.
        source: what was named, see `open_place`.

    Raises:
        CheckError: another file has taken its place meanwhile.
    """
    if storage.is_url(source):
        return _name_source(place, path, source), place.checkpoint
    stamp = storage.find_stamp(str(path))
    if find_change(path, agent.source) or storage.find_stamp(str(path)) != stamp:
        raise CheckError(f"{path}: changed while {place.name} was compared with it: check it again")
    return os.path.abspath(path), stamp


def _name_source(place: Place, path: Path, source: str) -> str:
    if is_file_name(storage.path_of(source)):
        return source
    return storage.join_path(source, path.relative_to(place.sources.root).as_posix())


def _copy_agent(url: str, folder: Path) -> dict[str, str | None]:
    """Copy an agent's files from a URL; return their stamps."""
    found = storage.list_files(url)
    if not found:
        raise CheckError(f"{url}: not found or empty, expected the folder of a converted agent")
    size = sum(file.size for file in found.values())
    if len(found) > MOST_FILES or size > _LARGEST_AGENT:
        raise CheckError(
            f"{url}: {len(found)} files of {size} bytes, expected at most {MOST_FILES} of {_LARGEST_AGENT}"
        )
    left = _LARGEST_AGENT
    folder.mkdir()
    for path in found:
        if problem := find_path_problem(path):
            raise CheckError(f"{url}: the name {show(path)} {problem}")
        data = storage.read_bytes(storage.join(url, path))
        left -= len(data)
        if left < 0:
            raise CheckError(f"{url}: more than {_LARGEST_AGENT} bytes, whatever its server says")
        write_files(folder, {path: data})
    return _to_stamps(found)


def _to_stamps(found: Mapping[str, storage.Found]) -> dict[str, str | None]:
    return {path: file.stamp for path, file in found.items() if path != PROOF_NAME}


def _copy_checkpoint(source: str, agent: Agent, folder: Path, anonymous: bool) -> str | None:
    """Copy an agent's checkpoint from a URL, to the place where its zoo has it; return its stamp."""
    places = [place for place in dict.fromkeys((locate(agent.identity), agent.source.path)) if place]
    problem: AtariConvertError | None = None
    for place in places:
        url = source if is_file_name(storage.path_of(source)) else storage.join_path(source, place)
        try:
            data, stamp = storage.read_source(url, anonymous=anonymous)
        except CheckpointError as error:
            problem = error
            continue
        write_files(folder, {place: data})
        return stamp
    raise CheckpointError(f"{problem}: the checkpoint of {agent.source.path}; name its root with --source")


def _stamp(entry: os.DirEntry[str]) -> str | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None  # another run is at work there
    # Programs can set the time of a change of content, not that of a change of the entry.
    return f"{status.st_mode}-{status.st_ino}-{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"
