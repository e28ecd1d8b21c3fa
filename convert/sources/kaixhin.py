"""Kaixhin/Rainbow: the model.pth of a canonical or data-efficient Rainbow, played by its mean weights.

Noise is off in its evaluation: of each noisy layer the means are read. Advantage and value have a hidden layer each;
beside each other they are one, of which the advantage takes the first half. The support is not in the file: it is what
the program has by default, -10 to 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.agents.agent import Agent, find_action_problem
from convert.agents.architecture import LARGEST_ATOMS, Architecture, Conv, Head, Observation, list_shapes
from convert.agents.identity import Identity
from convert.agents.network import SUPPORT, Float32, Network
from convert.errors import UnreadableCheckpoint, UnsupportedArchitecture
from convert.files.recognition import list_zip_entries
from convert.files.torch_files import Tensor
from convert.formats import state_dicts
from convert.sources import Checkpoint

EXPECTED = "a Rainbow of Kaixhin"
CANDIDATES = ("*.pth",)
EXAMPLE = "results/pong/model.pth"
PROTOCOL = "kaixhin"

_ZOO = "kaixhin"
_LOW, _HIGH = -10.0, 10.0
_CANONICAL = (Conv(32, 8, 4), Conv(64, 4, 2), Conv(64, 3, 1))
_DATA_EFFICIENT = (Conv(32, 5, 5), Conv(64, 5, 5))
# Before release 1.4, layers were named conv1, conv2 and conv3, and the first one was padded: no shape tells.
_BEFORE_1_4 = (Conv(32, 8, 4, (1, 1)), *_CANONICAL[1:])
_NAMES = {
    _CANONICAL: ("convs.0", "convs.2", "convs.4"),
    _DATA_EFFICIENT: ("convs.0", "convs.2"),
    _BEFORE_1_4: ("conv1", "conv2", "conv3"),
}
_DENSE = {"fc_h_a": "hidden.0", "fc_h_v": "hidden.1", "fc_z_a": "advantage", "fc_z_v": "value"}
_UNREAD = ("_sigma", "_epsilon")  # how large the noise is, and what it last was


def recognise(head: bytes, name: str) -> bool:  # noqa: ARG001
    """Recognise a file of torch with the names of its layers."""
    is_torch = head.startswith(b"\x80") or any(entry.endswith("data.pkl") for entry in list_zip_entries(head))
    return is_torch and b"fc_h" in head and b"weight_mu" in head and b"fc_z_a" in head


def read(data: bytes, name: str) -> Checkpoint:
    """Read a model, which tells nothing of who the agent is but its algorithm.

    Raises:
        UnreadableCheckpoint: it is damaged, or older than the network with two hidden layers.
        UnsupportedArchitecture: its network is not one of the two.
        WeightMismatch: weights are missing, unexpected, not finite, or none of float32.
    """
    state = state_dicts.read_torch(data, name)
    if not isinstance(state, dict) or "fc_h.weight_mu" in state:
        found = "one hidden layer (before March 2018)" if isinstance(state, dict) else f"a {type(state).__name__}"
        raise UnreadableCheckpoint(f"{name}: holds {found}, expected a Rainbow with fc_h_a and fc_h_v")
    of_three = (convs for convs in (_CANONICAL, _BEFORE_1_4) if f"{_NAMES[convs][2]}.weight" in state)
    convs = next(of_three, _DATA_EFFICIENT)
    means = {key: value for key, value in state.items() if not str(key).endswith(_UNREAD)}
    tensors = state_dicts.find_tensors(means, _list_keys(convs), name)
    return Checkpoint(_to_network(tensors, convs, name), Identity(_ZOO, "Rainbow", None, PROTOCOL))


def find_contradiction(agent: Agent) -> str | None:
    """Return how an agent of Kaixhin/Rainbow contradicts itself; None if it does not."""
    if agent.identity.zoo != _ZOO:
        return None
    found = (agent.identity.algorithm, agent.head.kind, agent.head.streams)
    if found != ("Rainbow", "categorical", "split"):
        return f"has algorithm, head and streams {found}, expected Rainbow, categorical and split"
    return find_action_problem(agent)


def _list_keys(convs: tuple[Conv, ...]) -> dict[str, str]:
    keys = {
        f"{key}.{part}": f"convs.{index}.{ours}"
        for index, key in enumerate(_NAMES[convs])
        for part, ours in (("weight", "kernel"), ("bias", "bias"))
    }
    return keys | {
        f"{key}.{part}": f"{name}.{ours}"
        for key, name in _DENSE.items()
        for part, ours in (("weight_mu", "kernel"), ("bias_mu", "bias"))
    }


def _to_network(tensors: Mapping[str, Tensor], convs: tuple[Conv, ...], name: str) -> Network:
    units, atoms, rows = (state_dicts.count_rows(tensors, layer) for layer in ("hidden.0", "value", "advantage"))
    if not 2 <= atoms <= LARGEST_ATOMS:
        raise UnsupportedArchitecture(f"{name}: its value has {atoms} atoms, expected 2 to {LARGEST_ATOMS}")
    support = tuple(state_dicts.space_atoms(_LOW, _HIGH, atoms).tolist())
    try:
        head = Head("categorical", rows // atoms, support, streams="split")
        architecture = Architecture(Observation(), convs, (2 * units,), head)
    except ValueError as error:
        raise UnsupportedArchitecture(f"{name}: {error}: not a network that can be converted") from error
    return state_dicts.from_arrays_of(_join_hidden(tensors, architecture, name), architecture, name)


def _join_hidden(tensors: Mapping[str, Tensor], architecture: Architecture, name: str) -> dict[str, Float32]:
    """Return the arrays of the network, in whose hidden layer the units of the advantage (0) come first."""
    arrays: dict[str, Any] = state_dicts.to_arrays_of_shapes(tensors, _list_shapes(architecture), name)
    for part in ("kernel", "bias"):
        arrays[f"hidden.{part}"] = np.concatenate([arrays.pop(f"hidden.{stream}.{part}") for stream in "01"])
    return arrays


def _list_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    shapes = {key: shape for key, shape in list_shapes(architecture).items() if key != SUPPORT}
    units, inputs = shapes.pop("hidden.kernel")
    shapes.pop("hidden.bias")
    for stream in "01":
        shapes |= {f"hidden.{stream}.kernel": (units // 2, inputs), f"hidden.{stream}.bias": (units // 2,)}
    return shapes
