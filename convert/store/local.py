"""Agents' folders on disk. They are whole at every instant: written aside, renamed into place, ``agent.json`` last.

New files are staged in ``.atari-convert-new`` inside the agent's folder. The staged ``agent.json`` is written last, and
is the decision to publish: a run that finds one completes the renames, a run that finds none drops what is staged.
A lock on the folder keeps two runs apart. The system releases it when its process ends, however it ends.

This tool makes no links. A folder with a link in the place of its files is refused, so none is followed, moved or
deleted.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convert.agents.agent import RECORD_NAME, UNFINISHED_NAME, Artifact, File, Record
from convert.agents.record import read_record
from convert.errors import OutputExists, RecordError, UnreadableArtefact, UnwritableOutput
from convert.files.disk import read_file
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
from convert.targets import Target, list_targets

_OLD = ".atari-convert-old"
_DEEPEST = 16  # folders below each other in an artefact


def inspect(place: str | Path) -> Folder:
    """Return what stands in an agent's folder; see `convert.store.Store`. One that is missing or empty will do."""
    folder = Path(place)
    try:
        names = os.listdir(folder) if folder.is_dir() else []
        check_no_strangers(folder)
    except OSError as error:
        raise UnwritableOutput(f"{folder}: cannot be listed ({error.strerror}): choose another --out") from error
    # A run that was killed while it published for the first time may have moved everything aside.
    ours = [] if _OLD in names else names
    record, is_exact = parse_record(str(folder), ours, _read_bytes(folder / RECORD_NAME))
    return Folder(str(folder), record, is_exact, is_settled=not {UNFINISHED_NAME, _OLD} & set(names))


def has_artifact(found: Folder, target: Target, artifact: Artifact, *, is_rehearsal: bool = False) -> bool:  # noqa: ARG001
    """Return whether an artefact's files are there as recorded; see `convert.store.Store`."""
    return is_intact(Path(found.place), target, artifact)


@contextmanager
def open_artifact(found: Folder, artifact: Artifact) -> Iterator[Path]:  # noqa: ARG001
    """Give the agent's folder itself; see `convert.store.Store`."""
    yield Path(found.place)


@contextmanager
def open_folder(found: Folder) -> Iterator[Staging]:
    """Make and lock an agent's folder, complete or drop what a killed run left, and give a folder to stage into.

    At the end everything staged and not published is removed, and so are folders that this call made and that are
    still empty. Raises as `convert.store.Store` says.
    """
    folder = Path(found.place)
    made = _make(folder)
    try:
        with hold_lock(folder):
            check_no_strangers(folder)
            _finish(folder)
            found = inspect(folder)
            staging = folder / UNFINISHED_NAME
            staging.mkdir()
            try:
                yield Staging(staging, found)
            finally:
                _finish(folder)
    except OSError as error:
        raise UnwritableOutput(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        _remove_empty(made)


def publish(staging: Staging, record: Record) -> None:
    """Put what is staged in place, and the record last; see `convert.store.Store`.

    A plain file replaces its predecessor in one step. A folder's predecessor is first renamed aside, since a folder
    cannot be renamed onto another.
    """
    folder = staging.path.parent
    text = to_checked_json(record, str(folder / RECORD_NAME))
    (staging.path / f"{RECORD_NAME}.part").write_text(text, "utf-8")
    os.replace(staging.path / f"{RECORD_NAME}.part", staging.path / RECORD_NAME)
    _finish(folder)


@contextmanager
def hold_lock(folder: Path) -> Iterator[None]:
    """Keep other runs that write to an agent's folder waiting. The system releases it when the process ends."""
    descriptor = _lock(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def find_stamps(place: str, list_around: ListFiles | None = None) -> FindStamp:  # noqa: ARG001
    """Return what finds the stamp of a file; see `convert.store.Store`."""
    folder = Path(place)
    if any(os.path.lexists(folder / name) for name in (UNFINISHED_NAME, _OLD)):
        return lambda _: None
    return lambda path: storage.find_stamp(str(folder / path))


def check_no_strangers(folder: Path) -> None:
    """Raise if a folder has a link, a pipe or a device where this tool has its files and folders.

    Raises:
        OutputExists: it holds one.
    """
    names = [RECORD_NAME, UNFINISHED_NAME, _OLD, *(target.path for target in list_targets())]
    for name in names:
        strangers = find_strangers(folder / name)
        if name in (UNFINISHED_NAME, _OLD) and (folder / name).is_file():
            strangers |= {folder / name: "a file, expected a folder"}
        for path, kind in strangers.items():
            raise OutputExists(
                f"{path}: is {kind}, which atari-convert never makes: nothing was touched; remove it, or choose "
                "another --out"
            )


def find_strangers(top: Path, depth: int = 0) -> dict[Path, str]:
    """Return everything at or below a path that is neither a folder nor a regular file, and what it is.

    No link is followed.

    Raises:
        OSError: a folder cannot be listed.
    """
    try:
        mode = top.lstat().st_mode
        names = sorted(os.listdir(top)) if stat.S_ISDIR(mode) else []
    except (FileNotFoundError, NotADirectoryError):  # another run may be at work there
        return {}
    if stat.S_ISLNK(mode):
        return {top: "a symbolic link"}
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        return {top: "not a regular file"}
    if depth == _DEEPEST:
        return {top: f"more than {_DEEPEST} folders below each other"}
    return {path: kind for name in names for path, kind in find_strangers(top / name, depth + 1).items()}


def is_intact(folder: Path, target: Target, artifact: Artifact) -> bool:
    """Return whether an artefact has files, and each is there with its recorded size and sha256.

    Nothing is opened where the record or a link leads out of the target's place.
    """
    if not artifact.files or find_misplaced(target, artifact) or find_strangers(folder / target.path):
        return False
    return all(_is_intact(folder / file.path, file) for file in artifact.files)


def describe_files(folder: Path, path: str) -> tuple[File, ...]:
    """Return the files at ``path`` (a file or a folder) below a folder, in the order of their names."""
    top = folder / path
    files = [top] if top.is_file() else sorted(entry for entry in top.rglob("*") if entry.is_file())
    return tuple(describe_bytes(read_file(file), file.relative_to(folder).as_posix()) for file in files)


def _is_intact(path: Path, file: File) -> bool:
    try:
        return describe_bytes(read_file(path, file.size), file.path) == file
    except UnreadableArtefact:
        return False


def _finish(folder: Path) -> None:
    """Complete a publication that was decided, from wherever it stopped; drop one that was not."""
    new, old = folder / UNFINISHED_NAME, folder / _OLD
    if decided := _find_record(new):
        for name in sorted(os.listdir(new)):
            if name in _find_places(decided):
                _place(new / name, folder / name, old)
        for name in find_dropped(_find_record(folder), decided):
            if os.path.lexists(folder / name):
                _move_aside(folder / name, old)
        os.replace(new / RECORD_NAME, folder / RECORD_NAME)
    for leftover in (new, old):
        if os.path.lexists(leftover):
            shutil.rmtree(leftover)  # which follows no link, and refuses to begin with one


def _find_record(folder: Path) -> Record | None:
    """Return a folder's record; None where there is none that this version reads."""
    try:
        return read_record(folder)
    except RecordError:
        return None


def _find_places(record: Record) -> set[str]:
    """Return the names, directly in an agent's folder, of the files and folders of targets that a record lists.

    What is staged may be a stranger's: no other file, such as one of a ``.git``, is replaced because of it.
    """
    names = {file.path.partition("/")[0] for artifact in record.artifacts.values() for file in artifact.files}
    return names & {target.path for target in list_targets()}


def _place(staged: Path, place: Path, old: Path) -> None:
    if os.path.lexists(place) and (_is_folder(place) or _is_folder(staged)):
        _move_aside(place, old)
    os.replace(staged, place)


def _move_aside(place: Path, old: Path) -> None:
    with suppress(FileExistsError):
        old.mkdir()
    check_no_strangers(old.parent)  # somebody may have made a link since
    os.replace(place, old / place.name)


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _read_bytes(path: Path) -> bytes:
    """Return the content of a document; nothing where it cannot be read."""
    try:
        return read_file(path, LARGEST_DOCUMENT)
    except UnreadableArtefact:
        return b""


def _lock(folder: Path) -> int:
    while True:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                return descriptor
        except FileNotFoundError:
            pass
        # The run that held the lock has failed and removed the folder it had made: begin again.
        os.close(descriptor)
        folder.mkdir(parents=True, exist_ok=True)


def _make(folder: Path) -> list[Path]:
    """Make a folder; return the folders that had to be made, the innermost first."""
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableOutput(f"{folder}: cannot be made ({error.strerror}): choose another --out") from error
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
