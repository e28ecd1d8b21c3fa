"""LiteRT with float16 weights: half the size, computed in float32. Cannot be converted back."""

from __future__ import annotations

from pathlib import Path

from convert import litert
from convert.agent import Agent, describe_head
from convert.errors import UnreadableArtefact
from convert.formats import litert_files
from convert.network import Network
from convert.quiet_tensorflow import tf
from convert.targets.litert import load, make_converter, rebuild

__all__ = ["find_losses", "load", "read", "rebuild", "write"]

PATH = "model_float16.tflite"
AXES = "NHWC"
FORMAT_VERSION = 1
EXTRA = "litert"
PACKAGES = ("ai_edge_litert", "flatbuffers", "tensorflow")
IN_ALL = False
QUANTIZED = True

find_losses = litert.find_losses


def write(network: Network, agent: Agent, path: Path) -> None:  # noqa: ARG001
    """Write the model with its weights rounded to float16."""
    converter = make_converter(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    path.write_bytes(litert_files.rebuild(converter.convert(), describe_head(network)))


def read(path: Path, agent: Agent) -> Network:  # noqa: ARG001
    """Refuse: the checkpoint's float32 weights are not in the file.

    Raises:
        UnreadableArtefact: always.
    """
    raise UnreadableArtefact(f"{path}: its weights are rounded to float16: convert from a float32 artefact instead")
