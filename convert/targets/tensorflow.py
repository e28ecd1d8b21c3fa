"""TensorFlow SavedModel with the signature ``serving_default``, for ``tf.saved_model.load`` and TensorFlow Serving.

A SavedModel is a graph (``saved_model.pb``) and its variables. The graph depends on the network's shape alone, so
it is traced once for each shape in a process, and each agent adds its variables. TensorFlow numbers the functions
of a graph by a counter of the process and notes the machine's devices: both are normalised, so that the same
network gives the same bytes. ``fingerprint.pb`` is left out: it is random, and loading does not need it.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from convert import layout
from convert.agent import Agent
from convert.errors import UnreadableArtefact, UnwritableOutput
from convert.network import FRAMES, HEIGHT, WIDTH, Float32, Network, arrays, from_arrays
from convert.quiet_tensorflow import tf
from convert.targets import Policy
from convert.template import Form, form_of, make_zeros

from tensorflow.core.protobuf.saved_model_pb2 import SavedModel  # isort: skip - after TensorFlow's quiet start

PATH = "saved_model"
AXES = "NHWC"
FORMAT_VERSION = 1
PACKAGES = ("tensorflow",)
IN_ALL = True
EXTRA = "tensorflow"

_SIGNATURE = "serving_default"
_GRAPH_FILE = "saved_model.pb"
_VARIABLES = "variables/variables"
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclass(frozen=True)
class _Template:
    """The files of a SavedModel without its values: the graph, and what a checkpoint says of the objects in it."""

    graph: bytes
    object_graph: bytes


def write(network: Network, agent: Agent, path: Path) -> None:  # noqa: ARG001
    """Write the network as a SavedModel. The same network gives the same bytes.

    Args:
        network: what to write.
        agent: unused: a SavedModel has no place for an identity.
        path: the folder, which does not exist yet.

    Raises:
        OSError: the folder cannot be written.
        UnwritableOutput: TensorFlow could not write the variables.
    """
    variables = _variables_from_network(network)
    template = _build_template(form_of(network))
    (path / _VARIABLES).parent.mkdir(parents=True)
    (path / _GRAPH_FILE).write_bytes(template.graph)
    try:
        _write_variables(path / _VARIABLES, variables, template.object_graph)
    except tf.errors.OpError as error:
        raise UnwritableOutput(f"{path}: TensorFlow cannot write the variables: {error.message}") from None


def read(path: Path, agent: Agent) -> Network:  # noqa: ARG001
    """Read a SavedModel that ``write`` wrote, bit for bit, from its graph and its variables on disk.

    Raises:
        UnreadableArtefact: a file is missing or damaged, or the graph or the variables are not what this target writes.
    """
    graph = _read_graph(path / _GRAPH_FILE)
    strides, paddings = _read_geometry(graph, path)
    variables, object_graph = _read_variables(path)
    network = _network_from_variables(variables, strides, paddings, path)
    template = _build_template(form_of(network))
    if object_graph != template.object_graph or not _is_same_graph(graph, template):
        written_by = graph.meta_graphs[0].meta_info_def.tensorflow_version or "an unknown version"
        raise UnreadableArtefact(
            f"{path}: its graph (by TensorFlow {written_by}) is not the one that TensorFlow {tf.__version__} traces "
            "for these variables: not a SavedModel of atari-convert, or changed since; convert the agent again"
        )
    return network


def load(path: Path, agent: Agent) -> Policy:  # noqa: ARG001
    """Load the SavedModel with ``tf.saved_model.load`` alone: uint8[N, 84, 84, 4] to its outputs by name."""
    signature = tf.saved_model.load(str(path)).signatures[_SIGNATURE]

    def policy(observation: NDArray[np.uint8]) -> dict[str, Float32]:
        return {name: values.numpy() for name, values in signature(observation=tf.constant(observation)).items()}

    return policy


class _Affine(tf.Module):  # type: ignore[misc]
    """The variables of one layer."""

    def __init__(self, kernel: Any, bias: Any) -> None:
        self.kernel = kernel
        self.bias = bias


class _Head(_Affine):
    def __init__(self, kernel: Any, bias: Any, support: Any) -> None:
        super().__init__(kernel, bias)
        if support is not None:
            self.support = support


class _Model(tf.Module):  # type: ignore[misc]
    """The network in TensorFlow's layout. Its attributes name the variables: ``convs/0/kernel``, ``head/bias`` …"""

    def __init__(self, form: Form) -> None:
        zeros = make_zeros(form)
        variables = {
            key: tf.Variable(array, name=key, trainable=key != "head/support")
            for key, array in sorted(_variables_from_network(zeros).items())
        }
        self.convs = [
            _Affine(variables[f"convs/{index}/kernel"], variables[f"convs/{index}/bias"])
            for index in range(len(form.strides))
        ]
        self.hidden = _Affine(variables["hidden/kernel"], variables["hidden/bias"])
        self.head = _Head(variables["head/kernel"], variables["head/bias"], variables.get("head/support"))
        self._form = form

    @tf.function(input_signature=[tf.TensorSpec([None, HEIGHT, WIDTH, FRAMES], tf.uint8, name="observation")])  # type: ignore[untyped-decorator]
    def serve(self, observation: Any) -> dict[str, Any]:
        x = tf.cast(observation, tf.float32) / 255.0
        for conv, stride, padding in zip(self.convs, self._form.strides, self._form.paddings, strict=True):
            x = tf.nn.conv2d(x, conv.kernel, stride, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
            x = tf.nn.relu(x + conv.bias)
        x = tf.reshape(x, [-1, self.hidden.kernel.shape[0]])
        x = tf.nn.relu(x @ self.hidden.kernel + self.hidden.bias)
        rows = x @ self.head.kernel + self.head.bias
        if not hasattr(self.head, "support"):
            return {"q_values": rows}
        atoms = self.head.support.shape[0]
        logits = tf.reshape(rows, [-1, rows.shape[1] // atoms, atoms])
        return {"q_values": tf.reduce_sum(tf.nn.softmax(logits) * self.head.support, axis=-1), "logits": logits}


def _variables_from_network(network: Network) -> dict[str, Float32]:
    """Return the variables by key: kernels [H, W, I, O] and [I, O], the hidden one with its rows in H,W,C order."""
    variables = {name.replace(".", "/"): array for name, array in arrays(network).items()}
    for index, conv in enumerate(network.convs):
        variables[f"convs/{index}/kernel"] = layout.hwio_from_oihw(conv.kernel)
    channels = network.convs[-1].kernel.shape[0]
    variables["hidden/kernel"] = layout.hwc_o_from_o_chw(network.hidden.kernel, channels)
    variables["head/kernel"] = layout.io_from_oi(network.head.dense.kernel)
    return variables


def _network_from_variables(
    variables: dict[str, Float32], strides: tuple[int, ...], paddings: tuple[int, ...], path: Path
) -> Network:
    try:
        named = {key.replace("/", "."): array for key, array in variables.items()}
        for index in range(len(strides)):
            named[f"convs.{index}.kernel"] = layout.oihw_from_hwio(variables[f"convs/{index}/kernel"])
        channels = named[f"convs.{len(strides) - 1}.kernel"].shape[0]
        named["hidden.kernel"] = layout.o_chw_from_hwc_o(variables["hidden/kernel"], channels)
        named["head.kernel"] = layout.oi_from_io(variables["head/kernel"])
        return from_arrays(named, strides, paddings)
    except (KeyError, ValueError) as error:
        raise UnreadableArtefact(
            f"{path}: has the variables {_list_shapes(variables)}: not a SavedModel of atari-convert ({error})"
        ) from None


@lru_cache(maxsize=64)
def _build_template(form: Form) -> _Template:
    """Trace and save a model of zeros, in memory, and keep what does not depend on its values."""
    folder = f"ram://atari-convert-{os.getpid()}-{threading.get_ident()}"
    with tf.device("CPU:0"):
        model = _Model(form)
        tf.saved_model.save(model, folder, signatures={_SIGNATURE: model.serve})
    try:
        with tf.io.gfile.GFile(f"{folder}/{_GRAPH_FILE}", "rb") as file:
            graph = SavedModel.FromString(file.read())
        reader = tf.compat.v1.train.NewCheckpointReader(f"{folder}/{_VARIABLES}")
        object_graph = reader.get_tensor(_OBJECT_GRAPH)
    finally:
        tf.io.gfile.rmtree(folder)
    return _Template(_normalise(graph).SerializeToString(deterministic=True), object_graph)


def _normalise(graph: SavedModel) -> SavedModel:
    """Return the graph without what depends on the process and the machine that traced it."""
    text = text_format.MessageToString(graph)
    counted = re.compile(r"(__inference_\w+_|PartitionedCall-)(\d+)\b")
    numbers = {number: str(index) for index, number in enumerate(sorted({int(n) for _, n in counted.findall(text)}))}
    normal = text_format.Parse(counted.sub(lambda match: match[1] + numbers[int(match[2])], text), SavedModel())
    for meta_graph in normal.meta_graphs:
        functions = meta_graph.graph_def.library.function
        functions.sort(key=lambda function: function.signature.name)
        for node in [*meta_graph.graph_def.node, *(node for function in functions for node in function.node_def)]:
            node.attr.pop("config_proto", None)  # the number of the machine's devices; empty is the default
        for argument in (argument for function in functions for argument in function.arg_attr.values()):
            name = argument.attr.get("_user_specified_name")
            if name is not None and name.s.isdigit():  # a captured variable's number in the process
                del argument.attr["_user_specified_name"]
    return normal


def _is_same_graph(graph: SavedModel, template: _Template) -> bool:
    """Tell whether a graph is the template's, apart from what names the version of TensorFlow that wrote it."""
    expected = SavedModel.FromString(template.graph)
    return bool(_without_versions(graph) == _without_versions(expected))


def _without_versions(graph: SavedModel) -> Message:
    plain = SavedModel()
    plain.CopyFrom(graph)
    for meta_graph in plain.meta_graphs:
        for name in ("stripped_op_list", "tensorflow_version", "tensorflow_git_version"):
            meta_graph.meta_info_def.ClearField(name)
        meta_graph.graph_def.ClearField("versions")
    return plain


def _read_graph(file: Path) -> SavedModel:
    try:
        graph = SavedModel.FromString(file.read_bytes())
    except (OSError, DecodeError) as error:
        raise UnreadableArtefact(f"{file}: cannot be read as a SavedModel ({error}): convert the agent again") from None
    if len(graph.meta_graphs) != 1:
        raise UnreadableArtefact(
            f"{file}: holds {len(graph.meta_graphs)} graphs, expected 1: not a SavedModel of atari-convert"
        )
    return graph


def _read_geometry(graph: SavedModel, path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the strides and the paddings of the convolutions, in the order of the forward pass."""
    functions = graph.meta_graphs[0].graph_def.library.function
    convs = [node.attr for function in functions for node in function.node_def if node.op == "Conv2D"]
    strides = tuple(attr["strides"].list.i[1] for attr in convs if len(attr["strides"].list.i) == 4)
    paddings = tuple(
        attr["explicit_paddings"].list.i[2] for attr in convs if len(attr["explicit_paddings"].list.i) == 8
    )
    if not convs or not len(convs) == len(strides) == len(paddings):
        raise UnreadableArtefact(
            f"{path}: has {len(convs)} convolutions, {len(paddings)} of them with explicit padding: "
            "not a SavedModel of atari-convert"
        )
    return strides, paddings


def _write_variables(prefix: Path, variables: dict[str, Float32], object_graph: bytes) -> None:
    with tf.device("CPU:0"):
        tf.raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=[_OBJECT_GRAPH, *map(_checkpoint_key, variables)],
            shape_and_slices=[""] * (len(variables) + 1),
            tensors=[tf.constant(object_graph), *map(tf.constant, variables.values())],
        )


def _read_variables(path: Path) -> tuple[dict[str, Float32], bytes]:
    """Return the variables in the order of the forward pass, and the description of the objects beside them."""
    try:
        reader = tf.train.load_checkpoint(str(path / _VARIABLES))
        tensors = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
        raise UnreadableArtefact(f"{path / _VARIABLES}.*: cannot be read ({error}): convert the agent again") from None
    object_graph = tensors.pop(_OBJECT_GRAPH, b"")
    variables = {key.removesuffix(_checkpoint_key("")): tensor for key, tensor in tensors.items()}
    if any(not isinstance(array, np.ndarray) or array.dtype != np.float32 for array in variables.values()):
        raise UnreadableArtefact(f"{path}: has variables that are not float32: not a SavedModel of atari-convert")
    return variables, object_graph


def _checkpoint_key(name: str) -> str:
    return f"{name}/.ATTRIBUTES/VARIABLE_VALUE"


def _list_shapes(variables: dict[str, Float32]) -> str:
    return ", ".join(f"{key} {list(array.shape)}" for key, array in sorted(variables.items())) or "none"
