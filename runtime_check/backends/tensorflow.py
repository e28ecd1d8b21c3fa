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

_GPU = "/GPU:0"


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:  # noqa: ARG001
    """Open a SavedModel's ``serving_default``.

    Raises:
        BackendUnavailable: a GPU was asked for and TensorFlow sees none, or an answer came from the CPU.
        Exception: TensorFlow's own.
    """
    device = choose_device(settings, "tensorflow")
    with tf.device(device):
        signature = tf.saved_model.load(str(path)).signatures["serving_default"]

    def answer(obs_nchw: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        with tf.device(device):
            outputs = signature(observation=tf.constant(to_nhwc(obs_nchw)))
        if device == _GPU and not all("GPU" in tensor.device for tensor in outputs.values()):
            raise BackendUnavailable(f"{path}: TensorFlow answered from the CPU although it was to use a GPU")
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return Runtime(answer, describe(device, settings))


def choose_device(settings: Settings, name: str) -> str:
    """Return the device on which TensorFlow is to run; switch TF32 for all of it, and to deterministic kernels.

    To be called before anything else that uses TensorFlow's devices, Keras too: memory is set up but once.

    Raises:
        BackendUnavailable: a GPU was asked for, and TensorFlow sees none.
    """
    gpus = tf.config.list_physical_devices("GPU")  # which looks, and sets nothing up
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, enable=True)
    tf.config.experimental.enable_tensor_float_32_execution(settings.tf32)
    if not choose_gpu(settings, name, has_gpu=bool(gpus)):
        return "/CPU:0"
    tf.config.experimental.enable_op_determinism()
    return _GPU


def describe(device: str, settings: Settings) -> Description:
    """Return what a backend that runs on TensorFlow says of itself."""
    name = "cpu"
    if device == _GPU:
        gpu = tf.config.list_physical_devices("GPU")[0]
        name = tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
    return Description(
        "tensorflow",
        tf.__version__,
        name,
        f"tensor_float_32_execution={tf.config.experimental.tensor_float_32_execution_enabled()}",
        "function (Grappler)",
        tf.config.threading.get_intra_op_parallelism_threads() or None,
        settings.batch,
    )
