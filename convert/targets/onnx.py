"""ONNX: one file for onnxruntime and everything that speaks ONNX, opset 17.

The graph is built node by node, without tracing, in PyTorch's layout: ``observation`` uint8[batch, 4, 84, 84] to
``q_values`` float32[batch, actions], and ``logits`` float32[batch, actions, atoms] of a categorical head.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from convert.agents.agent import Agent, Tensor, describe_head
from convert.agents.network import CategoricalHead, Float32, Network, arrays, from_arrays
from convert.errors import UnreadableArtefact
from convert.files.disk import read_file
from convert.files.documents import show
from convert.files.protobufs import find_fields
from convert.formats.atari_agents import find_family
from convert.formats.templates import (
    Form,
    Template,
    extract,
    form_of,
    largest_file,
    make_template,
    nature_form,
    to_network,
    write_file,
)
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
    write_file(path, _find_template(form_of(network)), arrays(network), _serialize_metadata(agent))


def read(path: Path, agent: Agent) -> Network:
    """Read a file that `write` wrote: weights, strides and padding, and that nothing else is in its graph.

    Raises:
        UnreadableArtefact: it is not ONNX, or its graph is not one of ours.
    """
    data = read_file(path, largest_file(agent.head))
    form = nature_form(agent.head.actions, agent.head.atoms)
    weights = extract(_find_template(form), data, _serialize_metadata(agent))
    network = _read_model(data, agent, path) if weights is None else to_network(form, weights)
    if form_of(network) != form:
        raise UnreadableArtefact(
            f"{path}: has other shapes, strides or paddings than a Nature-CNN of {agent.head.actions} actions: "
            "convert the agent again"
        )
    return network


def _read_model(data: bytes, agent: Agent, path: Path) -> Network:
    """Read a file that another version of onnx serialised, or a network of another form."""
    try:
        _check_outline(data)
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError is another class in each of its implementations
        raise UnreadableArtefact(f"{path}: not an ONNX file ({show(str(error))}): convert the agent again") from error
    weights = {tensor.name: _to_array(tensor) for tensor in model.graph.initializer}
    try:
        network = _network_from(model, weights)
        expected = _build_model(network)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UnreadableArtefact(f"{path}: not a graph that atari-convert wrote ({error})") from error
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
def _find_template(form: Form) -> Template:
    def serialize(weights: dict[str, Float32]) -> bytes:
        return bytes(_build_model(to_network(form, weights)).SerializeToString(deterministic=True))

    return make_template(serialize, dict(form.shapes))


def _serialize_metadata(agent: Agent) -> bytes:
    """Return the model's last field, which follows the graph in a file."""
    model = onnx.ModelProto()
    helper.set_model_props(model, _metadata(agent))
    return bytes(model.SerializeToString(deterministic=True))


def _build_model(network: Network) -> onnx.ModelProto:
    inputs, outputs = describe_tensors(find_target("onnx"), describe_head(network))
    graph = helper.make_graph(
        _build_nodes(network),
        "agent",
        [_value_info(tensor) for tensor in inputs],
        [_value_info(tensor) for tensor in outputs],
        [_to_tensor(name, array) for name, array in _initializers(network).items()],
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


def _build_nodes(network: Network) -> list[onnx.NodeProto]:
    nodes = [
        helper.make_node("Cast", ["observation"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "pixels.max"], ["scaled"]),
    ]
    previous = "scaled"
    for index, conv in enumerate(network.convs):
        name = f"convs.{index}"
        nodes.append(
            helper.make_node(
                "Conv",
                [previous, f"{name}.kernel", f"{name}.bias"],
                [f"{name}.sum"],
                strides=[conv.stride] * 2,
                pads=[conv.padding] * 4,
            )
        )
        nodes.append(helper.make_node("Relu", [f"{name}.sum"], [f"{name}.out"]))
        previous = f"{name}.out"
    nodes.append(helper.make_node("Flatten", [previous], ["features"], axis=1))
    nodes.append(helper.make_node("Gemm", ["features", "hidden.kernel", "hidden.bias"], ["hidden.sum"], transB=1))
    nodes.append(helper.make_node("Relu", ["hidden.sum"], ["hidden.out"]))
    head_inputs = ["hidden.out", "head.kernel", "head.bias"]
    if not isinstance(network.head, CategoricalHead):
        return [*nodes, helper.make_node("Gemm", head_inputs, ["q_values"], transB=1)]
    return [
        *nodes,
        helper.make_node("Gemm", head_inputs, ["head.out"], transB=1),
        helper.make_node("Reshape", ["head.out", "logits.shape"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        helper.make_node("Mul", ["probabilities", "head.support"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "atom.axis"], ["q_values"], keepdims=0),
    ]


def _initializers(network: Network) -> dict[str, np.ndarray[Any, Any]]:
    constants: dict[str, np.ndarray[Any, Any]] = {"pixels.max": np.array(255, np.float32)}
    if isinstance(network.head, CategoricalHead):
        constants["logits.shape"] = np.array([-1, network.head.actions, network.head.atoms], np.int64)
        constants["atom.axis"] = np.array([-1], np.int64)
    return constants | arrays(network)


def _network_from(model: onnx.ModelProto, weights: dict[str, Float32]) -> Network:
    convs = [
        {item.name: helper.get_attribute_value(item) for item in node.attribute}
        for node in model.graph.node
        if node.op_type == "Conv"
    ]
    return from_arrays(weights, [conv["strides"][0] for conv in convs], [conv["pads"][0] for conv in convs])


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
