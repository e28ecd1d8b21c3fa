"""The release's own format: a gzipped PyTorch state dict, for agents that were trained on elsewhere.

In the release's layout below ``checkpoint/``: ``FAMILY/Game/seed/model_STEP.gz``, or ``model_unknown.gz`` where that
is not known.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path, PurePosixPath

import torch

from convert.agent import Agent, Identity
from convert.formats.files import check_names, read_files
from convert.named import to_named
from convert.network import Network, arrays
from convert.sources import atari_agents
from convert.targets import Policy

PATH = "checkpoint"
AXES = "NCHW"
FORMAT_VERSION = 1
EXTRA = "torch"
PACKAGES = ("torch",)
IN_ALL = False


def write(network: Network, agent: Agent, path: Path) -> None:
    """Write the checkpoint below ``path``."""
    file = path / name_checkpoint(agent.identity)
    file.parent.mkdir(parents=True)
    file.write_bytes(to_bytes(network))


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


def load(path: Path, agent: Agent) -> Policy:
    """Load the checkpoint into a PyTorch module: uint8[N, 4, 84, 84] to its outputs by name."""
    from convert.torch_modules import make_module, make_policy

    network = read(path, agent)
    module = make_module(network)
    module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in to_named(network).items()})
    return make_policy(module)


def name_checkpoint(identity: Identity) -> PurePosixPath:
    """Return the path of an agent's checkpoint in the release's layout."""
    if not identity.is_complete:
        return PurePosixPath("model_unknown.gz")
    return PurePosixPath(f"{identity.folder}.gz")


def to_bytes(network: Network) -> bytes:
    """Return the content of the checkpoint file; the same network gives the same bytes."""
    named = arrays(network)
    state = {key: torch.from_numpy(named[name].copy()) for key, name in atari_agents.KEYS.items() if name in named}
    buffer = io.BytesIO()
    torch.save({atari_agents.STATE_KEY: state}, buffer)
    return gzip.compress(buffer.getvalue(), mtime=0)
