"""The flat names under which PyTorch-ordered formats hold an agent: ``conv1.weight`` … ``head.bias``, ``support``.

conv*.weight: float32[out, in, height, width]; hidden.weight: float32[512, 3136], columns in C,H,W order;
head.weight: float32[actions, 512], of C51 float32[actions * atoms, 512]; support: float32[atoms], of C51 alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.agents.network import Float32, Network, arrays, find_shape_problems, from_arrays
from convert.files.documents import join, show

NAMES = {
    **{f"conv{i + 1}.weight": f"convs.{i}.kernel" for i in range(3)},
    **{f"conv{i + 1}.bias": f"convs.{i}.bias" for i in range(3)},
    "hidden.weight": "hidden.kernel",
    "hidden.bias": "hidden.bias",
    "head.weight": "head.kernel",
    "head.bias": "head.bias",
    "support": "head.support",
}


def to_named(network: Network) -> dict[str, Float32]:
    """Return the network's arrays by name."""
    ours = arrays(network)
    return {name: ours[key] for name, key in NAMES.items() if key in ours}


def from_named(named: Mapping[str, Any]) -> Network:
    """Return the network of named arrays, the inverse of `to_named`.

    Raises:
        ValueError: arrays are missing, unexpected, not float32, or not of the release's shapes; all are named.
    """
    problems = [f"no {name}" for name in NAMES if name not in named and name != "support"]
    problems += [f"unexpected {show(name)}" for name in sorted(named) if name not in NAMES]
    known = {name: named[name] for name in NAMES if name in named}
    problems += [
        f"{name} is {getattr(array, 'dtype', type(array).__name__)}, expected float32"
        for name, array in known.items()
        if not isinstance(array, np.ndarray) or array.dtype != np.float32
    ]
    problems += find_shape_problems({NAMES[name]: np.shape(array) for name, array in known.items()})
    if problems:
        raise ValueError(f"{join(problems)}: not the weights of a Nature-CNN of this release")
    return from_arrays({NAMES[name]: array for name, array in known.items()})
