"""Networks and checkpoint files made for tests, and a Python to try them in. Nothing calls the code that reads them."""

from __future__ import annotations

import gzip
import io
import lzma
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import convert
from convert.agents.agent import RECORD_NAME
from convert.agents.architecture import Architecture, make_head, nature_cnn
from convert.agents.network import Network, from_arrays
from convert.agents.record import read_record, to_json
from convert.store.local import describe_files
from convert.targets import find_obstacle, find_target, import_target, list_targets

DATA = Path(__file__).parent / "data"
AGENTS = DATA / "agents"
PONG = AGENTS / "DQN_modern/Pong/0/model_328492.gz"
BREAKOUT = AGENTS / "C51_classic/Breakout/0/model_187420.gz"


def make_state(actions: int = 6, atoms: int | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a random state dict of the release: He-scaled weights, small biases."""
    generator = torch.Generator().manual_seed(seed)

    def layer(name: str, *shape: int) -> dict[str, torch.Tensor]:
        fan_in = int(np.prod(shape[1:]))
        return {
            f"{name}.weight": torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5,
            f"{name}.bias": torch.randn(shape[:1], generator=generator) * 0.1,
        }

    state = layer("_AtariNet__features.0", 32, 4, 8, 8)
    state |= layer("_AtariNet__features.2", 64, 32, 4, 4)
    state |= layer("_AtariNet__features.4", 64, 64, 3, 3)
    state |= layer("_AtariNet__head.0", 512, 3136)
    state |= layer("_AtariNet__head.2", actions * (atoms or 1), 512)
    if atoms:
        state["_AtariNet__support"] = torch.linspace(-10, 10, atoms)
    return state


def make_architecture(actions: int = 6, atoms: int | None = None) -> Architecture:
    """Return the release's architecture; the values of its support are 0, 1, 2 …"""
    return nature_cnn(make_head(actions, atoms))


def save_checkpoint(path: Path, state: Any, **options: Any) -> Path:
    """Write a state dict as the release does; options go to ``torch.save``."""
    buffer = io.BytesIO()
    torch.save({"estimator_state": state, "step": 1}, buffer, **options)
    return save_gzip(path, buffer.getvalue())


def save_gzip(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 1))
    return path


def to_network(state: dict[str, torch.Tensor]) -> Network:
    """Return the network of a state dict, by a reading of its own."""
    layers = {"features.0": "convs.0", "features.2": "convs.1", "features.4": "convs.2"}
    layers |= {"head.0": "hidden", "head.2": "head"}
    named = {}
    for layer, name in layers.items():
        named[f"{name}.kernel"] = state[f"_AtariNet__{layer}.weight"].numpy()
        named[f"{name}.bias"] = state[f"_AtariNet__{layer}.bias"].numpy()
    if "_AtariNet__support" in state:
        named["head.support"] = state["_AtariNet__support"].numpy()
    (atoms,) = state["_AtariNet__support"].shape if "_AtariNet__support" in state else (None,)
    return from_arrays(named, make_architecture(len(named["head.bias"]) // (atoms or 1), atoms))


def list_holding(source: Path) -> list[str]:
    """Return the targets that can hold the network of a checkpoint."""
    architecture = convert.read_checkpoint(source).architecture
    return [target.name for target in list_targets() if not find_obstacle(target.name, architecture)]


def plant_weights(folder: Path, target: str, network: Network) -> None:
    """Write other weights in place of an artefact that is one file, as its target writes them, with their checksum."""
    record, path = read_record(folder), find_target(target).path
    (folder / path).unlink()
    import_target(target).write(network, record.agent, folder / path)
    artifact = replace(record.artifacts[target], files=describe_files(folder, path))
    changed = replace(record, artifacts={**record.artifacts, target: artifact})
    (folder / RECORD_NAME).write_text(to_json(changed), "utf-8")


def make_observations(count: int, seed: int = 0) -> np.ndarray:
    """Return random observations, uint8[N, 4, 84, 84]."""
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 84, 84), dtype=np.uint8)


def run_python(code: str, **options: Any) -> str:
    """Run code in a Python of its own and return what it prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, **options).stdout


def save_sample(name: str, folder: Path) -> Path:
    """Write a file of another zoo, see ``tests/data/zoos/README.md``, into a folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.decompress((DATA / "zoos" / f"{name}.xz").read_bytes()))
    return path


def change_zip(path: Path, to: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Write a zip with its entries changed in place, stored as they were."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    change(entries)
    with zipfile.ZipFile(to, "w") as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return to
