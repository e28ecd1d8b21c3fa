"""LiteRT with float16 weights: half the size, computed in float32. Cannot be converted back."""

from __future__ import annotations

from pathlib import Path

from convert.agents.agent import Agent
from convert.agents.network import Network
from convert.errors import UnreadableArtefact
from convert.formats import litert_files, litert_weights

PATH = "model_float16.tflite"
AXES = "NHWC"
RUNTIME = "litert"
FORMAT_VERSION = 2
EXTRA = "litert"
PACKAGES = ("ai_edge_litert", "flatbuffers", "tensorflow")
IN_ALL = False
QUANTIZED = True


def write(network: Network, agent: Agent, path: Path) -> None:  # noqa: ARG001
    """Write the model with its weights rounded to float16."""
    from convert.formats.tensorflow_lite import convert_to_float16  # reading needs no TensorFlow

    path.write_bytes(litert_files.rebuild(convert_to_float16(network), network.architecture, "float16"))


find_obstacle = litert_files.find_obstacle


def read(path: Path, agent: Agent) -> Network:  # noqa: ARG001
    """Refuse: the checkpoint's float32 weights are not in the file.

    Raises:
        UnreadableArtefact: always.
    """
    raise UnreadableArtefact(f"{path}: its weights are rounded to float16: convert from a float32 artefact instead")


def find_losses(path: Path, network: Network) -> list[str]:
    """Return the weights that are further from the network's than rounding explains."""
    return litert_weights.find_losses(path, network, "float16")


def rebuild(network: Network | None, agent: Agent, path: Path, to: Path) -> None:  # noqa: ARG001
    """Write at ``to`` what was looked at of the file at ``path``, and nothing else: rounded weights read as no network.

    Raises:
        UnreadableArtefact: it is damaged, of another network, or holds what no such agent needs.
    """
    to.write_bytes(litert_weights.rebuild(path, agent.architecture, "float16"))
