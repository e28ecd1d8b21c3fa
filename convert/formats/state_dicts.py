"""State dicts of torch from the files of any zoo: found, checked by name, shape and dtype, and made a network.

Nothing is unpacked before its shape is known to be that of an architecture: any number of tensors may share a storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.agents.architecture import Architecture, Shapes, list_shapes
from convert.agents.network import Float32, Network, check_network, compare_shapes, from_arrays
from convert.errors import UnreadableCheckpoint, UnsupportedArchitecture, WeightMismatch
from convert.files import torch_files
from convert.files.documents import join, show
from convert.files.pickles import PickleRefused
from convert.files.torch_files import Foreign, Tensor

LOSSY = "is float64 with values that float32 cannot hold: round them to float32 first, if you accept the loss"

_FLOATS = ("float32", "float64", "float16", "bfloat16")


def read_torch(data: bytes, name: str) -> Any:
    """Return what ``torch.save`` wrote, with a `Tensor` for each tensor.

    Raises:
        UnreadableCheckpoint: it is damaged, or its pickle wants to run code.
    """
    try:
        return torch_files.read(data)
    except PickleRefused as error:
        raise UnreadableCheckpoint(f"{name}: refused: its pickle {error}") from error
    except ValueError as error:
        raise UnreadableCheckpoint(f"{name}: not a PyTorch checkpoint ({error}): take another copy") from error


def find_tensors(state: Mapping[Any, Any], keys: Mapping[str, str], name: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict by the names of the network's arrays.

    Args:
        state: what was read, with nothing beside the tensors of ``keys``.
        keys: names in the network by keys of the state dict, all of which are needed.
        name: how messages call the file.

    Raises:
        WeightMismatch: tensors are missing, unexpected or no floats; all that is wrong is named.
    """
    problems = [f"no {key}" for key in keys if key not in state]
    problems += [f"unexpected {show(key)}" for key in state if key not in keys]
    known = {key: state[key] for key in keys if key in state}
    found = {key: find_tensor_problem(value) for key, value in known.items()}
    problems += [f"{key} {problem}" for key, problem in found.items() if problem]
    if problems:
        raise WeightMismatch(f"{name}: {join(problems)}: not the network that is expected")
    return {keys[key]: value for key, value in known.items()}


def to_network(tensors: Mapping[str, Tensor], architecture: Architecture, name: str) -> Network:
    """Return the network of tensors.

    Args:
        tensors: by the names of the network's arrays.
        architecture: what their shapes have to be those of.
        name: how messages call the file.

    Raises:
        UnsupportedArchitecture: a shape differs.
        WeightMismatch: a value is not finite, or none of float32; or a support does not increase.
    """
    return from_arrays_of(to_arrays(tensors, architecture, name), architecture, name)


def to_arrays(tensors: Mapping[str, Tensor], architecture: Architecture, name: str) -> dict[str, Float32]:
    """Return the float32 arrays of tensors whose shapes are those of an architecture.

    Raises:
        UnsupportedArchitecture: a shape differs.
        WeightMismatch: a value is none of float32.
    """
    return to_arrays_of_shapes(tensors, list_shapes(architecture), name)


def to_arrays_of_shapes(tensors: Mapping[str, Tensor], shapes: Shapes, name: str) -> dict[str, Float32]:
    """Return the float32 arrays of tensors by name, which have these shapes.

    Raises:
        UnsupportedArchitecture: a shape differs.
        WeightMismatch: a value is none of float32.
    """
    if problems := compare_shapes({key: tensor.shape for key, tensor in tensors.items()}, shapes):
        raise UnsupportedArchitecture(f"{name}: {join(problems)}: not a network that can be converted")
    arrays = {key: tensor.to_numpy() for key, tensor in tensors.items()}
    if problems := [f"{key} {LOSSY}" for key, array in arrays.items() if not is_float32(array)]:
        raise WeightMismatch(f"{name}: {join(problems)}")
    return {key: array.astype(np.float32, copy=False) for key, array in arrays.items()}


def from_arrays_of(arrays: Mapping[str, Float32], architecture: Architecture, name: str) -> Network:
    """Return the network of the arrays of a file.

    Raises:
        WeightMismatch: arrays are missing, unexpected or misshapen, a value is not finite, or a support does not
            increase.
    """
    try:
        network = from_arrays(arrays, architecture)
    except ValueError as error:
        raise WeightMismatch(f"{name}: {error}: the file is damaged, take another copy") from error
    check_network(network, name)
    return network


def find_tensor_problem(value: Any) -> str | None:
    """Return why a value of a state dict is no tensor of floats; None if it is one."""
    if not isinstance(value, Tensor):
        kind = value.name if isinstance(value, Foreign) else type(value).__name__
        return f"is a {kind:.80}, expected a dense tensor"
    if value.problem:
        return value.problem
    return None if value.dtype in _FLOATS else f"is {value.dtype}, expected float32"


def is_float32(array: np.ndarray[Any, Any]) -> bool:
    """Tell whether float32 holds each value exactly; NaN and infinity, which are found elsewhere, pass."""
    if array.dtype != np.float64:
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = array.astype(np.float32).astype(np.float64)
    return bool(np.array_equal(rounded[np.isfinite(array)], array[np.isfinite(array)]))


def count_rows(tensors: Mapping[str, Tensor], layer: str) -> int:
    """Return how many rows the kernel of a layer has; 0 where it has no axes."""
    return next(iter(tensors[f"{layer}.kernel"].shape), 0)


def space_atoms(low: float, high: float, count: int) -> Float32:
    """Return what ``torch.linspace`` does, bit for bit: a float32 step, taken from the nearer end."""
    step = np.float64(np.float32(high - low) / np.float32(count - 1))
    places = np.arange(count, dtype=np.float64)
    atoms = np.where(places < count // 2, low + step * places, high - step * (count - 1 - places))
    return atoms.astype(np.float32)


def is_same_content(data: bytes, expected: bytes) -> bool:
    """Tell whether two files of ``torch.save`` hold the same; other versions of torch write it in other bytes."""
    if data == expected:
        return True
    try:
        return bool(_to_plain(torch_files.read(data)) == _to_plain(torch_files.read(expected)))
    except ValueError:
        return False


def _to_plain(value: Any) -> Any:
    """Return a tree whose parts can be compared: a tensor by its dtype, its shape and its bytes."""
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_plain(item) for item in value]
    if isinstance(value, Tensor):
        return (value.dtype, value.shape, value.problem or value.to_numpy().tobytes())
    return value
