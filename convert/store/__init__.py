"""Where agents' folders are: on disk or at a URL, locked, published in one step, and remembered by a journal.

`local` and `remote` have the same functions, those of `Store`. `find_store` picks one, and nobody else asks which.
Neither knows how an agent is converted.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from convert.agents.agent import Artifact, Record
from convert.store import local, remote, storage
from convert.store.folders import FindStamp, Folder, ListFiles, Staging
from convert.targets import Target


class Store(Protocol):
    """What `local` and `remote` can do with the folder of an agent, its ``place``: a path or a URL."""

    def inspect(self, place: str) -> Folder:
        """Return what stands in a folder.

        Raises:
            OutputExists: it holds something that this tool did not write.
            UnwritableOutput: it cannot be listed or read.
        """

    def has_artifact(self, found: Folder, target: Target, artifact: Artifact, *, is_rehearsal: bool = False) -> bool:
        """Return whether an artefact's files are there as recorded, by size and sha256, all in its target's place.

        At a URL, a rehearsal goes by sizes alone.
        """

    def open_artifact(self, found: Folder, artifact: Artifact) -> AbstractContextManager[Path]:
        """Give a folder of this computer that holds an artefact's files by their recorded paths."""

    def open_folder(self, found: Folder) -> AbstractContextManager[Staging]:
        """Give a folder to write into. What is not published is removed at the end.

        Raises:
            OutputExists: the agent's folder holds something that this tool did not write.
            UnwritableOutput: it cannot be written.
        """

    def publish(self, staging: Staging, record: Record) -> None:
        """Put what is staged in place, and the record last. Artefacts that it no longer lists are removed.

        Raises:
            RoundTripError: the record does not read back as it is; nothing was published.
            UnwritableOutput: the folder cannot be written.
        """

    def find_stamps(self, place: str, list_around: ListFiles | None = None) -> FindStamp:
        """Return a function from a file's relative path to its stamp, which changes with its content.

        The stamp is None for a file that is missing, and for every file if a killed run has left something.

        Args:
            place: the agent's folder.
            list_around: at a URL, lists the folder around it instead, which holds further agents.
        """


def find_store(place: str) -> Store:
    """Return what reads and writes an agent's folder at a path or URL."""
    return remote if storage.is_url(place) else local
