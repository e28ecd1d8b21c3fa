"""Many checkpoints: skip what is current, convert the rest on an engine, and go on after a bad one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing, nullcontext, suppress
from dataclasses import astuple, dataclass, field
from functools import lru_cache, partial
from pathlib import Path

from convert.agents.agent import Agent, Record, name_actions
from convert.agents.network import Network
from convert.bulk.engines import Engine, Task, run_here
from convert.bulk.selection import Job
from convert.errors import AtariConvertError, UnreadableCheckpoint, UnsuitableTarget, UnwritableOutput
from convert.pipeline import (
    check_apart,
    find_stale,
    load_frameworks,
    read_from_file,
    read_from_folder,
    sum_up,
    to_known,
    write_agent,
)
from convert.sources import locate
from convert.store import find_store, journal, storage
from convert.store.folders import ListFiles
from convert.store.journal import Journal, Seen


@dataclass(frozen=True)
class Work:
    """What is to be done with each job.

    targets: names such as ``onnx``. overwrite: write again what is current. check_hashes: trust no journal and no size,
    hash every file. anonymous: read sources at URLs without credentials. artefact: the target whose artefact is read of
    an agent's folder; None means the one whose weights have changed. optional: the targets that are left out where
    their format cannot hold an agent, which the outcome tells.
    """

    targets: tuple[str, ...]
    overwrite: bool = False
    check_hashes: bool = False
    anonymous: bool = False
    artefact: str | None = None
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a job, or would: the targets written (none: all current) and its record, or why it failed.

    If only some targets failed, it has all three. seen: what the journal may remember. skipped: why optional targets
    were left out, by name.
    """

    job: Job
    written: tuple[str, ...] = ()
    record: Record | None = None
    error: AtariConvertError | None = None
    seen: Seen | None = None
    skipped: Mapping[str, AtariConvertError] = field(default_factory=dict)

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


def run(jobs: Collection[Job], work: Work, engine: Engine = run_here) -> Generator[Outcome, None, None]:
    """Convert each job and yield its outcome, first those that are current; a bad checkpoint never stops the rest.

    Args:
        jobs: what `convert.bulk.selection` found, all with the same output.
        work: what is to be done with each.
        engine: where it runs; by default in this process. See `convert.bulk.engines`.
    """
    task = Task(partial(_prepare, work), partial(convert_job, work), _fail)
    with _open_journal(jobs) as kept:
        stale = []
        for job, is_current in _recall(jobs, work, kept):
            if is_current:
                yield Outcome(job)
            else:
                stale.append(job)
        with closing(engine(task, stale)) as outcomes:
            for outcome in outcomes:
                if kept and outcome.seen:
                    kept.remember(outcome.job.path, _to_key(outcome.job), outcome.seen)
                yield outcome


def rehearse(jobs: Collection[Job], work: Work) -> Generator[Outcome, None, None]:
    """Yield what `run` would do with each job, and change nothing.

    Sources at URLs are not read: one is taken for the agent's if the record has its path and size.
    """
    with _open_journal(jobs) as kept:
        for job, is_current in _recall(jobs, work, kept):
            yield Outcome(job) if is_current else _catch(job, partial(_plan_job, work, job))


def convert_job(work: Work, job: Job) -> Outcome:
    """Convert one job. Whatever is wrong with it is part of the outcome, for one bad file must not stop the rest."""
    return _catch(job, partial(_convert_job, work, job))


def _prepare(work: Work) -> None:
    # Converting computes nothing, and frameworks would occupy the GPU.
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    load_frameworks(work.targets)


def _fail(job: Job, error: AtariConvertError) -> Outcome:
    return Outcome(job, error=error)


def _catch(job: Job, action: Callable[[], Outcome]) -> Outcome:
    try:
        return action()
    except Exception as error:  # noqa: BLE001  an unexpected error must not stop thousands of jobs
        return Outcome(job, error=to_known(error, job.source))


def _convert_job(work: Work, job: Job) -> Outcome:
    _check_problem(job)
    network, agent, stamp = _open(work, job)
    conversion = write_agent(network, agent, job.folder, work.targets, overwrite=work.overwrite)
    written, record = conversion.written, conversion.record
    skipped = {name: error for name, error in conversion.failures.items() if _is_optional(name, error, work)}
    failures = {name: error for name, error in conversion.failures.items() if name not in skipped}
    if failures:  # which the next run is to try again
        error = sum_up(record.agent, work.targets, written, failures)
        return Outcome(job, written, record, error, skipped=skipped)
    if skipped:
        return Outcome(job, written, record, skipped=skipped)
    find_stamp = find_store(job.folder).find_stamps(job.folder)
    seen = journal.look_at(record, work.targets, stamp, find_stamp) if stamp else None
    return Outcome(job, written, record, seen=seen)


def _is_optional(name: str, error: AtariConvertError, work: Work) -> bool:
    return name in work.optional and isinstance(error, UnsuitableTarget)


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


def _check_problem(job: Job) -> None:
    if job.problem:
        raise UnreadableCheckpoint(job.problem)


def _plan_job(work: Work, job: Job) -> Outcome:
    _check_problem(job)
    found = find_store(job.folder).inspect(job.folder)
    agent = _guess_agent(job, found.record)
    if job.kind or (not storage.is_url(job.source) and (agent or not os.path.isfile(job.source))):
        agent = _open(work, job)[1]
    return Outcome(job, find_stale(found, agent, work.targets, overwrite=work.overwrite, is_rehearsal=True))


def _guess_agent(job: Job, record: Record | None) -> Agent | None:
    """Return who a checkpoint is without reading it: whom the record tells of, unless the job tells of another."""
    if record is None or job.path != record.agent.source.path or job.size not in (0, record.agent.source.size):
        return None
    source, architecture = record.agent.source, record.agent.architecture
    return Agent(job.identity, architecture, source, name_actions(job.identity.game, architecture.head.actions))


def _open_journal(jobs: Collection[Job]) -> Journal | nullcontext[None]:
    """Open the journal. A single job has none, since looking at its files takes no longer."""
    out = next((job.out for job in jobs), "")
    return (journal.open_journal(out) if len(jobs) > 1 else None) or nullcontext()


def _recall(jobs: Iterable[Job], work: Work, kept: Journal | None) -> Iterator[tuple[Job, bool]]:
    """Yield each job, and whether it is current by what the journal remembers."""
    list_files = lru_cache(maxsize=1)(storage.list_files)  # jobs come in the order of their folders
    for job in jobs:
        is_current = False
        seen = None if kept is None or work.overwrite or work.check_hashes else kept.find(job.path, _to_key(job))
        with suppress(UnwritableOutput):  # an output that cannot be listed: converting the job will tell
            is_current = seen is not None and _is_as_seen(job, work, seen, list_files)
        yield job, is_current


def _is_as_seen(job: Job, work: Work, seen: Seen, list_files: ListFiles) -> bool:
    # The agents of a training run have one folder, and are listed at once.
    list_around = list_files if locate(job.identity) else None
    find_stamp = find_store(job.folder).find_stamps(job.folder, list_around)
    source = job.stamp or storage.find_stamp(job.source, anonymous=work.anonymous)
    return journal.is_current(seen, work.targets, source, find_stamp)


def _to_key(job: Job) -> str:
    """Return what the journal knows a job's source by: where it is, and whose it is said to be."""
    identity = job.identity
    source = job.source if storage.is_url(job.source) else os.path.abspath(job.source)
    return json.dumps([source, *astuple(identity)])
