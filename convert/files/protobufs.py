"""The outline of protobuf messages, found without parsing them.

A parser makes an object of about a hundred bytes for each message within a message, which takes two bytes in a file.
"""

from __future__ import annotations

from collections.abc import Iterator

MOST_FIELDS = 1000  # of a message that is looked into

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def find_fields(
    data: bytes, path: tuple[int, ...], start: int = 0, end: int | None = None
) -> Iterator[tuple[int, int]]:
    """Yield where the content of a field begins and ends, for each occurrence.

    Args:
        data: a message.
        path: the numbers of the field and of those that it is in, the outermost first; all are messages or bytes.
        start: where the message begins.
        end: where it ends.

    Raises:
        ValueError: it is damaged, or one of the messages has more than `MOST_FIELDS` fields.
    """
    position, end = start, len(data) if end is None else end
    for _ in range(MOST_FIELDS):
        if position == end:
            return
        key, position = _read_varint(data, position, end)
        kind, size = key & 7, {_FIXED64: 8, _FIXED32: 4}.get(key & 7, 0)
        if kind not in (_VARINT, _FIXED64, _LENGTH, _FIXED32):
            raise ValueError(f"damaged protobuf (a field of kind {kind})")
        if kind in (_VARINT, _LENGTH):
            value, position = _read_varint(data, position, end)
            size = value if kind == _LENGTH else 0
        if size > end - position:
            raise ValueError("damaged protobuf (it ends within a field)")
        if kind == _LENGTH and key >> 3 == path[0]:
            if path[1:]:
                yield from find_fields(data, path[1:], position, position + size)
            else:
                yield position, position + size
        position += size
    if position != end:
        raise ValueError(f"a message of more than {MOST_FIELDS} fields")


def _read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position == end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("damaged protobuf (a number that does not end)")
