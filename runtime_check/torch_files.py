"""Files of ``torch.save`` for the judge, which torch itself reads, once they have been looked at.

torch unpickles tensors alone, but it finds its archive by other rules than Python does, and it hashes whatever a pickle
uses as a key. So its archive is built anew from what Python read, and a pickle of tuples within tuples is refused.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime_check.oracle import Float64

LARGEST_FILE = 128 * 2**20  # bytes; one of Stable-Baselines3 has up to 38 MB

_MOST_ENTRIES = 1000
# Of a pickle; those of agents have a few hundred. Some of them can make a dict, and as many others copy it.
_MOST_INSTRUCTIONS = 5000
_LONGEST_TEXT = 1000  # characters; torch searches names for likely ones, which takes for ever
_MOST_TEXT = 2**22  # characters in all
_DEEPEST_TUPLE = 16
_LARGEST_WEIGHT = 2**23  # values; a head of 18 actions and 512 atoms has 4.7 million


def read_bounded(path: Path) -> bytes:
    """Return the content of a file of at most `LARGEST_FILE` bytes.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is larger.
    """
    with path.open("rb") as file:
        data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise ValueError(f"{path}: has more than {LARGEST_FILE // 2**20} MiB")
    return data


def load(raw: bytes, path: Path) -> Any:
    """Return what ``torch.save`` wrote, on the CPU.

    Raises:
        ValueError: it is damaged, or wants to run code.
    """
    try:
        return torch.load(io.BytesIO(_rebuild(raw)), map_location="cpu", weights_only=True)
    except Exception as error:  # neither torch nor zipfile promises a class of error for damaged input
        raise ValueError(f"{path}: not a checkpoint that torch can read safely ({_explain(error)})") from error


def find_state(
    document: Any, names: Iterable[str], path: Path, size: int, is_ignored: Callable[[str], bool] = lambda _: False
) -> dict[str, torch.Tensor]:
    """Return the plain tensors of a state dict.

    Args:
        document: what was loaded.
        names: what it has to hold, each a finite float, and nothing besides.
        path: begins messages.
        size: of the file, in bytes: strides of 0 make any size out of it.
        is_ignored: whether it may hold a name besides, which is not looked at.

    Raises:
        ValueError: it does not; the message names all that is wrong.
    """
    wanted = tuple(names)
    if not isinstance(document, Mapping):
        raise ValueError(f"{path}: holds a {type(document).__name__}, expected a state dict")  # noqa: TRY004
    state = {str(name): value for name, value in document.items()}
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{quote(name)} is unexpected" for name in state if name not in wanted and not is_ignored(name)]
    found = {name: state[name] for name in wanted if name in state}
    for name, value in found.items():
        is_weight = is_plain(value, size) and value.is_floating_point() and value.dim() > 0
        if not is_weight or not 0 < value.numel() <= _LARGEST_WEIGHT:
            problems.append(f"{name} is not a plain tensor of floats")
        elif not torch.isfinite(value).all():
            problems.append(f"{name} is not finite")
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"{path}: {'; '.join(problems[:10])}{more}")
    return {name: value.detach().float() if value.dtype != torch.float64 else value for name, value in found.items()}


def to_float64(state: Mapping[str, torch.Tensor]) -> dict[str, Float64]:
    """Return tensors as arrays of float64."""
    return {name: np.asarray(tensor.to(torch.float64).numpy()) for name, tensor in state.items()}


def quote(name: object) -> str:
    """Return an untrusted name for a message."""
    return ascii(name).strip("'\"")[:80]


def read_entries(raw: bytes) -> dict[str, bytes]:
    """Return the entries of a zip by name.

    Raises:
        ValueError: two have one name, or one is compressed or claims more than the file holds.
    """
    if raw.count(b"PK\x01\x02") > _MOST_ENTRIES:
        raise ValueError(f"its archive has more than {_MOST_ENTRIES} entries")
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        entries = archive.infolist()
        if len({entry.filename.lower() for entry in entries}) < len(entries):
            raise ValueError("its archive has two entries of one name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its archive is compressed, which torch never does")
        if sum(entry.file_size for entry in entries) > len(raw):
            raise ValueError("its archive claims more than the file holds")
        return {entry.filename: archive.read(entry) for entry in entries}


def _explain(error: Exception) -> str:
    """Return why torch does not read a file, without its advice to read it unsafely."""
    text = str(error).strip() or type(error).__name__
    _, found, reason = text.partition("WeightsUnpickler error:")
    if not found and "weights_only" in text:
        return "its pickle holds what torch does not build from files that are not trusted"
    return " ".join((reason if found else text).split())[:200].partition(" Please ")[0]


def _rebuild(raw: bytes) -> bytes:
    """Return a file of torch anew, with its pickles looked at: its archive, or the stream of the format before it."""
    if not raw.startswith(b"PK"):
        _check_pickles(io.BytesIO(raw), 5)
        return raw
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as rebuilt:
        for name, content in read_entries(raw).items():
            if name.endswith("data.pkl"):
                _check_pickles(io.BytesIO(content), 1)
            rebuilt.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _check_pickles(stream: io.BytesIO, count: int) -> None:
    """Raise where one of the next pickles has tuples within tuples within tuples: to hash one can take for ever.

    Follows how deep each value on the pickle's stack is, by what each instruction takes from it and leaves there.
    """
    for _ in range(count):
        stack: list[int | None] = []  # None is a mark
        characters = 0  # each of which may take four bytes of memory
        memo: dict[Any, int | None] = {}
        for number, (opcode, argument, _position) in enumerate(pickletools.genops(stream)):
            if number == _MOST_INSTRUCTIONS:
                raise ValueError(f"its pickle has more than {_MOST_INSTRUCTIONS} instructions")
            if isinstance(argument, str | bytes) and len(argument) > _LONGEST_TEXT:
                raise ValueError(f"its pickle has a text of {len(argument)} characters")
            characters += len(argument) if isinstance(argument, str) else 0
            if characters > _MOST_TEXT:
                raise ValueError(f"its pickle has more than {_MOST_TEXT} characters of text")
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


def is_plain(value: object, size: int) -> bool:
    """Tell a dense tensor on the CPU from all else. Strides of 0 make any size out of a file of ``size`` bytes."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= size
    )
