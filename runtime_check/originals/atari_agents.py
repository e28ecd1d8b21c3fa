"""The release "Pretrained Atari Agents" (2022), read with torch: a gzip of ``torch.save({"estimator_state": …})``.

torch unpickles tensors alone, but it finds its archive by other rules than Python does, and it hashes whatever a pickle
uses as a key. So its archive is built anew from what Python read, and a pickle of tuples within tuples is refused.
"""

from __future__ import annotations

import gzip
import io
import pickletools
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

LARGEST_CHECKPOINT = 128 * 2**20  # bytes, inflated; one of the release has about 9 MB

_MOST_ENTRIES = 1000
_DEEPEST_TUPLE = 16


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the weights of a checkpoint of the release.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is not such a checkpoint, inflates to more than 128 MiB, or wants to run code.
    """
    try:
        with gzip.open(path) as file:
            raw = file.read(LARGEST_CHECKPOINT + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a complete gzip file ({error})") from error
    if len(raw) > LARGEST_CHECKPOINT:
        raise ValueError(
            f"{path}: inflates to more than {LARGEST_CHECKPOINT // 2**20} MiB, a checkpoint has about 9 MB"
        )
    try:
        document = torch.load(io.BytesIO(_rebuild(raw)), map_location="cpu", weights_only=True)
    except Exception as error:  # neither torch nor zipfile promises a class of error for damaged input
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a checkpoint that torch can read safely ({reason})") from error
    state = document.get("estimator_state") if isinstance(document, dict) else None
    if not isinstance(state, dict) or not all(_is_plain(value, len(raw)) for value in state.values()):
        raise ValueError(f"{path}: no 'estimator_state' that maps names to plain tensors")
    return {str(name): tensor.detach() for name, tensor in state.items()}


def _rebuild(raw: bytes) -> bytes:
    """Return a file of torch anew, with its pickles looked at: its archive, or the stream of the format before it."""
    if not raw.startswith(b"PK"):
        _check_pickles(io.BytesIO(raw), 5)
        return raw
    if raw.count(b"PK\x01\x02") > _MOST_ENTRIES:
        raise ValueError(f"its archive has more than {_MOST_ENTRIES} entries")
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as archive, zipfile.ZipFile(buffer, "w") as rebuilt:
        entries = archive.infolist()
        if len({entry.filename.lower() for entry in entries}) < len(entries):
            raise ValueError("its archive has two entries of one name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its archive is compressed, which torch never does")
        if sum(entry.file_size for entry in entries) > len(raw):
            raise ValueError("its archive claims more than the file holds")
        for entry in entries:
            content = archive.read(entry)
            if entry.filename.endswith("data.pkl"):
                _check_pickles(io.BytesIO(content), 1)
            rebuilt.writestr(zipfile.ZipInfo(entry.filename), content)
    return buffer.getvalue()


def _check_pickles(stream: io.BytesIO, count: int) -> None:
    """Raise where one of the next pickles has tuples within tuples within tuples: to hash one can take for ever.

    Follows how deep each value on the pickle's stack is, by what each instruction takes from it and leaves there.
    """
    for _ in range(count):
        stack: list[int | None] = []  # None is a mark
        memo: dict[Any, int | None] = {}
        for opcode, argument, _position in pickletools.genops(stream):
            if opcode.name in ("BINPUT", "LONG_BINPUT", "PUT"):
                memo[argument] = stack[-1]
            elif opcode.name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
                stack.append(memo[argument])
            else:
                _follow(opcode, stack)


def _follow(opcode: Any, stack: list[int | None]) -> None:
    takes = len(opcode.stack_before)
    if pickletools.markobject in opcode.stack_before:
        takes = opcode.stack_before.index(pickletools.markobject) + stack[::-1].index(None) + 1
    taken = stack[len(stack) - takes :] if takes else []
    if takes > len(stack):
        raise ValueError("its pickle takes more from the stack than is there")
    del stack[len(stack) - takes :]
    depth = 1 + max(filter(None, taken), default=0) if opcode.name.startswith("TUPLE") else 0
    if depth > _DEEPEST_TUPLE:
        raise ValueError(f"its pickle has more than {_DEEPEST_TUPLE} tuples within each other")
    stack += [None if kind is pickletools.markobject else depth for kind in opcode.stack_after]


def _is_plain(value: object, size: int) -> bool:
    """Tell a dense tensor on the CPU from all else. Strides of 0 make any size out of a file of ``size`` bytes."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= size
    )
