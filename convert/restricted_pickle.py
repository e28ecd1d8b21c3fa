"""Read a pickle of plain Python and NumPy without running anything that it names.

Dopamine's checkpoints are pickles, and a pickle may name any function to be called. Here the few names that
such a checkpoint needs stand for inert values of this module; every other name is refused before it is looked up.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class PickleRefused(ValueError):
    """The pickle names something that is neither plain Python nor a NumPy array."""


def loads(data: bytes) -> Any:
    """Return what a pickle holds: plain Python values, with `NDArray`s for NumPy's and JAX's arrays.

    Optimiser states of optax are passed over and leave an opaque value.

    Raises:
        PickleRefused: it wants to call anything else; the message says its name.
        ValueError: it is damaged.
    """
    try:
        return _to_numpy(_Unpickler(io.BytesIO(data)).load(), {})
    except PickleRefused:
        raise
    # What the unpickler raises for damaged bytes depends on the byte.
    except (
        *(pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError),
        *(MemoryError, OverflowError, RecursionError),
    ) as error:
        raise ValueError(f"damaged pickle ({type(error).__name__}: {error})") from error


class _Dtype:
    """Stands for ``numpy.dtype`` of a number or a bool."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248])", code):
            raise PickleRefused(f"wants an array of {code!r}, expected numbers")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numpy = self.numpy.newbyteorder(state[1])


class _Array:
    """Stands for ``numpy.ndarray``."""

    value: NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = _from_bytes(data, dtype, shape, "F" if is_fortran else "C")


class _Opaque:
    """Stands for what is of no use here and is carried along unread."""

    def __new__(cls, *_: object) -> _Opaque:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def _from_bytes(data: object, dtype: object, shape: object, order: object) -> NDArray[Any]:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple):
        raise PickleRefused("wants an array of Python objects, expected numbers")
    return np.frombuffer(data, dtype.numpy).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _reconstruct_jax(function: object, _: object, state: tuple[Any, ...], *__: object) -> _Array:
    if function is not _reconstruct:
        raise PickleRefused(f"wants to build an array with {function!r}")
    array = _Array()
    array.__setstate__(state)
    return array


def _scalar(dtype: object, data: object) -> Any:
    return _from_bytes(data, dtype, (1,), "C")[0]


_NUMPY: dict[str, Callable[..., Any]] = {"_reconstruct": _reconstruct, "scalar": _scalar}
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    **{(f"numpy.{core}.multiarray", name): value for core in ("core", "_core") for name, value in _NUMPY.items()},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_bytes for core in ("core", "_core")},
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("jax._src.array", "_reconstruct_array"): _reconstruct_jax,
    ("flax.core.frozen_dict", "FrozenDict"): dict,
    ("collections", "OrderedDict"): dict,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "optax":
            return _Opaque
        if (module, name) not in _KNOWN:
            raise PickleRefused(f"wants to run {module}.{name}, expected plain Python and NumPy arrays")
        return _KNOWN[module, name]


def _to_numpy(value: Any, done: dict[int, Any]) -> Any:
    """Return a value with arrays in place of what stands for them; done: what each container became, by its id.

    A few bytes of pickle can hold one list 2^60 times, each in the one before it.
    """
    if isinstance(value, _Array):
        return value.value
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) not in done:
        if isinstance(value, dict):
            done[id(value)] = {key: _to_numpy(item, done) for key, item in value.items()}
        else:
            done[id(value)] = [_to_numpy(item, done) for item in value]
    return done[id(value)]
