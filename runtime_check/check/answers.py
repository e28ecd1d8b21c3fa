"""Ask backends: their answers, or why an answer cannot be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convert.errors import RuntimeUnavailable
from runtime_check.check.opening import Candidate, Candidates, to_line
from runtime_check.compare import Outputs, find_faults

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Reply:
    """An answer that can be compared, or the fault that keeps it from that; neither of a backend that failed before."""

    outputs: Outputs | None = None
    fault: str | None = None


def ask(candidate: Candidate, shapes: Shapes, obs_nchw: NDArray[np.uint8]) -> Reply:
    """Ask a backend, if it is open.

    Args:
        candidate: the backend.
        shapes: of each expected output, for one observation.
        obs_nchw: uint8[N, 4, 84, 84].

    Raises:
        RuntimeUnavailable: it answered from another device than was asked for.
    """
    if candidate.runtime is None:
        return Reply()
    try:
        outputs = candidate.runtime.answer(obs_nchw.copy())  # an artefact may write into its input
    except RuntimeUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 - each runtime raises its own, and any means that it does not run
        return Reply(fault=f"does not run: {to_line(error)}")
    faults = find_faults(outputs, {name: (len(obs_nchw), *shape) for name, shape in shapes.items()})
    return Reply(fault="; ".join(faults)) if faults else Reply(outputs)


def ask_all(candidates: Candidates, shapes: Shapes, obs_nchw: NDArray[np.uint8]) -> dict[str, Reply]:
    """Ask every backend in turn."""
    return {name: ask(candidate, shapes, obs_nchw) for name, candidate in candidates.items()}


def list_answers(replies: Mapping[str, Reply]) -> dict[str, Outputs]:
    """Return the answers that can be compared."""
    return {name: reply.outputs for name, reply in replies.items() if reply.outputs is not None}


def close_failed(candidates: Candidates, replies: Mapping[str, Reply]) -> Candidates:
    """Return the candidates with those closed whose reply is a fault."""
    faults = {name: reply.fault for name, reply in replies.items() if reply.fault}
    return {
        name: candidate.failed(faults[name]) if name in faults else candidate for name, candidate in candidates.items()
    }
