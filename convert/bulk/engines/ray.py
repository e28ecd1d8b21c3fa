"""A Ray cluster. Each task converts one job. If a worker or node is lost, Ray gives its tasks to another."""

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

from convert.bulk.run import Engine, Outcome, Work, convert_job
from convert.bulk.selection import Job
from convert.errors import SelectionError, WorkerDied
from convert.store import storage

_RETRIES = 3
_PATIENCE = 10.0  # seconds
_AHEAD = 2  # tasks that wait for each processor, so that none waits for the driver


def make_engine(address: str | None, workers: int) -> Engine:
    """Return the engine of a Ray cluster.

    Args:
        address: of the cluster, as ``ray.init`` takes it; None starts one here, with so many workers.
        workers: how many jobs are converted at once in a cluster that is started here.

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


def run(address: str | None, workers: int, work: Work, jobs: Iterable[Job]) -> Generator[Outcome, None, None]:
    """Convert the jobs as Ray tasks; yield each outcome as it is done."""
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
        yield from _run_tasks(work, iter(jobs))
    finally:
        ray.shutdown()


def _run_tasks(work: Work, waiting: Iterator[Job]) -> Iterator[Outcome]:
    task = ray.remote(num_cpus=1, max_retries=_RETRIES)(convert_job)
    shared = ray.put(work)
    running: dict[Any, Job] = {}
    while True:
        room = max(1, _AHEAD * int(ray.cluster_resources().get("CPU", 1))) - len(running)
        running |= {task.remote(shared, _to_absolute(job)): job for job in islice(waiting, max(0, room))}
        if not running:
            return
        done, _ = ray.wait(list(running))
        for reference in done:
            yield _fetch(reference, running.pop(reference))


def _fetch(reference: Any, job: Job) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = f"Ray lost it {_RETRIES + 1} times ({type(error).__name__}: {storage.format_error(error)[:200]})"
        return Outcome(job, error=WorkerDied(f"{job.source}: {reason}"))
    return dataclasses.replace(outcome, job=job)


def _to_absolute(job: Job) -> Job:
    """Return a job with absolute paths, which mean the same in every working folder."""
    source = job.source if storage.is_url(job.source) else os.path.abspath(job.source)
    return dataclasses.replace(job, source=source, out=job.out if storage.is_url(job.out) else os.path.abspath(job.out))
