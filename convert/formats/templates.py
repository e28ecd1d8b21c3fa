"""Files whose bytes are always the same but for the arrays in them.

Building a graph of protobuf messages around 7 MB of weights, or packing them into msgpack, copies them many times.
So a format's own library serialises a form of network once, with arrays that are easily found again, and each agent
puts its arrays in their places. What is written is what the library would write, byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.agents.agent import HeadSpec
from convert.agents.network import (
    NATURE_HIDDEN,
    NATURE_KERNELS,
    NATURE_PADDINGS,
    NATURE_STRIDES,
    Float32,
    Network,
    arrays,
    from_arrays,
)

MARGIN = 2**20  # bytes, of all that stands beside weights in a file

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Form:
    """What a network is without its values: the shapes of its arrays by name, its strides and paddings."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    strides: tuple[int, ...]
    paddings: tuple[int, ...]


@dataclass(frozen=True)
class Template:
    """A file without its arrays: the bytes before, between and after them, and their names and shapes in the file."""

    parts: tuple[bytes, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]


def form_of(network: Network) -> Form:
    """Return a network's form."""
    shapes = tuple((name, array.shape) for name, array in arrays(network).items())
    return Form(shapes, tuple(conv.stride for conv in network.convs), tuple(conv.padding for conv in network.convs))


def nature_form(actions: int, atoms: int | None) -> Form:
    """Return the form of the release's networks with this head."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, kernel in enumerate(NATURE_KERNELS):
        shapes |= {f"convs.{index}.kernel": kernel, f"convs.{index}.bias": kernel[:1]}
    rows = actions * (atoms or 1)
    shapes |= {"hidden.kernel": NATURE_HIDDEN, "hidden.bias": NATURE_HIDDEN[:1]}
    shapes |= {"head.kernel": (rows, NATURE_HIDDEN[0]), "head.bias": (rows,)}
    if atoms is not None:
        shapes["head.support"] = (atoms,)
    return Form(tuple(shapes.items()), NATURE_STRIDES, NATURE_PADDINGS)


def largest_file(head: HeadSpec) -> int:
    """Return how many bytes a file may have that holds the weights of an agent once, in float32."""
    form = nature_form(head.actions, head.atoms)
    return 4 * sum(math.prod(shape) for _, shape in form.shapes) + MARGIN


def to_network(form: Form, values: Mapping[str, Float32]) -> Network:
    """Return the network of a form with these arrays, named as by `convert.agents.network.arrays`."""
    return from_arrays(values, form.strides, form.paddings)


def make_zeros(form: Form) -> Network:
    """Return the network of a form whose values are all 0."""
    return to_network(form, {name: np.zeros(shape, np.float32) for name, shape in form.shapes})


def make_template(serialize: Callable[[dict[str, Float32]], bytes], shapes: Shapes) -> Template:
    """Return the template of what ``serialize`` makes of arrays of these shapes, float32 and little-endian in the file.

    Raises:
        ValueError: the file is not made of the arrays' bytes and fixed parts.
    """
    marks = _make_marks(shapes, seed=0)
    data = serialize(marks)
    places = sorted((data.find(array.tobytes()), name) for name, array in marks.items())
    parts, end = [], 0
    for start, name in places:
        parts.append(data[end:start])
        end = start + marks[name].nbytes
    template = Template((*parts, data[end:]), tuple((name, shapes[name]) for _, name in places))
    others = _make_marks(shapes, seed=1)
    if places[0][0] < 0 or b"".join(fill(template, others)) != serialize(others):
        raise ValueError("what is serialised is not the arrays between fixed parts")
    return template


def fill(template: Template, values: Mapping[str, Float32]) -> list[bytes | memoryview]:
    """Return the pieces of the file that holds these arrays, in order."""
    pieces: list[bytes | memoryview] = [template.parts[0]]
    for (name, _), part in zip(template.shapes, template.parts[1:], strict=True):
        array = np.ascontiguousarray(values[name], "<f4")
        pieces += [array.reshape(-1).view(np.uint8).data, part]
    return pieces


def write_file(path: Path, template: Template, values: Mapping[str, Float32], end: bytes = b"") -> None:
    """Write the file that holds these arrays, and what follows them."""
    with path.open("wb") as file:
        file.writelines([*fill(template, values), end])


def extract(template: Template, data: bytes, end: bytes = b"") -> dict[str, Float32] | None:
    """Return the arrays of a file, views of its bytes; None where its fixed parts, or what follows, are others."""
    values, position = {}, 0
    for part, (name, shape) in zip(template.parts, template.shapes, strict=False):
        start = position + len(part)
        size = int(np.prod(shape))
        position = start + 4 * size
        if data[start - len(part) : start] != part or len(data) < position:
            return None
        values[name] = np.frombuffer(data, "<f4", size, start).astype(np.float32, copy=False).reshape(shape)
    return values if data[position:] == template.parts[-1] + end else None


def _make_marks(shapes: Shapes, seed: int) -> dict[str, Float32]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
