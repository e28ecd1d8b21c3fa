"""PyTorch: the state dict of an importable module, and a ``torch.export`` program that needs no module.

``state_dict.pt`` loads into `convert.networks.torch.NatureCNN`; ``model.pt2`` runs with torch alone, on any batch.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import torch
from torch.export import ExportedProgram

from convert.agents.agent import Agent
from convert.agents.architecture import Architecture, erase_support
from convert.agents.network import Network, make_zeros
from convert.errors import UnreadableArtefact
from convert.files import torch_files
from convert.files.disk import check_names, read_file, read_files
from convert.files.torch_files import Tensor
from convert.formats import torch_programs
from convert.formats.flat_names import from_named, list_names, to_named
from convert.formats.templates import largest_file
from convert.networks.torch import load_module, to_state_dict
from convert.targets import Trained

PATH = "torch"
AXES = "NCHW"
RUNTIME = "torch"
FORMAT_VERSION = 1
EXTRA = "torch"
PACKAGES = ("torch",)
IN_ALL = True

STATE_DICT_NAME, PROGRAM_NAME = "state_dict.pt", "model.pt2"


def write(network: Network, agent: Agent, path: Path) -> None:  # noqa: ARG001
    """Write the state dict and the exported program."""
    path.mkdir()
    _write_state_dict(network, path)
    program = torch_programs.build_program(_export_program(erase_support(network.architecture)), to_named(network))
    (path / PROGRAM_NAME).write_bytes(program)


def read(path: Path, agent: Agent) -> Network:
    """Read the state dict, and hold the program against it. The program is not run.

    Raises:
        UnreadableArtefact: a file is damaged, wants to run code, or is of another network; or the two differ.
    """
    check_names(path, read_files(path), (STATE_DICT_NAME, PROGRAM_NAME))
    network = read_state_dict(path, agent)
    _check_program(path / PROGRAM_NAME, network, agent)
    return network


def read_state_dict(path: Path, agent: Agent) -> Network:
    """Read the state dict alone: whoever trains it on removes the program, which does not follow.

    Raises:
        UnreadableArtefact: it is damaged, wants to run code, or is of another network.
    """
    file = path / STATE_DICT_NAME
    data = read_file(file, largest_file(agent.architecture))
    try:
        state = torch_files.read(data)
        if isinstance(state, dict):
            # Of other names nothing is unpacked: any number of tensors may share a storage.
            names = list_names(agent.architecture)
            known = {name: _to_numpy(value) if name in names else value for name, value in state.items()}
            return from_named({str(name): value for name, value in known.items()}, agent.architecture)
    except (ValueError, TypeError) as error:
        raise UnreadableArtefact(f"{file}: {error}: convert the agent again") from error
    raise UnreadableArtefact(f"{file}: holds a {type(state).__name__}, expected a state dict: convert the agent again")


def read_trained(path: Path, agent: Agent) -> Trained:
    """Read both files, or the state dict alone where the program is gone.

    Raises:
        UnreadableArtefact: see `read`.
    """
    has_program = (path / PROGRAM_NAME).exists()
    return Trained(read(path, agent) if has_program else read_state_dict(path, agent))


def prepare(path: Path, agent: Agent) -> ExportedProgram:  # noqa: ARG001
    """Return the exported program."""
    return torch.export.load(path / PROGRAM_NAME)


def _write_state_dict(network: Network, path: Path) -> None:
    torch.save(to_state_dict(network), path / STATE_DICT_NAME)


def _check_program(path: Path, network: Network, agent: Agent) -> None:
    data = read_file(path, largest_file(agent.architecture))
    try:
        torch_programs.check_program(data, _export_program(erase_support(agent.architecture)), to_named(network))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UnreadableArtefact(
            f"{path}: not a torch.export program of this agent ({reason}): convert the agent again, or, "
            f"if the weights in {STATE_DICT_NAME} were trained on, remove {path.name}, which does not follow them"
        ) from error


def _to_numpy(value: object) -> object:
    return value.to_numpy() if isinstance(value, Tensor) else value


@lru_cache(maxsize=64)
def _export_program(architecture: Architecture) -> torch_programs.Program:
    """Export an architecture, once in a process: a second, and the same for each agent but for its weights."""
    module = load_module(architecture, to_state_dict(make_zeros(architecture)))
    frames, size = architecture.observation.frames, architecture.observation.size
    # Two observations, because torch.export takes a size of one for fixed.
    observation = torch.zeros((2, frames, size, size), dtype=torch.uint8)
    program = torch.export.export(module, (observation,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    exported, example = io.BytesIO(), io.BytesIO()
    torch.export.save(program, exported)
    torch.save(((observation,), {}), example)  # as torch.export keeps them: positional ones and named ones
    return torch_programs.take_program(exported.getvalue(), example.getvalue())
