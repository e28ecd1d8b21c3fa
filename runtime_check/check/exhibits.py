"""Ties and wrong actions to look at: which ones are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime_check.compare import TIE, WRONG

MAX_EXHIBITS = 12


@dataclass(frozen=True, eq=False)
class Exhibit:
    """A tie or wrong action to look at: obs_chw uint8[4, 84, 84], and every backend's Q-values for it."""

    mode: str
    episode: int
    step: int
    kind: str
    backends: tuple[str, ...]
    obs_chw: NDArray[np.uint8]
    q_values: Mapping[str, tuple[float, ...]]


Exhibits = tuple[Exhibit, ...]


def make_exhibit(
    mode: str,
    episode: int,
    step: int,
    kinds: Mapping[str, str],
    obs_chw: NDArray[np.uint8],
    q_values: Mapping[str, NDArray[Any]],
) -> Exhibit:
    """Return an exhibit of an observation.

    Args:
        mode: ``shadow`` or ``solo``.
        episode: counted from 0.
        step: counted from 0.
        kinds: by backend that chose another action than the oracle, ``tie`` or ``wrong``.
        obs_chw: uint8[4, 84, 84].
        q_values: by backend, float[actions]; and those of the ``oracle``.
    """
    values = {name: tuple(row.tolist()) for name, row in q_values.items()}
    kind = WRONG if WRONG in kinds.values() else TIE
    return Exhibit(mode, episode, step, kind, tuple(kinds), obs_chw.copy(), values)


def add_exhibit(exhibits: Exhibits, exhibit: Exhibit, most: int = MAX_EXHIBITS) -> Exhibits:
    """Return the exhibits with another one, unless its observation is there already.

    Where they become more than ``most``, one is dropped: a tie before a wrong action, then one of the backends that are
    shown most, then the latest.
    """
    if any(np.array_equal(other.obs_chw, exhibit.obs_chw) for other in exhibits):
        return exhibits
    kept = [*exhibits, exhibit]
    if len(kept) > most:
        shown = Counter(name for each in kept for name in each.backends)

        def worth(each: Exhibit) -> tuple[bool, int]:
            return each.kind == WRONG, -min(shown[name] for name in each.backends)

        kept.remove(min(reversed(kept), key=worth))
    return tuple(kept)
