"""PyTorch, on the ``torch.export`` program ``torch/model.pt2``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export.passes import move_to_device_pass

from convert.agent import Agent
from convert.targets.torch import PROGRAM_NAME
from runtime_check.backends import Runtime, Settings
from runtime_check.backends.checkpoint import choose_device, run_torch

TARGET = "torch"
EXTRA = "torch"
PACKAGES = ("torch",)


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:  # noqa: ARG001
    """Open an exported program.

    Raises:
        BackendUnavailable: a GPU was asked for, and torch sees none.
        Exception: torch's own.
    """
    device = choose_device(settings, "torch")
    program = torch.export.load(path / PROGRAM_NAME)
    moved = program if device.type == "cpu" else move_to_device_pass(program, device)
    return run_torch(moved.module(), device, settings, "torch.export")
