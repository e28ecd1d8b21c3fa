"""Keras, on ``model.keras``, with the backend of Keras that ``KERAS_BACKEND`` names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.agent import Agent
from convert.native_logs import without_native_logs
from runtime_check.backends import Description, Runtime, Settings, choose_gpu, to_nhwc

with without_native_logs():
    import keras

TARGET = "keras"
EXTRA = "keras"
PACKAGES = ("keras", "h5py")


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:  # noqa: ARG001
    """Open a Keras model.

    Raises:
        BackendUnavailable: a GPU was asked for, and Keras' backend sees none.
        Exception: Keras' own.
    """
    gpu = choose_gpu(settings, "keras", has_gpu=bool(keras.distribution.list_devices("gpu")))
    device = "gpu:0" if gpu else "cpu:0"
    precision = _set_precision(tf32=settings.tf32)
    with keras.device(device):
        model: Any = keras.models.load_model(path, compile=False)

    def answer(obs_nchw: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        with keras.device(device):
            outputs: dict[str, NDArray[np.float32]] = model.predict_on_batch(to_nhwc(obs_nchw))
        return outputs

    return Runtime(
        answer,
        Description(
            "keras",
            f"{keras.__version__}, {keras.backend.backend()}",
            device,
            precision,
            "predict_on_batch",
            None,
            settings.batch,
        ),
    )


def _set_precision(*, tf32: bool) -> str:
    """Switch TF32 in Keras' backend, and return how."""
    name = keras.backend.backend()
    if name == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(tf32)
        return f"tensor_float_32_execution={tf32}"
    if name == "jax":
        import jax

        precision = "tensorfloat32" if tf32 else "highest"
        jax.config.update("jax_default_matmul_precision", precision)  # type: ignore[no-untyped-call]
        return f"jax_default_matmul_precision={precision}"
    from runtime_check.backends.checkpoint import set_precision

    set_precision(tf32=tf32)
    return f"allow_tf32={tf32}"
