"""Untrusted pickles, read without running anything that they name.

A pickle is a program for a small stack machine, and may name any function to be called. Here the program runs on a
stack machine of this module, which knows no function: what a pickle wants to call becomes a `Call`, a value.
`pickletools` reads the arguments of each instruction.

Bombs are refused or defused: a memo of billions of entries (it is a dict here), containers that contain each other
billions of times (`resolve` visits each once, and none is printed whole), keys whose hashes take for ever or collide
(only plain keys and no large numbers are accepted), and numbers and texts of many megabytes.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from convert.files.documents import show

# A checkpoint of Dopamine lists each training episode; one of the release has some hundred instructions.
MOST_INSTRUCTIONS = 2_000_000
DEEPEST = 100  # containers within each other
LARGEST_NUMBER = 2**127
LONGEST_TEXT = 2**16  # bytes
MOST_TEXT = 2**22  # characters of all texts together, each of up to four bytes; a state dict has some thousand
_LARGEST_KEY = 2**61 - 2  # Python hashes larger numbers modulo 2**61 - 1, so that many share one hash

_ATOMS = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_TEXTS = {"SHORT_BINUNICODE": 1, "BINUNICODE": 4, "BINUNICODE8": 8}  # bytes of the length before a text
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class PickleRefused(ValueError):
    """The pickle names something that its format does not need."""


@dataclass(frozen=True)
class Name:
    """A function or class that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False)
class Reference:
    """Something outside the pickle that it refers to, such as a storage of torch."""

    key: Any = field(repr=False)


@dataclass(eq=False)
class Call:
    """A call that a pickle asks for. state and items: what it would set on the result afterwards."""

    function: Name
    arguments: Any = field(repr=False)
    state: Any = field(default=None, repr=False)
    items: dict[Any, Any] = field(default_factory=dict, repr=False)


Stream = io.BytesIO
_Resolve = Callable[[Any], Any]
Build = Callable[[Call | Name | Reference, _Resolve], Any]


def load(stream: Stream, is_known: Callable[[Name], bool]) -> Any:
    """Return what the next pickle of a stream holds, with `Call`, `Name` and `Reference` in place of what is named.

    Args:
        stream: bytes, at the start of a pickle; afterwards at its end.
        is_known: whether the format has a use for a function or class.

    Raises:
        PickleRefused: it names another function or class; the message says which.
        ValueError: it is damaged, or larger than any checkpoint.
    """
    machine = _Machine(is_known)
    try:
        for _ in range(MOST_INSTRUCTIONS):
            name, argument = _read_instruction(stream)
            if name == "STOP":
                return machine.stack.pop()
            machine.run(name, argument)
    except PickleRefused:
        raise
    # What pickletools raises for damaged bytes depends on the byte.
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, ValueError) as error:
        raise ValueError(f"damaged pickle ({type(error).__name__}: {show(str(error))})") from error
    raise ValueError(f"damaged pickle (more than {MOST_INSTRUCTIONS} instructions)")


def resolve(tree: Any, build: Build) -> Any:
    """Return a loaded tree as plain values: tuples become lists, and ``build`` makes each call, name and reference.

    Args:
        tree: from `load`.
        build: is given a `Call`, `Name` or `Reference`, and a function that resolves what is in it.

    Raises:
        ValueError: the tree holds itself, or is too deep; or ``build`` raises it.
    """
    done: dict[int, Any] = {}
    depth = 0

    def visit(value: Any) -> Any:
        nonlocal depth
        if not isinstance(value, dict | list | tuple | Call | Name | Reference):
            return value
        if id(value) in done:
            if done[id(value)] is done:
                raise ValueError("damaged pickle (a container holds itself)")
            return done[id(value)]
        if depth == DEEPEST:
            raise ValueError(f"damaged pickle (more than {DEEPEST} containers within each other)")
        done[id(value)] = done  # not finished
        depth += 1
        if isinstance(value, dict):
            result: Any = {key: visit(item) for key, item in value.items()}
        elif isinstance(value, list | tuple):
            result = [visit(item) for item in value]
        else:
            result = build(value, visit)
        depth -= 1
        done[id(value)] = result
        return result

    return visit(tree)


def _read_instruction(stream: Stream) -> tuple[str, Any]:
    """Return the name and argument of the next instruction, whose argument is not read where it is not known."""
    opcode = _OPCODES[stream.read(1)]
    if opcode.name not in _KNOWN:
        raise PickleRefused(f"has the instruction {opcode.name}, which no checkpoint needs")
    if opcode.name in _TEXTS:
        size = int.from_bytes(stream.read(_TEXTS[opcode.name]), "little")
        if size > LONGEST_TEXT:
            raise ValueError(f"a text of {size} bytes")
        return opcode.name, stream.read(size).decode("utf-8", "surrogatepass")
    argument = opcode.arg.reader(stream) if opcode.arg else None
    if isinstance(argument, int) and abs(argument) > LARGEST_NUMBER:
        raise ValueError(f"a number of {argument.bit_length()} bits")
    return opcode.name, argument


class _Machine:
    """The stack machine of `pickle`, without its ways to look up and call."""

    def __init__(self, is_known: Callable[[Name], bool]) -> None:
        self.stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._text_left = MOST_TEXT
        self._is_known = is_known

    def run(self, name: str, argument: Any) -> None:
        stack = self.stack
        if isinstance(argument, str):
            self._text_left -= len(argument)
            if self._text_left < 0:
                raise ValueError(f"texts of more than {MOST_TEXT} characters")
        if name in _ATOMS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name not in ("PROTO", "FRAME"):
            _INSTRUCTIONS[name](self, argument)

    def _mark(self, _: Any) -> None:
        self._marked.append(self.stack)
        self.stack = []

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._marked.pop()
        return items

    def _drop_mark(self, _: Any) -> None:
        self._pop_mark()

    def _pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._pop_mark()

    def _put_tuple(self, _: Any) -> None:
        items = self._pop_mark()
        self.stack.append(tuple(items))

    def _put_short_tuple(self, length: int) -> None:
        if len(self.stack) < length:
            raise IndexError("stack underflow")
        start = len(self.stack) - length
        self.stack[start:] = [tuple(self.stack[start:])]

    def _append(self, _: Any) -> None:
        item = self.stack.pop()
        self._list().append(item)

    def _extend(self, _: Any) -> None:
        items = self._pop_mark()
        self._list().extend(items)

    def _list(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise TypeError(f"appends to a {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def _set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _set_items(self, _: Any) -> None:
        self._set(self._pop_mark())

    def _set(self, flat: list[Any]) -> None:
        owner = self.stack[-1]
        items = owner.items if isinstance(owner, Call) else owner
        if not isinstance(items, dict) or len(flat) % 2:
            raise TypeError(f"sets items of a {type(owner).__name__}")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if key is not None and not isinstance(key, str | int | float | bytes):
                raise TypeError(f"a key is a {type(key).__name__}, expected text or a number")
            if isinstance(key, int) and abs(key) > _LARGEST_KEY:
                raise ValueError("a key is a large number")
            items[key] = value

    def _name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_name(module, name)

    def _stack_name(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._push_name(module, name)

    def _push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name is not text")
        named = Name(module, name)
        if not self._is_known(named):
            raise PickleRefused(f"wants to run {show(str(named))}")
        self.stack.append(named)

    def _call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise TypeError(f"calls a {type(function).__name__}")
        self.stack.append(Call(function, arguments))

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Call):
            raise TypeError(f"gives a state to a {type(self.stack[-1]).__name__}")
        self.stack[-1].state = state

    def _refer(self, _: Any) -> None:
        self.stack.append(Reference(self.stack.pop()))


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "POP": _Machine._pop,
    "POP_MARK": _Machine._drop_mark,
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "TUPLE": _Machine._put_tuple,
    "TUPLE1": lambda machine, _: machine._put_short_tuple(1),
    "TUPLE2": lambda machine, _: machine._put_short_tuple(2),
    "TUPLE3": lambda machine, _: machine._put_short_tuple(3),
    "APPEND": _Machine._append,
    "APPENDS": _Machine._extend,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "GLOBAL": _Machine._name,
    "STACK_GLOBAL": _Machine._stack_name,
    "REDUCE": _Machine._call,
    "NEWOBJ": _Machine._call,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._refer,
}

_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_KNOWN = frozenset(
    (*_ATOMS, *_CONSTANTS, *_INSTRUCTIONS, "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE")
) | {"PROTO", "FRAME", "STOP"}
