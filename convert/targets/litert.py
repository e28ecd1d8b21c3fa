"""LiteRT: a float32 ``.tflite`` file with a batch signature, which runs without TensorFlow.

``observation`` uint8[batch, 84, 84, 4] to ``q_values``, and ``logits`` of a C51 agent.
"""

from __future__ import annotations

from pathlib import Path

import ai_edge_litert  # noqa: F401 - named in PACKAGES

from convert.agents.agent import Agent
from convert.agents.network import Network
from convert.formats import litert_files, litert_weights

PATH = "model.tflite"
AXES = "NHWC"
RUNTIME = "litert"
FORMAT_VERSION = 2
EXTRA = "litert"
PACKAGES = ("ai_edge_litert", "flatbuffers", "tensorflow")
IN_ALL = True


def write(network: Network, agent: Agent, path: Path) -> None:  # noqa: ARG001
    """Write the model as float32."""
    from convert.formats.tensorflow_lite import convert_to_float32  # reading needs no TensorFlow

    converted = litert_weights.restore_biases(convert_to_float32(network), network)
    path.write_bytes(litert_files.rebuild(converted, network.architecture, "float32"))


find_obstacle = litert_files.find_obstacle


def read(path: Path, agent: Agent) -> Network:
    """Read the weights back; the model is not run.

    Raises:
        UnreadableArtefact: it is damaged, or of another network.
    """
    return litert_weights.read_network(path, agent.architecture, "float32")[0]


def rebuild(network: Network | None, agent: Agent, path: Path, to: Path) -> None:  # noqa: ARG001
    """Write at ``to`` what was looked at of the file at ``path``, and nothing else: rounded weights read as no network.

    Raises:
        UnreadableArtefact: as `read` of float32 weights does.
    """
    to.write_bytes(litert_weights.rebuild(path, agent.architecture, "float32"))
