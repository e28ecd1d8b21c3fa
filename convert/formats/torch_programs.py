"""Programs of ``torch.export``, screened before torch reads them.

torch evaluates text of a program as Python (sizes, guards), unpickles what stands in place of weights, constants and
example inputs, and calls any operator that a program names. So a program is taken apart here: its weights have to be
those of the agent, as plain bytes; its graph may hold the few operators of such a network, small numbers and plain
names; all else is left behind and written anew. Only what was built here goes to torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from convert.agent import HeadSpec
from convert.formats import torch_files
from convert.formats.archives import build_archive, read_archive
from convert.formats.documents import read_json, show
from convert.network import Float32

_ASSERTION = "torch.ops.aten._assert_tensor_metadata.default"
_TRUNK = (
    *("to.dtype", "div.Tensor"),
    *("conv2d.default", "relu.default") * 3,
    *("flatten.using_ints", "linear.default", "relu.default", "linear.default"),
)
_CATEGORICAL_TAIL = ("unflatten.int", "softmax.int", "mul.Tensor", "sum.dim_IntList")
_LARGEST_ARGUMENT = 512  # of an operator; the largest are the atoms of a support
_LARGEST_NUMBER = 2**24  # of all else, such as the strides of a weight

_PLAIN = re.compile(r"[\w.+-]{0,100}", re.ASCII)
_SIZE = re.compile(r"Symbol\('\w+', positive=True, integer=True\)|\d{1,8}", re.ASCII)
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")


def rebuild(data: bytes, weights: Mapping[str, Float32], head: HeadSpec, example: bytes) -> bytes:
    """Return the archive of a program anew, from what was looked at.

    Args:
        data: what ``torch.export.save`` wrote, or this function.
        weights: by name, as the program has to have them, bit for bit.
        head: of the agent.
        example: the example inputs that ``torch.save`` wrote, in place of those of the archive.

    Raises:
        ValueError: it is no such program: other weights, an operator that no agent needs, text that would be run.
    """
    entries = read_archive(data)
    roots = {name.split("/")[0] for name in entries}
    root = roots.pop() if len(roots) == 1 else ""
    if _read_weights(entries, root) != {name: array.tobytes() for name, array in weights.items()}:
        raise ValueError("other weights than those of the agent")
    program = read_json(entries[f"{root}/models/model.json"])
    _check_operators(program, head)
    _check_values(program)
    _check_rest(entries, root, len(weights))
    rebuilt = {
        "archive_format": b"pt2",
        "archive_version": _pick_number(entries, f"{root}/archive_version"),
        **_write_weights(weights),
        "data/constants/model_constants_config.json": b'{"config": {}}',
        "models/model.json": json.dumps(_without_traces(program)).encode(),
        "data/sample_inputs/model.pt": example,
        ".data/version": _pick_number(entries, f"{root}/.data/version"),
        "byteorder": b"little",
    }
    return build_archive({f"model/{name}": content for name, content in rebuilt.items()})


def _check_rest(entries: Mapping[str, bytes], root: str, weights: int) -> None:
    """Raise where an archive holds what is left behind here and would not be left behind by others."""
    (inputs, named) = torch_files.read(entries[f"{root}/data/sample_inputs/model.pt"])
    if named or len(inputs) != 1 or not isinstance(inputs[0], torch_files.Tensor):
        raise ValueError("its example inputs are not one observation")
    constants = read_json(entries[f"{root}/data/constants/model_constants_config.json"])
    if constants != {"config": {}} or entries[f"{root}/byteorder"] != b"little":
        raise ValueError("it has constants, or is of another order of bytes")
    expected = {"archive_format", "archive_version", "byteorder", "models/model.json", "data/sample_inputs/model.pt"}
    expected |= {"data/constants/model_constants_config.json", "data/weights/model_weights_config.json"}
    expected |= {f"data/weights/weight_{index}" for index in range(weights)} | {
        ".data/version",
        ".data/serialization_id",
    }
    unexpected = {name.removeprefix(f"{root}/") for name in entries} - expected
    if unexpected:
        raise ValueError(f"it has {show(min(unexpected))}, which no such agent needs")


def _pick_number(entries: Mapping[str, bytes], name: str) -> bytes:
    content = entries[name]
    if not re.fullmatch(rb"\d{1,4}\n?", content):
        raise ValueError(f"{name} is {content[:20]!r}, expected a number")
    return content


def _read_weights(entries: Mapping[str, bytes], root: str) -> dict[str, bytes]:
    config = read_json(entries[f"{root}/data/weights/model_weights_config.json"])["config"]
    if any(weight["use_pickle"] for weight in config.values()):
        raise ValueError("its weights are a pickle, expected plain bytes")
    return {name: entries[f"{root}/data/weights/{weight['path_name']}"] for name, weight in config.items()}


def _write_weights(weights: Mapping[str, Float32]) -> dict[str, bytes]:
    config = {}
    contents = {}
    for index, (name, array) in enumerate(weights.items()):
        is_parameter = name != "support"
        config[name] = {
            "path_name": f"weight_{index}",
            "is_param": is_parameter,
            "use_pickle": False,
            "tensor_meta": {
                "dtype": 7,  # float32 in torch's schema
                "sizes": [{"as_int": size} for size in array.shape],
                "requires_grad": is_parameter,
                "device": {"type": "cpu", "index": None},
                "strides": [{"as_int": step // array.itemsize} for step in array.strides],
                "storage_offset": {"as_int": 0},
                "layout": 7,  # strided
            },
        }
        contents[f"data/weights/weight_{index}"] = array.tobytes()
    return contents | {"data/weights/model_weights_config.json": json.dumps({"config": config}).encode()}


def _check_operators(program: Any, head: HeadSpec) -> None:
    nodes = program["graph_module"]["graph"]["nodes"]
    found = [node["target"] for node in nodes if node["target"] != _ASSERTION]
    names = _TRUNK if head.atoms is None else _TRUNK + _CATEGORICAL_TAIL
    expected = [f"torch.ops.aten.{name}" for name in names]
    for name in found:
        if name not in expected:
            raise ValueError(f"has the operator {show(name)}, which no such agent needs")
    if found != expected:
        raise ValueError(
            f"computes {len(found)} operators in another order than such an agent, which has {len(expected)}"
        )
    for number in _list_numbers([node["inputs"] for node in nodes]):
        if abs(number) > _LARGEST_ARGUMENT:
            raise ValueError(f"has an operator with {number} among its arguments")


def _check_values(program: Any) -> None:
    """Raise where a program holds text that torch would run or look up: sizes as expressions, guards, classes."""
    for key, value in _walk(program):
        if isinstance(value, str):
            _check_text(key, value)
        elif isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
            raise ValueError(f"{show(key)} is {value}")
        elif not isinstance(value, int | dict | list | None):
            raise TypeError(f"{show(key)} is {show(value)}")
    for key in ("guards_code", "treespec_namedtuple_fields", "custom_obj_values"):
        if any(found == key and value for found, value in _walk(program)):
            raise ValueError(f"it has {key}, which no such agent needs")


def _check_text(key: str, text: str) -> None:
    if key == "expr_str":
        allowed = _SIZE.fullmatch(text) is not None
    elif key in ("in_spec", "out_spec"):
        allowed = all(
            value in _CONTAINERS if name == "type" else name != "context" or _is_plain_context(value)
            for name, value in _walk(read_json(text))
        )
    elif key == "stack_trace" or key == "nn_module_stack" or key == "torch_fn":
        return  # left behind
    else:
        allowed = _PLAIN.fullmatch(text) is not None
    if not allowed:
        raise ValueError(f"{show(key)} is {show(text)}, which is not of a network like ours")


def _is_plain_context(value: Any) -> bool:
    """Tell the context of a container: null for a tuple, the JSON list of its keys for a dict."""
    return value is None or (isinstance(value, str) and re.fullmatch(r'null|\[("\w+"(, "\w+")*)?\]', value) is not None)


def _walk(value: Any, key: str = "") -> list[tuple[str, Any]]:
    """Return every value below a JSON value, each with the key that it, or the list around it, stands under."""
    found, pending = [], [(key, value)]
    while pending:
        name, item = pending.pop()
        found.append((name, item))
        if isinstance(item, dict):
            pending += [(str(inner), content) for inner, content in item.items()]
        elif isinstance(item, list):
            pending += [(name, content) for content in item]
    return found


def _list_numbers(value: Any) -> list[int]:
    return [item for _, item in _walk(value) if isinstance(item, int)]


def _without_traces(program: Any) -> Any:
    """Return a program without where its code stood, which is another place on each computer."""
    for node in program["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}
    return program
