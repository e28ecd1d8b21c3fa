"""A Ray cluster. Each of its tasks does one job. If a worker or node is lost, Ray gives its tasks to another."""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from convert.bulk.engines import Engine, JobT, OutcomeT, Task
from convert.errors import SelectionError, WorkerDied
from convert.store import storage

_RETRIES = 3
_PATIENCE = 10.0  # seconds
_AHEAD = 2  # tasks that wait for each processor, so that none waits for the driver


def make_engine(address: str | None, workers: int) -> Engine:
    """Return the engine of a Ray cluster.

    Args:
        address: of the cluster, as ``ray.init`` takes it; None starts one here, with so many workers.
        workers: how many jobs are done at once in a cluster that is started here.

    Raises:
        SelectionError: nothing answers at the address.
    """
    if address:
        _check_reachable(address)
    return partial(run, address, workers)


def _check_reachable(address: str) -> None:
    """Try the address once, since Ray would retry for minutes. Without a port, as in ``auto``, leave it to Ray."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise SelectionError(f"--ray-address {address}: nothing answers there ({error}): is the cluster up?") from error


def run(
    address: str | None, workers: int, task: Task[JobT, OutcomeT], jobs: Iterable[JobT]
) -> Generator[OutcomeT, None, None]:
    """Do the jobs as tasks of Ray; yield each outcome as it is done."""
    processors = None if address else workers
    try:
        ray.init(
            address=address or "local",
            num_cpus=processors,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise WorkerDied(f"Ray cluster {address or 'of this computer'}: {storage.format_error(error)}") from error
    try:
        # The workers of a cluster that is started here run in this folder, those of another one do not.
        yield from _run_tasks(task, ((job.to_absolute() if address else job, job) for job in jobs))
    finally:
        ray.shutdown()


def _run_tasks(task: Task[JobT, OutcomeT], waiting: Iterator[tuple[JobT, JobT]]) -> Iterator[OutcomeT]:
    """Do the first job of each pair, and yield its outcome as that of the second, which names the same agent."""
    do = ray.remote(num_cpus=1, max_retries=_RETRIES)(do_job)
    shared, threads = ray.put(task), os.environ.get("OMP_NUM_THREADS")
    running: dict[Any, JobT] = {}
    while True:
        room = max(1, _AHEAD * int(ray.cluster_resources().get("CPU", 1))) - len(running)
        running |= {do.remote(shared, threads, sent): job for sent, job in islice(waiting, max(0, room))}
        if not running:
            return
        done, _ = ray.wait(list(running))
        for reference in done:
            yield _fetch(task, reference, running.pop(reference))


def do_job(task: Task[Any, Any], threads: str | None, job: Any) -> Any:
    """Do a job. Ray shows this function's name in lists of processes."""
    # Ray allows a task one thread. The other engines do not, and the last digits of an error depend on it.
    os.environ.pop("OMP_NUM_THREADS", None)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = threads
    return task.do(job)


def _fetch(task: Task[JobT, OutcomeT], reference: Any, job: JobT) -> OutcomeT:
    try:
        outcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = f"Ray lost it {_RETRIES + 1} times ({type(error).__name__}: {storage.format_error(error)[:200]})"
        return task.fail(job, WorkerDied(f"{job.source}: {reason}"))
    replaced: OutcomeT = dataclasses.replace(outcome, job=job)
    return replaced
