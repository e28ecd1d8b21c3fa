"""Agents and checkpoints at paths and URLs. Those at URLs are copied to this computer, one agent at a time.

A copy holds every file of the agent, within bounds, and its checkpoint; it is removed when the agent is done.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.agents.agent import Agent, Record, find_path_problem
from convert.errors import AtariConvertError, CheckError, CheckpointError, UnreadableArtefact, UnwritableOutput
from convert.files.bounds import LARGEST
from convert.files.disk import MOST_FILES, read_file, write_files
from convert.files.documents import LARGEST_DOCUMENT, show
from convert.proofs import PROOF_NAME, to_json
from convert.sources import list_suffixes, locate, read_record
from convert.store import storage
from runtime_check.check.sources import Sources
from runtime_check.proof import check_unchanged, publish_proof

Stamps = Mapping[str, str | None]

_LARGEST_AGENT = 8 * LARGEST  # bytes; an agent with every target has 250 MB


@dataclass(frozen=True)
class Place:
    """An agent on this computer.

    name: what the user calls it, a path or a URL. folder: where it is, or its copy. sources: where its checkpoint is.
    files: the stamps of its files, taken before anything was read, see `stamp_files`.
    """

    name: str
    folder: Path
    sources: Sources
    files: Stamps

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
    with tempfile.TemporaryDirectory(prefix="atari-check-") as copy:
        if storage.is_url(name):
            folder = Path(copy, "agent")
            files = _copy_agent(name, folder)
        else:
            folder, files = Path(name), stamp_files(name)
        try:
            near = sources or _copy_checkpoint(source, read_record(folder).agent, Path(copy, "source"), anonymous)
            yield Place(name, folder, near, files)
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
    """
    if storage.is_url(name):
        return _to_stamps(storage.list_files(name))
    folder, stamps = Path(name), {}
    for top, folders, files in os.walk(folder):
        for path in (Path(top, each) for each in (*folders, *files)):
            if path != folder / PROOF_NAME:
                stamps[path.relative_to(folder).as_posix()] = _stamp(path)
    return stamps


def has_proof(name: str, text: str) -> bool:
    """Return whether an agent's ``proof.json`` is this text; also where there is none, for it may be unwritable."""
    path = storage.join(name, PROOF_NAME)
    try:
        if storage.is_url(name):
            return PROOF_NAME not in storage.list_files(name) or storage.read_bytes(path) == text.encode()
        return not os.path.lexists(path) or read_file(Path(path), LARGEST_DOCUMENT) == text.encode()
    except (UnreadableArtefact, UnwritableOutput):
        return False


def name_source(place: Place, path: Path, source: str) -> str:
    """Return the absolute path or the URL of a checkpoint that was found at ``path`` in a place."""
    if not storage.is_url(source):
        return os.path.abspath(path)
    return source if _is_file(source) else storage.join(source, path.relative_to(place.sources.root).as_posix())


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


def _copy_checkpoint(source: str, agent: Agent, folder: Path, anonymous: bool) -> Sources:
    """Copy an agent's checkpoint from a URL, to the place where its zoo has it."""
    places = [place for place in dict.fromkeys((locate(agent.identity), agent.source.path)) if place]
    problem: AtariConvertError | None = None
    for place in places:
        url = source if _is_file(source) else storage.join(source, place)
        try:
            data, _ = storage.read_source(url, anonymous=anonymous)
        except CheckpointError as error:
            problem = error
            continue
        write_files(folder, {place: data})
        return Sources(folder)
    raise CheckpointError(f"{problem}: the checkpoint of {agent.source.path}; name its root with --source")


def _is_file(url: str) -> bool:
    return storage.path_of(url).endswith(list_suffixes())


def _stamp(path: Path) -> str | None:
    try:
        status = path.lstat()
    except OSError:
        return None  # another run is at work there
    return f"{status.st_mode}-{status.st_size}-{status.st_mtime_ns}"
