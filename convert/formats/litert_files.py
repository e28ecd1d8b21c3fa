"""LiteRT files, screened before LiteRT's interpreter reads them.

A flatbuffer is offsets into itself, which may lead anywhere, and the interpreter trusts sizes and operators that it
finds. So what an agent needs is looked up here, each length within a bound before it is followed; the operators and
the shapes of all that they compute have to be those of such an agent; and a new file is built of what was looked up.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from convert.agents.architecture import Architecture, Conv, Head, Shapes, list_shapes, sides_of
from convert.files.documents import show

_MOST_TENSORS = 100
_MOST_OPERATORS = 50
_LARGEST_SIZE = 2**16  # of an axis
_LARGEST_TENSOR = 2**24  # values
_IDENTIFIER = b"TFL3"
_SIGNATURE = "serving_default"  # the name that TensorFlow gives
_TEXT = re.compile(r"[\w:;/.-]{0,400}", re.ASCII)
_ALIGNMENT = 16  # bytes, as the schema wants it of constants

_SMALLEST_STEP = 1e-30
_ZERO_POINTS = {schema.TensorType.INT8: (-128, 127), schema.TensorType.INT32: (0, 0)}

# The operators of an agent: how many inputs each takes, and how many outputs it gives.
_COMPUTING = {
    "CAST": (1, 1),
    "MUL": (2, 1),
    "PAD": (2, 1),
    "CONV_2D": (3, 1),
    "RESHAPE": (2, 1),
    "FULLY_CONNECTED": (3, 1),
    "SPLIT": (2, 2),
    "MEAN": (2, 1),
    "ADD": (2, 1),
    "SUB": (2, 1),
    "SOFTMAX": (1, 1),
    "SUM": (2, 1),
}
_ROUNDING = {"QUANTIZE": (1, 1), "DEQUANTIZE": (1, 1)}
_ROUNDED_TYPES = {
    "QUANTIZE": [(schema.TensorType.FLOAT32, schema.TensorType.INT8)],
    "DEQUANTIZE": [
        (schema.TensorType.INT8, schema.TensorType.FLOAT32),
        (schema.TensorType.FLOAT16, schema.TensorType.FLOAT32),
    ],
}
OPERATOR_NAMES: dict[int, str] = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
}
_ITEM_SIZES = {
    schema.TensorType.FLOAT32: 4,
    schema.TensorType.FLOAT16: 2,
    schema.TensorType.INT8: 1,
    schema.TensorType.UINT8: 1,
    schema.TensorType.INT32: 4,
    schema.TensorType.INT64: 8,
}
# The options of an operator that has some: the number of their kind in the schema, and the class.
_OPTIONS: dict[str, tuple[int, Any, Any]] = {
    name: (getattr(schema.BuiltinOptions, kind), getattr(schema, kind), getattr(schema, f"{kind}T"))
    for name, kind in {
        "CAST": "CastOptions",
        "MUL": "MulOptions",
        "CONV_2D": "Conv2DOptions",
        "RESHAPE": "ReshapeOptions",
        "FULLY_CONNECTED": "FullyConnectedOptions",
        "SOFTMAX": "SoftmaxOptions",
        "SUM": "ReducerOptions",
        "MEAN": "ReducerOptions",
        "PAD": "PadOptions",
        "SPLIT": "SplitOptions",
        "ADD": "AddOptions",
        "SUB": "SubOptions",
        "QUANTIZE": "QuantizeOptions",
        "DEQUANTIZE": "DequantizeOptions",
    }.items()
}


def find_obstacle(architecture: Architecture) -> str | None:
    """Return why a file that `rebuild` takes cannot hold an architecture: an axis of its weights is too long."""
    longest = max(max(shape) for shape in list_shapes(architecture).values())
    return None if longest <= _LARGEST_SIZE else f"holds axes of at most {_LARGEST_SIZE} values, not of {longest}"


def rebuild(data: bytes, architecture: Architecture, precision: str) -> bytes:
    """Return a file that holds what was looked up of a file of TensorFlow's converter or of ours, and nothing else.

    Of a file that this function made it makes the same again. All but the weights has one form: whatever a file of
    float32 or float16 weights computes is told by its weights. In int8 the rounding of what is computed is the file's.

    Args:
        data: the file.
        architecture: the agent's.
        precision: of the weights: ``float32``, ``float16`` or ``int8``.

    Raises:
        ValueError: it is no LiteRT file of such an agent; an operator that no agent needs is named.
    """
    if data[4:8] != _IDENTIFIER:
        raise ValueError(f"has {data[4:8]!r} where a LiteRT file has {_IDENTIFIER!r}")
    try:
        model = _read_model(data)
        _check_graph(model, architecture, precision)
    except (struct.error, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"damaged ({type(error).__name__}: {show(str(error))})") from error
    builder = flatbuffers.Builder(len(data) + 2**16)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def _name_operator(model: Any, operator: Any) -> str:
    """Return the name of an operator, such as ``CONV_2D``. Of a model and operator as objects."""
    code = model.operatorCodes[operator.opcodeIndex]
    return OPERATOR_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]


class _Buffer(schema.BufferT):  # type: ignore[misc]
    """A buffer of bytes, aligned as the schema wants it, which the generated code does not do."""

    def Pack(self, builder: Any) -> Any:  # noqa: N802 - the generated name
        place = None
        if self.data is not None:
            builder.StartVector(1, len(self.data), _ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
            place = builder.EndVector()
        schema.BufferStart(builder)
        if place is not None:
            schema.BufferAddData(builder, place)
        return schema.BufferEnd(builder)


def _read_model(data: bytes) -> Any:
    found = schema.Model.GetRootAs(data, 0)
    if found.SubgraphsLength() != 1:
        raise ValueError(f"has {found.SubgraphsLength()} graphs, expected 1")
    graph = found.Subgraphs(0)
    model = schema.ModelT()
    model.version = found.Version()
    model.description = "atari-convert"
    codes = [found.OperatorCodes(index) for index in _range(found.OperatorCodesLength(), _MOST_OPERATORS)]
    model.operatorCodes = [_read_code(code) for code in codes]
    model.subgraphs = [_read_graph(graph, model)]
    buffers = [found.Buffers(i) for i in _range(found.BuffersLength(), 2 * _MOST_TENSORS)]
    # Buffers may lie in one place, and would each become a copy.
    if sum(buffer.DataLength() for buffer in buffers) > len(data):
        raise ValueError("has buffers of more bytes than the file holds")
    # What TensorFlow notes of itself stands in buffers that no tensor names.
    named = {tensor.buffer for tensor in model.subgraphs[0].tensors}
    model.buffers = [_read_buffer(each) if index in named else _Buffer() for index, each in enumerate(buffers)]
    model.signatureDefs = [_read_signature(found.SignatureDefs(i)) for i in _range(found.SignatureDefsLength(), 1)]
    return model


def _range(length: int, most: int) -> range:
    if not 0 <= length <= most:
        raise ValueError(f"has {length} of something of which such an agent has at most {most}")
    return range(length)


def _read_code(found: Any) -> Any:
    code = schema.OperatorCodeT()
    code.deprecatedBuiltinCode, code.builtinCode = found.DeprecatedBuiltinCode(), found.BuiltinCode()
    code.version = found.Version()
    return code


def _read_graph(found: Any, model: Any) -> Any:
    graph = schema.SubGraphT()
    graph.name = "main"
    graph.inputs = _read_numbers(found.InputsLength, found.Inputs, 1)
    graph.outputs = _read_numbers(found.OutputsLength, found.Outputs, 2)
    graph.tensors = [_read_tensor(found.Tensors(i)) for i in _range(found.TensorsLength(), _MOST_TENSORS)]
    graph.operators = [
        _read_operator(found.Operators(i), model) for i in _range(found.OperatorsLength(), _MOST_OPERATORS)
    ]
    return graph


def _read_numbers(length: Callable[[], int], number: Callable[[int], Any], most: int) -> list[Any]:
    return [number(index) for index in _range(length(), most)]


def _read_text(text: bytes | None) -> str:
    shown = (text or b"").decode("utf-8", "replace")
    if not _TEXT.fullmatch(shown):
        raise ValueError(f"has the name {show(shown)}, expected one such as TensorFlow gives")
    return shown


def _read_tensor(found: Any) -> Any:
    tensor = schema.TensorT()
    tensor.name = _read_text(found.Name())
    tensor.type, tensor.buffer, tensor.hasRank = found.Type(), found.Buffer(), found.HasRank()
    tensor.shape = _read_numbers(found.ShapeLength, found.Shape, 4)
    if found.ShapeSignatureLength():
        tensor.shapeSignature = _read_numbers(found.ShapeSignatureLength, found.ShapeSignature, 4)
    rounding = found.Quantization()
    if rounding is not None and rounding.ScaleLength():
        tensor.quantization = _read_quantization(rounding)
    return tensor


def _read_quantization(found: Any) -> Any:
    quantization = schema.QuantizationParametersT()
    _range(found.ScaleLength(), _LARGEST_SIZE)
    _range(found.ZeroPointLength(), _LARGEST_SIZE)
    quantization.scale, quantization.zeroPoint = found.ScaleAsNumpy().copy(), found.ZeroPointAsNumpy().copy()
    quantization.quantizedDimension = found.QuantizedDimension()
    if not np.isfinite(quantization.scale).all():
        raise ValueError("rounds by a step that is not finite")
    return quantization


def _read_operator(found: Any, model: Any) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex = found.OpcodeIndex()
    name = _name_operator(model, operator)
    if name not in _COMPUTING and name not in _ROUNDING:
        raise ValueError(f"has the operator {name}, which no such agent needs")
    operator.inputs = _read_numbers(found.InputsLength, found.Inputs, 3)
    operator.outputs = _read_numbers(found.OutputsLength, found.Outputs, 2)
    number, kind, plain = _OPTIONS[name]
    if found.BuiltinOptionsType() not in (0, number):
        raise ValueError(f"has a {name} with the options of another operator")
    table = found.BuiltinOptions()
    if found.BuiltinOptionsType() and table is not None:
        options = kind()
        options.Init(table.Bytes, table.Pos)
        if name == "RESHAPE":
            _range(options.NewShapeLength(), 4)
        operator.builtinOptionsType, operator.builtinOptions = number, plain.InitFromObj(options)
    return operator


def _read_buffer(found: Any) -> Any:
    buffer = _Buffer()
    content = found.DataAsNumpy() if found.DataLength() else None
    buffer.data = None if content is None else content.tobytes()
    return buffer


def _read_signature(found: Any) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey = _read_text(found.SignatureKey())
    signature.subgraphIndex = 0
    signature.inputs = [_read_name(found.Inputs(i)) for i in _range(found.InputsLength(), 1)]
    signature.outputs = [_read_name(found.Outputs(i)) for i in _range(found.OutputsLength(), 2)]
    return signature


def _read_name(found: Any) -> Any:
    named = schema.TensorMapT()
    named.name, named.tensorIndex = _read_text(found.Name()), found.TensorIndex()
    return named


@dataclass(frozen=True)
class _Constant:
    """A constant that an operator takes.

    shapes: those that it may have, None if it may be left out. numbers: its content as integers. number: its only
    value, in the float type that the file has it in. Where neither is given, it is a weight.
    """

    shapes: tuple[tuple[int, ...] | None, ...]
    numbers: tuple[int, ...] | None = None
    number: np.float32 | None = None


@dataclass(frozen=True)
class _Step:
    """An operator as an agent has it.

    takes: the names of values that were computed before, and constants, in order. gives: the shapes of what it
    computes by name. options: those that are not 0.
    """

    name: str
    takes: tuple[str | _Constant, ...]
    gives: Mapping[str, list[int]]
    options: Mapping[str, float] = field(default_factory=dict)


def _check_graph(model: Any, architecture: Architecture, precision: str) -> None:
    """Raise unless a model computes what such an agent does, in its order, from what is there, and holds no more."""
    graph = model.subgraphs[0]
    for tensor in graph.tensors:
        _check_tensor(tensor, model.buffers)
        if tensor.quantization is not None and precision != "int8":
            raise ValueError(f"has a tensor {show(tensor.name)} that is rounded, among {precision} weights")
    _check_all_used(model, graph)
    _check_ends(model, graph, architecture)
    computed, sources = _follow(model, graph, precision)
    expected = list(_list_steps(architecture))
    found = [_format_step(name, [graph.tensors[index].shape for index in each.outputs]) for name, each in computed]
    wanted = [_format_step(step.name, step.gives.values()) for step in expected]
    if found != wanted:
        raise ValueError(f"computes {' '.join(found)}, expected {' '.join(wanted)}")
    places: dict[str, int] = {"observation": graph.inputs[0]}
    for step, (_, operator) in zip(expected, computed, strict=True):
        _check_step(step, operator, model, sources, places)
        places |= dict(zip(step.gives, operator.outputs, strict=True))
    ends = {named.name: places.get(named.name) for named in model.signatureDefs[0].outputs}
    if any(named.tensorIndex != ends[named.name] for named in model.signatureDefs[0].outputs):
        raise ValueError(f"has other outputs than {', '.join(ends)}")


def _format_step(name: str, shapes: Iterable[Any]) -> str:
    return name + "".join(str(list(map(int, shape))) for shape in shapes)


def _follow(model: Any, graph: Any, precision: str) -> tuple[list[tuple[str, Any]], dict[int, int]]:
    """Return the operators that compute something, and for each tensor that only rounds another one that other one."""
    known = {index for index, tensor in enumerate(graph.tensors) if _is_constant(tensor, model.buffers)}
    known |= {-1, *graph.inputs}  # -1 stands for an input that is left out, such as a bias of zeros
    computed: list[tuple[str, Any]] = []
    sources: dict[int, int] = {}
    for operator in graph.operators:
        name = _name_operator(model, operator)
        takes, gives = (_COMPUTING | _ROUNDING)[name]
        if len(operator.inputs) != takes or not known.issuperset(operator.inputs):
            raise ValueError(f"has a {name} of tensors that are not there")
        outputs = set(operator.outputs)
        if len(operator.outputs) != gives or len(outputs) != gives or operator.inputs[0] < 0:
            raise ValueError(f"has a {name} of another number of tensors")
        if outputs & known or not all(0 <= output < len(graph.tensors) for output in outputs):
            raise ValueError(f"has a {name} that writes where it must not")
        known |= outputs
        if name in _COMPUTING:
            computed.append((name, operator))
            continue
        (output,) = operator.outputs
        is_weight = _is_constant(graph.tensors[operator.inputs[0]], model.buffers)
        if precision == "float32" or (precision == "float16" and not is_weight):
            raise ValueError(f"has a {name}, which no agent of {precision} weights needs")
        source, rounded = graph.tensors[operator.inputs[0]], graph.tensors[output]
        if list(rounded.shape) != list(source.shape) or (source.type, rounded.type) not in _ROUNDED_TYPES[name]:
            raise ValueError(f"has a {name} that changes a shape, or has other types")
        sources[output] = sources.get(operator.inputs[0], operator.inputs[0])
    return computed, sources


def _check_all_used(model: Any, graph: Any) -> None:
    """Raise where a file holds more than its operators take: it would be a place for anything."""
    used = {index for operator in graph.operators for index in (*operator.inputs, *operator.outputs)}
    if unused := set(range(len(graph.tensors))) - used:
        raise ValueError(f"has a tensor {show(graph.tensors[min(unused)].name)} that nothing computes with")
    codes = {operator.opcodeIndex for operator in graph.operators}
    if codes != set(range(len(model.operatorCodes))):
        raise ValueError("names operators that nothing uses")


def _find_tensor(model: Any, sources: Mapping[int, int], index: int) -> tuple[Any, bytes] | None:
    """Return a constant and its content; None where it is left out.

    Raises:
        ValueError: it is computed.
    """
    if index < 0:
        return None
    tensor = model.subgraphs[0].tensors[sources.get(index, index)]
    if not _is_constant(tensor, model.buffers):
        raise ValueError(f"has weights {show(tensor.name)} that are computed")
    return tensor, model.buffers[tensor.buffer].data


def _check_step(step: _Step, operator: Any, model: Any, sources: Mapping[int, int], places: Mapping[str, int]) -> None:
    """Raise unless an operator has the inputs and options of a step: the interpreter trusts both."""
    options = vars(operator.builtinOptions) if operator.builtinOptions is not None else {}
    # What is 0 is what is left out.
    found = {key: value for key, value in options.items() if value and key != "newShape"}
    if found != step.options:
        raise ValueError(f"has a {step.name} with the options {show(found)}, expected {step.options}")
    graph = model.subgraphs[0]
    for taken, index in zip(step.takes, operator.inputs, strict=True):
        if isinstance(taken, _Constant):
            _check_constant(taken, step.name, _find_tensor(model, sources, index))
        elif sources.get(index, index) != sources.get(places[taken], places[taken]):
            raise ValueError(f"has a {step.name} of something else than what was computed before it")
    _check_bias_steps(operator, graph)
    indices = (*operator.inputs, *operator.outputs)
    _check_types(step.name, [graph.tensors[index].type for index in indices if index >= 0])


def _check_bias_steps(operator: Any, graph: Any) -> None:
    """Raise unless an integer bias is rounded by the steps that the interpreter takes, whatever the file says.

    They are those of the input times those of the weights.
    """
    if len(operator.inputs) < 3 or operator.inputs[2] < 0:
        return
    parts = [graph.tensors[index].quantization for index in operator.inputs]
    if graph.tensors[operator.inputs[2]].type != schema.TensorType.INT32:
        return
    if None in parts or not np.allclose(parts[2].scale, parts[0].scale * parts[1].scale, rtol=1e-5, atol=0):
        raise ValueError("has a bias that is rounded by other steps than its input and weights")


def _check_constant(expected: _Constant, operator: str, found: tuple[Any, bytes] | None) -> None:
    shape = None if found is None else tuple(found[0].shape)
    if shape not in expected.shapes:
        raise ValueError(f"has a {operator} with a constant of shape {shape}, expected {expected.shapes[0]}")
    if expected.number is not None and found is not None:
        tensor, content = found
        dtype = np.dtype("<f2" if tensor.type == schema.TensorType.FLOAT16 else "<f4")
        if content != np.float32(expected.number).astype(dtype).tobytes():
            raise ValueError(f"has a {operator} by {np.frombuffer(content, dtype)[:1]}, expected {expected.number}")
    if expected.numbers is not None and found is not None:
        tensor, content = found
        numbers = struct.unpack(f"<{len(content) // 4}i", content) if tensor.type == schema.TensorType.INT32 else None
        if numbers != expected.numbers:
            raise ValueError(f"has a {operator} to {numbers}, expected {expected.numbers}")


def _check_types(name: str, types: list[int]) -> None:
    kinds = schema.TensorType
    plain = [kinds.FLOAT32] * len(types)
    if name == "CAST":
        allowed = [[kinds.UINT8, kinds.FLOAT32]]
    elif name in ("RESHAPE", "PAD"):
        allowed = [[kind, kinds.INT32, kind] for kind in (kinds.FLOAT32, kinds.INT8)]
    elif name in ("SUM", "MEAN"):
        allowed = [[kinds.FLOAT32, kinds.INT32, kinds.FLOAT32]]
    elif name == "SPLIT":
        allowed = [[kinds.INT32, *plain[1:]]]
    elif name in ("CONV_2D", "FULLY_CONNECTED") and kinds.INT8 in types:
        bias = [kinds.INT32] * (len(types) - 3)
        allowed = [[kinds.INT8, kinds.INT8, *bias, kinds.INT8]]
    else:
        allowed = [plain]
    if types not in allowed:
        raise ValueError(f"has a {name} of the types {types}, expected {allowed[0]}")


def _check_tensor(tensor: Any, buffers: list[Any]) -> None:
    size = math.prod(tensor.shape)
    if not 0 <= tensor.buffer < len(buffers):
        raise ValueError(f"has a tensor {show(tensor.name)} in a buffer that is not there")
    if tensor.type not in _ITEM_SIZES or not all(1 <= axis <= _LARGEST_SIZE for axis in tensor.shape):
        raise ValueError(f"has a tensor {show(tensor.name)} of type {tensor.type} and shape {list(tensor.shape)}")
    if size > _LARGEST_TENSOR:
        raise ValueError(f"has a tensor {show(tensor.name)} of shape {list(tensor.shape)}")
    if _is_constant(tensor, buffers) and len(buffers[tensor.buffer].data) != size * _ITEM_SIZES[tensor.type]:
        raise ValueError(f"has a tensor {show(tensor.name)} of other bytes than its shape {list(tensor.shape)}")
    if tensor.shapeSignature is not None and list(tensor.shapeSignature) != [-1, *tensor.shape[1:]]:
        raise ValueError(f"has a tensor {show(tensor.name)} of sizes {show(list(tensor.shapeSignature))}")
    if tensor.quantization is not None:
        _check_rounding(tensor)


def _check_rounding(tensor: Any) -> None:
    """Raise unless a tensor of integers is rounded by steps that the interpreter can compute with."""
    scale, zero = tensor.quantization.scale, tensor.quantization.zeroPoint
    count = tensor.shape[0] if tensor.shape and len(scale) > 1 else 1
    lowest, highest = _ZERO_POINTS.get(tensor.type, (1, 0))
    if (
        (len(scale), len(zero), tensor.quantization.quantizedDimension) != (count, count, 0)
        or not (scale.min() > _SMALLEST_STEP and scale.max() < 1 / _SMALLEST_STEP)
        or not (lowest <= zero.min() and zero.max() <= highest)
    ):
        raise ValueError(f"has a tensor {show(tensor.name)} that is rounded by other steps than an agent's")


def _is_constant(tensor: Any, buffers: list[Any]) -> bool:
    # The first buffer is empty in every file, and stands for none.
    return 0 < tensor.buffer < len(buffers) and buffers[tensor.buffer].data is not None


def _check_ends(model: Any, graph: Any, architecture: Architecture) -> None:
    signature = model.signatureDefs[0] if model.signatureDefs else None
    if signature is None or signature.signatureKey != _SIGNATURE:
        raise ValueError(f"has no signature {_SIGNATURE}, which names its input and outputs")
    inputs = {named.name: named.tensorIndex for named in signature.inputs}
    outputs = {named.name: named.tensorIndex for named in signature.outputs}
    names = set(architecture.head.outputs)
    if inputs.keys() != {"observation"} or outputs.keys() != names:
        raise ValueError(
            f"has the inputs {sorted(inputs)} and outputs {sorted(outputs)}, expected observation, {names}"
        )
    if list(inputs.values()) != list(graph.inputs) or sorted(outputs.values()) != sorted(graph.outputs):
        raise ValueError("has a signature of other tensors than its graph")
    (observation,) = (graph.tensors[index] for index in graph.inputs)
    shape = architecture.observation
    if (
        list(observation.shape) != [1, shape.size, shape.size, shape.frames]
        or observation.type != schema.TensorType.UINT8
    ):
        raise ValueError(f"has an observation of type {observation.type} and shape {list(observation.shape)}")
    if not all(0 <= index < len(graph.tensors) for index in graph.outputs):
        raise ValueError("has an output that is not there")


_RELU = {"fusedActivationFunction": 1}
_SCALAR = ((), (1,))
_POT = {"potScaleInt16": True}  # the schema's default


def _list_steps(architecture: Architecture) -> Iterator[_Step]:
    """Yield each operator of an agent as TensorFlow's converter orders them, for one observation."""
    observation, shapes = architecture.observation, list_shapes(architecture)
    plane = [1, observation.size, observation.size, observation.frames]
    yield _Step("CAST", ("observation",), {"features": plane})
    if observation.scale != 1:
        reciprocal = np.float32(1) / np.float32(observation.scale)  # what the converter multiplies by
        yield _Step("MUL", ("features", _Constant(_SCALAR, None, reciprocal)), {"features": plane}, _RELU)
    for index, (conv, side) in enumerate(zip(architecture.convs, sides_of(architecture), strict=True)):
        same = is_same_padding(conv, plane[1])
        if any(conv.padding) and not same:
            size = plane[1] + sum(conv.padding)
            plane = [1, size, size, plane[3]]
            pads = _Constant(((4, 2),), (0, 0, *conv.padding, *conv.padding, 0, 0))
            yield _Step("PAD", ("features", pads), {"features": plane})
        options = {"strideW": conv.stride, "strideH": conv.stride, "dilationWFactor": 1, "dilationHFactor": 1}
        options |= {} if same else {"padding": 1}
        outputs, inputs, *size_hw = shapes[f"convs.{index}.kernel"]
        weights = (_Constant(((outputs, *size_hw, inputs),)), _Constant(((outputs,), None)))
        plane = [1, side, side, outputs]
        yield _Step("CONV_2D", ("features", *weights), {"features": plane}, options | _RELU)
    yield _reshape("features", "features", [1, math.prod(plane)])
    for layer in architecture.hidden_layers:
        yield _dense("features", "features", shapes[f"{layer}.kernel"], _RELU)
    yield from _list_head_steps(architecture.head, shapes)


def is_same_padding(conv: Conv, size: int) -> bool:
    """Tell whether a padding is the one that TensorFlow calls SAME for a plane of this side."""
    total = max((math.ceil(size / conv.stride) - 1) * conv.stride + conv.kernel - size, 0)
    return any(conv.padding) and conv.padding == (total // 2, total - total // 2)


def _dense(takes: str, gives: str, kernel: tuple[int, ...], options: Mapping[str, float] | None = None) -> _Step:
    weights = (_Constant((kernel,)), _Constant((kernel[:1], None)))
    return _Step("FULLY_CONNECTED", (takes, *weights), {gives: [1, kernel[0]]}, options or {})


def _reshape(takes: str, gives: str, shape: list[int]) -> _Step:
    return _Step("RESHAPE", (takes, _Constant(((len(shape),),), (-1, *shape[1:]))), {gives: shape})


def _list_head_steps(head: Head, shapes: Shapes) -> Iterator[_Step]:
    grid = [1, head.actions, head.width]
    if head.streams == "single":
        yield _dense("features", "q_values", shapes["head.kernel"])
        joined = "q_values"
    else:
        yield from _list_stream_steps(head, shapes)
        joined = "joined"
        if head.kind == "q":
            yield _reshape("joined", "q_values", [1, head.actions])
    if head.kind == "q":
        return
    yield _reshape(joined, head.outputs[1], grid)
    if head.kind == "quantile":
        yield _Step("MEAN", ("quantiles", _Constant(_SCALAR, (-1,))), {"q_values": grid[:2]})
        return
    yield _Step("SOFTMAX", ("logits",), {"probabilities": grid}, {"beta": 1.0})
    yield _Step("MUL", ("probabilities", _Constant(((head.width,),))), {"weighted": grid})
    yield _Step("SUM", ("weighted", _Constant(_SCALAR, (-1,))), {"q_values": grid[:2]})


def _list_stream_steps(head: Head, shapes: Shapes) -> Iterator[_Step]:
    """Yield what computes ``value + advantage - mean(advantage)``."""
    grid, row, parts = [1, head.actions, head.width], [1, 1, head.width], ("features", "features")
    if head.streams == "split":
        parts = ("first half", "second half")
        half = shapes["value.kernel"][1]
        yield _Step(
            "SPLIT", (_Constant(_SCALAR, (1,)), "features"), {part: [1, half] for part in parts}, {"numSplits": 2}
        )
    yield _dense(parts[0], "advantages", shapes["advantage.kernel"])
    yield _reshape("advantages", "advantages", grid)
    yield _Step("MEAN", ("advantages", _Constant(_SCALAR, (1,))), {"mean": row}, {"keepDims": True})
    yield _dense(parts[1], "value", shapes["value.kernel"])
    yield _reshape("value", "value", row)
    yield _Step("ADD", ("value", "advantages"), {"joined": grid}, _POT)
    yield _Step("SUB", ("joined", "mean"), {"joined": grid}, _POT)
