"""ONNX: one file for onnxruntime and everything that speaks ONNX, opset 17.

The graph is built node by node, without tracing, in PyTorch's layout: ``observation`` uint8[batch, 4, 84, 84] to
``q_values`` float32[batch, actions], and ``logits`` or ``quantiles`` float32[batch, actions, …] of such a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from convert.agents.agent import Agent, Tensor
from convert.agents.architecture import Architecture, Head, erase_support, list_shapes
from convert.agents.network import Float32, Network, from_arrays
from convert.errors import UnreadableArtefact
from convert.files.disk import read_file
from convert.files.documents import show
from convert.files.protobufs import find_fields
from convert.formats.atari_agents import find_family
from convert.formats.templates import Template, extract, largest_file, make_template, write_file
from convert.targets import describe_tensors, find_target

PATH = "model.onnx"
AXES = "NCHW"
RUNTIME = "onnxruntime"
FORMAT_VERSION = 1
EXTRA = "onnx"
PACKAGES = ("onnx",)
IN_ALL = True
DESCRIBES = True

OPSET = 17
_LARGEST_REST = 2**16  # bytes beside the weights; ours has 3000


def write(network: Network, agent: Agent, path: Path) -> None:
    """Write the network as one ONNX file, with the agent's identity in its metadata."""
    write_file(path, _find_template(erase_support(network.architecture)), network.arrays, _serialize_metadata(agent))


def read(path: Path, agent: Agent) -> Network:
    """Read a file that `write` wrote: its weights, and that nothing else is in its graph.

    Raises:
        UnreadableArtefact: it is not ONNX, or its graph is not the agent's.
    """
    data = read_file(path, largest_file(agent.architecture))
    weights = extract(_find_template(erase_support(agent.architecture)), data, _serialize_metadata(agent))
    return _read_model(data, agent, path) if weights is None else _to_network(weights, agent, path)


def _to_network(weights: Mapping[str, Float32], agent: Agent, path: Path) -> Network:
    try:
        return from_arrays(weights, agent.architecture)
    except ValueError as error:
        raise UnreadableArtefact(f"{path}: {error}: convert the agent again") from error


def _read_model(data: bytes, agent: Agent, path: Path) -> Network:
    """Read a file that another version of onnx serialised."""
    try:
        _check_outline(data)
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError is another class in each of its implementations
        raise UnreadableArtefact(f"{path}: not an ONNX file ({show(str(error))}): convert the agent again") from error
    names = list_shapes(agent.architecture)
    weights = {tensor.name: _to_array(tensor) for tensor in model.graph.initializer if tensor.name in names}
    network = _to_network(weights, agent, path)
    expected = _build_model(network)
    helper.set_model_props(expected, _metadata(agent))
    # Not by comparing messages: what this version of onnx does not know is kept in the bytes alone.
    if model.SerializeToString(deterministic=True) != expected.SerializeToString(deterministic=True):
        known = {node.op_type for node in expected.graph.node}
        foreign = [node.op_type for node in model.graph.node if node.op_type not in known or node.domain]
        reason = f"hold the operation {show(foreign[0])}, which no such agent needs" if foreign else "differ"
        raise UnreadableArtefact(
            f"{path}: its graph or metadata {reason}, expected what atari-convert writes for it: convert it again"
        )
    return network


def _check_outline(data: bytes) -> None:
    """Raise unless a file is little more than the values in it: ModelProto.graph.initializer.raw_data."""
    rest = len(data) - sum(end - start for start, end in find_fields(data, (7, 5, 9)))
    if rest > _LARGEST_REST:
        raise ValueError(f"{rest} bytes beside its weights, expected at most {_LARGEST_REST}")


@lru_cache(maxsize=64)
def _find_template(architecture: Architecture) -> Template:
    def serialize(weights: dict[str, Float32]) -> bytes:
        return bytes(_build_graph(architecture, weights).SerializeToString(deterministic=True))

    return make_template(serialize, list_shapes(architecture))


def _serialize_metadata(agent: Agent) -> bytes:
    """Return the model's last field, which follows the graph in a file."""
    model = onnx.ModelProto()
    helper.set_model_props(model, _metadata(agent))
    return bytes(model.SerializeToString(deterministic=True))


def _build_model(network: Network) -> onnx.ModelProto:
    return _build_graph(network.architecture, network.arrays)


def _build_graph(architecture: Architecture, arrays: Mapping[str, Float32]) -> onnx.ModelProto:
    inputs, outputs = describe_tensors(find_target("onnx"), architecture)
    constants = _list_constants(architecture)
    graph = helper.make_graph(
        _build_nodes(architecture),
        "agent",
        [_value_info(tensor) for tensor in inputs],
        [_value_info(tensor) for tensor in outputs],
        [_to_tensor(name, array) for name, array in {**constants, **arrays}.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    # The helper's default IR version is newer than onnxruntime reads.
    ir_version = helper.find_min_ir_version_for(opsets)
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, producer_name="atari-convert")


def _metadata(agent: Agent) -> dict[str, str]:
    identity = agent.identity
    known = {
        "family": find_family(identity),
        "algorithm": identity.algorithm,
        "protocol": identity.protocol,
        "game": identity.game,
        "seed": identity.seed,
        "step": identity.step,
        "action_meanings": ",".join(agent.action_meanings) if agent.action_meanings else None,
        "source_sha256": agent.source.sha256,
    }
    return {key: str(value) for key, value in known.items() if value is not None}


def _build_nodes(architecture: Architecture) -> list[onnx.NodeProto]:
    nodes = [
        helper.make_node("Cast", ["observation"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "pixels.max"], ["scaled"]),
    ]
    previous = "scaled"
    for index, conv in enumerate(architecture.convs):
        inputs = [previous, f"convs.{index}.kernel", f"convs.{index}.bias"]
        before, after = conv.padding
        nodes.append(
            helper.make_node(
                "Conv",
                inputs,
                [f"convs.{index}.sum"],
                strides=[conv.stride] * 2,
                pads=[before, before, after, after],
            )
        )
        previous = _add_relu(nodes, f"convs.{index}")
    nodes.append(helper.make_node("Flatten", [previous], ["features"], axis=1))
    previous = "features"
    for layer in architecture.hidden_layers:
        inputs = [previous, f"{layer}.kernel", f"{layer}.bias"]
        nodes.append(helper.make_node("Gemm", inputs, [f"{layer}.sum"], transB=1))
        previous = _add_relu(nodes, layer)
    return nodes + _build_head(architecture.head, previous)


def _add_relu(nodes: list[onnx.NodeProto], layer: str) -> str:
    nodes.append(helper.make_node("Relu", [f"{layer}.sum"], [f"{layer}.out"]))
    return f"{layer}.out"


def _build_head(head: Head, features: str) -> list[onnx.NodeProto]:
    """Return the nodes from the last hidden layer to the outputs. The name of the rows depends on who takes them."""
    rows = {"q": "q_values", "categorical": "head.out", "quantile": "head.out"}[head.kind]
    reshaped = {"q": "", "categorical": "logits", "quantile": "quantiles"}[head.kind]
    if head.streams == "single":
        nodes = [helper.make_node("Gemm", [features, "head.kernel", "head.bias"], [rows], transB=1)]
        nodes += [helper.make_node("Reshape", [rows, f"{reshaped}.shape"], [reshaped])] if reshaped else []
    else:
        nodes = _build_streams(head, features, reshaped or "advantaged")
        nodes += [] if reshaped else [helper.make_node("Flatten", ["advantaged"], ["q_values"], axis=1)]
    if head.kind == "categorical":
        nodes += [
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
            helper.make_node("Mul", ["probabilities", "head.support"], ["weighted"]),
            helper.make_node("ReduceSum", ["weighted", "atom.axis"], ["q_values"], keepdims=0),
        ]
    elif head.kind == "quantile":
        nodes.append(helper.make_node("ReduceMean", ["quantiles"], ["q_values"], axes=[-1], keepdims=0))
    return nodes


def _build_streams(head: Head, features: str, output: str) -> list[onnx.NodeProto]:
    """Return the nodes of ``value + advantage - mean(advantage)``, float32[batch, actions, width]."""
    parts, nodes = [features, features], []
    if head.streams == "split":
        parts = ["advantage.features", "value.features"]
        nodes.append(helper.make_node("Split", [features], parts, axis=1))
    for layer, part in zip(head.layers, parts, strict=True):
        nodes.append(helper.make_node("Gemm", [part, f"{layer}.kernel", f"{layer}.bias"], [f"{layer}.out"], transB=1))
        nodes.append(helper.make_node("Reshape", [f"{layer}.out", f"{layer}.shape"], [f"{layer}.rows"]))
    return [
        *nodes,
        helper.make_node("Add", ["value.rows", "advantage.rows"], ["streams.sum"]),
        helper.make_node("ReduceMean", ["advantage.rows"], ["advantage.mean"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["streams.sum", "advantage.mean"], [output]),
    ]


def _list_constants(architecture: Architecture) -> dict[str, np.ndarray[Any, Any]]:
    head = architecture.head
    constants: dict[str, np.ndarray[Any, Any]] = {"pixels.max": np.array(architecture.observation.scale, np.float32)}
    if head.streams != "single":
        constants["advantage.shape"] = np.array([-1, head.actions, head.width], np.int64)
        constants["value.shape"] = np.array([-1, 1, head.width], np.int64)
    elif head.kind != "q":
        constants[f"{head.outputs[1]}.shape"] = np.array([-1, head.actions, head.width], np.int64)
    if head.kind == "categorical":
        constants["atom.axis"] = np.array([-1], np.int64)
    return constants


def _value_info(tensor: Tensor) -> onnx.ValueInfoProto:
    shape = [size if size is not None else axis for size, axis in zip(tensor.shape, tensor.axes, strict=True)]
    return helper.make_tensor_value_info(tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), shape)


def _to_tensor(name: str, array: np.ndarray[Any, Any]) -> onnx.TensorProto:
    data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return TensorProto(name=name, data_type=data_type, dims=array.shape, raw_data=little_endian.tobytes())


def _to_array(tensor: onnx.TensorProto) -> np.ndarray[Any, Any]:
    """Return a tensor's values; none where they are not plain bytes in the file, which no graph of ours has."""
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.frombuffer(tensor.raw_data, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(tensor.dims)
    except (KeyError, ValueError, TypeError):
        return np.zeros(0)
