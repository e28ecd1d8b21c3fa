"""PFRL's DQN for Atari: the model.pt that its agents save."""

from __future__ import annotations

from convert.agents.agent import Agent, find_action_problem
from convert.agents.architecture import Head, nature_cnn
from convert.agents.identity import Identity
from convert.errors import UnreadableCheckpoint, UnsupportedArchitecture
from convert.formats import state_dicts
from convert.sources import Checkpoint

EXPECTED = "a model of PFRL"
CANDIDATES = ("*.pt",)
EXAMPLE = "best/model.pt"
PROTOCOL = "pfrl"

_ZOO = "pfrl"
_LAYERS = {"0.layers.0": "convs.0", "0.layers.1": "convs.1", "0.layers.2": "convs.2", "0.output": "hidden", "1": "head"}
_KEYS = {
    f"{layer}.{key}": f"{name}.{part}"
    for layer, name in _LAYERS.items()
    for key, part in (("weight", "kernel"), ("bias", "bias"))
}
# Their first keys, and what they are: noise stays on in PFRL's evaluation of Rainbow, and IQN draws its fractions.
_OTHERS = {"main_stream.mu.weight": "Rainbow", "psi.0.weight": "IQN", "a_stream.hidden_layers.0.weight": "DuelingDQN"}


def recognise(head: bytes, name: str) -> bool:  # noqa: ARG001
    """Recognise a file of torch, of either format, with the names of one of PFRL's networks."""
    is_torch = head.startswith((b"PK\x03\x04", b"\x80"))
    return is_torch and any(key.encode() in head for key in ("0.layers.0.weight", *_OTHERS))


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
        raise UnreadableCheckpoint(f"{name}: a PFRL agent of {other}; supported: DQN")
    tensors = state_dicts.find_tensors(state, _KEYS, name)
    rows, units = (state_dicts.count_rows(tensors, layer) for layer in ("head", "hidden"))
    try:
        architecture = nature_cnn(Head("q", rows), units)
    except ValueError as error:
        raise UnsupportedArchitecture(f"{name}: {error}: not a network that can be converted") from error
    network = state_dicts.to_network(tensors, architecture, name)
    return Checkpoint(network, Identity(_ZOO, "DQN", None, PROTOCOL))


def find_contradiction(agent: Agent) -> str | None:
    """Return how an agent of PFRL contradicts itself; None if it does not."""
    if agent.identity.zoo != _ZOO:
        return None
    if (agent.identity.algorithm, agent.head.kind) != ("DQN", "q"):
        return f"has a {agent.head.kind} head and algorithm {agent.identity.algorithm}, expected a Q head and DQN"
    return find_action_problem(agent)
