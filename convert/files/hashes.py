"""Checksums of bytes and of files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def compute_sha256(data: bytes) -> str:
    """Return the sha256 of bytes in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """Return the sha256 of a file, which may be large and a link, in lower-case hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
