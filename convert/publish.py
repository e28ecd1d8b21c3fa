"""Agent folders that are whole at every instant: written aside, put in place by renames, ``agent.json`` last.

What is new is staged in ``.atari-convert-new`` inside the agent's folder. The staged ``agent.json``, written last,
is the decision to publish: a run that finds it carries the renames through, a run that finds none drops the rest.
A lock on the folder keeps two runs apart; the system lifts it when its process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from convert.agent import RECORD_NAME, UNFINISHED_NAME, Artifact, File, Record, read_record, to_json
from convert.errors import OutputExists, RecordError, UnwritableOutput

_OLD = ".atari-convert-old"


@contextmanager
def open_folder(folder: Path) -> Iterator[Path]:
    """Make and lock an agent's folder, finish or drop what a killed run left, and give a folder to stage into.

    On an error nothing staged stays, and a folder that this call made goes again.

    Raises:
        OutputExists: the folder holds something and no record of ours.
        UnwritableOutput: the folder cannot be made or written.
    """
    made = _make(folder)
    try:
        with _locked(folder):
            _finish(folder)
            check_ours(folder)
            staging = folder / UNFINISHED_NAME
            staging.mkdir()
            try:
                yield staging
            finally:
                _finish(folder)
    except OSError as error:
        _remove_empty(made)
        raise UnwritableOutput(f"{folder}: cannot be written ({error.strerror or error})") from error
    except BaseException:
        _remove_empty(made)
        raise


def publish(staging: Path, record: Record) -> None:
    """Put what is staged in place, and the record last.

    A plain file replaces its predecessor in one step; a folder's predecessor is renamed aside first, for a folder
    cannot be renamed onto another.
    """
    (staging / f"{RECORD_NAME}.part").write_text(to_json(record), "utf-8")
    os.replace(staging / f"{RECORD_NAME}.part", staging / RECORD_NAME)
    _finish(staging.parent)


def check_ours(folder: Path) -> None:
    """Refuse a folder that holds something and no record of ours; one that is missing or empty will do.

    Raises:
        OutputExists: it holds what this tool did not write.
    """
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    if _OLD not in names:
        refuse_foreign(str(folder), names, _read_text(folder / RECORD_NAME))


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
    return File(path, file.stat().st_size, _hash(file))


def _is_intact(path: Path, file: File) -> bool:
    try:
        return path.stat().st_size == file.size and _hash(path) == file.sha256
    except OSError:
        return False


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finish(folder: Path) -> None:
    """Carry a decided publication through, from wherever it stopped; drop an undecided one."""
    new, old = folder / UNFINISHED_NAME, folder / _OLD
    if (new / RECORD_NAME).exists():
        for entry in sorted(new.iterdir()):
            if entry.name != RECORD_NAME:
                _place(entry, folder / entry.name, old)
        os.replace(new / RECORD_NAME, folder / RECORD_NAME)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def _place(staged: Path, place: Path, old: Path) -> None:
    if place.is_dir() or (staged.is_dir() and os.path.lexists(place)):
        old.mkdir(exist_ok=True)
        os.replace(place, old / place.name)
    os.replace(staged, place)


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
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
