"""HDF5 files of plain float32 arrays, as h5py writes them, read without the HDF5 library.

That library inflates whatever a file calls compressed, a group's list of names too, before anybody can ask how large it
gets. So the few structures that h5py uses by default are read here, and any other is refused: superblock version 0,
object headers version 1, groups with a symbol table, datasets in one piece. The HDF5 File Format Specification,
version 3.0, names them as the comments do: https://docs.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convert.files.documents import show

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_LONGEST_NAME = 256  # bytes
_MOST_PARTS = 20_000  # nodes, entries and messages, of all that is followed; a Keras model has a thousand
_DATASPACE, _DATATYPE, _LAYOUT, _FILTERS, _CONTINUATION, _SYMBOL_TABLE = 0x01, 0x03, 0x08, 0x0B, 0x10, 0x11
# Class 1 (floating point) version 1, little-endian, 4 bytes: IEEE 754 single precision.
_FLOAT32 = bytes.fromhex("11201f00 04000000 0000 2000 17 08 00 17 7f000000")


@dataclass
class _File:
    """A file, and how much more of it may be followed: its parts may lead to each other in a circle."""

    data: bytes
    left: int = _MOST_PARTS

    def unpack(self, form: str, place: int) -> tuple[int, ...]:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"has more than {_MOST_PARTS} parts")
        if not 0 <= place <= len(self.data):
            raise ValueError(f"names byte {place} of {len(self.data)}")
        return struct.unpack_from(f"<{form}", self.data, place)

    def expect(self, place: int, signature: bytes) -> None:
        if self.data[place : place + len(signature)] != signature:
            raise ValueError(f"has no {signature[:4]!r} at byte {place}")


def read_arrays(data: bytes, shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """Return arrays of a file by their paths.

    Args:
        data: the file.
        shapes: the shape of each array by its path, such as ``layers/dense/vars/0``.

    Raises:
        ValueError: one is missing or of another shape, the file is damaged, or it has other structures.
    """
    file = _File(data)
    try:
        file.expect(0, _SIGNATURE + b"\0\0\0\0\0\x08\x08")  # versions 0, offsets and lengths of 8 bytes
        (root,) = file.unpack("Q", 56 + 8)  # the root group's symbol table entry, and in it its object header
        return {path: _read_array(file, _find(file, root, path), path, shape) for path, shape in shapes.items()}
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"damaged HDF5 ({show(str(error))})") from error


def _find(file: _File, root: int, path: str) -> int:
    """Return the address of the object header at a path."""
    header = root
    for name in path.split("/"):
        table = [content for kind, content in _list_messages(file, header) if kind == _SYMBOL_TABLE]
        if len(table) != 1:
            raise ValueError(f"{path} is not in a group with a symbol table")
        tree, heap = file.unpack("QQ", table[0][0])
        found = [place for place, entry in _list_entries(file, tree, heap) if entry == name.encode()]
        if len(found) != 1:
            raise ValueError(f"{path} is not there, or more than once")
        header = found[0]
    return header


def _list_messages(file: _File, header: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield the type, and the place and size, of each message in an object header of version 1."""
    version, _, count, _, size = file.unpack("BBHII", header)
    if version != 1:
        raise ValueError(f"has an object header of version {version} at byte {header}, expected 1")
    blocks = [(header + 16, size)]
    while blocks and count > 0:
        place, size = blocks.pop(0)
        end = place + size
        while place + 8 <= end and count > 0:
            kind, length, _flags = file.unpack("HHB", place)
            if kind == _CONTINUATION:
                offset, extent = file.unpack("QQ", place + 8)
                blocks.append((offset, extent))
            yield kind, (place + 8, length)
            place, count = place + 8 + length, count - 1


def _list_entries(file: _File, node: int, heap: int) -> Iterator[tuple[int, bytes]]:
    """Yield the object header's address and the name of each entry of a group's tree (B-tree version 1, type 0)."""
    file.expect(heap, b"HEAP\0")
    (names,) = file.unpack("Q", heap + 24)
    nodes = [node]
    while nodes:
        node = nodes.pop()
        file.expect(node, b"TREE\0")
        level, count = file.unpack("BH", node + 5)
        children = [file.unpack("Q", node + 24 + 8 + 16 * index)[0] for index in range(count)]
        if level:
            nodes += children
            continue
        for child in children:
            file.expect(child, b"SNOD\x01")
            (entries,) = file.unpack("H", child + 6)
            for index in range(entries):
                name, header, cache = file.unpack("QQI", child + 8 + 40 * index)
                if cache == 2:
                    raise ValueError("has a symbolic link")
                start = names + name
                end = file.data.find(b"\0", start, start + _LONGEST_NAME)
                if end < 0:
                    raise ValueError(f"has a name of more than {_LONGEST_NAME} bytes")
                yield header, file.data[start:end]


def _read_array(file: _File, header: int, path: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    messages: dict[int, tuple[int, int]] = {}
    for kind, content in _list_messages(file, header):
        if kind in (_DATASPACE, _DATATYPE, _LAYOUT) and kind in messages:
            raise ValueError(f"{path} says twice what it is")
        messages[kind] = content
    if _FILTERS in messages or not {_DATASPACE, _DATATYPE, _LAYOUT} <= messages.keys():
        raise ValueError(f"{path} is not a plain array, or is compressed")
    file.expect(messages[_DATATYPE][0], _FLOAT32)
    version, rank = file.unpack("BB", messages[_DATASPACE][0])
    if version != 1 or rank != len(shape):
        raise ValueError(f"{path} has {rank} axes (dataspace version {version}), expected {len(shape)}")
    found = file.unpack(f"{rank}Q", messages[_DATASPACE][0] + 8)
    version, kind = file.unpack("BB", messages[_LAYOUT][0])
    place, size = file.unpack("QQ", messages[_LAYOUT][0] + 2)
    if found != shape or (version, kind) != (3, 1) or size != 4 * math.prod(shape) or place + size > len(file.data):
        raise ValueError(f"{path} is {show(str(found))}, {size} bytes, expected float32{list(shape)} in one piece")
    return np.frombuffer(file.data, "<f4", math.prod(shape), place).astype(np.float32).reshape(shape)
