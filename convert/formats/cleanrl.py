"""Agents of CleanRL: what the scripts ``dqn_atari``, ``c51_atari`` and their JAX versions save as ``.cleanrl_model``.

=====================  ==================================================================================
script                 file
=====================  ==================================================================================
``dqn_atari``          ``torch.save(state_dict)``
``c51_atari``          ``torch.save({"model_weights": state_dict, "args": dict})``, with ``atoms`` in it
``dqn_atari_jax``      ``flax.serialization.to_bytes(params)``
``c51_atari_jax``      ``to_bytes({"model_weights": params, "args": dict})``
=====================  ==================================================================================

Keys in torch: ``network.{0,2,4}`` for the convolutions, ``network.7`` for the hidden layer, ``network.9`` for the head,
the rows of one action beside each other. JAX answers with probabilities; its kernels are those of logits all the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.agents.agent import Agent, find_action_problem
from convert.agents.architecture import LARGEST_ATOMS, Architecture, Head, is_dqn_or_c51, make_head, nature_cnn
from convert.agents.games import load_games
from convert.agents.identity import Identity, to_number
from convert.agents.network import SUPPORT, Network
from convert.errors import UnreadableCheckpoint, UnsupportedArchitecture
from convert.files.documents import show
from convert.formats import state_dicts

ZOO = "cleanrl"
PROTOCOL = "cleanrl"
WEIGHTS, ARGS = "model_weights", "args"
KEYS = {
    f"network.{number}.{key}": f"{layer}.{part}"
    for number, layer in ((0, "convs.0"), (2, "convs.1"), (4, "convs.2"), (7, "hidden"), (9, "head"))
    for key, part in (("weight", "kernel"), ("bias", "bias"))
}
ATOMS = "atoms"

_ENVIRONMENT = re.compile(r"(\w+)NoFrameskip-v4", re.ASCII)
_SUPPORTED = "supported: dqn_atari, dqn_atari_jax, c51_atari, c51_atari_jax"


def read_torch(data: bytes, name: str) -> tuple[Network, Identity]:
    """Read a file of ``dqn_atari`` or ``c51_atari``: the network, and what it tells of who the agent is.

    Raises:
        UnreadableCheckpoint: it is damaged, or of another script.
        UnsupportedArchitecture: its network is not that of these scripts.
        WeightMismatch: a weight is not finite, or none of float32.
    """
    document = state_dicts.read_torch(data, name)
    args = {}
    if isinstance(document, dict) and document.keys() == {WEIGHTS, ARGS}:
        document, args = document[WEIGHTS], document[ARGS]
    if not isinstance(document, dict) or not isinstance(args, dict):
        raise UnreadableCheckpoint(f"{name}: holds no state dict: not a model of CleanRL; {_SUPPORTED}")
    _check_script({str(key) for key in document}, name)
    keys = KEYS | ({ATOMS: SUPPORT} if ATOMS in document else {})
    tensors = state_dicts.find_tensors(document, keys, name)
    (atoms,) = tensors[SUPPORT].shape[:1] or (0,) if SUPPORT in tensors else (None,)
    rows, units = (state_dicts.count_rows(tensors, layer) for layer in ("head", "hidden"))
    network = state_dicts.to_network(tensors, find_architecture(rows, units, atoms, name), name)
    return network, to_identity(network.head, args)


def find_architecture(rows: int, units: int, atoms: int | None, name: str) -> Architecture:
    """Return the Nature-CNN with a head of so many rows.

    Raises:
        UnsupportedArchitecture: there is no such head.
    """
    if (atoms is not None and not 2 <= atoms <= LARGEST_ATOMS) or rows % (atoms or 1):
        raise UnsupportedArchitecture(
            f"{name}: its head has {rows} rows and its support {atoms} atoms, expected 2 to {LARGEST_ATOMS} for each "
            "action"
        )
    try:
        return nature_cnn(make_head(rows // (atoms or 1), atoms), units)
    except ValueError as error:
        raise UnsupportedArchitecture(f"{name}: {error}: not a network that can be converted") from error


def to_identity(head: Head, args: Mapping[Any, Any]) -> Identity:
    """Return who an agent is, by the arguments of its script: it is saved when all steps are done."""
    match = _ENVIRONMENT.fullmatch(str(args.get("env_id")))
    game = match[1] if match and match[1] in load_games() else None
    seed, step = (to_number(args.get(key)) for key in ("seed", "total_timesteps"))
    return Identity(ZOO, "DQN" if head.kind == "q" else "C51", game, PROTOCOL, seed, step)


def to_args(agent: Agent) -> dict[str, Any]:
    """Return the arguments of the script that CleanRL's evaluation needs, and those that tell who the agent is."""
    identity, support = agent.identity, agent.head.support or ()
    known = {
        "env_id": identity.game and f"{identity.game}NoFrameskip-v4",
        "seed": identity.seed,
        "total_timesteps": identity.step,
    }
    return {"n_atoms": len(support), "v_min": support[0], "v_max": support[-1]} | {
        key: value for key, value in known.items() if value is not None
    }


def find_obstacle(architecture: Architecture) -> str | None:
    """Return why CleanRL's scripts cannot hold an architecture."""
    if is_dqn_or_c51(architecture):
        return None
    return "holds the Nature-CNN of dqn_atari and c51_atari, with a Q or categorical head"


def find_contradiction(agent: Agent) -> str | None:
    """Return how an agent of CleanRL contradicts itself; None if it does not."""
    if agent.identity.zoo != ZOO:
        return None
    algorithm = {"q": "DQN", "categorical": "C51"}.get(agent.head.kind)
    if agent.identity.algorithm != algorithm:
        return f"has a {agent.head.kind} head, expected that of {agent.identity.algorithm}"
    return find_action_problem(agent)


def read_support(args: Mapping[Any, Any], name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the support by the arguments of ``c51_atari_jax``: computed in float64, then rounded, as its script does.

    Raises:
        UnreadableCheckpoint: the arguments do not tell it.
    """
    told: list[Any] = [args.get(key) for key in ("n_atoms", "v_min", "v_max")]
    atoms, low, high = told
    is_range = all(type(value) in (int, float) and abs(value) < 2**24 for value in (low, high))
    if type(atoms) is not int or not 2 <= atoms <= LARGEST_ATOMS or not is_range:
        found = ", ".join(map(show, told))
        raise UnreadableCheckpoint(f"{name}: its args tell no support (n_atoms, v_min, v_max: {found})")
    return np.linspace(low, high, atoms).astype(np.float32)


def _check_script(keys: set[str], name: str) -> None:
    """Raise where keys are those of another script of CleanRL."""
    if any(".conv" in key for key in keys):
        raise UnreadableCheckpoint(f"{name}: an IMPALA network of CleanRL's qdagger_dqn_atari_impalacnn; {_SUPPORTED}")
    if any(key.startswith(("value_head.", "advantage_head.")) for key in keys):
        raise UnreadableCheckpoint(f"{name}: a noisy dueling network of CleanRL's rainbow_atari; {_SUPPORTED}")
