"""Checksums of bytes."""

from __future__ import annotations

import hashlib


def compute_sha256(data: bytes) -> str:
    """Return the sha256 of bytes in lower-case hex."""
    return hashlib.sha256(data).hexdigest()
