"""PFRL's DQN and Rainbow for Atari: the model.pt that its agents save.

Rainbow is played by its mean weights: PFRL leaves the noise on when it evaluates, so its published scores are those of
another policy. Its hidden layer holds both streams, the advantage in the first half. The support is not in the file: it
is what PFRL's example has, -10 to 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convert.agents.agent import Agent, find_action_problem
from convert.agents.architecture import LARGEST_ATOMS, Head, list_shapes, nature_cnn
from convert.agents.identity import Identity
from convert.agents.network import SUPPORT, Network
from convert.errors import UnreadableCheckpoint, UnsupportedArchitecture
from convert.files.torch_files import Tensor
from convert.formats import state_dicts
from convert.sources import Checkpoint

EXPECTED = "a model of PFRL"
CANDIDATES = ("*.pt",)
EXAMPLE = "best/model.pt"
PROTOCOL = "pfrl"

_ZOO = "pfrl"
_DQN = {"0.layers.0": "convs.0", "0.layers.1": "convs.1", "0.layers.2": "convs.2", "0.output": "hidden", "1": "head"}
_CONVS = {f"conv_layers.{index}": f"convs.{index}" for index in range(3)}
_NOISY = {"main_stream": "hidden", "a_stream": "advantage", "v_stream": "value"}
_LOW, _HIGH = -10.0, 10.0
# The first keys of what is not read, and what it is: IQN draws its fractions.
_OTHERS = {"psi.0.weight": "IQN", "a_stream.hidden_layers.0.weight": "DuelingDQN"}


def _list_keys(layers: Mapping[str, str], within: str = "") -> dict[str, str]:
    parts = (("weight", "kernel"), ("bias", "bias"))
    return {f"{key}{within}.{part}": f"{name}.{ours}" for key, name in layers.items() for part, ours in parts}


_DQN_KEYS = _list_keys(_DQN)
_RAINBOW_KEYS = _list_keys(_CONVS) | _list_keys(_NOISY, ".mu")
_SIGMAS = _list_keys(_NOISY, ".sigma").keys()  # how large the noise is


def recognise(head: bytes, name: str) -> bool:  # noqa: ARG001
    """Recognise a file of torch, of either format, with the names of one of PFRL's networks."""
    is_torch = head.startswith((b"PK\x03\x04", b"\x80"))
    return is_torch and any(key.encode() in head for key in ("0.layers.0.weight", "conv_layers.0.weight", *_OTHERS))


def read(data: bytes, name: str) -> Checkpoint:
    """Read a model, which tells nothing of who the agent is but its algorithm.

    Raises:
        UnreadableCheckpoint: it is damaged, or of another algorithm.
        UnsupportedArchitecture: its network is not that of PFRL's DQN.
        WeightMismatch: weights are missing, unexpected, not finite, or none of float32.
    """
    state = state_dicts.read_torch(data, name)
    if not isinstance(state, dict):
        raise UnreadableCheckpoint(f"{name}: holds a {type(state).__name__}, expected a state dict of PFRL")
    if other := next((algorithm for key, algorithm in _OTHERS.items() if key in state), None):
        raise UnreadableCheckpoint(f"{name}: a PFRL agent of {other}; supported: DQN, Rainbow")
    is_rainbow = "main_stream.mu.weight" in state
    algorithm = "Rainbow" if is_rainbow else "DQN"
    network = _read_rainbow(state, name) if is_rainbow else _read_dqn(state, name)
    return Checkpoint(network, Identity(_ZOO, algorithm, None, PROTOCOL))


def _read_dqn(state: Mapping[Any, Any], name: str) -> Network:
    tensors = state_dicts.find_tensors(state, _DQN_KEYS, name)
    return _to_network(tensors, Head("q", state_dicts.count_rows(tensors, "head")), name)


def _read_rainbow(state: Mapping[Any, Any], name: str) -> Network:
    means = {key: value for key, value in state.items() if key not in _SIGMAS}
    tensors = state_dicts.find_tensors(means, _RAINBOW_KEYS, name)
    atoms, rows = (state_dicts.count_rows(tensors, layer) for layer in ("value", "advantage"))
    if not 2 <= atoms <= LARGEST_ATOMS:
        raise UnsupportedArchitecture(f"{name}: its value has {atoms} atoms, expected 2 to {LARGEST_ATOMS}")
    support = tuple(state_dicts.space_atoms(_LOW, _HIGH, atoms).tolist())
    return _to_network(tensors, Head("categorical", rows // atoms, support, streams="split"), name)


def _to_network(tensors: Mapping[str, Tensor], head: Head, name: str) -> Network:
    try:
        architecture = nature_cnn(head, state_dicts.count_rows(tensors, "hidden"))
    except ValueError as error:
        raise UnsupportedArchitecture(f"{name}: {error}: not a network that can be converted") from error
    if head.support is None:
        return state_dicts.to_network(tensors, architecture, name)
    shapes = {key: shape for key, shape in list_shapes(architecture).items() if key != SUPPORT}
    return state_dicts.from_arrays_of(state_dicts.to_arrays_of_shapes(tensors, shapes, name), architecture, name)


def find_contradiction(agent: Agent) -> str | None:
    """Return how an agent of PFRL contradicts itself; None if it does not."""
    if agent.identity.zoo != _ZOO:
        return None
    found = (agent.identity.algorithm, agent.head.kind, agent.head.streams)
    if found not in (("DQN", "q", "single"), ("Rainbow", "categorical", "split")):
        return f"has algorithm, head and streams {found}, expected DQN, q and single, or Rainbow, categorical and split"
    return find_action_problem(agent)
