"""Files whose bytes are always the same but for the arrays in them.

Building a graph of protobuf messages around 7 MB of weights, or packing them into msgpack, copies them many times.
So a format's own library serialises an architecture once, with arrays that are easily found again, and each agent
puts its arrays in their places. What is written is what the library would write, byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.agents.architecture import Architecture, Shapes, list_shapes
from convert.agents.network import Float32

MARGIN = 2**20  # bytes, of all that stands beside weights in a file


@dataclass(frozen=True)
class Template:
    """A file without its arrays: the bytes before, between and after them, and their names and shapes in the file."""

    parts: tuple[bytes, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]


def largest_file(architecture: Architecture) -> int:
    """Return how many bytes a file may have that holds the weights of an agent once, in float32."""
    return 4 * sum(map(math.prod, list_shapes(architecture).values())) + MARGIN


def make_template(serialize: Callable[[dict[str, Float32]], bytes], shapes: Shapes) -> Template:
    """Return the template of what ``serialize`` makes of arrays of these shapes, float32 and little-endian in the file.

    Raises:
        ValueError: the file is not made of the arrays' bytes and fixed parts.
    """
    marks = _make_marks(shapes, seed=0)
    data = serialize(marks)
    places = sorted(_find_places(data, marks))
    parts, end = [], 0
    for start, name in places:
        parts.append(data[end:start])
        end = start + marks[name].nbytes
    template = Template((*parts, data[end:]), tuple((name, shapes[name]) for _, name in places))
    others = _make_marks(shapes, seed=1)
    if places[0][0] < 0 or b"".join(fill(template, others)) != serialize(others):
        raise ValueError("what is serialised is not the arrays between fixed parts")
    return template


def _find_places(data: bytes, marks: Mapping[str, Float32]) -> Iterator[tuple[int, str]]:
    """Yield where each array begins. The bytes of a small one may occur in a large one too, so large ones go first."""
    rest = bytearray(data)
    for name, array in sorted(marks.items(), key=lambda item: -item[1].nbytes):
        place = rest.find(array.tobytes())
        if place >= 0:
            rest[place : place + array.nbytes] = bytes(array.nbytes)
        yield place, name


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
