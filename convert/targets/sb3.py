"""Stable-Baselines3: a zip that ``DQN.load`` opens, or sb3-contrib's ``QRDQN.load``, to play and to train on.

The network is the policy's and its target's; the optimizer begins anew. What is not known of an agent's training has
the values of rl-baselines3-zoo for Atari. ``data`` holds three pickles: each names a class of Stable-Baselines3 or
Gymnasium, and is written here byte by byte, so that neither has to be installed.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
from pathlib import Path
from typing import Any

import torch

from convert.agents.agent import Agent
from convert.agents.architecture import Architecture, Observation, nature_cnn
from convert.agents.network import Network
from convert.errors import UnreadableArtefact
from convert.files.archives import build_archive, read_archive
from convert.files.disk import read_file
from convert.formats import sb3, state_dicts
from convert.networks.torch import load_module, to_state_dict
from convert.targets import Trained

PATH = "sb3.zip"
AXES = "NCHW"
RUNTIME = "torch"
FORMAT_VERSION = 1
EXTRA = "torch"
PACKAGES = ("torch",)
IN_ALL = False
DESCRIBES = True

_OPTIMIZER, _VERSION = "policy.optimizer.pth", "_stable_baselines3_version"
_LAYOUT_OF = "2.9.2"  # the version of SB3 whose zips these are
# rl-baselines3-zoo, hyperparams/dqn.yml and qrdqn.yml, ``atari``. A larger buffer would not fit most machines.
_TRAINING: dict[str, Any] = {
    "learning_rate": 1e-4,
    "buffer_size": 100_000,
    "learning_starts": 100_000,
    "batch_size": 32,
    "tau": 1.0,
    "gamma": 0.99,
    "train_freq": 4,
    "gradient_steps": 1,
    "target_update_interval": 1000,
    "exploration_initial_eps": 1.0,
    "exploration_final_eps": 0.01,
    "exploration_rate": 0.01,
}
_FRACTIONS = {"DQN": 0.1, "QR-DQN": 0.025}  # of the training, in which exploration falls to its final rate


def find_obstacle(architecture: Architecture) -> str | None:
    """Return why Stable-Baselines3's CnnPolicy cannot hold an architecture."""
    if sb3.find_algorithm(architecture.head) is None:
        return "holds DQN's Q head and QR-DQN's quantile head: Stable-Baselines3 has no C51 and no dueling network"
    if architecture.observation != Observation() or architecture.convs != nature_cnn(architecture.head).convs:
        return "holds the convolutions of the Nature-CNN without padding, on 4 frames of 84 × 84 divided by 255"
    return None if len(architecture.hidden) == 1 else "holds one hidden layer"


def write(network: Network, agent: Agent, path: Path) -> None:
    """Write the zip."""
    path.write_bytes(build_archive(_to_entries(network, agent)))


def read(path: Path, agent: Agent) -> Network:
    """Read the zip back.

    Raises:
        UnreadableArtefact: it is damaged, or holds what ``write`` does not write.
        CheckpointError: its weights are not those of such a network.
    """
    content = read_file(path)
    network, _ = sb3.read_zip(content, str(path))
    entries, expected = read_archive(content), _to_entries(network, agent)
    wrong = sorted(expected.keys() ^ entries.keys())
    wrong += [name for name in sorted(entries.keys() & expected.keys()) if not _is_same(entries, expected, name)]
    if wrong:
        raise UnreadableArtefact(
            f"{path}: {', '.join(wrong)} is not what atari-convert writes for it: convert it again"
        )
    return network


def read_trained(path: Path, agent: Agent) -> Trained:  # noqa: ARG001
    """Read a zip that Stable-Baselines3 may have saved after further training.

    Raises:
        UnreadableArtefact: it is missing, or too large.
        CheckpointError: see `convert.formats.sb3.read_zip`.
    """
    network, facts = sb3.read_zip(read_file(path), str(path))
    return Trained(network, facts.step)


def prepare(path: Path, agent: Agent) -> torch.nn.Module:
    """Return a PyTorch module with the weights of the zip."""
    network, _ = sb3.read_zip(path.read_bytes(), str(path))
    return load_module(agent.architecture, to_state_dict(network))


def _to_entries(network: Network, agent: Agent) -> dict[str, bytes]:
    algorithm = sb3.find_algorithm(network.head)
    if algorithm is None:
        raise ValueError(f"no algorithm of Stable-Baselines3 has a {network.head.kind} head")
    state = {key: torch.from_numpy(array.copy()) for key, array in sb3.to_state(network, algorithm).items()}
    online = [tensor for key, tensor in state.items() if key.startswith(f"{algorithm.net}.")]
    return {
        sb3.DATA: json.dumps(_to_data(network, agent, algorithm), indent=4).encode(),
        sb3.POLICY: _save(state),
        _OPTIMIZER: _save(torch.optim.Adam(online, lr=_TRAINING["learning_rate"]).state_dict()),
        _VERSION: _LAYOUT_OF.encode(),
    }


def _to_data(network: Network, agent: Agent, algorithm: sb3.Algorithm) -> dict[str, Any]:
    actions, units = network.head.actions, network.architecture.hidden[0]
    box = _pickle_call("gymnasium.spaces.box", "Box", (0, 255, (4, 84, 84), "uint8"))
    discrete = _pickle_call("gymnasium.spaces.discrete", "Discrete", (actions,))
    options: dict[str, Any] = {} if units == 512 else {"features_extractor_kwargs": {"features_dim": units}}
    quantiles = network.head.quantiles
    if quantiles is not None:
        options |= {"n_quantiles": quantiles}
    return {
        "policy_class": {
            ":type:": "<class 'abc.ABCMeta'>",
            ":serialized:": _pickle_name(algorithm.policies, "CnnPolicy"),
            "__module__": algorithm.policies,
        },
        "verbose": 0,
        "policy_kwargs": options,
        "observation_space": {
            ":type:": "<class 'gymnasium.spaces.box.Box'>",
            ":serialized:": box,
            "dtype": "uint8",
            "_shape": [4, 84, 84],
        },
        "action_space": {
            ":type:": "<class 'gymnasium.spaces.discrete.Discrete'>",
            ":serialized:": discrete,
            "n": str(actions),
        },
        "n_envs": 1,
        "num_timesteps": agent.identity.step or 0,
        "seed": None,
        **_TRAINING,
        "exploration_fraction": _FRACTIONS[algorithm.name],
        **({} if quantiles is None else {"n_quantiles": quantiles}),
    }


def _pickle_name(module: str, name: str) -> str:
    """Return the pickle of a class by its name, in base64: the class need not be there."""
    return base64.b64encode(b"\x80\x02" + _to_global(module, name) + b".").decode()


def _pickle_call(module: str, name: str, arguments: tuple[Any, ...]) -> str:
    """Return the pickle of a call, in base64: the name, the arguments without their header and end, REDUCE, STOP."""
    packed = pickle.dumps(arguments, 2)[2:-1]
    return base64.b64encode(b"\x80\x02" + _to_global(module, name) + packed + b"R.").decode()


def _to_global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _save(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _is_same(entries: dict[str, bytes], expected: dict[str, bytes], name: str) -> bool:
    """Tell whether an entry holds what is expected; other versions of torch write it in other bytes."""
    if not name.endswith(".pth"):
        return entries[name] == expected[name]
    return state_dicts.is_same_content(entries[name], expected[name])
