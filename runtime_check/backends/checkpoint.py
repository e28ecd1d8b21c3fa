"""The original checkpoint in torch, as its authors run it: the reference that acts in a shadow replay."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from convert.agent import Agent
from runtime_check.backends import Description, Runtime, Settings, choose_gpu
from runtime_check.originals.atari_agents import read_state_dict

TARGET = None
EXTRA = None
PACKAGES = ("torch",)


class AtariNet(nn.Module):
    """The network of the release, with the names of its weights: Python's mangling puts ``_AtariNet`` before them."""

    def __init__(self, actions: int, support: torch.Tensor | None) -> None:
        """Build it for a Q head, or with a support for a categorical one."""
        super().__init__()
        atoms = 1 if support is None else len(support)
        self.__features = nn.Sequential(
            nn.Conv2d(4, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1),
            nn.ReLU(),
        )
        self.__head = nn.Sequential(nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, actions * atoms))
        if support is not None:
            self.register_buffer("_AtariNet__support", support)
        self._support = support is not None

    def forward(self, obs_nchw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``q_values`` float32[N, actions], and for C51 ``logits`` float32[N, actions, atoms]."""
        outputs = self.__head(self.__features(obs_nchw.float() / 255).flatten(1))
        if not self._support:
            return {"q_values": outputs}
        support = self.get_buffer("_AtariNet__support")
        logits = outputs.unflatten(1, (-1, len(support)))
        return {"q_values": (logits.softmax(-1) * support).sum(-1), "logits": logits}


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:
    """Open a checkpoint of the release.

    Raises:
        BackendUnavailable: a GPU was asked for, and torch sees none.
        OSError: the file cannot be read.
        ValueError: it is not a checkpoint.
        RuntimeError: its weights are not those of the release's network.
    """
    device = choose_device(settings, "checkpoint")
    state = read_state_dict(path)
    model = AtariNet(agent.head.actions, state.get("_AtariNet__support"))
    model.load_state_dict(state, strict=True)
    return run_torch(model.eval().to(device), device, settings, "eager")


def choose_device(settings: Settings, name: str) -> torch.device:
    """Return the device on which torch is to run; switch TF32 for all of torch, and to deterministic kernels.

    Raises:
        BackendUnavailable: a GPU was asked for, and torch sees none.
    """
    # cuBLAS reads this variable when it starts, and is not deterministic without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = settings.tf32
    torch.backends.cuda.matmul.allow_tf32 = settings.tf32
    return torch.device("cuda" if choose_gpu(settings, name, has_gpu=torch.cuda.is_available()) else "cpu")


def run_torch(module: Any, device: torch.device, settings: Settings, graph: str) -> Runtime:
    """Run a module that a backend has put on a device."""

    @torch.inference_mode()
    def answer(obs_nchw: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        outputs = module(torch.from_numpy(obs_nchw).to(device))
        return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}

    return Runtime(answer, describe(device, settings, graph))


def describe(device: torch.device, settings: Settings, graph: str = "eager") -> Description:
    """Return what a backend that runs on torch says of itself."""
    return Description(
        "torch",
        torch.__version__,
        torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        f"cudnn.allow_tf32={torch.backends.cudnn.allow_tf32}, "
        f"cuda.matmul.allow_tf32={torch.backends.cuda.matmul.allow_tf32}, cudnn.deterministic=True",
        graph,
        torch.get_num_threads(),
        settings.batch,
    )
