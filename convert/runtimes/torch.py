"""PyTorch, for modules and for programs of ``torch.export``."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from convert.runtimes import Description, Runtime, Settings, choose_gpu

EXTRA = "torch"
PACKAGES = ("torch",)


def choose_device(settings: Settings) -> torch.device:
    """Return the device; switch TF32 for all of torch, and to deterministic kernels.

    Raises:
        RuntimeUnavailable: a GPU was asked for, and torch sees none.
    """
    # cuBLAS reads this variable when it starts, and is not deterministic without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = settings.tf32
    torch.backends.cuda.matmul.allow_tf32 = settings.tf32
    return torch.device("cuda" if choose_gpu(settings, "torch", has_gpu=torch.cuda.is_available()) else "cpu")


def run(artefact: torch.nn.Module | ExportedProgram, device: torch.device, settings: Settings) -> Runtime:
    """Run a module or a program, on the CPU so far, that takes uint8[N, 4, 84, 84] and returns outputs by name."""
    if isinstance(artefact, ExportedProgram):
        moved = artefact if device.type == "cpu" else move_to_device_pass(artefact, device)
        module: Any = moved.module()
        graph = "torch.export"
    else:
        module, graph = artefact.eval().to(device), "eager"

    @torch.inference_mode()
    def answer(observation: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        outputs = module(torch.from_numpy(observation).to(device))
        return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}

    return Runtime(answer, describe(device, settings, graph))


def describe(device: torch.device, settings: Settings, graph: str = "eager") -> Description:
    """Return what runs on torch."""
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
