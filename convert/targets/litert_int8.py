"""LiteRT in int8: a quarter of the size, calibrated on recorded frames; the head stays float32. Cannot go back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert import litert
from convert.agent import Agent, describe_head
from convert.errors import UnreadableArtefact
from convert.formats import litert_files
from convert.layout import nhwc_from_nchw
from convert.native_logs import without_native_logs
from convert.network import Network
from convert.quiet_tensorflow import tf
from convert.targets.litert import load, make_converter, rebuild

__all__ = ["find_losses", "load", "read", "rebuild", "write"]

PATH = "model_int8.tflite"
AXES = "NHWC"
FORMAT_VERSION = 1
EXTRA = "litert"
PACKAGES = ("ai_edge_litert", "flatbuffers", "tensorflow")
IN_ALL = False
QUANTIZED = True

find_losses = litert.find_losses

# What stays float32: the first product, the head under the names that the converter gives it, and C51's tail. An
# int8 head has 256 levels for all Q-values, whose differences between actions are finer.
_FLOAT_OPERATORS = ["MUL", "SOFTMAX", "SUM"]
_FLOAT_NODES = ["MatMul_1;add_1", "StatefulPartitionedCall:0", "PartitionedCall:0"]


def write(network: Network, agent: Agent, path: Path) -> None:
    """Write the model with int8 convolutions and hidden layer."""
    observations = read_calibration(agent.identity.game)
    converter = make_converter(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]

    def calibrate() -> Iterator[list[Any]]:
        for observation in observations:
            yield [observation[None]]

    converter.representative_dataset = calibrate
    options = tf.lite.experimental.QuantizationDebugOptions(
        denylisted_ops=_FLOAT_OPERATORS, denylisted_nodes=_FLOAT_NODES
    )
    with without_native_logs(), warnings.catch_warnings():
        # TensorFlow calibrates with an interpreter of its own that it calls deprecated.
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated")
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=calibrate, debug_options=options
        )
    path.write_bytes(litert_files.rebuild(debugger.get_nondebug_quantized_model(), describe_head(network)))


def read(path: Path, agent: Agent) -> Network:  # noqa: ARG001
    """Refuse: the checkpoint's float32 weights are not in the file.

    Raises:
        UnreadableArtefact: always.
    """
    raise UnreadableArtefact(f"{path}: its weights are rounded to int8: convert from a float32 artefact instead")


def read_calibration(game: str | None) -> NDArray[np.uint8]:
    """Return recorded observations of a game, uint8[8, 84, 84, 4]; without a game, one of each of the 60."""
    with files("convert").joinpath("calibration.npz").open("rb") as file, np.load(file) as recorded:
        if game is not None:
            return nhwc_from_nchw(recorded[game])
        return nhwc_from_nchw(np.stack([recorded[name][0] for name in sorted(recorded)]))
