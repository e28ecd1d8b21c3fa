"""The flat names under which PyTorch-ordered formats hold an agent: ``conv1.weight`` … ``head.bias``, ``support``.

conv*.weight: float32[out, in, height, width]; hidden.weight: float32[512, 3136], columns in C,H,W order;
head.weight: float32[actions, 512], of C51 float32[actions * atoms, 512]; support: float32[atoms], of C51 alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.network import CategoricalHead, Dense, Float32, Network, find_shape_problems, make_head, nature_network

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
    named = {}
    for index, conv in enumerate(network.convs, start=1):
        named[f"conv{index}.weight"], named[f"conv{index}.bias"] = conv.kernel, conv.bias
    named |= {"hidden.weight": network.hidden.kernel, "hidden.bias": network.hidden.bias}
    named |= {"head.weight": network.head.dense.kernel, "head.bias": network.head.dense.bias}
    if isinstance(network.head, CategoricalHead):
        named["support"] = network.head.support
    return named


def from_named(named: Mapping[str, Any]) -> Network:
    """Return the network of named arrays, the inverse of `to_named`.

    Raises:
        ValueError: arrays are missing, unexpected, not float32, or not of the release's shapes; all are named.
    """
    problems = [f"no {name}" for name in NAMES if name not in named and name != "support"]
    problems += [f"unexpected {name}" for name in sorted(named) if name not in NAMES]
    known = {name: named[name] for name in NAMES if name in named}
    problems += [
        f"{name} is {getattr(array, 'dtype', type(array).__name__)}, expected float32"
        for name, array in known.items()
        if not isinstance(array, np.ndarray) or array.dtype != np.float32
    ]
    problems += find_shape_problems({NAMES[name]: np.shape(array) for name, array in known.items()})
    if problems:
        raise ValueError(f"{'; '.join(problems)}: not the weights of a Nature-CNN of this release")
    return nature_network(
        [known[f"conv{index}.weight"] for index in (1, 2, 3)],
        [known[f"conv{index}.bias"] for index in (1, 2, 3)],
        Dense(known["hidden.weight"], known["hidden.bias"]),
        make_head(Dense(known["head.weight"], known["head.bias"]), known.get("support")),
    )
