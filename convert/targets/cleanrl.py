"""CleanRL: the .cleanrl_model of dqn_atari, or of c51_atari, which its evaluation loads."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from convert.agents.agent import Agent
from convert.agents.network import Network
from convert.errors import UnreadableArtefact
from convert.files.disk import read_file
from convert.formats import cleanrl, state_dicts
from convert.networks.torch import load_module, to_state_dict

PATH = "agent.cleanrl_model"
AXES = "NCHW"
RUNTIME = "torch"
FORMAT_VERSION = 1
EXTRA = "torch"
PACKAGES = ("torch",)
IN_ALL = False
DESCRIBES = True

find_obstacle = cleanrl.find_obstacle


def write(network: Network, agent: Agent, path: Path) -> None:
    """Write the state dict, for C51 with the script's arguments beside it."""
    path.write_bytes(_to_bytes(network, agent))


def read(path: Path, agent: Agent) -> Network:
    """Read the model back.

    Raises:
        UnreadableArtefact: it is damaged, or holds what ``write`` does not write.
        CheckpointError: its weights are not those of such a network.
    """
    content = read_file(path)
    network, _ = cleanrl.read_torch(content, str(path))
    if not state_dicts.is_same_content(content, _to_bytes(network, agent)):
        raise UnreadableArtefact(f"{path}: not what atari-convert writes for it: convert it again")
    return network


def prepare(path: Path, agent: Agent) -> torch.nn.Module:
    """Return a PyTorch module with the weights of the model."""
    network, _ = cleanrl.read_torch(path.read_bytes(), str(path))
    return load_module(agent.architecture, to_state_dict(network))


def _to_bytes(network: Network, agent: Agent) -> bytes:
    keys = cleanrl.KEYS if network.head.support is None else {cleanrl.ATOMS: "head.support"} | cleanrl.KEYS
    state = {key: torch.from_numpy(network.arrays[name].copy()) for key, name in keys.items()}
    buffer = io.BytesIO()
    document = state if network.head.support is None else {cleanrl.WEIGHTS: state, cleanrl.ARGS: cleanrl.to_args(agent)}
    torch.save(document, buffer)
    return buffer.getvalue()
