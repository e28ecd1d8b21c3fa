"""TensorFlow's converter to LiteRT: what only writing a LiteRT file needs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.agents.network import FRAMES, HEIGHT, NATURE_STRIDES, WIDTH, CategoricalHead, Network
from convert.formats.parameter_trees import to_params
from convert.frameworks.native_logs import without_native_logs
from convert.frameworks.quiet_tensorflow import tf

# What stays float32 in an int8 file: the first product, the head under the names that the converter gives it, and
# C51's tail. An int8 head has 256 levels for all Q-values, whose differences between actions are finer.
_FLOAT_OPERATORS = ["MUL", "SOFTMAX", "SUM"]
_FLOAT_NODES = ["MatMul_1;add_1", "StatefulPartitionedCall:0", "PartitionedCall:0"]


def convert_to_float32(network: Network) -> bytes:
    """Return a network as a file with float32 weights."""
    return bytes(_make_converter(network).convert())


def convert_to_float16(network: Network) -> bytes:
    """Return a network as a file with its weights rounded to float16."""
    converter = _make_converter(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    return bytes(converter.convert())


def convert_to_int8(network: Network, observations: NDArray[np.uint8]) -> bytes:
    """Return a network as a file with int8 convolutions and hidden layer, calibrated on uint8[N, 84, 84, 4]."""
    converter = _make_converter(network)
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
    return bytes(debugger.get_nondebug_quantized_model())


def _make_converter(network: Network) -> Any:
    """Return TensorFlow's converter of a network, which can still be given options."""
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
