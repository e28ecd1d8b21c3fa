"""What earlier runs found: verdicts in the user's cache folder, one SQLite file for this computer.

An agent is passed over where its files are as they were when it was checked, and its ``proof.json`` is byte for byte
what was written then. A ``proof.json`` alone is never taken for a verdict: anybody can write one.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from convert.store.journal import find_cache_folder
from convert.store.storage import is_url
from runtime_check.bulk.places import find_stamps, has_proof

_PATIENCE = 2.0  # seconds to wait for another process that writes
_SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (
    folder TEXT PRIMARY KEY,
    how TEXT NOT NULL,
    stamps TEXT NOT NULL,
    proof TEXT NOT NULL,
    found BLOB NOT NULL
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Verdict:
    """What was found of an agent.

    how: a digest of how it was checked. stamps: by path, of every file and folder of the agent, and of its checkpoint.
    None where a server told none. proof: the text of ``proof.json``. found: the rest, as JSON.
    """

    how: str
    stamps: Mapping[str, str | None]
    proof: str
    found: str

    def is_current(self, name: str) -> bool:
        """Return whether the agent's files and its checkpoint are as they were, and its proof is this one."""
        source = next((path for path in self.stamps if os.path.isabs(path) or is_url(path)), None)
        if source is None or None in self.stamps.values() or find_stamps(name, source) != self.stamps:
            return False
        return has_proof(name, self.proof)


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

    def find(self, folder: str, how: str | None = None) -> Verdict | None:
        """Return what was found of an agent, or None. With ``how``, only of one that was checked in this way."""
        if self._connection is None:
            return None
        try:
            query = "SELECT how, stamps, proof, found FROM verdicts WHERE folder = ?"
            row = self._connection.execute(query, (ascii(folder),)).fetchone()
            if row is None or how not in (row[0], None):
                return None
            return Verdict(row[0], json.loads(row[1]), row[2], zlib.decompress(row[3]).decode())
        except (sqlite3.DatabaseError, ValueError, zlib.error):  # SQLite has no checksums
            return None

    def remember(self, folder: str, verdict: Verdict) -> None:
        """Store what was found of an agent. Where that fails, the next run checks it again."""
        if self._connection is None:
            return
        row = (
            ascii(folder),
            verdict.how,
            json.dumps(verdict.stamps),
            verdict.proof,
            zlib.compress(verdict.found.encode()),
        )
        with suppress(sqlite3.DatabaseError):
            self._connection.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?)", row)


def _connect() -> sqlite3.Connection | None:
    try:
        path = find_cache_folder() / "verdicts.sqlite"
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    try:
        return _open(path)
    except sqlite3.OperationalError:  # locked, or the disk is full
        return None
    except sqlite3.DatabaseError:  # damaged: it only saves time
        with suppress(OSError, sqlite3.DatabaseError):
            path.unlink()
            return _open(path)
    return None


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(_SCHEMA)
    return connection
