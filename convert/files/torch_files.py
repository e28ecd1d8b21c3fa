"""Files of ``torch.save``, read into NumPy without torch.

It reads both formats: the zip archive (since torch 1.6), and the stream of pickles before it. A tensor consists of what
its pickle says of it and of a storage beside it. Its values are checked against the storage when they are asked for.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.files import pickles
from convert.files.archives import read_archive
from convert.files.bounds import LARGEST
from convert.files.documents import show
from convert.files.pickles import Call, Name, PickleRefused, Reference

_TENSOR = {Name("torch._utils", "_rebuild_tensor_v2"), Name("torch._utils", "_rebuild_tensor")}
_PARAMETER = {Name("torch._utils", "_rebuild_parameter"), Name("torch._utils", "_rebuild_parameter_with_state")}
_META = Name("torch._utils", "_rebuild_meta_tensor_no_storage")
_DICT = Name("collections", "OrderedDict")

# By the name of torch's storage class. NumPy has no bfloat16: its bits are the upper half of a float32's.
_DTYPES = {
    "FloatStorage": ("float32", "f4"),
    "DoubleStorage": ("float64", "f8"),
    "HalfStorage": ("float16", "f2"),
    "BFloat16Storage": ("bfloat16", "u2"),
    "LongStorage": ("int64", "i8"),
    "IntStorage": ("int32", "i4"),
    "ShortStorage": ("int16", "i2"),
    "CharStorage": ("int8", "i1"),
    "ByteStorage": ("uint8", "u1"),
    "BoolStorage": ("bool", "?"),
}

# The older format begins with these two pickles.
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
# What builds tensors, and what else of torch may be beside them. These names are recognised, and never called.
_MODULES = ("torch", "torch._utils", "torch.storage")
_BUILDER = re.compile(r"_rebuild_\w+|\w+Storage|(b?float|u?int|complex|q?u?int)\d+|bool|Size|device", re.ASCII)
_FOREIGN = {
    Name("torch.serialization", "_get_layout"),
    Name("torch", "per_tensor_affine"),
    Name("torch", "per_channel_affine"),
}


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of a file. dtype: as torch calls it. problem: why it has no values; None where it has."""

    dtype: str
    shape: tuple[int, ...]
    _values: NDArray[Any] | None = None
    problem: str | None = None

    def to_numpy(self) -> NDArray[Any]:
        """Return the values, C-contiguous; bfloat16 as float32, which holds it exactly.

        Raises:
            ValueError: there are none.
        """
        if self._values is None:
            raise ValueError(self.problem)
        if self.dtype == "bfloat16":
            return np.ascontiguousarray(self._values.astype(np.uint32) << 16).view(np.float32)
        native = self._values.dtype.newbyteorder("=")
        return np.require(self._values.astype(native, copy=False), requirements=("C", "ALIGNED"))


@dataclass(frozen=True)
class Foreign:
    """Something of torch's that is neither a tensor nor plain, such as a sparse tensor or a dtype; named, unread."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Where a storage is: its key, the dtype and number of its values, and the device that held it."""

    dtype: str
    code: str
    key: str
    device: str
    count: int


def read(data: bytes) -> Any:
    """Return what ``torch.save`` wrote: plain Python values, and `Tensor`s.

    Args:
        data: the file's content.

    Raises:
        PickleRefused: its pickle wants to run code; the message says which.
        ValueError: it is damaged, too large, or no file of ``torch.save``.
    """
    if len(data) > LARGEST:
        raise ValueError(f"has {len(data)} bytes, expected at most {LARGEST}")
    try:
        return _read_archive(data) if data.startswith(b"PK\x03\x04") else _read_stream(data)
    except PickleRefused as error:
        raise PickleRefused(f"{error}, expected tensors alone") from error
    except (TypeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"damaged pickle ({type(error).__name__}: {show(str(error))})") from error


def _read_archive(data: bytes) -> Any:
    entries = read_archive(data)
    # torch names an archive's only folder after the file.
    (root, *others) = {name.split("/")[0] for name in entries} or {""}
    if others or f"{root}/data.pkl" not in entries:
        raise ValueError("its archive has no data.pkl, or more than one folder")
    order = ">" if entries.get(f"{root}/byteorder") == b"big" else "<"
    tree = pickles.load(io.BytesIO(entries[f"{root}/data.pkl"]), _is_known)
    prefix = f"{root}/data/"
    storages = {name.removeprefix(prefix): content for name, content in entries.items() if name.startswith(prefix)}
    return _resolve(tree, storages, order)


def _read_stream(data: bytes) -> Any:
    stream = io.BytesIO(data)
    magic = pickles.load(stream, _is_known)
    if magic != _MAGIC:
        # A plain pickle, whose names were looked at on the way.
        raise ValueError("begins with a pickle of something else")
    version = pickles.load(stream, _is_known)
    if version != _VERSION:
        raise ValueError(f"has protocol version {show(version)}, expected {_VERSION}")
    system, tree, keys = (pickles.load(stream, _is_known) for _ in range(3))
    if not isinstance(system, dict) or not isinstance(keys, list):
        raise TypeError("no description of its storages")
    order = "<" if system.get("little_endian", True) else ">"
    sizes = _find_item_sizes(tree)
    storages: dict[str, bytes] = {}
    for key in keys:
        if not isinstance(key, str) or key not in sizes:
            raise ValueError(f"a storage {show(key)} that no tensor uses")
        count = int.from_bytes(stream.read(8), "little" if order == "<" else "big")
        content = stream.read(count * sizes[key])
        if len(content) != count * sizes[key]:
            raise ValueError(f"ends within storage {show(key)}")
        storages[key] = content
    return _resolve(tree, storages, order)


def _find_item_sizes(tree: Any) -> dict[str, int]:
    """Return the size of one value in each storage, which only the tree of tensors tells."""
    sizes: dict[str, int] = {}

    def visit(value: Any, resolve: Any) -> None:
        if isinstance(value, Reference):
            storage = _to_storage(value)
            sizes[storage.key] = np.dtype(storage.code).itemsize
        elif isinstance(value, Call):
            for part in (value.arguments, value.state, value.items):
                resolve(part)

    pickles.resolve(tree, visit)
    return sizes


def _is_known(name: Name) -> bool:
    return name == _DICT or name in _FOREIGN or (name.module in _MODULES and _BUILDER.fullmatch(name.name) is not None)


def _resolve(tree: Any, storages: Mapping[str, bytes], order: str) -> Any:
    dtypes: dict[str, str] = {}  # of each storage

    def build(value: Call | Name | Reference, resolve: Any) -> Any:
        if isinstance(value, Name):
            return Foreign(str(value))
        if isinstance(value, Reference):
            return _to_storage(value)
        if value.function == _DICT and not value.arguments:
            return dict(resolve(value.items))  # what it has besides, such as versions, changes nothing of it
        if value.items or value.state is not None:
            raise ValueError(f"{value.function.name} is changed after it was made")
        if value.function in _PARAMETER:
            tensor, _, *more = resolve(value.arguments)
            _check_plain(value, more)
            return tensor
        if value.function in _TENSOR:
            storage, offset, shape, strides, *more = resolve(value.arguments)
            _check_plain(value, more[1:])
            _check_storage(storage, storages, dtypes)
            return _to_tensor(storage, storages, order, offset, shape, strides)
        if value.function == _META:
            dtype, shape, *_ = resolve(value.arguments)
            name = dtype.name.removeprefix("torch.") if isinstance(dtype, Foreign) else "unknown"
            return Tensor(name, _to_sizes(shape), problem="has no values (device meta)")
        return Foreign(str(value.function))

    return pickles.resolve(tree, build)


def _check_plain(call: Call, more: list[Any]) -> None:
    """Raise where a tensor is told more than its values: hooks, attributes, or that torch is to negate them."""
    if any(more):
        raise ValueError(f"{call.function.name} is told more than the values of a tensor")


def _check_storage(storage: object, storages: Mapping[str, bytes], dtypes: dict[str, str]) -> None:
    """Raise where a storage is of two dtypes, or holds another number of values than the pickle says."""
    if not isinstance(storage, _Storage) or storage.key not in storages:
        return
    size = len(storages[storage.key])
    if dtypes.setdefault(storage.key, storage.dtype) != storage.dtype:
        raise ValueError(f"storage {show(storage.key)} is of two dtypes")
    if storage.count * np.dtype(storage.code).itemsize != size:
        raise ValueError(f"storage {show(storage.key)} has {size} bytes, which is not the number of its values")


def _to_storage(reference: Reference) -> _Storage:
    kind, storage_type, key, device, count, *view = reference.key
    if kind != "storage" or not isinstance(storage_type, Name):
        raise ValueError(f"damaged pickle (refers to {show(reference.key)})")
    if not isinstance(key, str) or not isinstance(device, str) or not isinstance(count, int):
        raise TypeError("a storage without a key, device or size")
    if storage_type.name not in _DTYPES:
        raise PickleRefused(f"has a storage of {show(storage_type.name)}")
    name, code = _DTYPES[storage_type.name]
    if view and view[0] is not None:  # of a file before torch 0.4: a part of another storage
        raise ValueError("has views of storages, which no torch since 0.4 writes")
    return _Storage(name, code, key, device, count)


def _to_tensor(
    storage: object, storages: Mapping[str, bytes], order: str, offset: object, shape: object, strides: object
) -> Tensor:
    if not isinstance(storage, _Storage) or not isinstance(offset, int) or offset < 0:
        raise TypeError("a tensor without a storage")
    sizes, steps = _to_sizes(shape), _to_sizes(strides)
    if len(sizes) != len(steps):
        raise ValueError(f"damaged pickle (a tensor of {len(sizes)} axes with {len(steps)} strides)")
    if storage.device == "meta":
        return Tensor(storage.dtype, sizes, problem="has no values (device meta)")
    content = storages.get(storage.key)
    if content is None:
        return Tensor(storage.dtype, sizes, problem=f"has no values (no storage {show(storage.key)})")
    dtype = np.dtype(order + storage.code) if storage.code != "?" else np.dtype("?")
    held = len(content) // dtype.itemsize
    # Strides of 0 make any size out of one value; a weight is never larger than its storage.
    if math.prod(sizes) > held:
        return Tensor(storage.dtype, sizes, problem=f"claims {math.prod(sizes)} values, more than the file holds")
    last = offset + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    if math.prod(sizes) and last >= held:
        return Tensor(storage.dtype, sizes, problem=f"reaches beyond the {held} values of its storage")
    flat = np.frombuffer(content, dtype, held)
    if not math.prod(sizes):
        return Tensor(storage.dtype, sizes, flat[:0].reshape(sizes))
    byte_steps = [step * dtype.itemsize for step in steps]
    return Tensor(
        storage.dtype, sizes, np.lib.stride_tricks.as_strided(flat[offset:], sizes, byte_steps, writeable=False)
    )


def _to_sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 8 or not all(isinstance(size, int) and size >= 0 for size in value):
        raise TypeError(f"a shape or strides are {show(value)}")
    return tuple(value)
