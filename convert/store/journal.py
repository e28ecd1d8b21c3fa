"""What earlier runs saw of sources and outputs, so that the next run need not read what has not changed.

A journal only saves time: ``agent.json`` says what an agent's folder is, and without a journal every file is read
and hashed. Journals are in the user's cache folder, one SQLite file for each output, so that an output holds agents
and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from convert import __version__
from convert.agents.agent import RECORD_NAME, Record
from convert.files.hashes import compute_sha256
from convert.store import storage
from convert.store.folders import FindStamp
from convert.targets import find_target

_LOGGER = logging.getLogger(__name__)  # without a handler of anybody's, Python prints its warnings to standard error
_PATIENCE = 2.0  # seconds to wait for another process that writes
_SCHEMA = """
CREATE TABLE IF NOT EXISTS agents (
    folder TEXT PRIMARY KEY,
    source TEXT NOT NULL,
    seen TEXT NOT NULL
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Seen:
    """What was seen of an agent when it was current.

    source: the stamp of the checkpoint. record: the stamp of ``agent.json``. artifacts: by target, its version and
    the stamps of its files by path.
    """

    source: str
    record: str
    artifacts: Mapping[str, tuple[str, Mapping[str, str]]]


class Journal:
    """The journal of one output folder. Close it, or use it in ``with``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_usable = True
        self._connection = connect(path, _SCHEMA)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def find(self, folder: str, source: str) -> Seen | None:
        """Return what was seen of an agent; None where it came from another source, or nothing can be read.

        Args:
            folder: the agent's folder in the output.
            source: names the checkpoint, and what was said of it.
        """
        row = self._execute("SELECT source, seen FROM agents WHERE folder = ?", folder)
        if row is None or row[0] != source:
            return None
        try:
            seen = json.loads(row[1])
            return Seen(seen["source"], seen["record"], {name: tuple(pair) for name, pair in seen["artifacts"].items()})
        except (ValueError, TypeError, KeyError, AttributeError):  # SQLite has no checksums
            return None

    def remember(self, folder: str, source: str, seen: Seen) -> None:
        """Store what was seen of an agent, beside what was seen of its other targets.

        Where that fails, the next run looks again.
        """
        earlier = self.find(folder, source)
        if earlier and earlier.source == seen.source:
            seen = Seen(seen.source, seen.record, {**earlier.artifacts, **seen.artifacts})
        self._execute("INSERT OR REPLACE INTO agents VALUES (?, ?, ?)", folder, source, json.dumps(asdict(seen)))

    def _execute(self, statement: str, *parameters: str) -> tuple[str, ...] | None:
        """Return the first row; None where there is none, or the journal cannot be used."""
        if not self._is_usable:
            return None
        try:
            row: tuple[str, ...] | None = self._connection.execute(statement, parameters).fetchone()
        except sqlite3.DatabaseError as error:  # a full disk, damage, another process
            if _is_locked(error):  # waiting again would cost the same time for every agent
                self._is_usable = False
                _warn_of_lock(self._path)
            return None
        return row


def connect(path: Path, schema: str) -> sqlite3.Connection:
    """Open a SQLite file of the cache folder, which is made if it is missing.

    Raises:
        OSError: its folder cannot be made.
        sqlite3.DatabaseError: it is damaged, or another process locks it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")  # a commit waits for no disk, and others may read
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(schema)
    return connection


def open_journal(out: str) -> Journal | None:
    """Open the journal of an output folder or URL; None where there is no cache folder, or another process locks it."""
    place = out if storage.is_url(out) else os.path.realpath(out)
    with suppress(OSError):
        path = find_cache_folder() / f"{compute_sha256(os.fsencode(place))[:16]}.sqlite"
        try:
            return Journal(path)
        except sqlite3.OperationalError as error:
            if _is_locked(error):
                _warn_of_lock(path)
        except sqlite3.DatabaseError:
            path.unlink()  # it is damaged, and only saves time
            with suppress(sqlite3.OperationalError):
                return Journal(path)
    return None


def _is_locked(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _warn_of_lock(path: Path) -> None:
    _LOGGER.warning("warning: %s: locked by another process: continuing without the journal", path)


def find_cache_folder() -> Path:
    """Return the folder for what only saves time: ``$XDG_CACHE_HOME/atari-convert``, by default below ``~/.cache``.

    Raises:
        OSError: there is no home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base or Path.home() / ".cache") / "atari-convert"
    except RuntimeError as error:
        raise FileNotFoundError("no home directory: set HOME or XDG_CACHE_HOME") from error


def is_current(seen: Seen, targets: Collection[str], stamp: str | None, find_stamp: FindStamp) -> bool:
    """Return whether an agent is as it was seen, and has every target in this version.

    Args:
        seen: what the journal says.
        targets: names such as ``onnx``.
        stamp: the source's present stamp.
        find_stamp: returns the present stamp of a file of the agent by its relative path.
    """
    return (
        stamp == seen.source
        and find_stamp(RECORD_NAME) == seen.record
        and all(name in seen.artifacts and _is_as_seen(name, *seen.artifacts[name], find_stamp) for name in targets)
    )


def _is_as_seen(target: str, version: str, files: Mapping[str, str], find_stamp: FindStamp) -> bool:
    return version == find_version(target) and all(find_stamp(path) == stamp for path, stamp in files.items())


def look_at(record: Record, targets: Collection[str], stamp: str, find_stamp: FindStamp) -> Seen | None:
    """Return what can be remembered of an agent whose targets are current; None where a file has no stamp.

    Args:
        record: its record.
        targets: names such as ``onnx``.
        stamp: the source's stamp.
        find_stamp: returns the present stamp of a file of the agent by its relative path.
    """
    stamps = {name: {file.path: find_stamp(file.path) for file in record.artifacts[name].files} for name in targets}
    record_stamp = find_stamp(RECORD_NAME)
    if record_stamp is None or any(None in files.values() for files in stamps.values()):
        return None
    artifacts = {name: (find_version(name), cast(dict[str, str], files)) for name, files in stamps.items()}
    return Seen(stamp, record_stamp, artifacts)


def find_version(target: str) -> str:
    """Return what tells whether an artefact is outdated: this tool's version and the target's format version."""
    return f"{__version__} {find_target(target).format_version}"
