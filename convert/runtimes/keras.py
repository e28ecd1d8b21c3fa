"""Keras, for ``.keras`` files, on the backend of Keras that ``KERAS_BACKEND`` names: TensorFlow, JAX or PyTorch."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import RuntimeUnavailable
from convert.frameworks.native_logs import without_native_logs
from convert.runtimes import Description, Runtime, Settings, import_runtime

with without_native_logs():
    import keras

EXTRA = "keras"
PACKAGES = ("keras", "h5py")

_BACKENDS = ("tensorflow", "jax", "torch")  # of Keras, each of which is a runtime here


def choose_device(settings: Settings) -> Description:
    """Choose the device as the runtime of Keras' backend does, and return what Keras will run on.

    Raises:
        RuntimeUnavailable: a GPU was asked for and Keras' backend sees none, or it is another backend.
    """
    name = keras.backend.backend()
    if name not in _BACKENDS:
        raise RuntimeUnavailable(f"KERAS_BACKEND is {name!r}, expected {', '.join(_BACKENDS)}: set one of them")
    runtime: Any = import_runtime(name)
    description: Description = runtime.describe(runtime.choose_device(settings), settings)
    version = f"{keras.__version__}, {name} {sys.modules[name].__version__}"
    graph = "predict_on_batch" if description.device == "cpu" else "eager"
    return replace(description, library="keras", version=version, graph=graph)


def run(artefact: Path, device: Description, settings: Settings) -> Runtime:  # noqa: ARG001
    """Run a Keras model.

    Raises:
        RuntimeUnavailable: an answer came from the CPU although a GPU was chosen.
        Exception: Keras' own.
    """
    is_gpu = device.device != "cpu"
    place = "gpu:0" if is_gpu else "cpu:0"
    with keras.device(place):
        model: Any = keras.models.load_model(artefact, compile=False)

    def answer(observation: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        with keras.device(place):
            # Compiled is three times faster, and gives NumPy arrays, which do not tell where they come from.
            outputs = model(observation, training=False) if is_gpu else model.predict_on_batch(observation)
        if is_gpu and any("cpu" in str(tensor.device).lower() for tensor in outputs.values()):
            raise RuntimeUnavailable("keras answered from the CPU although it was to use a GPU")
        return {name: keras.ops.convert_to_numpy(tensor) for name, tensor in outputs.items()}

    return Runtime(answer, device)
