"""Untrusted files, read once: regular files only, within a bound, and not through a link."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from convert.errors import UnreadableArtefact
from convert.files.bounds import LARGEST
from convert.files.documents import join, show

MOST_FILES = 1000
DEEPEST = 8  # folders below each other

Files = Mapping[str, bytes]


def read_file(path: Path, largest: int = LARGEST) -> bytes:
    """Return the content of a regular file that is not a link.

    Raises:
        UnreadableArtefact: it is missing, a link, no regular file, or larger than ``largest`` bytes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = "a symbolic link" if path.is_symlink() else error.strerror
        raise UnreadableArtefact(f"{path}: cannot be read ({reason}), expected a file") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UnreadableArtefact(f"{path}: not a regular file: convert the agent again")
    with os.fdopen(descriptor, "rb") as file:
        # One byte more than is allowed reveals a file that grows while it is read.
        data = file.read(largest + 1) if status.st_size <= largest else b""
    if status.st_size > largest or len(data) > largest:
        raise UnreadableArtefact(f"{path}: has {max(status.st_size, len(data))} bytes, expected at most {largest}")
    return data


def read_files(path: Path, largest: int = LARGEST) -> dict[str, bytes]:
    """Return every file at ``path``, a file or a folder, by its path relative to the parent of ``path``.

    Raises:
        UnreadableArtefact: one is a link or no regular file, there is none, or together they are larger than
            ``largest`` bytes.
    """
    files: dict[str, bytes] = {}
    left = largest
    for file in _list_files(path, 0):
        if len(files) == MOST_FILES:
            raise UnreadableArtefact(f"{path}: holds more than {MOST_FILES} files: convert the agent again")
        data = read_file(file, left)
        left -= len(data)
        files[file.relative_to(path.parent).as_posix()] = data
    if not files:
        raise UnreadableArtefact(f"{path}: missing or empty: convert the agent again")
    return files


def check_names(path: Path, files: Files, expected: Collection[str]) -> None:
    """Raise unless ``files``, read from a folder, are the expected ones by their path in it.

    Raises:
        UnreadableArtefact: one is missing, or there is another.
    """
    found = {name.removeprefix(f"{path.name}/") for name in files}
    problems = [f"no {name}" for name in expected if name not in found]
    problems += [f"unexpected {show(name)}" for name in sorted(found.difference(expected))]
    if problems:
        raise UnreadableArtefact(f"{path}: {join(problems)}: convert the agent again")


def write_files(folder: Path, files: Files) -> None:
    """Write files by their relative paths below a folder, which is made if it is missing."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def make_temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder for a ``with`` block, which removes it; see `remove_temporary_folders`."""
    return tempfile.TemporaryDirectory(prefix=_name_temporary())


def remove_temporary_folders() -> None:
    """Remove the temporary folders of this process, which is to end within their blocks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_name_temporary()}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _name_temporary() -> str:
    return f"atari-convert-{os.getpid()}-"


def _list_files(path: Path, depth: int) -> list[Path]:
    if path.is_symlink() or not path.is_dir():
        return [path]
    if depth == DEEPEST:
        raise UnreadableArtefact(f"{path}: more than {DEEPEST} folders below each other: convert the agent again")
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise UnreadableArtefact(f"{path}: cannot be read ({error.strerror}): convert the agent again") from error
    if len(entries) > MOST_FILES:
        raise UnreadableArtefact(f"{path}: holds more than {MOST_FILES} files: convert the agent again")
    return [file for entry in entries for file in _list_files(entry, depth + 1)]
