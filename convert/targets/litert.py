"""LiteRT: a float32 ``.tflite`` file with a batch signature, which runs without TensorFlow.

``observation`` uint8[batch, 84, 84, 4] to ``q_values``, and ``logits`` of a C51 agent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ai_edge_litert  # noqa: F401 - named in PACKAGES

from convert import litert
from convert.agent import Agent, describe_head
from convert.formats import litert_files
from convert.network import FRAMES, HEIGHT, NATURE_STRIDES, WIDTH, CategoricalHead, Network
from convert.params import to_params
from convert.quiet_tensorflow import tf
from convert.targets import Policy

PATH = "model.tflite"
AXES = "NHWC"
FORMAT_VERSION = 1
EXTRA = "litert"
PACKAGES = ("ai_edge_litert", "flatbuffers", "tensorflow")
IN_ALL = True


def write(network: Network, agent: Agent, path: Path) -> None:  # noqa: ARG001
    """Write the model as float32."""
    converted = litert.restore_biases(make_converter(network).convert(), network)
    path.write_bytes(litert_files.rebuild(converted, describe_head(network)))


def read(path: Path, agent: Agent) -> Network:
    """Read the weights back; the model is not run.

    Raises:
        UnreadableArtefact: it is damaged, or of another network.
    """
    return litert.read_network(path, agent.head)[0]


def rebuild(path: Path, agent: Agent, to: Path) -> None:
    """Write at ``to`` what was looked at of the file at ``path``, and nothing else.

    Raises:
        UnreadableArtefact: as `read` does.
    """
    to.write_bytes(litert.rebuild(path, agent.head))


def load(path: Path, agent: Agent) -> Policy:  # noqa: ARG001
    """Load the model with LiteRT's interpreter: uint8[N, 84, 84, 4] to its outputs by name."""
    return litert.make_policy(path)


def make_converter(network: Network) -> Any:
    """Return TensorFlow's converter of a network, to be given options by the quantised targets."""
    layers = to_params(network)["params"]
    head = network.head

    @tf.function(input_signature=[tf.TensorSpec([None, HEIGHT, WIDTH, FRAMES], tf.uint8, name="observation")])  # type: ignore[untyped-decorator]
    def serve(observation: Any) -> dict[str, Any]:
        # The ReLU changes no pixel. Without it the converter folds 1/255 into the first kernel, whose weights
        # would no longer read back.
        features = tf.nn.relu(tf.cast(observation, tf.float32) / 255)
        for index, stride in enumerate(NATURE_STRIDES):
            conv = layers[f"Conv_{index}"]
            features = tf.nn.conv2d(features, conv["kernel"], stride, "VALID")
            features = tf.nn.relu(tf.nn.bias_add(features, conv["bias"]))
        hidden, last = layers["Dense_0"], layers["Dense_1"]
        features = tf.reshape(features, [-1, hidden["kernel"].shape[0]])
        features = tf.nn.relu(tf.matmul(features, hidden["kernel"]) + hidden["bias"])
        outputs = tf.matmul(features, last["kernel"]) + last["bias"]
        if not isinstance(head, CategoricalHead):
            return {"q_values": outputs}
        logits = tf.reshape(outputs, [-1, head.actions, head.atoms])
        return {"q_values": tf.reduce_sum(tf.nn.softmax(logits) * head.support, -1), "logits": logits}

    owner = tf.Module()
    owner.serve = serve
    return tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], owner)
