"""Untrusted trees of arrays in Flax' msgpack, as `flax.serialization.to_bytes` writes them, read without Flax."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

from convert.files.documents import show

_NDARRAY = 1  # Flax' extension type
_MOST_ENTRIES = 32  # of a dict; parameters have five, the arguments of a script of CleanRL 25
_MOST_DICTS = 2 * _MOST_ENTRIES  # of a tree; one for each layer, and a few around them
_LONGEST_TEXT = 200  # bytes


def unpack(data: bytes) -> Any:
    """Return the tree of msgpack, as `flax.serialization.msgpack_restore` does, within narrow bounds.

    Raises:
        ValueError: it is damaged, holds anything but dicts, arrays of floats, texts and numbers, or a key twice.
    """
    limits = {"max_array_len": 0, "max_map_len": _MOST_ENTRIES, "max_str_len": _LONGEST_TEXT, "max_bin_len": 0}
    dicts = 0

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal dicts
        dicts += 1
        if dicts > _MOST_DICTS:
            raise ValueError(f"holds more than {_MOST_DICTS} dicts")
        tree = dict(pairs)
        if len(tree) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"holds {show(twice)} twice in one dict")
        return tree

    try:
        return msgpack.unpackb(data, object_pairs_hook=to_dict, ext_hook=_to_array, strict_map_key=True, **limits)
    except Exception as error:  # msgpack raises ValueError and classes of its own for damaged bytes
        raise ValueError(show(str(error))) from error


def _to_array(code: int, data: bytes) -> Any:
    """Return an array as Flax packs it: its shape, the name of its dtype, its bytes in C order."""
    if code != _NDARRAY:
        raise ValueError(f"holds an extension of type {code}, expected arrays")
    limits = {"max_array_len": 8, "max_map_len": 0, "max_str_len": 20, "max_ext_len": 0}
    shape, dtype, content = msgpack.unpackb(data, **limits)
    if dtype not in ("float16", "float32", "float64") or any(size < 0 for size in shape):
        raise ValueError(f"holds an array of {show(dtype)}, expected float32")
    return np.frombuffer(content, np.dtype(dtype)).reshape(shape)
