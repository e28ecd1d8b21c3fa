"""Which agents to check. `convert.bulk.selection` filters them and cuts them into shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from convert.agents.agent import RECORD_NAME
from convert.agents.identity import Identity
from convert.bulk.selection import Filter, filter_jobs
from convert.errors import RecordError, SelectionError
from convert.files.recognition import HEAD_SIZE
from convert.sources import identify, locate, picks_up, read_record, strip_suffix
from convert.store.storage import is_url, read_head, walk_links


@dataclass(frozen=True)
class Job:
    """An agent to check.

    folder: the agent's, a path or a URL, as it was named or found. identity: who its record says it is, or else its
    path. size: how much work it is, in units of one backend's episodes.
    """

    folder: str
    identity: Identity
    size: int = 1

    @property
    def source(self) -> str:
        """What messages call it."""
        return self.folder

    def to_absolute(self) -> Job:
        """Return the job with a URL or an absolute path, which means the same in every working folder."""
        return self if is_url(self.folder) else replace(self, folder=os.path.abspath(self.folder))


def make_jobs(folders: Iterable[str], backends: int) -> list[Job]:
    """Return a job for each agent's folder.

    Args:
        folders: as `runtime_check.check.folders.find_agent_folders` returns them.
        backends: how many are checked of each agent; 0 for every artefact that it has.
    """
    return [_make_job(folder, backends) for folder in folders]


def find_unconverted(source: str, places: Iterable[str], folders: Iterable[str], wanted: Filter) -> list[str]:
    """Return the agents' folders that are missing: of checkpoints below a local source, where others have theirs.

    Args:
        source: what holds the checkpoints.
        places: what was searched for agents. One that holds no agent of the source in its place tells nothing.
        folders: the agents that were found there.
        wanted: which checkpoints are of interest.
    """
    if is_url(source) or not os.path.isdir(source):
        return []
    known = {os.path.realpath(folder) for folder in folders if not is_url(folder)}
    paths = list(_walk_checkpoints(source))
    missing: list[str] = []
    for place in places:
        expected = [Job(os.path.join(place, strip_suffix(path)), identify(path)) for path in paths]
        with suppress(SelectionError):  # none of them is wanted
            kept = filter_jobs(expected, wanted)
            absent = [job.folder for job in kept if os.path.realpath(job.folder) not in known]
            missing += absent if len(absent) < len(kept) else []
    return missing


def _walk_checkpoints(source: str) -> Iterator[str]:
    """Yield the checkpoints in and below a folder, as paths relative to the root of the release or to the folder."""
    for top, folders, files in walk_links(source):
        if RECORD_NAME in files:
            folders.clear()
            continue
        for name in files:
            path = os.path.join(top, name)
            if picks_up(path, partial(read_head, path, HEAD_SIZE)):
                yield locate(identify(os.path.abspath(path))) or os.path.relpath(path, source)


def _make_job(folder: str, backends: int) -> Job:
    if is_url(folder):  # whose record is read when its turn comes
        return Job(folder, identify(f"{folder}.gz"))
    try:
        record = read_record(folder)
    except RecordError:  # checking it will tell why
        return Job(folder, identify(f"{os.path.abspath(folder)}.gz"))
    return Job(folder, record.agent.identity, 1 + (backends or len(record.artifacts)))
