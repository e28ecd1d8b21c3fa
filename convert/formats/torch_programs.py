"""Programs of ``torch.export``, which torch does not read as they are found.

torch evaluates text of a program as Python (sizes, guards), unpickles what stands in place of weights, constants and
example inputs, and calls any operator that a program names. So a stranger's program is only compared with the one that
is exported here for an agent of the same head, and that one goes to torch, with the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from convert.agents.network import Float32
from convert.files import torch_files
from convert.files.archives import build_archive, read_archive
from convert.files.documents import read_json, show

Program = Mapping[str, bytes]  # the entries of a program's archive without its folder and its weights

_ROOT = "model"
_GRAPH = "models/model.json"
_EXAMPLE = "data/sample_inputs/model.pt"
_WEIGHTS = "data/weights/"
_CONFIG = f"{_WEIGHTS}model_weights_config.json"
_VERSIONS = ("archive_version", ".data/version")
# What torch notes of itself in a graph.
_VERSION_KEYS = ("opset_version", "schema_version", "torch_version")
_LEFT_OUT = (".data/serialization_id",)  # a number that tells one file from another


def take_program(exported: bytes, example: bytes) -> Program:
    """Return what ``torch.export.save`` wrote, without its weights and without what differs from computer to computer.

    Args:
        exported: the file's content.
        example: the example inputs that ``torch.save`` wrote, in place of those of the file.
    """
    entries = _read_entries(exported)
    graph = json.loads(entries[_GRAPH])
    for node in graph["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}  # where its code stood
    names = [name for name in entries if not name.startswith(_WEIGHTS) and name not in _LEFT_OUT]
    return {name: entries[name] for name in names} | {_GRAPH: json.dumps(graph).encode(), _EXAMPLE: example}


def build_program(program: Program, weights: Mapping[str, Float32]) -> bytes:
    """Return the file of a program with these weights, by name; always the same bytes."""
    entries = {**program, **_write_weights(weights)}
    return build_archive({f"{_ROOT}/{name}": content for name, content in entries.items()})


def check_program(data: bytes, program: Program, weights: Mapping[str, Float32]) -> None:
    """Raise unless a file holds a program with these weights, apart from the versions of torch that wrote them.

    Raises:
        ValueError: it is damaged, has other weights, or is another program.
    """
    entries, expected = _read_entries(data), {**program, **_write_weights(weights)}
    foreign = [name for name in entries if name not in expected and name not in _LEFT_OUT]
    missing = [name for name in expected if name not in entries]
    if foreign or missing:
        raise ValueError(f"it has {show(foreign[0])}, which none has" if foreign else f"no {missing[0]}")
    if any(entries[name] != expected[name] for name in expected if name.startswith(_WEIGHTS) and name != _CONFIG):
        raise ValueError("other weights than those of the agent")
    found, ours = (_without_versions(read_json(graph)) for graph in (entries[_GRAPH], expected[_GRAPH]))
    if found != ours:
        raise ValueError(_explain(found, ours))
    (inputs, named) = torch_files.read(entries[_EXAMPLE])
    if named or len(inputs) != 1 or not isinstance(inputs[0], torch_files.Tensor):
        raise ValueError("its example inputs are not one observation")
    plain = [name for name in program if name not in (_GRAPH, _EXAMPLE, *_VERSIONS)]
    changed = [name for name in plain if entries[name] != program[name]]
    if read_json(entries[_CONFIG]) != read_json(expected[_CONFIG]):
        changed.append(_CONFIG)
    changed += [name for name in _VERSIONS if name in expected and not entries[name].strip().isdigit()]
    if changed:
        raise ValueError(f"its {changed[0]} is not that of such an agent")


def _read_entries(data: bytes) -> dict[str, bytes]:
    entries = read_archive(data)
    (root, *others) = {name.partition("/")[0] for name in entries} or {""}
    if others:
        raise ValueError("its archive has more than one folder")
    return {name.removeprefix(f"{root}/"): content for name, content in entries.items()}


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
        contents[f"{_WEIGHTS}weight_{index}"] = array.tobytes()
    return contents | {_CONFIG: json.dumps({"config": config}).encode()}


def _without_versions(graph: Any) -> Any:
    if not isinstance(graph, dict):
        raise TypeError(f"its graph is a {type(graph).__name__}")
    return {key: value for key, value in graph.items() if key not in _VERSION_KEYS}


def _explain(found: Any, ours: Any) -> str:
    """Return how a graph differs from ours: by an operator, if that can be told."""
    try:
        nodes, known = (graph["graph_module"]["graph"]["nodes"] for graph in (found, ours))
        foreign = sorted({node["target"] for node in nodes} - {node["target"] for node in known})
    except (KeyError, TypeError):
        foreign = []
    if foreign:
        return f"has the operator {show(foreign[0])}, which no such agent needs"
    return "its graph is not the one that this version of torch exports for such an agent, or was changed since"
