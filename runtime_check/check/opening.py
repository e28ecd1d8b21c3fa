"""Open: each artefact is held against its record and opened as its users open it, and the reference from its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from convert.agents.agent import Agent
from convert.agents.layout import nhwc_from_nchw
from convert.artefacts import Screened
from convert.errors import AtariConvertError, CheckError, MissingExtra, RuntimeUnavailable, to_message
from convert.files.documents import join
from convert.loading import open_artefact
from convert.runtimes import Description, Runtime, Settings, import_runtime
from convert.targets import find_target
from runtime_check.backends import REFERENCE, Backend
from runtime_check.check.options import Options
from runtime_check.check.verification import (
    Case,
    find_artefact,
    find_content_faults,
    find_file_faults,
    find_weight_faults,
)
from runtime_check.compare import Tolerance
from runtime_check.originals import find_original


@dataclass(frozen=True, eq=False)
class Candidate:
    """A backend at some moment of a check.

    tolerance: what it is held to. runtime: None once it has failed, or if it was not opened. description: what it runs
    on; None if it was never opened.
    """

    backend: Backend
    tolerance: Tolerance
    runtime: Runtime | None = None
    description: Description | None = None
    faults: tuple[str, ...] = ()

    def noted(self, *faults: str) -> Candidate:
        """Return it with further faults. It is still asked: a replay shows what they amount to."""
        return replace(self, faults=tuple(dict.fromkeys((*self.faults, *map(to_message, faults)))))

    def failed(self, fault: str) -> Candidate:
        """Return it closed, with the fault that ended it."""
        return replace(self.noted(fault), runtime=None)


Candidates = Mapping[str, Candidate]


def open_backends(case: Case, options: Options) -> Candidates:
    """Open every backend of a case; what keeps one closed becomes a fault of its own.

    Raises:
        CheckError: the reference does not open.
        MissingExtra: a framework is not installed.
        RuntimeUnavailable: a GPU was asked for, and a runtime sees none.
    """
    settings = Settings(options.device, options.tf32, options.batch)
    return require_reference(case, {backend.name: _open(case, backend, settings) for backend in case.backends})


def require_reference(case: Case, candidates: Candidates) -> Candidates:
    """Return the candidates; without the reference there is nothing to compare with.

    Raises:
        CheckError: the reference has failed.
    """
    reference = candidates[REFERENCE]
    if reference.runtime is None:
        raise CheckError(f"{case.source}: {'; '.join(reference.faults)}")
    return candidates


def _open(case: Case, backend: Backend, settings: Settings) -> Candidate:
    bound, path = backend.bound, case.source
    tolerance = replace(case.tolerance, atol=bound.atol, rtol=bound.rtol) if bound else case.tolerance
    candidate = Candidate(backend, tolerance)
    if backend.target is not None:
        path = find_artefact(case.folder, backend.target)
        if faults := find_file_faults(case.folder, case.record, backend.target):
            return candidate.failed(join(faults))
    try:
        runtime, screened = open_backend(backend, path, case.record.agent, settings)
    except (RuntimeUnavailable, MissingExtra):
        raise
    except Exception as error:  # noqa: BLE001 - each runtime raises its own, and any means that it does not load
        return candidate.failed(f"{path.name} does not load: {to_line(error)}")
    if backend.target is not None and screened is not None:
        if faults := find_content_faults(case.record.artifacts[backend.target], screened):
            return candidate.failed(join(faults))
        candidate = candidate.noted(*find_weight_faults(backend.target, screened, case.oracle))
    return replace(candidate, runtime=runtime, description=runtime.description)


def open_backend(backend: Backend, path: Path, agent: Agent, settings: Settings) -> tuple[Runtime, Screened | None]:
    """Open the artefact at ``path`` as its users do, or the source.

    Returns:
        What answers for uint8[N, 4, 84, 84], whatever order of axes the artefact takes; and what was read of the
        artefact, None of the source.

    Raises:
        MissingExtra: a framework is not installed.
        RuntimeUnavailable: a GPU was asked for, and the runtime sees none.
        Exception: whatever a runtime raises for what it cannot load.
    """
    if backend.target is None:
        torch_runtime = import_runtime("torch")
        device = torch_runtime.choose_device(settings)  # before anything else uses torch
        return torch_runtime.run(find_original(path).read_eager(path), device, settings), None
    opened = open_artefact(backend.target, path, agent, settings)
    runtime, answer = opened.runtime, opened.runtime.answer
    if find_target(backend.target).axes == "NHWC":
        runtime = replace(runtime, answer=lambda obs_nchw: answer(nhwc_from_nchw(obs_nchw)))
    return runtime, opened.screened


def to_line(error: Exception) -> str:
    """Return one line that says what a runtime raised."""
    text = str(error).strip().splitlines() or [""]
    return text[0][:600] if isinstance(error, AtariConvertError) else f"{type(error).__name__}: {text[0]}"[:300]
