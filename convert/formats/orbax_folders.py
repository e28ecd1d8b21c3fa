"""Orbax checkpoint folders whose bytes depend on the arrays alone."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import zstandard

from convert.agents.network import Float32
from convert.errors import UnreadableArtefact
from convert.files.disk import read_files
from convert.files.documents import join, read_json, show

# What orbax writes beside the arrays, and does not tell the weights.
_NOTES = ("_CHECKPOINT_METADATA", "_METADATA", "_sharding", "commit_success.txt")
_LARGEST_WINDOW = 2**27  # bytes


def _is_of_use(record: logging.LogRecord) -> bool:
    """Drop the warning that a folder without OCDBT holds no OCDBT."""
    return "Skipping merge of OCDBT checkpoints" not in record.getMessage()


logging.getLogger("absl").addFilter(_is_of_use)


def save(path: Path, tree: Any) -> None:
    """Write a tree of NumPy arrays so that orbax alone restores it, with ``StandardCheckpointer().restore(path)``.

    One zarr folder for each array, because the names in an OCDBT database are random. Orbax's time stamps and the
    absolute path that it notes are taken out.
    """
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(path.absolute(), tree)
    metadata = path / "_CHECKPOINT_METADATA"
    document = json.loads(metadata.read_text("utf-8"))
    document |= {"init_timestamp_nsecs": 0, "commit_timestamp_nsecs": 0}
    metadata.write_text(json.dumps(document), "utf-8")
    (path / "commit_success.txt").write_text("Checkpoint commit was successful", "utf-8")


def read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Float32]:
    """Read the arrays of a folder without orbax, by their names in it (``params.Conv_0.bias``).

    Args:
        path: the folder.
        shapes: of each array that has to be there.

    Raises:
        UnreadableArtefact: it is no such checkpoint, or damaged.
    """
    size = 4 * sum(math.prod(shape) for shape in shapes.values())
    files = read_files(path, size + 2**20)
    entries = {name.removeprefix(f"{path.name}/"): content for name, content in files.items()}
    if any(name.startswith(("ocdbt.process_", "manifest.ocdbt")) for name in entries):
        raise UnreadableArtefact(
            f"{path}: an OCDBT database, which is not read here: save it with "
            "orbax.checkpoint.Checkpointer(orbax.checkpoint.PyTreeCheckpointHandler(use_ocdbt=False))"
        )
    problems = [f"no {name}" for name in shapes if f"{name}/.zarray" not in entries]
    problems += [f"unexpected {show(name)}" for name in entries if not _is_expected(name, shapes)]
    if problems:
        raise UnreadableArtefact(f"{path}: {join(problems)}: not an orbax checkpoint of such an agent")
    try:
        _check_notes(entries, shapes)
        return {name: _read_array(entries, name, shape) for name, shape in shapes.items()}
    except (ValueError, KeyError, TypeError, AttributeError, zstandard.ZstdError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UnreadableArtefact(f"{path}: not an orbax checkpoint ({reason}): convert the agent again") from error


def restore(path: Path) -> Any:
    """Return the tree of NumPy arrays that a folder holds, as its users restore it. Not for a stranger's folder."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path.absolute())


def _is_expected(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    folder, _, file = name.rpartition("/")
    if folder in shapes:
        return file in (".zarray", _name_chunk(shapes[folder]))
    return name in _NOTES or folder == "array_metadatas"


def _check_notes(entries: Mapping[str, bytes], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise where the notes would have orbax restore another tree than these arrays, or with a handler of others."""
    if tree := entries.get("_METADATA"):
        notes = read_json(tree)
        leaves = notes["tree_metadata"].values()
        found = {".".join(str(step["key"]) for step in leaf["key_metadata"]) for leaf in leaves}
        if found != set(shapes) or any(leaf["value_metadata"]["skip_deserialize"] for leaf in leaves):
            raise ValueError("its _METADATA tells another tree than its arrays")
        if notes["use_ocdbt"] or notes["use_zarr3"]:
            raise ValueError("its _METADATA tells another format than that of its arrays")
    if text := entries.get("_CHECKPOINT_METADATA"):
        handler = read_json(text).get("item_handlers")
        if handler is not None and not (isinstance(handler, str) and handler.startswith("orbax.checkpoint.")):
            raise ValueError(f"its _CHECKPOINT_METADATA names the handler {show(handler)}")


def _name_chunk(shape: tuple[int, ...]) -> str:
    return ".".join("0" * len(shape))


def _read_array(entries: Mapping[str, bytes], name: str, shape: tuple[int, ...]) -> Float32:
    """Return an array of the zarr format, version 2, that is one chunk."""
    found = read_json(entries[f"{name}/.zarray"])
    compressor = found.get("compressor")
    plain = {key: found.get(key) for key in ("chunks", "dtype", "filters", "order", "shape", "zarr_format")}
    expected = {"chunks": list(shape), "dtype": "<f4", "filters": None, "order": "C", "shape": list(shape)}
    if plain != expected | {"zarr_format": 2} or not (compressor is None or compressor.get("id") == "zstd"):
        raise ValueError(f"{name} is {show(json.dumps(found))}, expected float32{list(shape)} in one chunk")
    content = entries[f"{name}/{_name_chunk(shape)}"]
    size = 4 * math.prod(shape)
    if compressor is not None:
        with zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).stream_reader(content) as stream:
            content = stream.read(size + 1)
    if len(content) != size:
        raise ValueError(f"{name} has other than {size} bytes")
    return np.frombuffer(content, "<f4").astype(np.float32, copy=False).reshape(shape)
