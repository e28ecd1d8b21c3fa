"""What earlier runs found: verdicts in the user's cache folder, one SQLite file for this computer.

An agent is passed over where its files are as they were when it was checked, and its ``proof.json`` is byte for byte
what was written then. A ``proof.json`` alone is never taken for a verdict: anybody can write one.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from convert.store.journal import connect, find_cache_folder
from convert.store.storage import find_stamp, is_url
from runtime_check.bulk.places import Stamps, has_proof, stamp_files

_SCHEMA = """
CREATE TABLE IF NOT EXISTS checks (
    folder TEXT PRIMARY KEY,
    how TEXT NOT NULL,
    stamps TEXT NOT NULL,
    proof TEXT NOT NULL,
    is_published INTEGER NOT NULL,
    found BLOB NOT NULL
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Verdict:
    """What was found of an agent.

    how: a digest of how it was checked. stamps: by path, of every file and folder of the agent, and of its checkpoint,
    whose path is absolute or a URL. proof: the text of ``proof.json``. is_published: whether it could be written.
    """

    how: str
    stamps: Stamps
    proof: str
    is_published: bool

    def is_current(self, name: str) -> bool:
        """Return whether the agent's files and its checkpoint are as they were, and its proof is this one."""
        source = next((path for path in self.stamps if os.path.isabs(path) or is_url(path)), None)
        if source is None or None in self.stamps.values():
            return False
        if {source: find_stamp(source), **stamp_files(name)} != self.stamps:
            return False
        return has_proof(name, self.proof if self.is_published else None)


class Verdicts:
    """The verdicts that this computer remembers. Without a cache folder, it remembers none."""

    def __init__(self, connection: sqlite3.Connection | None) -> None:
        """Take the connection to the file; see `open`."""
        self._connection = connection

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Verdicts]:
        """Open the file, which is made if it is missing, and replaced if it is damaged."""
        connection = _connect()
        if connection is None:
            yield cls(None)
            return
        with closing(connection):
            yield cls(connection)

    def find(self, folder: str) -> Verdict | None:
        """Return the last verdict on an agent; None where nothing is known."""
        row = self._read("SELECT how, stamps, proof, is_published FROM checks WHERE folder = ?", folder)
        try:
            return row and Verdict(row[0], dict(json.loads(row[1])), row[2], bool(row[3]))
        except (ValueError, TypeError):  # SQLite has no checksums
            return None

    def read_found(self, folder: str) -> Any:
        """Return what was found beside the verdict, as it was stored; None where it is gone or damaged."""
        row = self._read("SELECT found FROM checks WHERE folder = ?", folder)
        try:
            return json.loads(zlib.decompress(row[0])) if row else None
        except (zlib.error, ValueError, TypeError):
            return None

    def remember(self, folder: str, verdict: Verdict, found: Any) -> None:
        """Store a verdict, and what was found beside it. Where that fails, the next run checks the agent again."""
        if self._connection is None:
            return
        texts = (ascii(folder), verdict.how, json.dumps(dict(verdict.stamps)), verdict.proof, verdict.is_published)
        with suppress(sqlite3.DatabaseError):
            statement = "INSERT OR REPLACE INTO checks VALUES (?, ?, ?, ?, ?, ?)"
            self._connection.execute(statement, (*texts, zlib.compress(json.dumps(found).encode())))

    def _read(self, query: str, folder: str) -> Any:
        if self._connection is None:
            return None
        try:
            return self._connection.execute(query, (ascii(folder),)).fetchone()
        except sqlite3.DatabaseError:
            return None


def _connect() -> sqlite3.Connection | None:
    try:
        path = find_cache_folder() / "verdicts.sqlite"
        return connect(path, _SCHEMA)
    except (OSError, sqlite3.OperationalError):  # no cache folder; locked, or the disk is full
        return None
    except sqlite3.DatabaseError:  # damaged: it only saves time
        with suppress(OSError, sqlite3.DatabaseError):
            path.unlink()
            return connect(path, _SCHEMA)
    return None
