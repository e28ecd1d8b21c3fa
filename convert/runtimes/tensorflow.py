"""TensorFlow, for SavedModels."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.errors import RuntimeUnavailable
from convert.frameworks.quiet_tensorflow import tf
from convert.runtimes import Description, Runtime, Settings, choose_gpu

EXTRA = "tensorflow"
PACKAGES = ("tensorflow",)

_GPU = "/GPU:0"


def choose_device(settings: Settings) -> str:
    """Return the device; switch TF32 for all of TensorFlow, and to deterministic kernels.

    To be called before anything else that uses TensorFlow's devices, Keras too: memory is set up but once.

    Raises:
        RuntimeUnavailable: a GPU was asked for, and TensorFlow sees none.
    """
    gpus = tf.config.list_physical_devices("GPU")  # which looks, and sets nothing up
    for gpu in gpus:
        # Where the user's own code, or a conversion, has started TensorFlow, its memory stays as it was set up then.
        with suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, enable=True)
    tf.config.experimental.enable_tensor_float_32_execution(settings.tf32)
    if not choose_gpu(settings, "tensorflow", has_gpu=bool(gpus)):
        return "/CPU:0"
    tf.config.experimental.enable_op_determinism()
    return _GPU


def run(artefact: Path, device: str, settings: Settings) -> Runtime:
    """Run a SavedModel's ``serving_default``.

    Raises:
        RuntimeUnavailable: an answer came from the CPU although a GPU was chosen.
        Exception: TensorFlow's own.
    """
    with tf.device(device):
        signature = tf.saved_model.load(str(artefact)).signatures["serving_default"]

    def answer(observation: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        with tf.device(device):
            outputs = signature(observation=tf.constant(observation))
        if device == _GPU and not all("GPU" in tensor.device for tensor in outputs.values()):
            raise RuntimeUnavailable("tensorflow answered from the CPU although it was to use a GPU")
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return Runtime(answer, describe(device, settings))


def describe(device: str, settings: Settings) -> Description:
    """Return what runs on TensorFlow."""
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
