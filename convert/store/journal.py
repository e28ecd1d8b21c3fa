"""What earlier runs saw of sources and outputs, so that a further run need not read what has not changed.

A journal only saves time: ``agent.json`` says what an agent's folder is, and without a journal every file is read
and hashed. It lives in the user's cache folder, one SQLite file for each output folder, so that an output holds
agents and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from convert import __version__
from convert.agents.agent import RECORD_NAME
from convert.bulk.selection import Job
from convert.store import storage
from convert.targets import find_target

_LOGGER = logging.getLogger(__name__)  # without a handler of anybody's, Python prints its warnings to standard error
_PATIENCE = 2.0  # seconds for another process that writes; one that holds the journal for longer has it
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
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")  # a commit waits for no disk, and others may read
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute(_SCHEMA)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def find(self, job: Job) -> Seen | None:
        """Return what was seen of an agent; None where it was another source, or nothing that can be read."""
        row = self._execute("SELECT source, seen FROM agents WHERE folder = ?", job.path)
        if row is None or row[0] != _describe(job):
            return None
        try:
            seen = json.loads(row[1])
            return Seen(seen["source"], seen["record"], {name: tuple(pair) for name, pair in seen["artifacts"].items()})
        except (ValueError, TypeError, KeyError, AttributeError):  # SQLite has no checksums
            return None

    def remember(self, job: Job, seen: Seen) -> None:
        """Keep what was seen of an agent, beside what was seen of its other targets.

        What cannot be kept is looked up again by the next run.
        """
        earlier = self.find(job)
        if earlier and earlier.source == seen.source:
            seen = Seen(seen.source, seen.record, {**earlier.artifacts, **seen.artifacts})
        row = (job.path, _describe(job), json.dumps(asdict(seen)))
        self._execute("INSERT OR REPLACE INTO agents VALUES (?, ?, ?)", *row)

    def _execute(self, statement: str, *parameters: str) -> tuple[str, ...] | None:
        """Return the first row; None where there is none, or the journal cannot be used."""
        if not self._is_usable:
            return None
        try:
            row: tuple[str, ...] | None = self._connection.execute(statement, parameters).fetchone()
        except sqlite3.DatabaseError as error:  # a full disk, damage, another process
            if _is_locked(error):  # which would cost the same time for every agent
                self._is_usable = False
                _warn_of_lock(self._path)
            return None
        return row


def open_journal(out: str) -> Journal | None:
    """Open the journal of an output folder or URL; None where there is no cache folder, or another process locks it."""
    place = out if storage.is_url(out) else os.path.realpath(out)
    with suppress(OSError):
        path = cache_folder() / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}.sqlite"
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


def cache_folder() -> Path:
    """Return the folder for what only saves time: ``$XDG_CACHE_HOME/atari-convert``, by default below ``~/.cache``.

    Raises:
        OSError: there is no home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base or Path.home() / ".cache") / "atari-convert"
    except RuntimeError as error:
        raise FileNotFoundError("no home directory: set HOME or XDG_CACHE_HOME") from error


def is_current(seen: Seen, targets: Collection[str], stamp: str | None, find_file: Callable[[str], str | None]) -> bool:
    """Tell whether an agent is as it was seen, and has every target in this version.

    Args:
        seen: what the journal says.
        targets: names such as ``onnx``.
        stamp: the source's present stamp.
        find_file: returns the present stamp of a file of the agent by its relative path.
    """
    return (
        stamp == seen.source
        and find_file(RECORD_NAME) == seen.record
        and all(name in seen.artifacts and _is_as_seen(name, *seen.artifacts[name], find_file) for name in targets)
    )


def _is_as_seen(target: str, version: str, files: Mapping[str, str], find_file: Callable[[str], str | None]) -> bool:
    return version == version_of(target) and all(find_file(path) == stamp for path, stamp in files.items())


def version_of(target: str) -> str:
    """Return what decides whether an artefact is outdated: this tool's version and the target's format version."""
    return f"{__version__} {find_target(target).format_version}"


def _describe(job: Job) -> str:
    source = job.source if storage.is_url(job.source) else os.path.abspath(job.source)
    return json.dumps([source, *astuple(job.identity)])
