"""LiteRT with float16 weights: half the size, computed in float32. Cannot be converted back."""

from __future__ import annotations

from pathlib import Path

from convert.agents.agent import Agent
from convert.agents.network import Network
from convert.errors import UnreadableArtefact
from convert.formats import litert_files
from convert.formats import litert_weights as litert
from convert.targets.litert import rebuild

__all__ = ["find_losses", "read", "rebuild", "write"]

PATH = "model_float16.tflite"
AXES = "NHWC"
RUNTIME = "litert"
FORMAT_VERSION = 1
EXTRA = "litert"
PACKAGES = ("ai_edge_litert", "flatbuffers", "tensorflow")
IN_ALL = False
QUANTIZED = True

find_losses = litert.find_losses


def write(network: Network, agent: Agent, path: Path) -> None:  # noqa: ARG001
    """Write the model with its weights rounded to float16."""
    from convert.formats.tensorflow_lite import convert_to_float16  # reading needs no TensorFlow

    path.write_bytes(litert_files.rebuild(convert_to_float16(network), network.architecture))


def read(path: Path, agent: Agent) -> Network:  # noqa: ARG001
    """Refuse: the checkpoint's float32 weights are not in the file.

    Raises:
        UnreadableArtefact: always.
    """
    raise UnreadableArtefact(f"{path}: its weights are rounded to float16: convert from a float32 artefact instead")
