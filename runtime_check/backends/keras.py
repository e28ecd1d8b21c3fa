"""Keras, on ``model.keras``, with the backend of Keras that ``KERAS_BACKEND`` names."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.agent import Agent
from convert.errors import BackendUnavailable
from convert.native_logs import without_native_logs
from runtime_check.backends import Description, Runtime, Settings, import_backend, to_nhwc

with without_native_logs():
    import keras

TARGET = "keras"
EXTRA = "keras"
PACKAGES = ("keras", "h5py")

# The backend here that prepares each of Keras' backends.
_RUNTIMES = {"tensorflow": "tensorflow", "jax": "flax", "torch": "checkpoint"}


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:  # noqa: ARG001
    """Open a Keras model.

    Raises:
        BackendUnavailable: a GPU was asked for and Keras' backend sees none, or an answer came from the CPU.
        Exception: Keras' own.
    """
    description = _prepare(settings)
    is_gpu = description.device != "cpu"
    description = replace(description, graph="eager" if is_gpu else "predict_on_batch")
    device = "gpu:0" if is_gpu else "cpu:0"
    with keras.device(device):
        model: Any = keras.models.load_model(path, compile=False)

    def answer(obs_nchw: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        obs_nhwc = to_nhwc(obs_nchw)
        with keras.device(device):
            # Compiled is three times faster, and gives NumPy arrays, which do not tell where they come from.
            outputs = model(obs_nhwc, training=False) if is_gpu else model.predict_on_batch(obs_nhwc)
        if is_gpu and any("cpu" in str(tensor.device).lower() for tensor in outputs.values()):
            raise BackendUnavailable(f"{path}: Keras answered from the CPU although it was to use a GPU")
        return {name: keras.ops.convert_to_numpy(tensor) for name, tensor in outputs.items()}

    return Runtime(answer, description)


def _prepare(settings: Settings) -> Description:
    """Choose the device as the backend of Keras' own runtime does, before Keras looks at its devices."""
    name = keras.backend.backend()
    runtime: Any = import_backend(_RUNTIMES[name])
    description: Description = runtime.describe(runtime.choose_device(settings, "keras"), settings)
    version = f"{keras.__version__}, {name} {sys.modules[name].__version__}"
    return replace(description, library="keras", version=version)
