"""Worker processes on this computer. Each is prepared once, and does one job at a time.

A worker is spawned, since frameworks do not survive a fork, and reads its jobs from a pipe, where the next one waits
already. When a worker dies, its pipe closes, and the job that it had gets a second try in a new worker. When the run is
killed, its workers notice and end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from convert.bulk.engines import Engine, Job, JobT, OutcomeT, Task
from convert.errors import WorkerDied
from convert.signals import hold_signals

# Every job takes and frees the same large buffers. Memory that goes back to the system in between costs page faults
# when it is taken again: 12 ms for an inflated checkpoint of 9 MB. Other C libraries than glibc ignore these.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
_TRIES = 2
_PATIENCE = 10.0  # seconds until a worker that was asked to end is ended
_DEATHS_IN_A_ROW = 10  # then the jobs are not the reason
_JOBS_AT_ONCE = 2  # one in work, one in the pipe


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    jobs: deque[Job] = field(default_factory=deque)


@dataclass
class _Pool:
    task: Task[Any, Any]
    workers: list[_Worker] = field(default_factory=list)
    deaths: dict[str, int] = field(default_factory=dict)
    deaths_in_a_row: int = 0


def make_engine(workers: int) -> Engine:
    """Return the engine of so many worker processes."""
    return partial(run, workers)


def run(workers: int, task: Task[JobT, OutcomeT], jobs: Iterable[JobT]) -> Generator[OutcomeT, None, None]:
    """Do the jobs in worker processes; yield each outcome as it is done.

    Raises:
        WorkerDied: one worker after another dies.
    """
    pool = _Pool(task)
    waiting = iter(jobs)
    again: list[JobT] = []
    try:
        _hand_out(pool, workers, waiting, again)
        while busy := [worker for worker in pool.workers if worker.jobs]:
            ready = wait([worker.pipe for worker in busy])
            outcomes = [_receive(pool, worker, again) for worker in busy if worker.pipe in ready]
            # Before the outcomes are yielded: no worker should wait until they are handled.
            _hand_out(pool, workers, waiting, again)
            yield from (outcome for outcome in outcomes if outcome)
    finally:
        _end(pool)


def _hand_out(pool: _Pool, workers: int, waiting: Iterator[JobT], again: list[JobT]) -> None:
    """Give jobs to the workers, the idlest first. Start one if none is idle and there are fewer than ``workers``."""
    while True:
        idlest = min(pool.workers, key=lambda worker: len(worker.jobs), default=None)
        has_room = len(pool.workers) < workers
        if idlest and not has_room and len(idlest.jobs) == _JOBS_AT_ONCE:
            return
        job = again.pop() if again else next(waiting, None)
        if job is None:
            return
        if idlest is None or (has_room and idlest.jobs):
            idlest = _start(pool.task)
            pool.workers.append(idlest)
        _send(idlest, job)


def _send(worker: _Worker, job: Job) -> None:
    worker.jobs.append(job)
    with suppress(OSError):  # it has died, as `_receive` will find
        worker.pipe.send(job)


def _start(task: Task[Any, Any]) -> _Worker:
    for name, value in MALLOC.items():  # read by a process when it starts
        os.environ.setdefault(name, value)
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, task), daemon=True)
    with _block_interrupts():
        process.start()
    theirs.close()
    return _Worker(process, ours)


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Block Ctrl-C in processes that are started within the block.

    A terminal sends it to every process, but only the first is to act on it; the others would print a traceback. They
    inherit the signal mask. Here the signal waits until they are started, since one that is half started would print
    a traceback too.
    """
    resource_tracker.ensure_running()  # with the first process it would start too late, and unblock the signal
    with hold_signals(signal.SIGINT, signal.SIGTERM):
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _receive(pool: _Pool, worker: _Worker, again: list[Any]) -> Any:
    """Return a worker's outcome. Return None if the worker has died; then its jobs go to ``again`` for another try."""
    try:
        outcome = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        pool.workers.remove(worker)
        job = worker.jobs.popleft()
        again += worker.jobs  # these were not started
        return _record_death(pool, job, worker.process.exitcode, again)
    worker.jobs.popleft()
    pool.deaths_in_a_row = 0
    return outcome


def _record_death(pool: _Pool, job: Job, code: int | None, again: list[Any]) -> Any:
    pool.deaths_in_a_row += 1
    pool.deaths[job.folder] = pool.deaths.get(job.folder, 0) + 1
    if pool.deaths_in_a_row >= _DEATHS_IN_A_ROW:
        raise WorkerDied(
            f"{pool.deaths_in_a_row} workers died one after another, the last {_format_death(code)}: stopped"
        )
    if pool.deaths[job.folder] < _TRIES:
        again.append(job)
        return None
    reason = f"its worker died {_TRIES} times, the last time {_format_death(code)}: try fewer --jobs if memory is short"
    return pool.task.fail(job, WorkerDied(f"{job.source}: {reason}"))


def _format_death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"with exit code {code}"
    return f"by {signal.Signals(-code).name}"


def _end(pool: _Pool) -> None:
    """End the workers. Idle ones end when their pipe closes, the others drop what they have staged and exit at once."""
    for worker in pool.workers:
        worker.pipe.close()
        if worker.jobs:
            worker.process.terminate()
    for worker in pool.workers:
        worker.process.join(_PATIENCE)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _serve(pipe: Connection, task: Task[Any, Any]) -> None:
    """Do the jobs from a pipe until it is closed. This is a worker's main function."""
    with suppress(Exception):  # the first job will report it
        task.prepare()
    signal.signal(signal.SIGTERM, _leave)  # not before: an exception out of a half-loaded framework aborts the process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while True:
            pipe.send(task.do(pipe.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the run has ended or was killed


def _end_with_parent() -> None:
    """End this process when the run is killed, and not only when its job is done."""
    if parent := parent_process():
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_PATIENCE)
        os._exit(128 + signal.SIGTERM)  # a runtime dropped the exception, or its threads do not end


def _leave(*_: Any) -> None:
    """Exit once. Print nothing where the exception is raised within a finaliser, which Python would report."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.unraisablehook = lambda _: None
    sys.exit(128 + signal.SIGTERM)
