"""LiteRT in int8: a quarter of the size, calibrated on recorded frames; the head stays float32. Cannot go back."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.agents.agent import Agent
from convert.agents.architecture import Architecture
from convert.agents.layout import nhwc_from_nchw
from convert.agents.network import Network
from convert.errors import UnreadableArtefact
from convert.formats import litert_files
from convert.formats import litert_weights as litert
from convert.targets.litert import rebuild

__all__ = ["find_losses", "read", "rebuild", "write"]

PATH = "model_int8.tflite"
AXES = "NHWC"
RUNTIME = "litert"
FORMAT_VERSION = 1
EXTRA = "litert"
PACKAGES = ("ai_edge_litert", "flatbuffers", "tensorflow")
IN_ALL = False
QUANTIZED = True

find_losses = litert.find_losses


def write(network: Network, agent: Agent, path: Path) -> None:
    """Write the model with int8 convolutions and hidden layer."""
    from convert.formats.tensorflow_lite import convert_to_int8  # reading needs no TensorFlow

    converted = convert_to_int8(network, read_calibration(agent.identity.game))
    path.write_bytes(litert_files.rebuild(converted, network.architecture))


def find_obstacle(architecture: Architecture) -> str | None:
    """Return why an architecture cannot be rounded to int8 here: calibration frames are 84 pixels, 4 in a stack."""
    if architecture.head.streams != "single":
        return "rounds networks of one stream"
    observation = architecture.observation
    return None if (observation.frames, observation.size) == (4, 84) else "is calibrated on observations of 4, 84, 84"


def read(path: Path, agent: Agent) -> Network:  # noqa: ARG001
    """Refuse: the checkpoint's float32 weights are not in the file.

    Raises:
        UnreadableArtefact: always.
    """
    raise UnreadableArtefact(f"{path}: its weights are rounded to int8: convert from a float32 artefact instead")


def read_calibration(game: str | None) -> NDArray[np.uint8]:
    """Return recorded observations of a game, uint8[8, 84, 84, 4]; without a game, one of each of the 60."""
    with files("convert.formats").joinpath("calibration.npz").open("rb") as file, np.load(file) as recorded:
        if game is not None:
            return nhwc_from_nchw(recorded[game])
        return nhwc_from_nchw(np.stack([recorded[name][0] for name in sorted(recorded)]))
