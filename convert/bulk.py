"""Many checkpoints: find them, convert each, carry on after a bad one, sum up."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from convert.agent import Identity, Record, identify
from convert.errors import AtariConvertError, SelectionError
from convert.pipeline import convert_checkpoint, plan_conversion


@dataclass(frozen=True)
class Job:
    """One checkpoint to convert: the file, who it is, its path for the record, and the agent's folder."""

    source: Path
    identity: Identity
    path: str
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job, or would: the targets written (none: all current) and its record, or why it failed."""

    job: Job
    written: tuple[str, ...] = ()
    record: Record | None = None
    error: AtariConvertError | None = None

    @property
    def status(self) -> str:
        if self.error:
            return "failed"
        return "converted" if self.written else "current"


def find_jobs(sources: Iterable[Path], out: Path, identity: Identity | None = None) -> list[Job]:
    """Return a job for each checkpoint named, or found as ``model_*.gz`` below a folder named, in order of paths.

    Raises:
        SelectionError: no checkpoint is found, an identity is given for several, two would share an output folder, or
            a file's name leaves none.
    """
    files = {file.absolute(): (file, base) for source in sources for file, base in _find_files(source)}
    if not files:
        raise SelectionError("no model_*.gz found: name a checkpoint, or a folder of the release")
    if identity and len(files) > 1:
        raise SelectionError(f"--identity is for one checkpoint, found {len(files)}")
    jobs = [_make_job(file, base, out, identity) for _, (file, base) in sorted(files.items())]
    _check_folders_differ(jobs)
    return jobs


def run(jobs: Iterable[Job], targets: Collection[str], *, overwrite: bool = False) -> Iterator[Outcome]:
    """Convert each job and yield its outcome; a bad checkpoint never stops the rest."""
    for job in jobs:
        try:
            conversion = convert_checkpoint(
                job.source, job.folder, targets, identity=job.identity, path=job.path, overwrite=overwrite
            )
        except AtariConvertError as error:
            yield Outcome(job, error=error)
        else:
            yield Outcome(job, conversion.written, conversion.record)


def rehearse(jobs: Iterable[Job], targets: Collection[str], *, overwrite: bool = False) -> Iterator[Outcome]:
    """Yield what `run` would do with each job, and touch nothing."""
    for job in jobs:
        try:
            stale = plan_conversion(
                job.source, job.folder, targets, identity=job.identity, path=job.path, overwrite=overwrite
            )
        except AtariConvertError as error:
            yield Outcome(job, error=error)
        else:
            yield Outcome(job, stale)


def _find_files(source: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each checkpoint with the folder that its path is relative to."""
    if not source.is_dir():
        yield source, source.parent
        return
    for folder, _, names in os.walk(source, onerror=_refuse):
        for name in names:
            if name.startswith("model_") and name.endswith(".gz"):
                yield Path(folder, name), source


def _refuse(error: OSError) -> None:
    raise SelectionError(f"{error.filename}: cannot be searched ({error.strerror})")


def _make_job(file: Path, base: Path, out: Path, identity: Identity | None) -> Job:
    identity = identity or identify(file.absolute().as_posix())
    if identity.is_complete:
        return Job(file, identity, f"{identity.folder}.gz", out / identity.folder)
    path = file.relative_to(base)
    name = path.name.removesuffix(".gz")
    if name in ("", ".", ".."):
        raise SelectionError(f"{file}: its name without .gz is no name for a folder: rename it")
    return Job(file, identity, path.as_posix(), out / path.parent / name)


def _check_folders_differ(jobs: list[Job]) -> None:
    owners: dict[Path, Path] = {}
    for job in jobs:
        other = owners.setdefault(job.folder, job.source)
        if other is not job.source:
            raise SelectionError(
                f"{other} and {job.source} would share the output folder {job.folder}: convert them apart"
            )
