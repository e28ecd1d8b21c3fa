"""Agent folders that are whole at every instant: written aside, put in place by renames, ``agent.json`` last.

What is new is staged in ``.atari-convert-new`` inside the agent's folder. The staged ``agent.json``, written last,
is the decision to publish: a run that finds it carries the renames through, a run that finds none drops the rest.
A lock on the folder keeps two runs apart; the system lifts it when its process ends, however it ends.

This tool makes no links. A folder with a link in the place of its files is refused, so none is followed, moved or
deleted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convert.agents.agent import RECORD_NAME, UNFINISHED_NAME, Artifact, File, Record
from convert.agents.record import from_json, read_record, to_json
from convert.errors import OutputExists, RecordError, RoundTripError, UnreadableArtefact, UnwritableOutput
from convert.files.disk import read_file
from convert.files.documents import LARGEST_DOCUMENT
from convert.targets import list_targets

_OLD = ".atari-convert-old"
_DEEPEST = 16  # folders below each other in an artefact


@contextmanager
def open_folder(folder: Path) -> Iterator[Path]:
    """Make and lock an agent's folder, finish or drop what a killed run left, and give a folder to stage into.

    Anything staged and not published is removed at the end, and so are folders that this call made and that stay empty.

    Raises:
        OutputExists: the folder holds something and no record of ours, or a link in the place of ours.
        UnwritableOutput: the folder cannot be made or written.
    """
    made = _make(folder)
    try:
        with _locked(folder):
            refuse_strangers(folder)
            _finish(folder)
            check_ours(folder)
            staging = folder / UNFINISHED_NAME
            staging.mkdir()
            try:
                yield staging
            finally:
                _finish(folder)
    except OSError as error:
        raise UnwritableOutput(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        _remove_empty(made)


def publish(staging: Path, record: Record) -> None:
    """Put what is staged in place, and the record last. Artefacts that the record no longer lists are removed.

    A plain file replaces its predecessor in one step; a folder's predecessor is renamed aside first, for a folder
    cannot be renamed onto another.

    Raises:
        RoundTripError: the record does not read back as it is.
    """
    text, place = to_json(record), staging.parent / RECORD_NAME
    try:
        is_read_back = from_json(text, str(place)) == record
    except RecordError as error:
        raise RoundTripError(f"{error}; a bug of atari-convert, please report it; nothing was published") from error
    if not is_read_back:
        raise RoundTripError(f"{place}: does not read back as it was written: a bug of atari-convert, please report it")
    (staging / f"{RECORD_NAME}.part").write_text(text, "utf-8")
    os.replace(staging / f"{RECORD_NAME}.part", staging / RECORD_NAME)
    _finish(staging.parent)


def check_ours(folder: Path) -> None:
    """Refuse a folder that holds something and no record of ours, or a link in the place of ours.

    One that is missing or empty will do.

    Raises:
        OutputExists: it holds what this tool did not write.
        UnwritableOutput: it cannot be listed.
    """
    try:
        names = os.listdir(folder) if folder.is_dir() else []
        refuse_strangers(folder)
    except OSError as error:
        raise UnwritableOutput(f"{folder}: cannot be listed ({error.strerror}): choose another --out") from error
    if _OLD not in names:
        refuse_foreign(str(folder), names, _read_text(folder / RECORD_NAME))


def refuse_strangers(folder: Path) -> None:
    """Refuse a folder with a link, a pipe or a device where this tool has its files and folders.

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


def refuse_foreign(folder: str, names: Collection[str], record: str) -> None:
    """Refuse a folder or URL with files of these names, unless ``record``, the text of its agent.json, is ours.

    A record of another format is ours; where a run was killed, there may be none yet.

    Raises:
        OutputExists: it holds what this tool did not write.
    """
    if not names or UNFINISHED_NAME in names or ('"format_version"' in record and '"artifacts"' in record):
        return
    first = ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")
    problem = f"; its {RECORD_NAME} is damaged or not ours" if RECORD_NAME in names else f" and no {RECORD_NAME}"
    raise OutputExists(f"{folder}: holds {first}{problem}: nothing was touched; choose another --out or move it away")


def find_record(folder: Path) -> Record | None:
    """Return the folder's record; None where there is none that this version reads."""
    try:
        return read_record(folder)
    except RecordError:
        return None


def is_exact(folder: Path, record: Record) -> bool:
    """Say whether a folder's ``agent.json`` is, to the byte, what this tool writes of a record."""
    return _read_text(folder / RECORD_NAME) == to_json(record)


def is_settled(folder: Path) -> bool:
    """Say whether no killed run has left anything in a folder."""
    return not (os.path.lexists(folder / UNFINISHED_NAME) or os.path.lexists(folder / _OLD))


def is_intact(folder: Path, artifact: Artifact) -> bool:
    """Say whether an artefact has files, and each is there with its recorded size and sha256."""
    return bool(artifact.files) and all(_is_intact(folder / file.path, file) for file in artifact.files)


def describe_files(folder: Path, path: str) -> tuple[File, ...]:
    """Return the files at ``path`` (a file or a folder) below a folder, in the order of their names."""
    top = folder / path
    files = [top] if top.is_file() else sorted(entry for entry in top.rglob("*") if entry.is_file())
    return tuple(_describe_file(file, file.relative_to(folder).as_posix()) for file in files)


def _describe_file(file: Path, path: str) -> File:
    data = read_file(file)
    return File(path, len(data), hashlib.sha256(data).hexdigest())


def _is_intact(path: Path, file: File) -> bool:
    try:
        return hashlib.sha256(read_file(path, file.size)).hexdigest() == file.sha256
    except UnreadableArtefact:
        return False


def _finish(folder: Path) -> None:
    """Carry a decided publication through, from wherever it stopped; drop an undecided one."""
    new, old = folder / UNFINISHED_NAME, folder / _OLD
    if decided := find_record(new):
        for name in sorted(os.listdir(new)):
            if name in _find_places(decided):
                _place(new / name, folder / name, old)
        for name in find_dropped(find_record(folder), decided):
            if os.path.lexists(folder / name):
                _move_aside(folder / name, old)
        os.replace(new / RECORD_NAME, folder / RECORD_NAME)
    for leftover in (new, old):
        if os.path.lexists(leftover):
            shutil.rmtree(leftover)  # which follows no link, and refuses to begin with one


def _find_places(record: Record) -> set[str]:
    """Return the names, directly in an agent's folder, of the files and folders that a record lists."""
    return {file.path.partition("/")[0] for artifact in record.artifacts.values() for file in artifact.files}


def find_dropped(former: Record | None, record: Record) -> list[str]:
    """Return the paths of the targets that the former record lists and the new one does not."""
    dropped = former.artifacts.keys() - record.artifacts.keys() if former else ()
    return [target.path for target in list_targets() if target.name in dropped]


def _place(staged: Path, place: Path, old: Path) -> None:
    if os.path.lexists(place) and (_is_folder(place) or _is_folder(staged)):
        _move_aside(place, old)
    os.replace(staged, place)


def _move_aside(place: Path, old: Path) -> None:
    with suppress(FileExistsError):
        old.mkdir()
    refuse_strangers(old.parent)  # somebody may have made a link since
    os.replace(place, old / place.name)


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _read_text(path: Path) -> str:
    try:
        return read_file(path, LARGEST_DOCUMENT).decode("utf-8", "replace")
    except UnreadableArtefact:
        return ""


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = _lock(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int:
    while True:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                return descriptor
        except FileNotFoundError:
            pass
        # Whoever held the lock removed the folder with it: it failed, and this run begins anew.
        os.close(descriptor)
        folder.mkdir(parents=True, exist_ok=True)


def _make(folder: Path) -> list[Path]:
    """Make a folder, and return what had to be made, the innermost first."""
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
