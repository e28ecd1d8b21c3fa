"""TensorFlow's converter to LiteRT: what only writing a LiteRT file needs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.agents.architecture import Conv
from convert.agents.network import SUPPORT, Network
from convert.formats.parameter_trees import to_params
from convert.frameworks.native_logs import without_native_logs
from convert.frameworks.quiet_tensorflow import tf
from convert.networks.tensorflow_heads import to_outputs

# What stays float32 in an int8 file: the first product, the head under the names that the converter gives it, and
# what follows it. An int8 head has 256 levels for all Q-values, whose differences between actions are finer.
_FLOAT_OPERATORS = ["MUL", "SOFTMAX", "SUM", "MEAN"]
_FLOAT_NODES = ["StatefulPartitionedCall:0", "PartitionedCall:0"]


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
    head = len(network.architecture.hidden)
    options = tf.lite.experimental.QuantizationDebugOptions(
        denylisted_ops=_FLOAT_OPERATORS, denylisted_nodes=[f"MatMul_{head};add_{head}", *_FLOAT_NODES]
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
    architecture, support = network.architecture, network.arrays.get(SUPPORT)
    head, shape = architecture.head, architecture.observation
    dense = [layers[name] for name in layers if name.startswith("Dense")]
    spec = tf.TensorSpec([None, shape.size, shape.size, shape.frames], tf.uint8, name="observation")

    @tf.function(input_signature=[spec])  # type: ignore[untyped-decorator]
    def serve(observation: Any) -> dict[str, Any]:
        features = tf.cast(observation, tf.float32)
        if shape.scale != 1:
            # The ReLU changes no pixel. Without it the converter folds 1/255 into the first kernel, whose weights
            # would no longer read back.
            features = tf.nn.relu(features / shape.scale)
        for index, conv in enumerate(architecture.convs):
            layer = layers[f"Conv_{index}"]
            features = tf.nn.conv2d(features, layer["kernel"], conv.stride, _to_paddings(conv))
            features = tf.nn.relu(tf.nn.bias_add(features, layer["bias"]))
        features = tf.reshape(features, [-1, dense[0]["kernel"].shape[0]])
        for layer in dense[: len(architecture.hidden)]:
            features = tf.nn.relu(tf.matmul(features, layer["kernel"]) + layer["bias"])
        parts = tf.split(features, 2, axis=1) if head.streams == "split" else [features] * 2
        last = zip(dense[len(architecture.hidden) :], parts, strict=False)
        rows = [tf.matmul(part, layer["kernel"]) + layer["bias"] for layer, part in last]
        return to_outputs(rows, head, support)

    owner = tf.Module()
    owner.serve = serve
    return tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], owner)


def _to_paddings(conv: Conv) -> Any:
    if not any(conv.padding):
        return "VALID"
    return [[0, 0], list(conv.padding), list(conv.padding), [0, 0]]
