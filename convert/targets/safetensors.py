"""safetensors: a folder for the Hugging Face Hub, weights under clean names with a config and a model card.

``model.safetensors`` holds PyTorch's order (see `convert.formats.flat_names`) and loads in torch, Flax and NumPy alike.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from convert.agents.agent import Agent
from convert.agents.architecture import Architecture, is_nature_cnn
from convert.agents.network import Network
from convert.errors import UnreadableArtefact
from convert.files.disk import check_names, read_file, read_files, write_files
from convert.files.documents import read_json
from convert.formats.atari_agents import find_family
from convert.formats.flat_names import from_named, to_named
from convert.formats.model_cards import Returns, read_returns, to_model_card
from convert.formats.templates import largest_file

PATH = "huggingface"
AXES = "NCHW"
RUNTIME = "torch"
FORMAT_VERSION = 1
EXTRA = "safetensors"
PACKAGES = ("safetensors",)
IN_ALL = True
DESCRIBES = True

WEIGHTS_NAME, CONFIG_NAME, CARD_NAME = "model.safetensors", "config.json", "README.md"
FILM_NAME = "replay.mp4"  # which the Hub plays on the model's page; recorded later, if at all


def write(network: Network, agent: Agent, path: Path) -> None:
    """Write the weights, their config and a model card."""
    weights = safetensors.numpy.save(to_named(network), _to_metadata(agent))
    write_files(path, {WEIGHTS_NAME: weights, **_to_texts(agent, None)})


def read(path: Path, agent: Agent) -> Network:
    """Read the weights back.

    Raises:
        UnreadableArtefact: the file is damaged, or of another network.
    """
    weights = path / WEIGHTS_NAME
    data = read_file(weights, largest_file(agent.architecture))
    try:
        named = safetensors.numpy.load(data)
    except (LookupError, ValueError, TypeError, OverflowError, safetensors.SafetensorError) as error:
        raise UnreadableArtefact(f"{weights}: not a safetensors file ({error}): convert the agent again") from error
    try:
        return from_named(named, agent.architecture)
    except ValueError as error:
        raise UnreadableArtefact(f"{weights}: {error}") from error


def rebuild(network: Network, agent: Agent, path: Path, to: Path) -> None:
    """Write the folder anew at ``to`` with the network that was read, where all else at ``path`` is as it should be.

    Raises:
        UnreadableArtefact: the folder tells something else of the agent.
    """
    files = {name.removeprefix(f"{path.name}/"): content for name, content in read_files(path).items()}
    film = {FILM_NAME: files[FILM_NAME]} if FILM_NAME in files else {}
    check_names(path, files, (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME, *film))
    # A card may tell returns that were measured since.
    texts = _to_texts(agent, read_returns(files[CARD_NAME].decode("utf-8", "replace")))
    wrong = [name for name, text in texts.items() if files[name] != text]
    if _read_metadata(files[WEIGHTS_NAME]) != _to_metadata(agent):
        wrong.append(f"the metadata of {WEIGHTS_NAME}")
    if wrong:
        raise UnreadableArtefact(
            f"{path}: {', '.join(wrong)} is not what atari-convert writes for it: convert it again"
        )
    weights = safetensors.numpy.save(to_named(network), _to_metadata(agent))
    write_files(to, {WEIGHTS_NAME: weights, **texts, **film})


def _to_texts(agent: Agent, returns: Returns | None) -> dict[str, bytes]:
    config = json.dumps(to_config(agent), indent=2) + "\n"
    return {CONFIG_NAME: config.encode(), CARD_NAME: to_model_card(agent, returns).encode()}


def _to_metadata(agent: Agent) -> dict[str, str]:
    # One entry: the order of several is not stable from run to run.
    return {"agent": json.dumps(to_config(agent))}


def _read_metadata(data: bytes) -> Any:
    """Return the metadata of a file that safetensors has read: its header is JSON after eight bytes of length."""
    try:
        return read_json(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__")
    except ValueError:  # such as a name that stands there twice
        return None


def prepare(path: Path, agent: Agent) -> Any:
    """Return a PyTorch module with the weights."""
    from safetensors.torch import load_file  # the weights alone need no torch

    from convert.networks.torch import load_module

    return load_module(agent.architecture, load_file(path / WEIGHTS_NAME))


def to_config(agent: Agent) -> dict[str, object]:
    """Return what ``config.json`` says: who the agent is, and all that is needed to build its network."""
    identity, head, architecture = agent.identity, agent.head, agent.architecture
    observation = architecture.observation
    return {
        "architecture": "nature-cnn" if is_nature_cnn(architecture) else "cnn",
        "algorithm": identity.algorithm,
        "family": find_family(identity),
        "protocol": identity.protocol,
        "game": identity.game,
        "seed": identity.seed,
        "step": identity.step,
        "num_actions": head.actions,
        "num_atoms": head.atoms,
        "action_meanings": agent.action_meanings,
        "strides": [conv.stride for conv in architecture.convs],
        "padding": 0 if is_nature_cnn(architecture) else [conv.padding for conv in architecture.convs],
        **_to_rest(architecture),
        "observation": {
            "dtype": "uint8",
            "shape": [observation.frames, observation.size, observation.size],
            "order": "oldest first",
            "divide_by": observation.scale,
        },
        "source_sha256": agent.source.sha256,
    }


def _to_rest(architecture: Architecture) -> dict[str, object]:
    """Return what tells a network from the Nature-CNN with a Q or categorical head."""
    head = architecture.head
    rest: dict[str, object] = {} if is_nature_cnn(architecture) else {"hidden": architecture.hidden}
    rest |= {} if head.quantiles is None else {"num_quantiles": head.quantiles}
    return rest | ({} if head.streams == "single" else {"streams": head.streams})
