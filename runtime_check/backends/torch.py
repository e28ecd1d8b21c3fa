"""PyTorch, on the ``torch.export`` program ``torch/model.pt2``."""

from __future__ import annotations

from pathlib import Path

from torch.export.passes import move_to_device_pass

from convert.agent import Agent
from convert.targets.torch import open_program, read
from runtime_check.backends import Runtime, Settings
from runtime_check.backends.checkpoint import choose_device, run_torch

TARGET = "torch"
EXTRA = "torch"
PACKAGES = ("torch",)


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:
    """Open an exported program, whose weights have to be those of the state dict beside it.

    Raises:
        BackendUnavailable: a GPU was asked for, and torch sees none.
        UnreadableArtefact: a file is damaged, or wants to run code; or the two differ.
    """
    device = choose_device(settings, "torch")
    read(path, agent)
    program = open_program(path)
    moved = program if device.type == "cpu" else move_to_device_pass(program, device)
    return run_torch(moved.module(), device, settings, "torch.export")
