"""Where a run's jobs are done: in this process, in worker processes on this computer, or on a Ray cluster.

An engine is a function of what to do with each job, a `Task`, and of the jobs. It yields the outcome of each job when
it is done, in any order. A job may be done twice, so what a task does must be harmless the second time. Closing the
iterator stops the work. Converting and checking run on the same engines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from convert.errors import AtariConvertError, MissingExtra


class Job(Protocol):
    """What an engine has to know of a job. It can be pickled."""

    @property
    def source(self) -> str:
        """What messages call it: a path or a URL."""

    @property
    def folder(self) -> str:
        """The agent's folder, which no other job of the run has."""

    def to_absolute(self) -> Self:
        """Return the job with absolute paths, which mean the same in every working folder."""


JobT = TypeVar("JobT", bound=Job)
OutcomeT = TypeVar("OutcomeT")


@dataclass(frozen=True)
class Task(Generic[JobT, OutcomeT]):
    """What to do with each job. It can be pickled, and so can outcomes, which are dataclasses with a field ``job``.

    prepare: called once in each worker process. do: does one job; a bad one is an outcome, not an exception.
    fail: returns the outcome of a job that could not be done, for instance because its worker died.
    """

    prepare: Callable[[], None]
    do: Callable[[JobT], OutcomeT]
    fail: Callable[[JobT, AtariConvertError], OutcomeT]


Engine = Callable[[Task[Any, Any], Iterable[Any]], Generator[Any, None, None]]


def run_here(task: Task[JobT, OutcomeT], jobs: Iterable[JobT]) -> Generator[OutcomeT, None, None]:
    """Do one job after the other in this process."""
    for job in jobs:
        yield task.do(job)


def make_engine(name: str, address: str | None, workers: int, jobs: int) -> Engine:
    """Return the engine to run on.

    Args:
        name: ``local`` or ``ray``.
        address: of a Ray cluster; None starts one on this computer.
        workers: how many jobs to do at once; 0 for one per processor.
        jobs: how many there are; a lone one is best done in this process.

    Raises:
        MissingExtra: Ray is not installed.
        SelectionError: nothing answers at the address of the cluster.
    """
    workers = workers or _count_processors()
    if name == "ray":
        return _make_ray_engine(address, workers)
    if min(workers, jobs) < 2:
        return run_here
    from convert.bulk.engines import processes

    return processes.make_engine(min(workers, jobs))


def _count_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make_ray_engine(address: str | None, workers: int) -> Engine:
    try:
        from convert.bulk.engines import ray
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "ray":
            raise
        raise MissingExtra("--engine ray needs ray: pip install 'atari-convert[ray]'") from error
    return ray.make_engine(address, workers)
