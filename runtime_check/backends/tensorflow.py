"""TensorFlow, on the SavedModel in ``saved_model/``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.agent import Agent
from convert.errors import BackendUnavailable
from convert.quiet_tensorflow import tf
from runtime_check.backends import Description, Runtime, Settings, choose_gpu, to_nhwc

TARGET = "tensorflow"
EXTRA = "tensorflow"
PACKAGES = ("tensorflow",)


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:  # noqa: ARG001
    """Open a SavedModel's ``serving_default``.

    Raises:
        BackendUnavailable: a GPU was asked for and TensorFlow sees none, or an answer came from the CPU.
        Exception: TensorFlow's own.
    """
    gpus = tf.config.list_physical_devices("GPU")
    gpu = choose_gpu(settings, "tensorflow", has_gpu=bool(gpus))
    tf.config.experimental.enable_tensor_float_32_execution(settings.tf32)
    for device in gpus:
        tf.config.experimental.set_memory_growth(device, enable=True)
    if gpu:
        tf.config.experimental.enable_op_determinism()
    device_name = "/GPU:0" if gpu else "/CPU:0"
    with tf.device(device_name):
        signature = tf.saved_model.load(str(path)).signatures["serving_default"]

    def answer(obs_nchw: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        with tf.device(device_name):
            outputs = signature(observation=tf.constant(to_nhwc(obs_nchw)))
        if gpu and not all("GPU" in tensor.device for tensor in outputs.values()):
            raise BackendUnavailable(f"{path}: TensorFlow answered from the CPU although a GPU was asked for")
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    device_details = tf.config.experimental.get_device_details(gpus[0]) if gpu else {}
    return Runtime(
        answer,
        Description(
            "tensorflow",
            tf.__version__,
            device_details.get("device_name", "GPU") if gpu else "cpu",
            f"tensor_float_32_execution={tf.config.experimental.tensor_float_32_execution_enabled()}",
            "function (Grappler)",
            tf.config.threading.get_intra_op_parallelism_threads() or None,
            settings.batch,
        ),
    )
