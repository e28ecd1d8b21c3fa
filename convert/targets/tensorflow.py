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
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import DecodeError, Message

from convert.agents.agent import Agent
from convert.agents.architecture import Architecture, Conv, erase_support
from convert.agents.network import Float32, Network, from_arrays, make_zeros
from convert.errors import UnreadableArtefact, UnwritableOutput
from convert.files.disk import check_names, make_temporary_folder, read_files
from convert.files.documents import show
from convert.formats.parameter_trees import kernel_from_nhwc, kernel_to_nhwc, list_layers
from convert.formats.templates import MARGIN, Template, extract, largest_file, make_template
from convert.frameworks.quiet_tensorflow import tf
from convert.networks.tensorflow_heads import to_outputs

from tensorflow.core.protobuf.saved_model_pb2 import SavedModel  # isort: skip - after TensorFlow's quiet start

PATH = "saved_model"
AXES = "NHWC"
RUNTIME = "tensorflow"
FORMAT_VERSION = 1
PACKAGES = ("tensorflow",)
IN_ALL = True
EXTRA = "tensorflow"

_SIGNATURE = "serving_default"
_GRAPH_FILE = "saved_model.pb"
_VARIABLES = "variables/variables"
_VARIABLE_FILES = (f"{_VARIABLES}.index", f"{_VARIABLES}.data-00000-of-00001")
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
    template = _build_template(erase_support(network.architecture))
    (path / _VARIABLES).parent.mkdir(parents=True)
    (path / _GRAPH_FILE).write_bytes(template.graph)
    try:
        _write_variables(path / _VARIABLES, variables, template.object_graph)
    except tf.errors.OpError as error:
        raise UnwritableOutput(f"{path}: TensorFlow cannot write the variables: {error.message}") from None


def read(path: Path, agent: Agent) -> Network:
    """Read a SavedModel that ``write`` wrote, bit for bit, from its graph and its variables on disk.

    TensorFlow does not read the files: the graph has to be the one that is traced here, and the variables' bytes have
    to stand where TensorFlow writes them.

    Raises:
        UnreadableArtefact: a file is missing or damaged, or the graph or the variables are not what this target writes.
    """
    architecture = erase_support(agent.architecture)
    files = read_files(path, largest_file(agent.architecture) + MARGIN)
    check_names(path, files, (_GRAPH_FILE, *_VARIABLE_FILES))
    _check_graph(files[f"{path.name}/{_GRAPH_FILE}"], architecture, path)
    index, data = (files[f"{path.name}/{name}"] for name in _VARIABLE_FILES)
    variables = extract(_find_data_template(architecture), data)
    # The index holds the checksums too.
    if variables is None or _serialize_variables(variables, architecture) != (index, data):
        raise UnreadableArtefact(
            f"{path / _VARIABLES}.*: not as TensorFlow writes the variables of this agent: damaged, or of "
            "another agent; convert it again"
        )
    try:
        return _network_from_variables(variables, agent.architecture)
    except ValueError as error:
        raise UnreadableArtefact(f"{path}: {error}: convert the agent again") from error


class _Affine(tf.Module):  # type: ignore[misc]
    """The variables of one layer: ``kernel``, ``bias``, and of a categorical head ``support``."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        for part in ("kernel", "bias", "support"):  # their order is part of the file
            if part in variables:
                setattr(self, part, variables[part])


class _Model(tf.Module):  # type: ignore[misc]
    """The network in TensorFlow's layout. Its attributes name the variables: ``convs/0/kernel``, ``head/bias`` …"""

    def __init__(self, architecture: Architecture) -> None:
        zeros = make_zeros(architecture)
        layers: dict[str, dict[str, Any]] = {}
        for key, array in sorted(_variables_from_network(zeros).items()):
            layer, _, part = key.rpartition("/")
            variable = tf.Variable(array, name=key, trainable=part != "support")
            layers.setdefault(layer, {})[part] = variable
        self.convs = [_Affine(layers[f"convs/{index}"]) for index in range(len(architecture.convs))]
        several = [_Affine(layers.get(f"hidden/{index}", {})) for index in range(len(architecture.hidden))]
        self.hidden: Any = _Affine(layers["hidden"]) if len(architecture.hidden) == 1 else several
        for name in dict.fromkeys((*architecture.head.layers, *(["head"] if "head" in layers else []))):
            setattr(self, name, _Affine(layers[name]))
        self._architecture = architecture

    def serve(self, observation: Any) -> dict[str, Any]:
        architecture, head = self._architecture, self._architecture.head
        x = tf.cast(observation, tf.float32) / float(architecture.observation.scale)
        for layer, conv in zip(self.convs, architecture.convs, strict=True):
            x = tf.nn.relu(tf.nn.conv2d(x, layer.kernel, conv.stride, _to_paddings(conv)) + layer.bias)
        hidden = [self.hidden] if len(architecture.hidden) == 1 else self.hidden
        x = tf.reshape(x, [-1, hidden[0].kernel.shape[0]])
        for layer in hidden:
            x = tf.nn.relu(x @ layer.kernel + layer.bias)
        parts = tf.split(x, 2, axis=1) if head.streams == "split" else [x, x]
        layers = [getattr(self, name) for name in head.layers]
        rows = [part @ layer.kernel + layer.bias for layer, part in zip(layers, parts, strict=False)]
        return to_outputs(rows, head, self.head.support if head.support is not None else None)


def _to_paddings(conv: Conv) -> list[list[int]]:
    return [[0, 0], list(conv.padding), list(conv.padding), [0, 0]]


def _variables_from_network(network: Network) -> dict[str, Float32]:
    """Return the variables by key: kernels [H, W, I, O] and [I, O], the hidden one with its rows in H,W,C order."""
    variables = {name.replace(".", "/"): array for name, array in network.arrays.items()}
    for name, layer in list_layers(network.architecture).items():
        kernel = kernel_to_nhwc(network.arrays[f"{layer}.kernel"], name, network.architecture)
        variables[f"{layer.replace('.', '/')}/kernel"] = kernel
    return variables


def _network_from_variables(variables: Mapping[str, Float32], architecture: Architecture) -> Network:
    named = {key.replace("/", "."): array for key, array in variables.items()}
    for name, layer in list_layers(architecture).items():
        named[f"{layer}.kernel"] = kernel_from_nhwc(named[f"{layer}.kernel"], name, architecture)
    return from_arrays(named, architecture)


@lru_cache(maxsize=64)
def _build_template(architecture: Architecture) -> _Template:
    """Trace and save a model of zeros, in memory, and keep what does not depend on its values."""
    folder = f"ram://atari-convert-{os.getpid()}-{threading.get_ident()}"
    with tf.device("CPU:0"):
        model = _Model(architecture)
        observation = architecture.observation
        shape = [None, observation.size, observation.size, observation.frames]
        model.serve = tf.function(model.serve, [tf.TensorSpec(shape, tf.uint8, name="observation")])  # type: ignore[method-assign]
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


def _check_graph(data: bytes, architecture: Architecture, path: Path) -> None:
    """Raise unless a graph is the one that is traced here, apart from what names the version of TensorFlow."""
    if len(data) > MARGIN:
        raise UnreadableArtefact(f"{path / _GRAPH_FILE}: has {len(data)} bytes, expected at most {MARGIN}")
    try:
        graph = SavedModel.FromString(data)
    except DecodeError as error:
        raise UnreadableArtefact(f"{path}: cannot be read as a SavedModel ({error}): convert the agent again") from None
    expected = SavedModel.FromString(_build_template(architecture).graph)
    # Not by comparing messages: what this version of TensorFlow does not know is kept in the bytes alone.
    found, wanted = (_without_versions(each).SerializeToString(deterministic=True) for each in (graph, expected))
    if found == wanted:
        return
    foreign = sorted(_list_operations(graph) - _list_operations(expected))
    versions = [meta_graph.meta_info_def.tensorflow_version for meta_graph in graph.meta_graphs]
    reason = f"; it holds the operation {show(foreign[0])}, which no such agent needs" if foreign else ""
    raise UnreadableArtefact(
        f"{path}: its graph (by TensorFlow {show(versions[0]) if versions else 'unknown'}) is not the one that "
        f"TensorFlow {tf.__version__} traces for this agent{reason}: not a SavedModel of atari-convert, or changed "
        "since; convert the agent again"
    )


def _list_operations(graph: SavedModel) -> set[str]:
    """Return the operations of a SavedModel and of all its functions."""
    operations: set[str] = set()
    for meta_graph in graph.meta_graphs:
        nodes = [meta_graph.graph_def.node, *(function.node_def for function in meta_graph.graph_def.library.function)]
        operations |= {node.op for part in nodes for node in part}
    return operations


def _without_versions(graph: SavedModel) -> Message:
    plain = SavedModel()
    plain.CopyFrom(graph)
    for meta_graph in plain.meta_graphs:
        for name in ("stripped_op_list", "tensorflow_version", "tensorflow_git_version"):
            meta_graph.meta_info_def.ClearField(name)
        meta_graph.graph_def.ClearField("versions")
    return plain


def _write_variables(prefix: Path, variables: Mapping[str, Float32], object_graph: bytes) -> None:
    with tf.device("CPU:0"):
        tf.raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=[_OBJECT_GRAPH, *map(_checkpoint_key, variables)],
            shape_and_slices=[""] * (len(variables) + 1),
            tensors=[tf.constant(object_graph), *map(tf.constant, variables.values())],
        )


@lru_cache(maxsize=64)
def _find_data_template(architecture: Architecture) -> Template:
    """Return the template of the file of variables."""
    shapes = {key: array.shape for key, array in _variables_from_network(make_zeros(architecture)).items()}
    return make_template(lambda variables: _serialize_variables(variables, architecture)[1], shapes)


def _serialize_variables(variables: Mapping[str, Float32], architecture: Architecture) -> tuple[bytes, bytes]:
    """Return what TensorFlow writes of these variables: the index and the data."""
    with make_temporary_folder() as folder:
        _write_variables(Path(folder, "variables"), variables, _build_template(architecture).object_graph)
        index, data = (Path(folder, Path(name).name).read_bytes() for name in _VARIABLE_FILES)
    return index, data


def _checkpoint_key(name: str) -> str:
    return f"{name}/.ATTRIBUTES/VARIABLE_VALUE"
