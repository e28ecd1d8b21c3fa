"""ONNX Runtime, for ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from convert.errors import RuntimeUnavailable
from convert.runtimes import Description, Runtime, Settings, choose_gpu

EXTRA = "onnx"
PACKAGES = ("onnxruntime",)

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"


def choose_device(settings: Settings) -> str:
    """Return the provider to ask for.

    Raises:
        RuntimeUnavailable: a GPU was asked for, and ONNX Runtime has none.
    """
    has_gpu = _CUDA in onnxruntime.get_available_providers()
    return _CUDA if choose_gpu(settings, "onnxruntime", has_gpu=has_gpu) else _CPU


def run(artefact: Path, device: str, settings: Settings) -> Runtime:
    """Run an ONNX model.

    A GPU build whose CUDA does not load falls back to the CPU, which is no error unless a GPU was asked for.

    Raises:
        RuntimeUnavailable: a GPU was asked for, and ONNX Runtime fell back to the CPU.
        Exception: ONNX Runtime's own, which have no common base.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.use_deterministic_compute = True
    # Runtimes take turns: threads that spin for their next turn would slow the others down by a fifth.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    cuda = (_CUDA, {"use_tf32": int(settings.tf32), "cudnn_conv_algo_search": "DEFAULT"})
    providers = [cuda, _CPU] if device == _CUDA else [_CPU]
    # From bytes, so that nothing outside of the file can be a part of the model.
    session = onnxruntime.InferenceSession(artefact.read_bytes(), options, providers=providers)
    provider = session.get_providers()[0]
    if settings.device == "gpu" and provider != _CUDA:
        raise RuntimeUnavailable(
            f"onnxruntime fell back to {provider}: its CUDA and cuDNN do not load: install those that its version "
            "names, or choose the device 'cpu' or 'auto'"
        )
    names = [output.name for output in session.get_outputs()]

    def answer(observation: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return dict(zip(names, session.run(names, {"observation": observation}), strict=True))

    description = Description(
        "onnxruntime",
        onnxruntime.__version__,
        provider,
        f"use_tf32={int(settings.tf32)}, deterministic" if provider == _CUDA else "float32, deterministic",
        options.graph_optimization_level.name,
        options.intra_op_num_threads or None,
        settings.batch,
    )
    return Runtime(answer, description)
