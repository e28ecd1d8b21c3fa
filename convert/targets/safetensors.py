"""safetensors: a folder for the Hugging Face Hub, weights under clean names with a config and a model card.

``model.safetensors`` holds PyTorch's order (see `convert.named`) and loads in torch, Flax and NumPy alike.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import safetensors.numpy

from convert.agent import Agent
from convert.errors import UnreadableArtefact
from convert.model_card import to_model_card
from convert.named import from_named, to_named
from convert.network import NATURE_STRIDES, Network
from convert.targets import Policy

PATH = "huggingface"
AXES = "NCHW"
FORMAT_VERSION = 1
EXTRA = "safetensors"
PACKAGES = ("safetensors",)
IN_ALL = True

WEIGHTS_NAME = "model.safetensors"


def write(network: Network, agent: Agent, path: Path) -> None:
    """Write the weights, their config and a model card."""
    path.mkdir()
    config = to_config(agent)
    # One entry: the order of several is not stable from run to run.
    metadata = {"agent": json.dumps(config)}
    (path / WEIGHTS_NAME).write_bytes(safetensors.numpy.save(to_named(network), metadata))
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    (path / "README.md").write_text(to_model_card(agent), "utf-8")


def read(path: Path, agent: Agent) -> Network:  # noqa: ARG001
    """Read the weights back.

    Raises:
        UnreadableArtefact: the file is damaged, or of another network.
    """
    weights = path / WEIGHTS_NAME
    try:
        named = safetensors.numpy.load_file(weights)
    except (OSError, KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise UnreadableArtefact(f"{weights}: not a safetensors file ({error}): convert the agent again") from error
    try:
        return from_named(named)
    except ValueError as error:
        raise UnreadableArtefact(f"{weights}: {error}") from error


def load(path: Path, agent: Agent) -> Policy:
    """Load the weights into PyTorch: uint8[N, 4, 84, 84] to its outputs by name."""
    from safetensors.torch import load_file  # the weights alone need no torch

    from convert.torch_modules import NatureCNN, make_policy

    module = NatureCNN(agent.head.actions, agent.head.atoms).eval()
    module.load_state_dict(load_file(path / WEIGHTS_NAME))
    return make_policy(module)


def to_config(agent: Agent) -> dict[str, object]:
    """Return what ``config.json`` says: who the agent is, and all that is needed to build its network."""
    identity, head = agent.identity, agent.head
    return {
        "architecture": "nature-cnn",
        "algorithm": identity.algorithm,
        "family": identity.family,
        "protocol": identity.protocol,
        "game": identity.game,
        "seed": identity.seed,
        "step": identity.step,
        "num_actions": head.actions,
        "num_atoms": head.atoms,
        "action_meanings": agent.action_meanings,
        "strides": NATURE_STRIDES,
        "padding": 0,
        "observation": {"dtype": "uint8", "shape": [4, 84, 84], "order": "oldest first", "divide_by": 255},
        "source_sha256": agent.source.sha256,
    }
