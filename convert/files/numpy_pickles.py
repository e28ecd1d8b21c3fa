"""Pickles of plain Python and NumPy, such as Dopamine's checkpoints, read without running anything that they name."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.files import pickles
from convert.files.documents import show
from convert.files.pickles import Call, Name, PickleRefused, Reference

_EXPECTED = "expected plain Python and NumPy arrays"
_MOST_AXES = 8
_MOST_ENTRIES = 100_000  # that make all ordered and frozen dicts; those of an agent are made of a few hundred
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])", re.ASCII)
_CORES = ("numpy.core", "numpy._core")
_RECONSTRUCT = {Name(f"{core}.multiarray", "_reconstruct") for core in _CORES}
_SCALAR = {Name(f"{core}.multiarray", "scalar") for core in _CORES}
_DICTS = {Name("collections", "OrderedDict"), Name("flax.core.frozen_dict", "FrozenDict")}
# The state of an optimiser of optax: named tuples of its inner modules.
_OPTIMISER = re.compile(r"optax(\._src\.(base|transform|combine|wrappers|numerics|schedule))?\.\w+State", re.ASCII)
# What arrays of JAX are built with: since 0.4, and before.
_RECONSTRUCT_JAX = {
    Name("jax._src.array", "_reconstruct_array"),
    Name("jax._src.device_array", "reconstruct_device_array"),
}
_DTYPE_NAME, _ARRAY_NAME = Name("numpy", "dtype"), Name("numpy", "ndarray")

_WITH_STATE = {*_RECONSTRUCT, _DTYPE_NAME}
_Resolve = Callable[[Any], Any]


def loads(data: bytes) -> Any:
    """Return what a pickle holds: plain Python values, lists for tuples, and `NDArray`s for NumPy's and JAX's arrays.

    Optimiser states of optax become None.

    Raises:
        PickleRefused: it wants to call anything else; the message says its name.
        ValueError: it is damaged.
    """
    try:
        return pickles.resolve(pickles.load(io.BytesIO(data), _is_known), partial(_build, _Budget()))
    except PickleRefused as error:
        raise PickleRefused(f"{error}, {_EXPECTED}") from error
    except (TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"damaged pickle ({type(error).__name__}: {show(str(error))})") from error


def _is_known(name: Name) -> bool:
    return name in _BUILDERS or name in _DICTS or name == _ARRAY_NAME or _is_optimiser(name)


def _is_optimiser(name: Name) -> bool:
    return _OPTIMISER.fullmatch(str(name)) is not None


@dataclass
class _Budget:
    """How many more entries may go into dicts: a pickle can have the same ones copied again and again."""

    entries: int = _MOST_ENTRIES

    def spend(self, count: int) -> None:
        self.entries -= count
        if self.entries < 0:
            raise PickleRefused(f"makes dicts of more than {_MOST_ENTRIES} entries")


def _build(budget: _Budget, value: Call | Name | Reference, resolve: _Resolve) -> Any:
    if isinstance(value, Reference):
        raise PickleRefused("refers to what is not in it")
    if isinstance(value, Name):
        return value
    if _is_optimiser(value.function):
        return None
    if value.function in _DICTS:
        return _to_dict(value, resolve, budget)
    if value.function not in _BUILDERS:
        raise PickleRefused(f"wants to run {show(str(value.function))}")
    if value.items:
        raise PickleRefused(f"sets items of {value.function}")
    if value.state is not None and value.function not in _WITH_STATE:
        raise PickleRefused(f"changes {value.function} after it was made")
    return _BUILDERS[value.function](value, resolve)


def _to_dict(call: Call, resolve: _Resolve, budget: _Budget) -> dict[Any, Any]:
    (initial,) = resolve(call.arguments) or ({},)
    pairs = initial.items() if isinstance(initial, dict) else initial
    items = resolve(call.items)
    budget.spend(len(pairs) + len(items))
    result = dict(items)
    for key, item in pairs:
        if not isinstance(key, str | int):
            raise TypeError(f"a key is a {type(key).__name__}")
        result.setdefault(key, item)
    state = resolve(call.state)
    kept = state.get("_dict", {}) if isinstance(state, dict) else {}  # as FrozenDict keeps its items
    if not isinstance(kept, dict):
        raise TypeError(f"a FrozenDict keeps a {type(kept).__name__}")
    budget.spend(len(kept))
    return result | kept


def _to_dtype(call: Call, resolve: _Resolve) -> np.dtype[Any]:
    code = resolve(call.arguments)[0]
    if not isinstance(code, str) or not _DTYPE.fullmatch(code):
        raise PickleRefused(f"wants an array of {show(code)}")
    dtype = np.dtype(code)
    return dtype if call.state is None else dtype.newbyteorder(resolve(call.state)[1])


def _reconstruct(call: Call, resolve: _Resolve) -> NDArray[Any]:
    return _to_array(resolve(call.state))


def _reconstruct_jax(call: Call, resolve: _Resolve) -> NDArray[Any]:
    function, _, state, *_ = resolve(call.arguments)
    if function not in _RECONSTRUCT:
        raise PickleRefused(f"wants to build an array with {show(function)}")
    return _to_array(state)


def _from_buffer(call: Call, resolve: _Resolve) -> NDArray[Any]:
    return _from_bytes(*resolve(call.arguments))


def _to_scalar(call: Call, resolve: _Resolve) -> Any:
    dtype, content = resolve(call.arguments)
    return _from_bytes(content, dtype, [1], "C")[0]


def _to_array(state: Any) -> NDArray[Any]:
    _, shape, dtype, is_fortran, content = state
    return _from_bytes(content, dtype, shape, "F" if is_fortran else "C")


def _from_bytes(content: object, dtype: object, shape: object, order: object) -> NDArray[Any]:
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes | bytearray) or not isinstance(shape, list):
        raise PickleRefused("wants an array of Python objects")
    if len(shape) > _MOST_AXES or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"damaged pickle (an array of shape {show(shape)})")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"damaged pickle (an array of {show(shape)} {dtype} with {len(content)} bytes)")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if order == "F" else "C")


_BUILDERS: dict[Name, Callable[[Call, _Resolve], Any]] = {
    **dict.fromkeys(_RECONSTRUCT, _reconstruct),
    **dict.fromkeys(_SCALAR, _to_scalar),
    **{Name(f"{core}.numeric", "_frombuffer"): _from_buffer for core in _CORES},
    **dict.fromkeys(_RECONSTRUCT_JAX, _reconstruct_jax),
    _DTYPE_NAME: _to_dtype,
}
