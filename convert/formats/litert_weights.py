"""What a LiteRT file of ours holds, read without TensorFlow: its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from convert.agents.architecture import Architecture
from convert.agents.network import SUPPORT, Float32, Network
from convert.errors import UnreadableArtefact
from convert.files.disk import read_file
from convert.formats import litert_files
from convert.formats.parameter_trees import from_params, list_layers, to_params
from convert.formats.templates import largest_file

_ABSENT = -1
_DTYPES: dict[int, np.dtype[Any]] = {
    schema.TensorType.FLOAT32: np.dtype("<f4"),
    schema.TensorType.FLOAT16: np.dtype("<f2"),
    schema.TensorType.INT8: np.dtype("i1"),
    schema.TensorType.INT32: np.dtype("<i4"),
}


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant of the file: its values as float32, and the largest rounding error of each, 0 in a float32 file."""

    values: Float32
    rounding: Float32


@dataclass(frozen=True, eq=False)
class _Operator:
    name: str
    inputs: list[int]
    output: int


@dataclass(frozen=True, eq=False)
class _Places:
    """Where a file's constants are: indices of tensors, of each layer's kernel and bias, and of the support."""

    model: Any
    graph: Any
    layers: dict[str, tuple[int, int]]
    support: int | None


def restore_biases(data: bytes, network: Network) -> bytes:
    """Return a float32 model with the network's own biases: the converter adds 0.0 to each, and -0.0 becomes 0.0."""
    changed = bytearray(data)
    places = _find_places(changed, network.architecture)
    for name, layer in to_params(network)["params"].items():
        index = places.layers[name][1]
        if index != _ABSENT:
            stored = places.model.Buffers(places.graph.Tensors(index).Buffer()).DataAsNumpy()
            stored[:] = layer["bias"].view(np.uint8)
    return bytes(changed)


def read_network(path: Path, architecture: Architecture, precision: str) -> tuple[Network, Mapping[str, Float32]]:
    """Return the network that a file holds, as float32, and the largest rounding error of each of its `arrays`.

    Raises:
        UnreadableArtefact: it is damaged, or of another network.
    """
    data = rebuild(path, architecture, precision)
    try:
        weights, support = _read_weights(data, architecture)
        return _to_network(weights, support, architecture), _to_rounding(weights, support, architecture)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UnreadableArtefact(f"{path}: not a LiteRT model of such an agent ({error})") from error


def rebuild(path: Path, architecture: Architecture, precision: str) -> bytes:
    """Return a file anew, from what was looked at, which is all there is.

    Raises:
        UnreadableArtefact: it is damaged, of another network, or holds what no such agent needs.
    """
    data = read_file(path, largest_file(architecture))
    try:
        rebuilt = litert_files.rebuild(data, architecture, precision)
    except ValueError as error:
        raise UnreadableArtefact(f"{path}: not a LiteRT model of such an agent ({error}): convert it again") from error
    if rebuilt != data:
        raise UnreadableArtefact(f"{path}: not a LiteRT model of such an agent (holds more than one): convert it again")
    return rebuilt


def find_losses(path: Path, network: Network, precision: str) -> list[str]:
    """Return the weights that are further from the network's than the file's own rounding explains."""
    found, rounding = read_network(path, network.architecture, precision)
    losses = []
    for name, expected in network.arrays.items():
        actual = found.arrays.get(name)
        if actual is None or actual.shape != expected.shape:
            losses.append(f"{name} is {None if actual is None else actual.shape}, expected {expected.shape}")
            continue
        allowed = np.minimum(rounding[name], _largest_rounding(expected, name, precision))
        # NaN and infinity, whose rounding the file makes infinite too, are never close.
        if not (np.isfinite(actual).all() and (np.abs(actual - expected) <= allowed).all()):
            losses.append(f"{name} is off by {np.abs(actual - expected).max():.3g}")
    return losses


def _read_weights(data: bytes, architecture: Architecture) -> tuple[dict[str, dict[str, Weight]], Weight | None]:
    """Return kernel and bias of each layer as they stand in the file, and the support of a categorical head."""
    places = _find_places(data, architecture)
    weights = {}
    for name, (kernel_index, bias_index) in places.layers.items():
        kernel = _read_tensor(places, kernel_index)
        # TensorFlow leaves out a bias of zeros.
        zeros = np.zeros(len(kernel.values), np.float32)
        bias = Weight(zeros, zeros) if bias_index == _ABSENT else _read_tensor(places, bias_index)
        weights[name] = {"kernel": kernel, "bias": bias}
    return weights, None if places.support is None else _read_tensor(places, places.support)


def _largest_rounding(expected: Float32, name: str, precision: str) -> Float32 | float:
    """Return how far rounding takes values at most, whatever a file claims.

    To float16: half of the distance to the next one. Kernels to int8: TensorFlow's steps are symmetric, and 127 of them
    reach the largest value of a channel, or of all. The steps of int8 biases follow from those of kernels.
    """
    if precision == "float16":
        return np.asarray(np.maximum(np.abs(expected) * 2.0**-11 * 1.001, 2.0**-25), np.float32)
    if precision != "int8" or not name.endswith("kernel"):
        return float("inf")
    largest = float(np.abs(expected).max())
    return largest / 127 * 0.5 * 1.001 + largest * 2.0**-21


def _find_places(data: bytes | bytearray, architecture: Architecture) -> _Places:
    """Return where the constants of a file are that `litert_files.rebuild` has made or TensorFlow has converted."""
    model = schema.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    operators = list(_list_operators(model, graph))
    sources = {operator.output: operator.inputs[0] for operator in operators if operator.name == "DEQUANTIZE"}

    def find(operator: _Operator, position: int) -> int:
        index = operator.inputs[position] if position < len(operator.inputs) else _ABSENT
        return sources.get(index, index)

    layers = [operator for operator in operators if operator.name in ("CONV_2D", "FULLY_CONNECTED")]
    names = [operator.name for operator in operators]
    # The first product with a constant after the softmax is the one with the support.
    weighted = names.index("MUL", names.index("SOFTMAX")) if "SOFTMAX" in names else None
    return _Places(
        model,
        graph,
        {name: (find(layer, 1), find(layer, 2)) for name, layer in zip(list_layers(architecture), layers, strict=True)},
        None if weighted is None else find(operators[weighted], 1),
    )


def _list_operators(model: Any, graph: Any) -> Iterator[_Operator]:
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        name = litert_files.OPERATOR_NAMES[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        yield _Operator(
            name,
            [int(operator.Inputs(position)) for position in range(operator.InputsLength())],
            int(operator.Outputs(0)),
        )


def _read_tensor(places: _Places, index: int) -> Weight:
    tensor = places.graph.Tensors(index)
    stored = places.model.Buffers(tensor.Buffer()).DataAsNumpy()
    if isinstance(stored, int):  # how flatbuffers says that there are none
        raise ValueError(f"tensor {index} is not a constant")  # noqa: TRY004
    values = np.frombuffer(stored.tobytes(), _DTYPES[tensor.Type()]).reshape(tensor.ShapeAsNumpy())
    if values.dtype == np.float32:
        return Weight(values, np.zeros_like(values))
    if values.dtype == np.float16:
        rounded = values.astype(np.float32)
        # Half of the distance to the next float16, which below 2**-14 is constant.
        return Weight(rounded, np.maximum(np.abs(rounded) * 2.0**-11, 2.0**-25).astype(np.float32))
    return _dequantize(values, tensor.Quantization())


def _dequantize(values: NDArray[Any], quantization: Any) -> Weight:
    """Return (values - zero point) * scale, one scale for each output channel, which comes first in LiteRT's order."""
    scale, zero = quantization.ScaleAsNumpy(), quantization.ZeroPointAsNumpy()
    shape = (-1, *[1] * (values.ndim - 1))
    step = np.broadcast_to(scale.reshape(shape), values.shape)
    exact = ((values - zero.reshape(shape)) * step).astype(np.float32)
    # Half a step, and what float32 makes of a value that has many steps: the converter divides and rounds in float32.
    return Weight(exact, (step * 0.5 + np.abs(exact) * 2.0**-21).astype(np.float32))


def _to_network(
    weights: Mapping[str, Mapping[str, Weight]], support: Weight | None, architecture: Architecture
) -> Network:
    """Return the values of weights as a network. LiteRT orders O,H,W,I and [out, in]."""
    tree = {
        name: {"kernel": _from_litert(layer["kernel"].values), "bias": layer["bias"].values}
        for name, layer in weights.items()
    }
    return from_params({"params": tree}, architecture, None if support is None else support.values)


def _to_rounding(
    weights: Mapping[str, Mapping[str, Weight]], support: Weight | None, architecture: Architecture
) -> dict[str, Float32]:
    """Return the rounding of weights by the names of a network's arrays."""
    tree = {
        name: {"kernel": _from_litert(layer["kernel"].rounding), "bias": layer["bias"].rounding}
        for name, layer in weights.items()
    }
    rounding = dict(from_params({"params": tree}, architecture).arrays)
    return rounding if support is None else rounding | {SUPPORT: support.rounding}


def _from_litert(kernel: Float32) -> Float32:
    return np.ascontiguousarray(np.moveaxis(kernel, 0, -1))
