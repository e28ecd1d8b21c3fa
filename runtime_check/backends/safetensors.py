"""PyTorch, on the weights in ``huggingface/model.safetensors``."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from convert.agent import Agent
from convert.torch_modules import NatureCNN
from runtime_check.backends import Runtime, Settings
from runtime_check.backends.checkpoint import choose_device, run_torch

TARGET = "safetensors"
EXTRA = "safetensors"
PACKAGES = ("safetensors", "torch")


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:
    """Load safetensors into the module that users get with them.

    Raises:
        BackendUnavailable: a GPU was asked for, and torch sees none.
        Exception: safetensors' and torch's own.
    """
    device = choose_device(settings, "safetensors")
    module = NatureCNN(agent.head.actions, agent.head.atoms)
    module.load_state_dict(load_file(path / "model.safetensors"), strict=True)
    return run_torch(module.eval().to(device), device, settings, "eager")
