"""Untrusted zip archives, and archives rebuilt from what was read.

Two readers of zip can see two archives in one file: through entries of the same name, or of names that differ in case,
through a second central directory, or through bytes before, between and after its entries. Such a file is refused.
Frameworks that have a reader of their own, such as torch and Keras, get an archive that was rebuilt from what was read.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Mapping

from convert.files.bounds import LARGEST
from convert.files.documents import show

MOST_ENTRIES = 1000

_NAME = re.compile(r"[\w .,=()+-]+(/[\w .,=()+-]+)*", re.ASCII)
_CENTRAL_HEADER = b"PK\x01\x02"
_LOCAL = struct.Struct("<26x2H")  # its last fields: the lengths of the name and of what else follows
_DESCRIPTORS = (0, 12, 16, 20, 24)  # bytes after an entry's content: none, or its checksum and sizes
_ENDS = (22, 22 + 20 + 56)  # bytes after the central directory: its end record, for zip64 with two more before


def read_archive(data: bytes) -> dict[str, bytes]:
    """Return the content of each entry by its name.

    Raises:
        ValueError: it is damaged, its entries are compressed or larger than allowed, or their names are doubtful.
    """
    # Before zipfile makes an object of each.
    if data.count(_CENTRAL_HEADER) > MOST_ENTRIES:
        raise ValueError(f"its archive has more than {MOST_ENTRIES} entries")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # ``is_dir`` expects a name.
            entries = [entry for entry in archive.infolist() if not entry.filename.endswith("/") or entry.file_size]
            _check_entries(entries, len(data))
            _check_places(data, archive)
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, struct.error, RuntimeError, EOFError, OSError, LookupError, OverflowError) as error:
        raise ValueError(f"damaged archive ({show(str(error))})") from error


def build_archive(entries: Mapping[str, bytes]) -> bytes:
    """Return an archive with these entries, stored, in this order, and nothing else; always the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        if name != entry.orig_filename or not _NAME.fullmatch(name) or {".", ".."} & set(name.split("/")):
            raise ValueError(f"its archive has an entry named {entry.orig_filename[:80]!r}")
        if name.casefold() in seen:
            raise ValueError(f"its archive has two entries named {name[:80]!r}")
        seen.add(name.casefold())
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ValueError(f"its archive's entry {name[:80]!r} is compressed or encrypted, expected it stored")
    inflated = sum(entry.file_size for entry in entries)
    if inflated > min(size, LARGEST):
        raise ValueError(f"its archive's entries claim {inflated} bytes, more than the file holds")


def _check_places(data: bytes, archive: zipfile.ZipFile) -> None:
    """Raise unless entries stand one after the other from the first byte on, and the directory ends with the file."""
    end = 0
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        if entry.header_offset - end not in (_DESCRIPTORS if end else (0,)):
            raise ValueError("its archive has something before or between its entries")
        end = (
            entry.header_offset + _LOCAL.size + sum(_LOCAL.unpack_from(data, entry.header_offset)) + entry.compress_size
        )
    directory = data.rfind(_CENTRAL_HEADER) if archive.infolist() else len(data)
    sizes = struct.unpack_from("<3H", data, directory + 28) if archive.infolist() else (0, 0, 0)
    after = len(data) - (directory + 46 + sum(sizes))
    if archive.start_dir - end not in _DESCRIPTORS or after not in _ENDS or archive.comment:
        raise ValueError("its archive has something before or after its directory")
