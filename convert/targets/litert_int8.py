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
from convert.formats import litert_files, litert_weights

PATH = "model_int8.tflite"
AXES = "NHWC"
RUNTIME = "litert"
FORMAT_VERSION = 2
EXTRA = "litert"
PACKAGES = ("ai_edge_litert", "flatbuffers", "tensorflow")
IN_ALL = False
QUANTIZED = True


def write(network: Network, agent: Agent, path: Path) -> None:
    """Write the model with int8 convolutions and hidden layer."""
    from convert.formats.tensorflow_lite import convert_to_int8  # reading needs no TensorFlow

    converted = convert_to_int8(network, read_calibration(agent.identity.game))
    path.write_bytes(litert_files.rebuild(converted, network.architecture, "int8"))


def find_obstacle(architecture: Architecture) -> str | None:
    """Return why an architecture cannot be rounded to int8 here: calibration frames are 84 pixels, 4 in a stack."""
    if architecture.head.streams != "single":
        return "rounds networks of one stream"
    if architecture.head.kind == "quantile":  # the converter rounds the quantiles to int8 as well
        return "rounds networks with a Q or categorical head"
    observation = architecture.observation
    if (observation.frames, observation.size) != (4, 84):
        return "is calibrated on observations of 4, 84, 84"
    return litert_files.find_obstacle(architecture)


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


def find_losses(path: Path, network: Network) -> list[str]:
    """Return the weights that are further from the network's than rounding explains."""
    return litert_weights.find_losses(path, network, "int8")


def rebuild(network: Network | None, agent: Agent, path: Path, to: Path) -> None:  # noqa: ARG001
    """Write at ``to`` what was looked at of the file at ``path``, and nothing else: rounded weights read as no network.

    Raises:
        UnreadableArtefact: it is damaged, of another network, or holds what no such agent needs.
    """
    to.write_bytes(litert_weights.rebuild(path, agent.architecture, "int8"))
