"""Many agents: pass over those that are proven, check the rest on an engine, and go on after a bad one."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

from convert.bulk.engines import Engine, Task, run_here
from convert.errors import AtariConvertError, CheckError, UnwritableOutput
from convert.files.hashes import compute_sha256
from convert.pipeline import to_known
from convert.proofs import read_proof, to_json
from convert.sources import read_record
from convert.store.storage import is_url
from convert.targets import list_targets
from runtime_check.bulk.jobs import Job
from runtime_check.bulk.places import Place, open_place, publish, stamp_files, stamp_source
from runtime_check.bulk.verdicts import Verdict, Verdicts
from runtime_check.check.options import Listeners, Options
from runtime_check.check.pipeline import check_agent
from runtime_check.check.sources import Sources
from runtime_check.proof import from_proof, list_versions, to_statement
from runtime_check.replay import EpisodeLog
from runtime_check.report.documents import Document, to_document, to_failure
from runtime_check.report.episode_logs import EpisodeLogs
from runtime_check.report.page import illustrate

_SILENT = Listeners()
# Variables by which users choose what runtimes run on.
_ENVIRONMENT = (
    *("KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "JAX_DEFAULT_MATMUL_PRECISION"),
    *("NVIDIA_TF32_OVERRIDE", "TF_ENABLE_ONEDNN_OPTS", "OMP_NUM_THREADS"),
)


@dataclass(frozen=True)
class Work:
    """What is to be done with each agent.

    source: the checkpoints to compare with: a file or a folder, a path or a URL. again: pass over none. anonymous: read
    sources at URLs without credentials.
    """

    source: str
    options: Options
    again: bool = False
    anonymous: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of an agent.

    document: its part of ``check.json``. pictures: its plots and exhibits, for the page. log: its part of
    ``episodes.jsonl``. proof: the text of its ``proof.json``; None where there is nothing to remember. stamps: of its
    files and its checkpoint, see `Verdict`. warning: why the proof could not be written. is_known: whether it was
    passed over, and an earlier run found all this.
    """

    job: Job
    document: Document
    pictures: Mapping[str, Any] = field(default_factory=dict)
    log: str = ""
    proof: str | None = None
    stamps: Mapping[str, str | None] = field(default_factory=dict)
    warning: str | None = None
    is_known: bool = False

    @property
    def verdict(self) -> str:
        verdict: str = self.document["verdict"]
        return verdict


def run(
    jobs: Sequence[Job], work: Work, engine: Engine = run_here, listeners: Listeners = _SILENT
) -> Generator[Outcome, None, None]:
    """Check each agent and yield the outcomes in the order of the jobs; a bad agent never stops the rest.

    Verdicts are remembered as they come, whatever their order, so that an interrupted run loses only the agents that
    were under way.

    Args:
        jobs: the agents.
        work: how they are checked.
        engine: where. Only in this process can somebody listen.
        listeners: who follows the check.
    """
    do = partial(check_job, work, listeners=listeners) if engine is run_here else partial(check_job, work)
    task = Task(_prepare, do, _fail)
    with Verdicts.open() as verdicts:
        key = _to_key(work)
        known = set() if work.again else _find_known(jobs, key, verdicts)
        stale = [job for job in jobs if job.folder not in known]
        with closing(engine(task, stale)) as outcomes:
            remember = partial(_remember, key, verdicts)
            recall = partial(_recall_or_check, lambda job: remember(do(job)), key, verdicts)
            yield from _order(jobs, known, recall, map(remember, outcomes))


def check_job(work: Work, job: Job, listeners: Listeners = _SILENT) -> Outcome:
    """Check one agent and publish its proof. Whatever is wrong with it is part of the outcome."""
    try:
        sources = None if is_url(work.source) else _open_sources(work.source)
        with open_place(job.folder, work.source, sources, anonymous=work.anonymous) as place:
            return _check(work, job, place, listeners)
    except Exception as error:  # noqa: BLE001  an unexpected error must not stop thousands of agents
        return _fail(job, to_known(error, job.folder))
    finally:
        gc.collect()  # a model of TensorFlow's is a circle of references, and not small
        gc.freeze()  # what is left are the runtimes themselves: to search them for circles takes 200 ms each time


def _check(work: Work, job: Job, place: Place, listeners: Listeners) -> Outcome:
    logs = EpisodeLogs()

    def add_log(backend: str, mode: str, log: EpisodeLog) -> None:
        logs.add(backend, mode, log)
        listeners.episode(backend, mode, log)

    follow = Listeners(listeners.start, listeners.steps, add_log)
    result = check_agent(place.folder, place.sources, work.options, follow)
    document = to_document(result)
    outcome = Outcome(job, place.restore(document), illustrate(result), logs.to_text(document["backends"]))
    if not result.backends:  # the record is wrong, and nothing was run
        return outcome
    if result.plan.protocol.name != result.agent.identity.protocol:
        return outcome  # another protocol than its own proves nothing of how it plays
    source, stamp = stamp_source(place, result.source, result.record.agent, work.source)
    statement = to_statement(result, document, work.options)
    try:
        publish(place, result.record, statement)
    except CheckError:
        if result.agrees:
            raise
        return outcome  # files that are not those of the record are a verdict, and nothing is proven of them
    except (OSError, UnwritableOutput) as error:
        reason = getattr(error, "strerror", None) or error
        warning = f"{job.folder}: proof.json cannot be written ({reason}): only this computer remembers the verdict"
        outcome = replace(outcome, warning=warning)
    if stamp_files(job.folder) != place.files:  # somebody writes there: the next run looks again
        return outcome
    return replace(outcome, proof=to_json(statement), stamps={source: stamp, **place.files})


def find_known(jobs: Sequence[Job], work: Work) -> set[str]:
    """Return the folders of the agents that `run` would pass over."""
    with Verdicts.open() as verdicts:
        return set() if work.again else _find_known(jobs, _to_key(work), verdicts)


def recall(jobs: Iterable[Job]) -> Generator[Outcome, None, None]:
    """Yield what the proofs of agents say, without playing anything again.

    Plots, pictures and episodes are there for those that were checked on this computer.
    """
    with Verdicts.open() as verdicts:
        for job in jobs:
            try:
                yield _read_proof(job, verdicts)
            except Exception as error:  # noqa: BLE001  one bad file must not stop the rest
                yield _fail(job, to_known(error, job.folder))


def _read_proof(job: Job, verdicts: Verdicts) -> Outcome:
    with open_place(job.folder, "", Sources(Path()), anonymous=False) as place:
        proof = read_proof(place.folder)
        document = place.restore(from_proof(str(place.folder), read_record(place.folder), proof))
    verdict = verdicts.find(_to_absolute(job.folder))
    is_own = verdict is not None and verdict.proof == to_json(proof.statement)
    outcome = _recall(job, verdicts) if is_own else None
    return replace(outcome or Outcome(job, document), document=document)


def _prepare() -> None:
    """Nothing to load: which frameworks an agent needs, its record tells."""


def _fail(job: Job, error: AtariConvertError) -> Outcome:
    return Outcome(job, to_failure(Path(job.folder), error))


@lru_cache(maxsize=1)
def _open_sources(source: str) -> Sources:
    return Sources(Path(source))


def _order(
    jobs: Iterable[Job], known: Container[str], recall: Callable[[Job], Outcome], outcomes: Iterable[Outcome]
) -> Generator[Outcome, None, None]:
    """Yield the outcomes in the order of their jobs. Those that come early wait."""
    waiting: dict[str, Outcome] = {}
    arriving = iter(outcomes)
    for job in jobs:
        if job.folder in known:
            yield recall(job)
            continue
        while job.folder not in waiting:
            outcome = next(arriving)
            waiting[outcome.job.folder] = outcome
        yield waiting.pop(job.folder)


def _remember(key: str, verdicts: Verdicts, outcome: Outcome) -> Outcome:
    """Return an outcome, stored for later runs."""
    if outcome.proof is not None:
        found = {"document": outcome.document, "pictures": outcome.pictures, "log": outcome.log}
        verdict = Verdict(key, outcome.stamps, outcome.proof, is_published=outcome.warning is None)
        verdicts.remember(_to_absolute(outcome.job.folder), verdict, found)
    return outcome


def _find_known(jobs: Iterable[Job], key: str, verdicts: Verdicts) -> set[str]:
    """Return the folders of agents whose files are still those that were checked, in this way."""
    known = set()
    for job in jobs:
        verdict = verdicts.find(_to_absolute(job.folder))
        with suppress(AtariConvertError):  # checking it will tell why
            if verdict and verdict.how == key and verdict.is_current(job.folder):
                known.add(job.folder)
    return known


def _recall_or_check(do: Callable[[Job], Outcome], key: str, verdicts: Verdicts, job: Job) -> Outcome:
    """Return what an earlier run found of an agent; check it if that is gone, damaged, or of another check by now."""
    verdict = verdicts.find(_to_absolute(job.folder))
    outcome = _recall(job, verdicts) if verdict and verdict.how == key else None
    return outcome or do(job)


def _recall(job: Job, verdicts: Verdicts) -> Outcome | None:
    """Return what an earlier run found of an agent; None where that is gone or damaged."""
    found = verdicts.read_found(_to_absolute(job.folder))
    if found is None:
        return None
    document = found["document"] | {"folder": job.folder}
    return Outcome(job, document, found["pictures"], found["log"], is_known=True)


def _to_key(work: Work) -> str:
    """Return what tells how an agent was checked: options, sources, versions, and what runtimes read at their start."""
    packages = sorted({package for target in list_targets() for package in target.packages} | {"torch"})
    versions = {name: _find_version(name) for name in packages} | list_versions()
    environment = {name: os.environ.get(name) for name in _ENVIRONMENT}
    options = {"source": _to_absolute(work.source), **asdict(work.options)}
    how = {"options": options, "versions": versions, "environment": environment}
    return compute_sha256(json.dumps(how, sort_keys=True).encode())


def _to_absolute(name: str) -> str:
    return name if is_url(name) else os.path.realpath(name)


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
