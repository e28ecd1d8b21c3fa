"""Which agents to check. `convert.bulk.selection` filters them and cuts them into shards."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from convert.agents.identity import Identity
from convert.bulk.selection import Filter, filter_jobs, find_jobs
from convert.errors import AtariConvertError, RecordError
from convert.sources import identify, read_record
from convert.store.storage import is_url


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
    """Return the checkpoints of a local source that have no agent's folder in the places where their like have one.

    Args:
        source: what holds the checkpoints.
        places: what was searched for agents. One that holds no agent of the source in its place tells nothing.
        folders: the agents that were found there.
        wanted: which checkpoints are of interest.
    """
    found = {os.path.realpath(folder) for folder in folders if not is_url(folder)}
    missing = []
    for place in places:
        if is_url(source) or is_url(place):
            continue
        with suppress(AtariConvertError):  # no checkpoints there, or none that fits
            expected = {
                os.path.realpath(job.folder): job.source for job in filter_jobs(find_jobs([source], place), wanted)
            }
            if expected.keys() & found:
                missing += [path for folder, path in expected.items() if folder not in found]
    return missing


def _make_job(folder: str, backends: int) -> Job:
    if is_url(folder):  # whose record is read when its turn comes
        return Job(folder, identify(f"{folder}.gz"))
    try:
        record = read_record(folder)
    except RecordError:  # checking it will tell why
        return Job(folder, identify(f"{os.path.abspath(folder)}.gz"))
    return Job(folder, record.agent.identity, 1 + (backends or len(record.artifacts)))
