"""What ``--backend`` names, and what error and agreement is asked of rounded weights (float16, int8).

There is the reference, and each target is a backend: by its own name, or that of its runtime where users know it
better.
"""

from __future__ import annotations

from dataclasses import dataclass

from convert.errors import UnknownBackend
from convert.names import find_meant, format_suggestion, normalise_name
from convert.targets import list_targets

REFERENCE = "reference"  # the source in torch, which acts in a shadow replay


@dataclass(frozen=True)
class Bound:
    """What is asked of an artefact whose weights are rounded.

    atol, rtol: in place of those that true float32 is held to. agreement: the least share of actions, from 0 to 1,
    that are the oracle's; single ones may differ.
    """

    atol: float
    rtol: float
    agreement: float


@dataclass(frozen=True)
class Backend:
    """What is checked. target: whose artefact; None: the agent's source. bound: None for float32 weights."""

    name: str
    target: str | None
    bound: Bound | None = None


_NAMES = {"onnx": "onnxruntime"}

_BOUNDS = {
    # Weights keep 11 bits: 2**-11 each, and the errors of a product add up. On the trained agents 0.2 % of the largest
    # Q-value was the most that was measured, and no other action.
    "litert-float16": Bound(atol=5e-4, rtol=5e-3, agreement=0.99),
    # Errors depend on the agent and its game; what is asked of the file is that it nearly always acts as its
    # checkpoint. On the trained agents 92 % to 97 % of the actions were equal.
    "litert-int8": Bound(atol=0.5, rtol=0.25, agreement=0.85),
}


def list_backends() -> tuple[Backend, ...]:
    """Return every backend, by name."""
    names = [target.name for target in list_targets()]
    backends = [Backend(_NAMES.get(name, name), name, _BOUNDS.get(name)) for name in names]
    return tuple(sorted([Backend(REFERENCE, None), *backends], key=lambda backend: backend.name))


def find_backend(name: str) -> Backend:
    """Return the backend of this name.

    Raises:
        UnknownBackend: there is none; the message suggests one, and lists all.
    """
    known = {backend.name: backend for backend in list_backends()}
    if name not in known:
        raise UnknownBackend(f"no backend {name!r}; {_hint(name, known)}Known: {', '.join(known)}")
    return known[name]


def _hint(name: str, known: dict[str, Backend]) -> str:
    if normalise_name(name) == "all":
        return "leave out --backend to check every artefact. "
    meant = find_meant(name, [*known, *_NAMES])
    return format_suggestion([word if word in known else _NAMES[word] for word in meant])
