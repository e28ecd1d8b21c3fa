"""Find the file that an agent was converted from, below ``--source``, by its sha256."""

from __future__ import annotations

import os
from glob import escape
from pathlib import Path, PurePosixPath

from convert.agents.agent import RECORD_NAME, Agent, File
from convert.errors import CheckpointError
from convert.files.hashes import hash_file
from convert.sources import locate


class Sources:
    """What ``--source`` names: one file, or a folder such as the root of the release."""

    def __init__(self, root: Path) -> None:
        """Look at ``root``, a file or a folder."""
        self.root = root
        self._listed: dict[str, dict[int, list[Path]]] = {}

    def find(self, agent: Agent) -> Path:
        """Return the checkpoint that an agent was converted from, by its recorded sha256.

        Its place in the release is tried first, then every file below the root that has its size and its suffix. What
        is in the folder of an agent is passed over: a stranger's agent would bring what it is to be compared with.

        Raises:
            CheckpointError: there is none with this sha256.
        """
        source = agent.source
        if self.root.is_file():
            if change := find_change(self.root, source):
                _, found, recorded = change
                raise CheckpointError(
                    f"{self.root}: has {found}, agent.json of {source.path} says {recorded}: another checkpoint; name "
                    "the one that was converted with --source"
                )
            return self.root
        places = (locate(agent.identity), source.path)
        for path in (self.root / place for place in dict.fromkeys(places) if place):
            if not find_change(path, source) and not self._is_in_agent(path):
                return path
        suffix = PurePosixPath(source.path).suffix
        for path in self._list_by_size(suffix).get(source.size, []):
            if not find_change(path, source):
                return path
        raise CheckpointError(
            f"{self.root}: no checkpoint of {source.path} ({source.size} bytes, sha256 {source.sha256}): "
            f"expected it at this path or as any *{suffix} below; name the root of the checkpoints with --source"
        )

    def _list_by_size(self, suffix: str) -> dict[int, list[Path]]:
        """Return the files below the root that have a suffix, by their size; looked for once."""
        if suffix not in self._listed:
            by_size = self._listed[suffix] = {}
            for path in filter(Path.is_file, sorted(self.root.rglob(f"*{escape(suffix)}"))):
                if self._is_in_agent(path):
                    continue
                by_size.setdefault(path.stat().st_size, []).append(path)
        return self._listed[suffix]

    def _is_in_agent(self, path: Path) -> bool:
        """Tell whether a file at or below the root is in the folder of an agent."""
        folders = (folder for folder in path.parents if folder.is_relative_to(self.root))
        return any(os.path.lexists(folder / RECORD_NAME) for folder in folders)


def find_change(path: Path, file: File) -> tuple[str, str, str] | None:
    """Return what differs from a file's record, what it is and what was recorded; None if nothing differs."""
    if not path.is_file():
        return "size", "no file", f"{file.size} bytes"
    size = path.stat().st_size
    if size != file.size:
        return "size", f"{size} bytes", f"{file.size} bytes"
    sha256 = hash_file(path)
    return None if sha256 == file.sha256 else ("checksum", f"sha256 {sha256}", f"sha256 {file.sha256}")
