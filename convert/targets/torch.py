"""PyTorch: the state dict of an importable module, and a ``torch.export`` program that needs no module.

``state_dict.pt`` loads into `convert.torch_modules.NatureCNN`; ``model.pt2`` runs with torch alone, on any batch.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convert.agent import Agent
from convert.errors import UnreadableArtefact
from convert.named import from_named, to_named
from convert.network import FRAMES, HEIGHT, WIDTH, Float32, Network
from convert.targets import Policy
from convert.torch_modules import make_module, make_policy

PATH = "torch"
AXES = "NCHW"
FORMAT_VERSION = 1
EXTRA = "torch"
PACKAGES = ("torch",)
IN_ALL = True

STATE_DICT_NAME, PROGRAM_NAME = "state_dict.pt", "model.pt2"
LARGEST_ARCHIVE = 256 * 2**20

_SIZE = re.compile(r"Symbol\('\w+', positive=True, integer=True\)|\d+", re.ASCII)
_OPERATOR = re.compile(r"torch\.ops\.aten\.\w+\.\w+", re.ASCII)


def write(network: Network, agent: Agent, path: Path) -> None:  # noqa: ARG001
    """Write the state dict and the exported program."""
    path.mkdir()
    state = {name: torch.from_numpy(array.copy()) for name, array in to_named(network).items()}
    torch.save(state, path / STATE_DICT_NAME)
    module = make_module(network)
    module.load_state_dict(state)
    # Two observations, because torch.export takes a size of one for fixed.
    observation = torch.zeros((2, FRAMES, HEIGHT, WIDTH), dtype=torch.uint8)
    program = torch.export.export(module, (observation,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path / PROGRAM_NAME)


def read(path: Path, agent: Agent) -> Network:  # noqa: ARG001
    """Read the state dict, and hold the program's weights against it. The program is not run.

    Raises:
        UnreadableArtefact: a file is damaged, wants to run code, or is of another network; or the two differ.
    """
    network = read_state_dict(path)
    _check_program(path / PROGRAM_NAME, to_named(network))
    return network


def read_state_dict(path: Path) -> Network:
    """Read the state dict alone: whoever trains it on removes the program, which does not follow.

    Raises:
        UnreadableArtefact: it is damaged, wants to run code, or is of another network.
    """
    file = path / STATE_DICT_NAME
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        named = {name: np.ascontiguousarray(tensor.detach().numpy()) for name, tensor in state.items()}
    except Exception as error:  # torch promises no class of error for damaged input
        raise _unreadable(file, error) from error
    try:
        return from_named(named)
    except ValueError as error:
        raise UnreadableArtefact(f"{file}: {error}") from error


def load(path: Path, agent: Agent) -> Policy:  # noqa: ARG001
    """Load the exported program: uint8[N, 4, 84, 84] to its outputs by name."""
    return make_policy(open_program(path).module())


def open_program(path: Path) -> torch.export.ExportedProgram:
    """Load the exported program.

    Raises:
        UnreadableArtefact: it is damaged, or a pickle in it wants to run code.
    """
    program = path / PROGRAM_NAME
    try:
        _check_archive(program)
        return torch.export.load(program)
    except Exception as error:  # torch promises no class of error for damaged input
        raise _unreadable(program, error) from error


def _check_program(path: Path, expected: dict[str, Float32]) -> None:
    """Raise unless the program holds the same weights, as plain bytes: a pickle in their place could run code."""
    try:
        found = _read_program_weights(path)
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
        raise UnreadableArtefact(f"{path}: not a torch.export program ({error}): convert the agent again") from error
    if found != {name: array.tobytes() for name, array in expected.items()}:
        raise UnreadableArtefact(
            f"{path}: other weights than in {STATE_DICT_NAME}: if those were trained on, remove {path.name}, "
            "which does not follow them"
        )


def _read_program_weights(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        _check_size(archive)
        # torch names an archive's only folder after the file.
        root = archive.namelist()[0].split("/")[0]
        weights = json.loads(archive.read(f"{root}/data/weights/model_weights_config.json"))["config"]
        if any(weight["use_pickle"] for weight in weights.values()):
            raise ValueError("its weights are a pickle, expected plain bytes")
        return {
            name: archive.read(f"{root}/data/weights/{weight['path_name']}")[
                : 4 * int(np.prod([size["as_int"] for size in weight["tensor_meta"]["sizes"]]))
            ]
            for name, weight in weights.items()
        }


def _check_archive(path: Path) -> None:
    """Raise where loading an exported program could run code: by a pickle, or by text that torch evaluates.

    Ours have weights as plain bytes, no constants, example inputs, which torch pickles, and a graph of ATen operators
    with one free size.
    """
    with zipfile.ZipFile(path) as archive:
        _check_size(archive)
        if len(set(archive.namelist())) != len(archive.namelist()):
            raise ValueError("two entries of one name")
        for name in archive.namelist():
            if name.endswith(".pt"):
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            elif name.endswith("_config.json"):
                payloads = json.loads(archive.read(name))["config"].values()
                if any(payload["use_pickle"] or "/constants/" in name for payload in payloads):
                    raise ValueError(f"{name} names a pickle, expected plain bytes")
            elif name.endswith(".json"):
                _check_graph(json.loads(archive.read(name)))


def _check_graph(document: Any) -> None:
    """Raise where a graph holds text that torch would run as Python: sizes as expressions, guards, any operator."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        if not isinstance(value, dict):
            continue
        pending += value.values()
        if value.get("guards_code"):
            raise ValueError("it has guards, which are code")
        for key, allowed in (("expr_str", _SIZE), ("target", _OPERATOR)):
            text = value.get(key)
            if text is not None and not (isinstance(text, str) and allowed.fullmatch(text)):
                raise ValueError(f"{key} is {str(text)[:80]!r}, which is not of a network like ours")


def _check_size(archive: zipfile.ZipFile) -> None:
    if sum(entry.file_size for entry in archive.infolist()) > LARGEST_ARCHIVE:
        raise ValueError(f"inflates to more than {LARGEST_ARCHIVE} bytes")


def _unreadable(path: Path, error: Exception) -> UnreadableArtefact:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UnreadableArtefact(f"{path}: cannot be read ({reason}): convert the agent again")
