"""What else is in an agent's folder: what programs would load from there is a fault, the rest is named, not judged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from convert.agents.agent import RECORD_NAME
from convert.errors import CheckError
from convert.files.documents import show
from convert.proofs import PROOF_NAME
from convert.targets import list_targets

# What Python imports from the folder that it is started in and from those below; the last two bring entry points.
_CODE = (".py", ".pyc", ".pyw", ".pyd", ".so", ".pth", ".dist-info", ".egg-info")
_WEIGHTS = (".onnx.data", ".onnx_data")  # as exporters call those that they keep beside an ONNX model
_MOST_SHOWN = 10
_MOST_FOLDERS = 10_000
_DEEPEST = 100  # levels of them


@dataclass(frozen=True)
class Surroundings:
    """What is in an agent's folder and not the agent's: at most ten of each, and how many more there are.

    faults: what a program would load. others: the names of the rest, printable; those of folders end with a slash.
    """

    faults: tuple[str, ...]
    others: tuple[str, ...]


def find_surroundings(folder: Path) -> Surroundings:
    """Look for what is not the agent's, by names alone. No file is opened, and no link is followed.

    Raises:
        CheckError: there are too many folders to look into.
        OSError: the folder cannot be listed.
    """
    names = sorted(os.listdir(folder))
    code = sorted(os.path.relpath(path, folder) for path in _walk_code(folder))
    weights = [name for name in names if name.casefold().endswith(_WEIGHTS)]
    faults = [f"{show(path)}: a Python that is started in this folder would load it" for path in code]
    faults += [f"{show(name)}: has the name of an ONNX model's weights" for name in weights]
    own = {
        RECORD_NAME,
        PROOF_NAME,
        *(target.path for target in list_targets()),
        *weights,
        *(path.split(os.sep)[0] for path in code),
    }
    others = [show(f"{name}/" if (folder / name).is_dir() else name) for name in names if name not in own]
    return Surroundings(
        _shorten([f"{fault}, and no agent has such a file: remove it" for fault in faults]), _shorten(others)
    )


def _walk_code(top: Path) -> Iterator[str]:
    """Yield the paths of what Python can import from a folder, and of what it reads there when it starts.

    Folders need no ``__init__.py``: Python joins those of one name, such as this one's ``google`` with protobuf's.
    """
    for number, (folder, subfolders, names) in enumerate(os.walk(top)):
        level = folder.count(os.sep) - str(top).count(os.sep)
        if number == _MOST_FOLDERS or level > _DEEPEST:
            limit = f"{_DEEPEST} levels of folders" if level > _DEEPEST else f"{_MOST_FOLDERS} folders"
            raise CheckError(f"{top}: more than {limit} in it: move away what is not the agent's")
        paths = (os.path.join(folder, name) for name in (*subfolders, *names))
        yield from (path for path in paths if path.casefold().endswith(_CODE) or _is_linked_package(path))
        subfolders[:] = filter(str.isidentifier, subfolders)  # from folders of other names, nothing is imported


def _is_linked_package(path: str) -> bool:
    return os.path.basename(path).isidentifier() and os.path.islink(path) and os.path.isdir(path)


def _shorten(texts: list[str]) -> tuple[str, ...]:
    more = len(texts) - _MOST_SHOWN
    return (*texts[:_MOST_SHOWN], *([f"and {more} more"] if more > 0 else []))
