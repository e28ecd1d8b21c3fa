"""ONNX Runtime, on ``model.onnx``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from convert.agent import Agent
from convert.errors import BackendUnavailable
from runtime_check.backends import Description, Runtime, Settings, choose_gpu

TARGET = "onnx"
EXTRA = "onnx"
PACKAGES = ("onnxruntime",)

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:  # noqa: ARG001
    """Open an ONNX model.

    A GPU build whose CUDA does not load falls back to the CPU, which is no error unless a GPU was asked for.

    Raises:
        BackendUnavailable: a GPU was asked for, and ONNX Runtime has none or fell back to the CPU.
        Exception: ONNX Runtime's own, which have no common base.
    """
    gpu = choose_gpu(settings, "onnxruntime", has_gpu=_CUDA in onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.use_deterministic_compute = True
    # Runtimes take turns: threads that spin for their next turn would slow the others down by a fifth.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    cuda = (_CUDA, {"use_tf32": int(settings.tf32), "cudnn_conv_algo_search": "DEFAULT"})
    # From bytes, so that nothing outside of the file, whose checksum was verified, can be a part of the model.
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=[cuda, _CPU] if gpu else [_CPU])
    provider = session.get_providers()[0]
    if settings.device == "gpu" and provider != _CUDA:
        raise BackendUnavailable(f"{path}: ONNX Runtime fell back to {provider}: its CUDA and cuDNN do not load")
    names = [output.name for output in session.get_outputs()]

    def answer(obs_nchw: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return dict(zip(names, session.run(names, {"observation": obs_nchw}), strict=True))

    return Runtime(
        answer,
        Description(
            "onnxruntime",
            onnxruntime.__version__,
            provider,
            f"use_tf32={int(settings.tf32)}, deterministic" if provider == _CUDA else "float32, deterministic",
            options.graph_optimization_level.name,
            options.intra_op_num_threads or None,
            settings.batch,
        ),
    )
