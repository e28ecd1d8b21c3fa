"""PyTorch, on the ``torch.export`` program ``torch/model.pt2``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export.passes import move_to_device_pass

from convert.agent import Agent
from convert.targets.torch import open_program, read
from runtime_check.backends import Runtime, Settings, choose_gpu
from runtime_check.backends.checkpoint import describe, set_precision

TARGET = "torch"
EXTRA = "torch"
PACKAGES = ("torch",)


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:
    """Open an exported program, whose weights have to be those of the state dict beside it.

    Raises:
        BackendUnavailable: a GPU was asked for, and torch sees none.
        UnreadableArtefact: a file is damaged, or wants to run code; or the two differ.
    """
    read(path, agent)
    gpu = choose_gpu(settings, "torch", has_gpu=torch.cuda.is_available())
    device = torch.device("cuda" if gpu else "cpu")
    set_precision(tf32=settings.tf32)
    program = open_program(path)
    return run_torch(move_to_device_pass(program, device).module() if gpu else program.module(), device, settings)


def run_torch(module: Any, device: torch.device, settings: Settings, graph: str = "torch.export") -> Runtime:
    """Run a module that a backend has put on a device."""

    @torch.inference_mode()
    def answer(obs_nchw: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        outputs = module(torch.from_numpy(obs_nchw).to(device))
        return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}

    return Runtime(answer, describe(device, settings, graph))
