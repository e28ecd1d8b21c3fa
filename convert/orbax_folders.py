"""Orbax checkpoint folders whose bytes depend on the arrays alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
import tensorstore

from convert.errors import UnreadableArtefact


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


def restore(path: Path) -> Any:
    """Return the tree of NumPy arrays that a folder holds.

    Raises:
        UnreadableArtefact: it is not an orbax checkpoint, or is damaged.
    """
    try:
        _check_arrays(path)
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path.absolute())
    except Exception as error:  # orbax and tensorstore promise no class of error for damaged folders
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnreadableArtefact(f"{path}: not an orbax checkpoint ({reason}): convert the agent again") from error


def _check_arrays(path: Path) -> None:
    """Read each zarr folder, and raise for the first that is damaged.

    Orbax reads them at once, and when one fails the others' answers arrive after its event loop has been closed, which
    ends in tracebacks on stderr that no one can catch.
    """
    for array in sorted(path.glob("*/.zarray")):
        store = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(array.parent.absolute())},
            "fill_missing_data_reads": False,
        }
        tensorstore.open(store, open=True).result().read().result()
