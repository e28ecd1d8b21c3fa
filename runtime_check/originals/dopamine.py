"""Dopamine's JAX agents, its ``networks.py``: the pickle ``ckpt.N`` that its Runner writes.

=====================  ====================================================  ==========================================
layers, by number      meaning                                               rows
=====================  ====================================================  ==========================================
``Conv``               (32, 8, 4), (64, 4, 2), (64, 3, 1), padded SAME       pixels divided by 255 before
``Dense``, two         hidden, head                                          A, A · 51 (C51, Rainbow), A · 200 quantiles
``Dense``, three       hidden, advantage, value on the same hidden layer     A · n and n, categorical where n > 1
``NoisyNetwork``       as ``Dense``, evaluated with ``kernel_mu, bias_mu``   the same
=====================  ====================================================  ==========================================

Kernels are [height, width, in, out] and [in, out], the first dense one of planes flattened in H,W,C order; the rows of
one action lie beside each other. The support is ``linspace(-10, 10, atoms)``. ``flax.nn`` counted all layers together
and had no ``params`` around them; a FrozenDict may be in the place of any dict.

No function that the pickle names is looked up: a small stack machine keeps their names and what they are given.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from runtime_check import oracle, torch_files
from runtime_check.oracle import CATEGORICAL, QUANTILE, Conv, Dense, Float64, Oracle, Q

# SAME on 84, 21 and 11 pixels: stride, and zeros before and after.
_CONVS = ((4, (2, 2)), (2, (1, 2)), (1, (1, 1)))
_LAYERS = (3, 2), (3, 3)
_MOST_ACTIONS, _ATOMS, _QUANTILES, _MOST_ATOMS = 18, 51, 200, 512
_MOST_INSTRUCTIONS = 2_000_000  # the logs list each episode
_LONGEST_TEXT = 2**16  # characters
_MOST_TEXT = 2**22
_LONGEST_NAME = 200
_PACKAGES = ("numpy", "jax", "flax", "optax", "collections")
_OF_ARRAYS = ("_reconstruct", "_reconstruct_array", "reconstruct_device_array")

Weights = dict[str, NDArray[np.float32]]


class AtariNetwork(nn.Module):
    """The networks of Dopamine for Atari in torch, in evaluation, flattened as they do."""

    def __init__(self, weights: Weights, kind: str, support: Float64 | None) -> None:
        """Take the parameters as they are, by ``Conv_0.kernel`` and so on."""
        super().__init__()
        self._kind, self._is_dueling = kind, "Dense_2.bias" in weights
        self.register_buffer("support", None if support is None else torch.from_numpy(support.astype(np.float32)))
        for name, weight in weights.items():
            self.register_buffer(name.replace(".", "_"), torch.from_numpy(weight.copy()))

    def forward(self, obs_nchw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``q_values`` float32[N, actions], and ``logits`` or ``quantiles`` float32[N, actions, n]."""
        x = obs_nchw.float() / 255.0
        for index, (stride, pad) in enumerate(_CONVS):
            kernel = self.get_buffer(f"Conv_{index}_kernel").permute(3, 2, 0, 1)
            x = nn.functional.pad(x, (*pad, *pad))
            x = torch.relu(nn.functional.conv2d(x, kernel, self.get_buffer(f"Conv_{index}_bias"), stride))
        x = torch.relu(self._multiply(0, x.permute(0, 2, 3, 1).flatten(1)))
        outputs = self._multiply(1, x)
        if self._is_dueling:
            value = self._multiply(2, x)
            advantage = outputs.view(len(x), -1, value.shape[1])
            outputs = value[:, None] + (advantage - advantage.mean(1, keepdim=True))
        if self._kind == QUANTILE:
            quantiles = outputs.view(len(x), -1, _QUANTILES)
            return {"q_values": quantiles.mean(2), "quantiles": quantiles}
        if self.support is None:
            return {"q_values": outputs.reshape(len(x), -1)}
        support = self.get_buffer("support")
        logits = outputs.reshape(len(x), -1, len(support))
        return {"q_values": (support * logits.softmax(2)).sum(2), "logits": logits}

    def _multiply(self, index: int, x: torch.Tensor) -> torch.Tensor:
        return x @ self.get_buffer(f"Dense_{index}_kernel") + self.get_buffer(f"Dense_{index}_bias")


def recognise(head: bytes, name: str) -> bool:  # noqa: ARG001 - the content tells enough
    """Tell whether a file is a pickle that begins with a dict whose first key is ``state``."""
    return head.startswith(b"\x80") and b"}" in head[2:12] and b"\x05state" in head[:32].replace(b"\0", b"")


def read(path: Path) -> Oracle:
    """Read a checkpoint in float64.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is no such checkpoint; the message names all that is wrong.
    """
    weights = _read_weights(path)
    kind, actions, support = _find_head(weights, path)
    wide = {name: weight.astype(np.float64) for name, weight in weights.items()}
    try:
        convs = [
            Conv(wide[f"Conv_{index}.kernel"].transpose(3, 2, 0, 1), wide[f"Conv_{index}.bias"], stride, padding)
            for index, (stride, padding) in enumerate(_CONVS)
        ]
        hidden = Dense(_put_channels_first(wide["Dense_0.kernel"], len(convs[-1].bias)), wide["Dense_0.bias"])
        first = Dense(wide["Dense_1.kernel"].T, wide["Dense_1.bias"])
        value = Dense(wide["Dense_2.kernel"].T, wide["Dense_2.bias"]) if "Dense_2.bias" in wide else None
        head = oracle.Head(kind, actions, first, value, oracle.SHARED if value else oracle.SINGLE, support)
        return Oracle(oracle.Observation(), tuple(convs), (hidden,), head)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_eager(path: Path) -> AtariNetwork:
    """Read a checkpoint as Dopamine's network in torch.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is no such checkpoint.
    """
    read(path)  # says what is wrong
    weights = _read_weights(path)
    kind, _, support = _find_head(weights, path)
    return AtariNetwork(weights, kind, support)


def _find_head(weights: Weights, path: Path) -> tuple[str, int, Float64 | None]:
    """Return the kind of the head, the number of actions, and the support of a categorical one."""
    rows = len(weights["Dense_1.bias"])
    if "Dense_2.bias" in weights:
        width = len(weights["Dense_2.bias"])
        kind = Q if width == 1 else CATEGORICAL
    elif rows <= _MOST_ACTIONS:
        kind, width = Q, 1
    else:
        kind, width = (CATEGORICAL, _ATOMS) if rows % _ATOMS == 0 else (QUANTILE, _QUANTILES)
    if rows % width or not 1 <= rows // width <= _MOST_ACTIONS or width > _MOST_ATOMS:
        raise ValueError(f"{path}: its head has {rows} rows, expected 1, 51 or 200 for each action")
    support = np.array([-10 + 20 * atom / (width - 1) for atom in range(width)]) if kind == CATEGORICAL else None
    return kind, rows // width, None if support is None else support.astype(np.float32).astype(np.float64)


def _put_channels_first(kernel: Float64, channels: int) -> Float64:
    """Return the kernel [H · W · C, out] of a dense layer as [out, C · H · W]."""
    side = round((len(kernel) / channels) ** 0.5)
    return kernel.reshape(side, side, channels, -1).transpose(3, 2, 0, 1).reshape(kernel.shape[1], -1)


def _read_weights(path: Path) -> Weights:
    """Return the parameters by ``Conv_0.kernel``, ``Dense_0.bias`` and so on."""
    return _to_weights(torch_files.read_bounded(path), path)


@lru_cache(maxsize=1)  # oracle and reference are made of the same weights
def _to_weights(raw: bytes, path: Path) -> Weights:
    try:
        content = _run(raw)
        layers = _to_dict(content["online_params"] if isinstance(content, dict) else None)
        layers = _to_dict(layers["params"]) if set(layers) == {"params"} else layers
        return _sort_layers(layers)
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {_shorten(error)}"
        raise ValueError(f"{path}: not a checkpoint of Dopamine's JAX agents ({reason})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {_shorten(error)}") from error


def _shorten(error: Exception) -> str:
    return ascii(str(error))[1:-1][:200]


def _sort_layers(layers: dict[str, Any]) -> Weights:
    names: dict[str, list[str]] = {"Conv": [], "Dense": [], "NoisyNetwork": []}
    for name in sorted(map(str, layers), key=lambda name: int(re.sub(r"\D", "", name)[:9] or -1)):
        if (kind := re.sub(r"_\d+$", "", name)) not in names:
            raise ValueError(f"has a layer {name[:40]!r}, expected those of a DQN, C51, Rainbow or quantile agent")
        names[kind].append(name)
    dense = names["Dense"] + names["NoisyNetwork"]
    if (len(names["Conv"]), len(dense)) not in _LAYERS or (names["Dense"] and names["NoisyNetwork"]):
        raise ValueError(f"has the layers {', '.join(map(str, list(layers)[:6]))}, not those of an agent for Atari")
    weights: Weights = {}
    for new, old in ("Conv", names["Conv"]), ("Dense", dense):
        for index, name in enumerate(old):
            parts, suffix = _to_dict(layers[name]), "_mu" if name.startswith("Noisy") else ""
            for part, axes in (("kernel", 4 if new == "Conv" else 2), ("bias", 1)):
                weights[f"{new}_{index}.{part}"] = _to_array(parts[f"{part}{suffix}"], axes)
    if len(dense) == 3 and weights["Dense_1.kernel"].shape[0] == weights["Dense_0.kernel"].shape[1] == 7744:
        raise ValueError("implicit quantiles (IQN) are drawn at random: there is no one answer to judge")
    return weights


@dataclass(eq=False)
class _Made:
    """What a pickle wants to make: by which function, of what, and what it then sets."""

    by: str
    arguments: tuple[Any, ...] = field(repr=False)
    state: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class _Name:
    text: str


def _to_dict(value: Any) -> dict[str, Any]:
    """Return a dict, or what is in a FrozenDict."""
    if isinstance(value, _Made) and value.by == "flax.core.frozen_dict.FrozenDict":
        value = value.arguments[0] if value.arguments else value.state["_dict"]
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__} in place of a dict")
    return value


def _to_array(value: Any, axes: int) -> NDArray[np.float32]:
    """Return a finite array of float32, of so many axes, that NumPy or JAX pickled."""
    by = value.by.rpartition(".")[2] if isinstance(value, _Made) else ""
    if by == "_frombuffer":
        content, dtype, shape, order = value.arguments
    elif by in _OF_ARRAYS:
        _, shape, dtype, is_fortran, content = value.state if by == "_reconstruct" else value.arguments[2]
        order = "F" if is_fortran else "C"
    else:
        raise TypeError(f"a {type(value).__name__} in place of an array")
    is_float = isinstance(dtype, _Made) and dtype.by == "numpy.dtype" and dtype.arguments[0] in ("f4", "<f4")
    if not is_float or (dtype.state is not None and dtype.state[1] != "<") or not isinstance(shape, tuple):
        raise ValueError("a weight is no array of float32")
    array = np.frombuffer(content, "<f4").reshape(shape, order="F" if order == "F" else "C")
    if array.ndim != axes or not array.size or not np.isfinite(array).all():
        raise ValueError(f"a weight of shape {array.shape} is not finite, or not of {axes} axes")
    return array


def _run(raw: bytes) -> Any:
    """Return what a pickle holds, with `_Made` for all that it wants to make by a function."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    for name, argument in _list_instructions(raw):
        if name == "STOP":
            return stack[-1]
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in _PLAIN:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        else:
            count, act = _ACTIONS[name]
            start = marks.pop() - count if name in _TO_MARK else len(stack) - count
            if start < 0:
                raise IndexError("it takes more from its stack than is there")
            taken = stack[start:]
            del stack[start:]
            stack.append(act(taken, argument))
    raise ValueError("its pickle has no end")


def _list_instructions(raw: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the instructions of a pickle with their arguments, as many as a checkpoint may have."""
    characters = 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
        if isinstance(argument, str):
            characters += len(argument)
            if len(argument) > _LONGEST_TEXT:
                raise ValueError(f"its pickle has a text of {len(argument)} characters")
        if number == _MOST_INSTRUCTIONS or characters > _MOST_TEXT:
            raise ValueError("its pickle has too many instructions, or too much text")
        if opcode.name not in _KNOWN:
            raise ValueError(f"its pickle has the instruction {opcode.name}, which no checkpoint needs")
        if opcode.name not in ("PROTO", "FRAME"):
            yield opcode.name, argument


def _to_name(parts: list[Any]) -> _Name:
    if not all(isinstance(part, str) and len(part) <= _LONGEST_NAME for part in parts):
        raise TypeError("its pickle names something by no text, or by a long one")
    if parts[0].partition(".")[0] not in _PACKAGES:
        raise ValueError(f"wants to run {'.'.join(parts)[:60]}")
    return _Name(".".join(parts))


def _set_state(made: Any, state: Any) -> Any:
    made.state = state
    return made


def _extend(owner: Any, items: list[Any]) -> Any:
    owner.extend(items)
    return owner


def _set_items(owner: Any, items: list[Any]) -> Any:
    """Set items of a dict; those of an OrderedDict are of no use. Other keys than texts may take for ever to hash."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str):
            raise TypeError(f"a key is a {type(key).__name__}")
        if not isinstance(owner, _Made):
            owner[key] = value
    return owner


_PLAIN = {
    *("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_TO_MARK = ("TUPLE", "APPENDS", "SETITEMS")
# How many values an instruction takes from the stack, besides those down to the mark, and what it puts there for them.
_ACTIONS: dict[str, tuple[int, Callable[[list[Any], Any], Any]]] = {
    "TUPLE": (0, lambda taken, _: tuple(taken)),
    "TUPLE1": (1, lambda taken, _: tuple(taken)),
    "TUPLE2": (2, lambda taken, _: tuple(taken)),
    "TUPLE3": (3, lambda taken, _: tuple(taken)),
    "GLOBAL": (0, lambda _, argument: _to_name(argument.split(" ", 1))),
    "STACK_GLOBAL": (2, lambda taken, _: _to_name(taken)),
    "REDUCE": (2, lambda taken, _: _Made(taken[0].text, taken[1])),
    "NEWOBJ": (2, lambda taken, _: _Made(taken[0].text, taken[1])),
    "BUILD": (2, lambda taken, _: _set_state(*taken)),
    "APPEND": (2, lambda taken, _: _extend(taken[0], taken[1:])),
    "APPENDS": (1, lambda taken, _: _extend(taken[0], taken[1:])),
    "SETITEM": (3, lambda taken, _: _set_items(taken[0], taken[1:])),
    "SETITEMS": (1, lambda taken, _: _set_items(taken[0], taken[1:])),
}
_OTHERS = {"PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"}
_KNOWN = {*_PLAIN, *_CONSTANTS, *_ACTIONS, *_OTHERS}
