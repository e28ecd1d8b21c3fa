"""Files that may not be what they seem: pipes, devices and links in the place of what was written."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file to read it; a link to one will do.

    Raises:
        OSError: it cannot be opened, or is no regular file: a pipe would wait for its other end, a device may do
            anything.
    """
    _check_regular(os.stat(path), path)
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115  the caller closes it
    try:
        _check_regular(os.fstat(file.fileno()), path)  # it may have been replaced meanwhile
    except OSError:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result, path: str | Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def hash_file(path: str | Path) -> str:
    """Return the lower-case hex sha256 of a regular file.

    Raises:
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_strangers(top: Path) -> dict[Path, str]:
    """Return what is neither a folder nor a regular file at or below a path, and what it is; no link is followed.

    Raises:
        OSError: a folder cannot be listed.
    """
    try:
        mode = os.lstat(top).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return {}
    if stat.S_ISDIR(mode):
        return {path: kind for name in sorted(os.listdir(top)) for path, kind in find_strangers(top / name).items()}
    if stat.S_ISREG(mode):
        return {}
    return {top: "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"}
