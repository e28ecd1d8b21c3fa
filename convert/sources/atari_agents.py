"""The release "Pretrained Atari Agents" (2022): gzip of ``torch.save({"estimator_state": state_dict, …})``.

Nothing in a file is trusted: it inflates within a bound, and its pickle may build tensors and nothing else.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zipfile
import zlib
from typing import Any

import deflate
import numpy as np
import torch

from convert.errors import UnreadableCheckpoint, UnsupportedArchitecture, WeightMismatch
from convert.network import Float32, Network, check_network, find_shape_problems, from_arrays

STATE_KEY = "estimator_state"
SUPPORT_KEY = "_AtariNet__support"
# Python's name mangling of the release's class is part of its keys.
KEYS = {
    **{
        f"_AtariNet__features.{2 * index}.{torch_name}": f"convs.{index}.{name}"
        for index in range(3)
        for torch_name, name in (("weight", "kernel"), ("bias", "bias"))
    },
    "_AtariNet__head.0.weight": "hidden.kernel",
    "_AtariNet__head.0.bias": "hidden.bias",
    "_AtariNet__head.2.weight": "head.kernel",
    "_AtariNet__head.2.bias": "head.bias",
    SUPPORT_KEY: "head.support",
}

# How torch's restricted unpickler names what it refuses.
_REFUSED = re.compile(r"(?:GLOBAL|unrecognized function) ([\w.<> ]*[\w>])")

# A file of the release inflates to 8.6 MB; the bound keeps a bomb from filling the memory.
MAX_INFLATED = 256 * 2**20


def read(data: bytes, name: str) -> Network:
    """Read the bytes of a checkpoint file.

    Args:
        data: the gzip file's content.
        name: how messages call it, such as its path.

    Raises:
        UnreadableCheckpoint: not a gzip, truncated, too large when inflated, not a torch checkpoint, or its
            pickle wants to run code.
        WeightMismatch: weights are missing, unexpected, of a dtype that float32 cannot hold, or not finite.
        UnsupportedArchitecture: its layers are not those of the release.
    """
    raw = inflate(data, name)
    state = _load_state(raw, name)
    network = from_arrays(_to_arrays(state, len(raw), name))
    check_network(network, name)
    return network


def inflate(data: bytes, name: str) -> bytes:
    """Return the content of a gzip file of at most 256 MiB inflated, whose checksum is right.

    Raises:
        UnreadableCheckpoint: it is empty, not a gzip, damaged, truncated, or larger.
    """
    if not data:
        raise UnreadableCheckpoint(f"{name}: the file is empty, expected a gzipped checkpoint: take another copy")
    if not data.startswith(b"\x1f\x8b"):
        raise UnreadableCheckpoint(f"{name}: begins with {data[:4]!r}, expected a gzip file (1f 8b)")
    return _inflate_at_once(data) or _inflate_or_explain(data, name)


def _inflate_at_once(data: bytes) -> bytes | None:
    """Inflate a whole and sound file with libdeflate, twice as fast as zlib; None for any other."""
    if len(data) < 18:  # a header and a trailer
        return None
    checksum, size = struct.unpack("<II", data[-8:])
    if size > MAX_INFLATED:
        return None
    try:
        raw = bytes(deflate.gzip_decompress(data))
    except (deflate.DeflateError, ValueError):
        return None
    # libdeflate stops after the first stream; only where the file ends there too, its end describes that stream.
    return raw if (deflate.crc32(raw), len(raw)) == (checksum, size) else None


def _inflate_or_explain(data: bytes, name: str) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        raw = inflater.decompress(data, MAX_INFLATED)
    except zlib.error as error:
        raise UnreadableCheckpoint(f"{name}: damaged gzip ({error}): take another copy") from error
    if len(raw) == MAX_INFLATED and not inflater.eof:
        raise UnreadableCheckpoint(f"{name}: inflates to over 256 MiB, expected about 7 MB: not a checkpoint")
    if not inflater.eof:
        raise UnreadableCheckpoint(f"{name}: truncated after {len(data)} bytes: take another copy")
    if inflater.unused_data:
        raise UnreadableCheckpoint(f"{name}: {len(inflater.unused_data)} bytes after the end of the gzip stream")
    return raw


def _load_state(raw: bytes, name: str) -> dict[str, Any]:
    try:
        checkpoint = _unpickle(raw)
    except Exception as error:  # neither torch nor zipfile promises a class of error for damaged input
        raise UnreadableCheckpoint(f"{name}: {_explain(error)}") from error
    if not isinstance(checkpoint, dict) or STATE_KEY not in checkpoint:
        found = _list_names(checkpoint) if isinstance(checkpoint, dict) else f"a {type(checkpoint).__name__}"
        raise UnreadableCheckpoint(f"{name}: holds {found}, expected {STATE_KEY!r}: not a checkpoint of this release")
    state = checkpoint[STATE_KEY]
    if not isinstance(state, dict):
        raise UnreadableCheckpoint(f"{name}: {STATE_KEY} is a {type(state).__name__}, expected a state dict")
    return state


def _unpickle(raw: bytes) -> Any:
    size = _archive_size(raw)
    if size > MAX_INFLATED:
        raise ValueError(f"its archive inflates to {size} bytes, over 256 MiB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch asks to file an issue for a foreign pickle, which is refused here
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)


def _archive_size(raw: bytes) -> int:
    """Return what the entries of a torch archive inflate to; 0 for the format before it.

    torch stores its entries and never deflates them, but would inflate them: a second chance for a bomb.
    """
    if not raw.startswith(b"PK\x03\x04"):
        return 0
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _explain(error: Exception) -> str:
    refused = _REFUSED.search(str(error))
    if refused:
        return f"refused: its pickle wants to run {refused[1]}, expected tensors alone"
    # torch's first paragraph advises to switch its safety off.
    paragraphs = [text for text in str(error).split("\n\n") if not text.startswith("Weights only load failed")]
    reason = " ".join(paragraphs[0].split()) if paragraphs else type(error).__name__
    return f"not a PyTorch checkpoint ({reason}): take another copy"


def _to_arrays(state: dict[str, Any], size: int, name: str) -> dict[str, Float32]:
    problems = [f"no {key}" for key in KEYS if key not in state and key != SUPPORT_KEY]
    problems += [f"unexpected {key}" for key in state if key not in KEYS]
    arrays = {}
    for key in KEYS.keys() & state.keys():
        problem = _find_tensor_problem(state[key], size)
        if problem:
            problems.append(f"{key} {problem}")
        else:
            arrays[KEYS[key]] = _to_float32(state[key])
    shape_problems = find_shape_problems({key: array.shape for key, array in arrays.items()})
    if problems:
        raise WeightMismatch(
            f"{name}: {'; '.join(sorted(problems) + shape_problems)}: not a state dict of this release"
        )
    if shape_problems:
        raise UnsupportedArchitecture(f"{name}: {'; '.join(shape_problems)}: not a Nature-CNN of this release")
    return arrays


def _find_tensor_problem(value: Any, size: int) -> str | None:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
        return f"is a {type(value).__name__}, expected a dense tensor"
    if value.device.type != "cpu":
        return f"has no values (device {value.device})"
    if value.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        return f"is {str(value.dtype).removeprefix('torch.')}, expected float32"
    # Strides of 0 make any size out of one value; a weight of the release is never larger than its file.
    if value.numel() * value.element_size() > size:
        return f"claims {value.numel()} values, more than the file holds"
    if value.dtype == torch.float64 and not _is_float32(value):
        return "is float64 with values that float32 cannot hold: round them to float32 first, if you accept the loss"
    return None


def _is_float32(value: torch.Tensor) -> bool:
    return torch.equal(torch.nan_to_num(value.float().double()), torch.nan_to_num(value))


def _to_float32(value: torch.Tensor) -> Float32:
    return np.ascontiguousarray(value.detach().float().numpy())


def _list_names(checkpoint: dict[Any, Any]) -> str:
    names = [repr(key) for key in checkpoint]
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "") if names else "nothing"
