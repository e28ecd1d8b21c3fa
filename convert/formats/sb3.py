"""Agents of Stable-Baselines3 (SB3) and sb3-contrib: the zip of ``DQN.save`` and ``QRDQN.save``, versions 1.x and 2.x.

``policy.pth`` is the state dict of the policy, ``data`` is JSON of the algorithm's attributes: plain values, and
objects as a base64 pickle with readable copies of their attributes beside it. The pickles are never read.

=====================================================  =======================================================
key below ``q_net.`` (``quantile_net.`` of QR-DQN)     shape
=====================================================  =======================================================
``features_extractor.cnn.{0,2,4}.{weight,bias}``       (32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)
``features_extractor.linear.0.{weight,bias}``          (512, 3136), columns in C,H,W order
``q_net.0.{weight,bias}`` (QR-DQN: ``quantile_net``)   (A, 512), of QR-DQN (quantiles · A, 512)
=====================================================  =======================================================

The head's rows of QR-DQN are those of the first quantile, an action each, then those of the second
(``sb3_contrib/qrdqn/policies.py``); Q is the mean over quantiles. The same keys below ``q_net_target.`` are those of
the target network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convert.agents import layout
from convert.agents.architecture import Architecture, Head, nature_cnn
from convert.agents.identity import Identity, to_number
from convert.agents.network import Float32, Network
from convert.errors import UnreadableCheckpoint, UnsupportedArchitecture
from convert.files.archives import read_archive
from convert.files.documents import read_json, show
from convert.formats import state_dicts

ZOO = "sb3"
PROTOCOL = "sb3"
POLICY, DATA = "policy.pth", "data"  # entries of the zip
LARGEST_DATA = 16 * 2**20  # bytes; 0.24 MB after training in one environment, more with the last frames of many

_PLAIN_OPTIONS = ("optimizer_class", "optimizer_kwargs", "n_quantiles")
_TAKE_ANOTHER = "take another copy"


@dataclass(frozen=True)
class Algorithm:
    """An algorithm of SB3: its name here, the attribute that holds its network, and the module of its policies."""

    name: str
    net: str
    policies: str

    def name_key(self, layer: str) -> str:
        """Return the key of a layer of the online network, without ``weight`` or ``bias``."""
        if layer == "head":
            return f"{self.net}.{self.net}.0"
        kind, _, number = layer.partition(".")
        part = f"cnn.{2 * int(number)}" if kind == "convs" else "linear.0"
        return f"{self.net}.features_extractor.{part}"

    def list_keys(self) -> dict[str, str]:
        """Return the names of the network's arrays by keys of the online network."""
        parts = {"weight": "kernel", "bias": "bias"}
        layers = ("convs.0", "convs.1", "convs.2", "hidden", "head")
        return {f"{self.name_key(layer)}.{key}": f"{layer}.{part}" for layer in layers for key, part in parts.items()}


DQN = Algorithm("DQN", "q_net", "stable_baselines3.dqn.policies")
QR_DQN = Algorithm("QR-DQN", "quantile_net", "sb3_contrib.qrdqn.policies")
ALGORITHMS = (DQN, QR_DQN)


def find_algorithm(head: Head) -> Algorithm | None:
    """Return the algorithm that has such a head; None where none has."""
    if head.streams != "single":
        return None
    return {"q": DQN, "quantile": QR_DQN}.get(head.kind)


def read_zip(data: bytes, name: str) -> tuple[Network, Identity]:
    """Read the zip of ``save``: the network, and what it tells of who the agent is.

    Raises:
        UnreadableCheckpoint: it is damaged, or of another algorithm.
        UnsupportedArchitecture: its network or its observations are not those that can be converted.
        WeightMismatch: a weight is not finite, or none of float32.
    """
    try:
        entries = read_archive(data)
    except ValueError as error:
        raise UnreadableCheckpoint(f"{name}: not a zip of Stable-Baselines3 ({error}): {_TAKE_ANOTHER}") from error
    if missing := [entry for entry in (DATA, POLICY) if entry not in entries]:
        found = ", ".join(map(show, list(entries)[:5]))
        raise UnreadableCheckpoint(
            f"{name}: no {' and no '.join(missing)} in the zip, which holds {found}: save the agent with its save()"
        )
    return read_parts(entries[DATA], entries[POLICY], name)


def read_parts(data: bytes, policy: bytes, name: str) -> tuple[Network, Identity]:
    """Read the content of ``data`` and of ``policy.pth``; see `read_zip`."""
    about = _read_about(data, name)
    _check_policy(about, name)
    state = state_dicts.read_torch(policy, f"{name}: {POLICY}")
    if not isinstance(state, dict):
        raise UnreadableCheckpoint(f"{name}: its {POLICY} holds a {type(state).__name__}, expected a state dict")
    algorithm = _find_algorithm(state, name)
    _check_environment(about, name)
    network = _read_network(state, algorithm, about, name)
    identity = Identity(
        ZOO, algorithm.name, None, PROTOCOL, to_number(about.get("seed")), to_number(about.get("num_timesteps"))
    )
    return network, identity


def to_state(network: Network, algorithm: Algorithm) -> dict[str, Float32]:
    """Return the network as a policy's state dict: that of the online network, and the same again for the target."""
    arrays = dict(network.arrays)
    if network.head.quantiles is not None:
        for part in ("kernel", "bias"):
            arrays[f"head.{part}"] = layout.quantiles_first(arrays[f"head.{part}"], network.head.quantiles)
    online = {key: arrays[name] for key, name in algorithm.list_keys().items()}
    return online | {f"{algorithm.net}_target{key.removeprefix(algorithm.net)}": item for key, item in online.items()}


def _read_about(data: bytes, name: str) -> Mapping[str, Any]:
    try:
        about = read_json(data, LARGEST_DATA)
    except ValueError as error:
        raise UnreadableCheckpoint(f"{name}: its {DATA} is {error}: {_TAKE_ANOTHER}") from error
    if not isinstance(about, dict):
        raise UnreadableCheckpoint(f"{name}: its {DATA} is not a JSON object: {_TAKE_ANOTHER}")
    return about


def _check_policy(about: Mapping[str, Any], name: str) -> None:
    """Raise where the class of the policy says that this is no DQN or QR-DQN."""
    module = _look_up(about, "policy_class", "__module__")
    if not isinstance(module, str) or module in [algorithm.policies for algorithm in ALGORITHMS]:
        return
    match = re.fullmatch(r"(?:stable_baselines3|sb3_contrib)\.(\w+)\.policies", module, re.ASCII)
    if match:
        kind = "PPO or A2C" if match[1] == "common" else match[1].upper()
        raise _refuse_agent(kind, f"policy_class {show(module)}", name)


def _find_algorithm(state: Mapping[Any, Any], name: str) -> Algorithm:
    names = {str(key).partition(".")[0] for key in state}
    for algorithm in ALGORITHMS:
        if algorithm.net in names:
            return algorithm
    kind = "PPO or A2C" if names & {"action_net", "value_net", "mlp_extractor"} else "another"
    found = ", ".join(map(show, sorted(names)[:5])) or "nothing"
    raise _refuse_agent(kind, found, name)


def _refuse_agent(kind: str, found: str, name: str) -> UnreadableCheckpoint:
    supported = ", ".join(algorithm.name for algorithm in ALGORITHMS)
    return UnreadableCheckpoint(f"{name}: a Stable-Baselines3 agent of {kind} ({found}); supported: {supported}")


def _check_environment(about: Mapping[str, Any], name: str) -> None:
    """Raise unless observations and options of the policy are those of the network that is read."""
    shape, dtype = (_look_up(about, "observation_space", part) for part in ("_shape", "dtype"))
    if shape != [4, 84, 84] or dtype != "uint8":
        found = f"{show(dtype)} of shape {show(shape)}"
        raise UnsupportedArchitecture(
            f"{name}: its observations are {found}, expected uint8 of [4, 84, 84]: stack 4 frames of 84 × 84"
        )
    options = about.get("policy_kwargs", {})
    if not isinstance(options, dict):
        raise UnreadableCheckpoint(f"{name}: its policy_kwargs are a {type(options).__name__}, expected an object")
    for option, value in options.items():
        if not _is_understood(option, value):
            raise UnsupportedArchitecture(
                f"{name}: has the policy option {show(option)} = {show(value)}: only the network of CnnPolicy's "
                "defaults can be converted, with any features_dim"
            )


def _is_understood(option: str, value: object) -> bool:
    if option in _PLAIN_OPTIONS or option.startswith(":"):  # which mark an object
        return True
    if option == "features_extractor_kwargs":
        return isinstance(value, dict) and value.keys() <= {"features_dim"}
    return (option, value) in (("net_arch", []), ("normalize_images", True))


def _read_network(state: dict[Any, Any], algorithm: Algorithm, about: Mapping[str, Any], name: str) -> Network:
    target = f"{algorithm.net}_target."
    online = {key: value for key, value in state.items() if not str(key).startswith(target)}
    tensors = state_dicts.find_tensors(online, algorithm.list_keys(), name)
    rows, units = (state_dicts.count_rows(tensors, layer) for layer in ("head", "hidden"))
    architecture = _find_architecture(rows, units, algorithm, about, name)
    arrays = state_dicts.to_arrays(tensors, architecture, name)
    if architecture.head.quantiles is not None:
        for part in ("kernel", "bias"):
            arrays[f"head.{part}"] = layout.actions_first(arrays[f"head.{part}"], architecture.head.quantiles)
    return state_dicts.from_arrays_of(arrays, architecture, name)


def _find_architecture(
    rows: int, units: int, algorithm: Algorithm, about: Mapping[str, Any], name: str
) -> Architecture:
    actions = _look_up(about, "action_space", "n")
    actions = int(actions) if isinstance(actions, str) and re.fullmatch(r"\d{1,3}", actions, re.ASCII) else actions
    quantiles = about.get("n_quantiles") if algorithm is QR_DQN else None
    width = quantiles if algorithm is QR_DQN else 1
    if type(actions) is not int or type(width) is not int or rows != actions * width:
        of = f" of {show(width)} quantiles" if algorithm is QR_DQN else ""
        raise UnsupportedArchitecture(
            f"{name}: its head has {rows} rows, its {DATA} says {show(actions)} actions{of}: the file is damaged, "
            f"{_TAKE_ANOTHER}"
        )
    try:
        head = Head("q", actions) if quantiles is None else Head("quantile", actions, quantiles=width)
        return nature_cnn(head, units)
    except ValueError as error:
        raise UnsupportedArchitecture(f"{name}: {error}: not a network that can be converted") from error


def _look_up(about: Mapping[str, Any], key: str, part: str) -> Any:
    value = about.get(key)
    return value.get(part) if isinstance(value, dict) else None
