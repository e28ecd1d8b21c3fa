"""Many checkpoints: pass over what is current, convert the rest on an engine, carry on after a bad one, sum up."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import cast

from convert.agents.agent import RECORD_NAME, UNFINISHED_NAME, Agent, Record
from convert.agents.network import Network
from convert.bulk.selection import Job
from convert.errors import AtariConvertError, UnreadableCheckpoint, UnwritableOutput
from convert.pipeline import (
    check_apart,
    convert_network,
    find_stale,
    read_from_file,
    read_from_folder,
    sum_up,
    to_known,
)
from convert.sources import locate
from convert.store import journal, remote, storage
from convert.store.journal import Journal, Seen
from convert.store.publication import check_ours, find_record, is_settled
from convert.store.storage import Found

Engine = Callable[["Work", Iterable[Job]], Generator["Outcome", None, None]]
_FindStamp = Callable[[str], str | None]


@dataclass(frozen=True)
class Work:
    """What is to be done with each job.

    targets: names such as ``onnx``. overwrite: write again what is current. check_hashes: trust no journal and no
    size, hash every file. anonymous: read sources at URLs without credentials. artefact: the target whose artefact is
    read of an agent's folder; None means the one whose weights have changed.
    """

    targets: tuple[str, ...]
    overwrite: bool = False
    check_hashes: bool = False
    anonymous: bool = False
    artefact: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job, or would: the targets written (none: all current) and its record, or why it failed.

    If only some targets failed, it has all three. seen: what the journal may remember.
    """

    job: Job
    written: tuple[str, ...] = ()
    record: Record | None = None
    error: AtariConvertError | None = None
    seen: Seen | None = None

    @property
    def status(self) -> str:
        if self.error:
            return "failed"
        return "converted" if self.written else "current"

    @property
    def bytes_written(self) -> int:
        """The size of the artefacts that were written."""
        if self.record is None:
            return 0
        return sum(file.size for name in self.written for file in self.record.artifacts[name].files)


def run(jobs: Collection[Job], work: Work, engine: Engine | None = None) -> Generator[Outcome, None, None]:
    """Convert each job and yield its outcome, first those that are current; a bad checkpoint never stops the rest.

    Args:
        jobs: what `convert.bulk.selection` found, all with the same output.
        work: what is to be done with each.
        engine: where it runs; by default in this process. See `convert.bulk.engines`.
    """
    with _journal_of(jobs) as kept:
        stale = []
        for job, is_current in _recall(jobs, work, kept):
            if is_current:
                yield Outcome(job)
            else:
                stale.append(job)
        with closing((engine or run_here)(work, stale)) as outcomes:
            for outcome in outcomes:
                if kept and outcome.seen:
                    kept.remember(outcome.job, outcome.seen)
                yield outcome


def run_here(work: Work, jobs: Iterable[Job]) -> Generator[Outcome, None, None]:
    """Convert one job after the other in this process."""
    for job in jobs:
        yield convert_job(work, job)


def rehearse(jobs: Collection[Job], work: Work) -> Generator[Outcome, None, None]:
    """Yield what `run` would do with each job, and touch nothing.

    Sources are read only where nothing else tells: at a URL, a record of the same size is taken for current.
    """
    with _journal_of(jobs) as kept:
        for job, is_current in _recall(jobs, work, kept):
            yield Outcome(job) if is_current else _catch(job, partial(_plan_job, work, job))


def convert_job(work: Work, job: Job) -> Outcome:
    """Convert one job. Whatever is wrong with it is part of the outcome, for one bad file must not stop the rest."""
    return _catch(job, partial(_convert_job, work, job))


def _catch(job: Job, action: Callable[[], Outcome]) -> Outcome:
    try:
        return action()
    except Exception as error:  # noqa: BLE001  perhaps nobody foresaw it, and thousands of jobs wait
        return Outcome(job, error=to_known(error, job.source))


def _convert_job(work: Work, job: Job) -> Outcome:
    _refuse_problem(job)
    if not storage.is_url(job.folder):
        check_ours(Path(job.folder))
    network, agent, stamp = _open(work, job)
    if storage.is_url(job.folder):
        written, record, failures = remote.convert_network(network, agent, job, work.targets, overwrite=work.overwrite)
    else:
        conversion = convert_network(network, agent, Path(job.folder), work.targets, overwrite=work.overwrite)
        written, record, failures = conversion.written, conversion.record, conversion.failures
    if failures:  # which the next run is to try again
        return Outcome(job, written, record, sum_up(record.agent, work.targets, written, failures))
    return Outcome(job, written, record, seen=_see(job, record, work.targets, stamp) if stamp else None)


def _open(work: Work, job: Job) -> tuple[Network, Agent, str | None]:
    """Return the network of a job, whose it is, and the stamp of the file that it was read from; a folder has none."""
    if job.kind is None:
        data, stamp = storage.read_source(job.source, anonymous=work.anonymous)
        return *read_from_file(data, job.source, job.identity, job.path), stamp
    out, folder = (Path(place.removeprefix("local://")) for place in (job.out, job.folder))
    if not storage.is_url(str(out)):
        check_apart(Path(job.source), folder, out)
    network, agent = read_from_folder(
        Path(job.source), job.kind, job.identity if job.is_named else None, artefact=work.artefact
    )
    if agent.identity != job.identity:
        raise UnreadableCheckpoint(f"{job.source}: changed since the run began: convert it when its training has ended")
    return network, agent, None


def _refuse_problem(job: Job) -> None:
    if job.problem:
        raise UnreadableCheckpoint(job.problem)


def _plan_job(work: Work, job: Job) -> Outcome:
    _refuse_problem(job)
    if storage.is_url(job.folder):
        agent = _open(work, job)[1] if job.kind else None
        return Outcome(job, remote.plan_conversion(job, agent, work.targets, overwrite=work.overwrite))
    folder = Path(job.folder)
    check_ours(folder)
    agent = remote.guess_agent(job, find_record(folder))
    if not storage.is_url(job.source) and (agent or not os.path.isfile(job.source)):
        agent = _open(work, job)[1]
    stale = find_stale(folder, agent, work.targets, overwrite=work.overwrite, is_rehearsal=True)
    return Outcome(job, stale)


def _journal_of(jobs: Collection[Job]) -> Journal | nullcontext[None]:
    """Open the journal; a lone job has none, for it is soon done and should be done at once."""
    out = next((job.out for job in jobs), "")
    return (journal.open_journal(out) if len(jobs) > 1 else None) or nullcontext()


def _recall(jobs: Iterable[Job], work: Work, kept: Journal | None) -> Iterator[tuple[Job, bool]]:
    """Yield each job, and whether it is current by what the journal remembers."""
    list_files = lru_cache(maxsize=1)(storage.list_files)  # jobs come in the order of their folders
    for job in jobs:
        is_current = False
        seen = None if kept is None or work.overwrite or work.check_hashes else kept.find(job)
        with suppress(UnwritableOutput):  # an output that cannot be listed: converting the job will tell
            is_current = seen is not None and _is_as_seen(job, work, seen, list_files)
        yield job, is_current


def _is_as_seen(job: Job, work: Work, seen: Seen, list_files: Callable[[str], Mapping[str, Found]]) -> bool:
    if not storage.is_url(job.folder):
        find_file = _stamps_here(Path(job.folder))
    elif locate(job.identity):  # the agents of a training run lie in one folder, and are listed at once
        training_run, _, name = job.folder.rpartition("/")
        find_file = _stamps_at_url(list_files(training_run), f"{name}/")
    else:
        find_file = _stamps_at_url(list_files(job.folder))
    source = job.stamp or storage.find_stamp(job.source, anonymous=work.anonymous)
    return journal.is_current(seen, work.targets, source, find_file)


def _see(job: Job, record: Record, targets: Collection[str], stamp: str) -> Seen | None:
    """Return what the journal may remember of an agent whose targets are current now."""
    at_url = storage.is_url(job.folder)
    find_file = _stamps_at_url(storage.list_files(job.folder)) if at_url else _stamps_here(Path(job.folder))
    stamps = {name: {file.path: find_file(file.path) for file in record.artifacts[name].files} for name in targets}
    record_stamp = find_file(RECORD_NAME)
    if record_stamp is None or any(None in files.values() for files in stamps.values()):
        return None
    artifacts = {name: (journal.version_of(name), cast(dict[str, str], files)) for name, files in stamps.items()}
    return Seen(stamp, record_stamp, artifacts)


def _stamps_here(folder: Path) -> _FindStamp:
    """Return what gives the stamp of a file in a folder; None for each while a kill's leftovers lie there."""
    if not is_settled(folder):
        return lambda _: None
    return lambda path: storage.find_stamp(str(folder / path))


def _stamps_at_url(files: Mapping[str, Found], prefix: str = "") -> _FindStamp:
    """Return what gives the stamp of a file below a prefix; None for each while a kill's leftovers lie there."""
    if prefix + UNFINISHED_NAME in files:
        return lambda _: None
    return lambda path: files[prefix + path].stamp if prefix + path in files else None
