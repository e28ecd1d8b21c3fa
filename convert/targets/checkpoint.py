"""The release's own format: a gzipped PyTorch state dict, for agents that were trained on elsewhere.

In the release's layout below ``checkpoint/``: ``FAMILY/Game/seed/model_STEP.gz``, or ``model_unknown.gz`` where that
is not known.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path, PurePosixPath

import torch

from convert.agents.agent import Agent
from convert.agents.architecture import Architecture, is_dqn_or_c51
from convert.agents.identity import Identity
from convert.agents.network import Network
from convert.files.disk import check_names, read_files
from convert.formats import atari_agents
from convert.formats.flat_names import list_names
from convert.networks.torch import load_module

PATH = "checkpoint"
AXES = "NCHW"
RUNTIME = "torch"
FORMAT_VERSION = 1
EXTRA = "torch"
PACKAGES = ("torch",)
IN_ALL = False


def write(network: Network, agent: Agent, path: Path) -> None:
    """Write the checkpoint below ``path``."""
    file = path / name_checkpoint(agent.identity)
    file.parent.mkdir(parents=True)
    file.write_bytes(to_bytes(network))


def find_obstacle(architecture: Architecture) -> str | None:
    """Return why the release's format cannot hold an architecture."""
    return None if is_dqn_or_c51(architecture) else "holds the Nature-CNN with a Q or categorical head"


def read(path: Path, agent: Agent) -> Network:
    """Read the checkpoint back.

    Raises:
        UnreadableArtefact: it is missing, or something else is there.
        CheckpointError: it is not a network of the release; see `convert.errors`.
    """
    name = name_checkpoint(agent.identity).as_posix()
    files = read_files(path)
    check_names(path, files, (name,))
    return atari_agents.read(files[f"{path.name}/{name}"], str(path / name))


def prepare(path: Path, agent: Agent) -> torch.nn.Module:
    """Return a PyTorch module with the weights of the checkpoint, which torch reads."""
    with gzip.open(path / name_checkpoint(agent.identity)) as file:
        state = torch.load(io.BytesIO(file.read()), weights_only=True)[atari_agents.STATE_KEY]
    names = {ours: name for name, ours in list_names(agent.architecture).items()}
    return load_module(agent.architecture, {names[atari_agents.KEYS[key]]: tensor for key, tensor in state.items()})


def name_checkpoint(identity: Identity) -> PurePosixPath:
    """Return the path of an agent's checkpoint in the release's layout."""
    return PurePosixPath(atari_agents.locate(identity) or "model_unknown.gz")


def to_bytes(network: Network) -> bytes:
    """Return the content of the checkpoint file; the same network gives the same bytes."""
    named = network.arrays
    state = {key: torch.from_numpy(named[name].copy()) for key, name in atari_agents.KEYS.items() if name in named}
    buffer = io.BytesIO()
    torch.save({atari_agents.STATE_KEY: state}, buffer)
    return gzip.compress(buffer.getvalue(), mtime=0)
