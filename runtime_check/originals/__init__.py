"""The judge's own readers of each zoo's files, one module named like that in ``convert.sources``; no code is shared.

A file of this package reads what a file of the same name in ``convert.sources`` reads, by its own means, and holds
three functions, see `OriginalModule`:

    recognise(head, name)  whether a file is of this source, told by its first bytes
    read(path)             the network in float64, for the oracle
    read_eager(path)       the network in torch, as its authors run it: the reference, which acts in a shadow replay

Weights go into the `Oracle` in PyTorch's order, whatever the order in the file: kernels [out, in, height, width], dense
layers [out, in] with columns in C,H,W order, and the rows of one action beside each other. The file may be a
stranger's: nothing in it may run, memory has to stay bounded, and all that is wrong is named in a ValueError.

Originals are found by their file name. Another package brings one by an entry point of the group
``atari_check.originals``, whose value is the module. Which of them judges an agent is decided by what recognises its
source.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from runtime_check.oracle import Oracle

if TYPE_CHECKING:
    import torch

_GROUP = "atari_check.originals"
_HEAD = 512  # bytes


class OriginalModule(Protocol):
    """What each module in this package holds."""

    def recognise(self, head: bytes, name: str) -> bool:
        """Tell whether a file is of this source.

        Args:
            head: its first 512 bytes, or all of a shorter file.
            name: its path, which only refines what the content tells.
        """

    def read(self, path: Path) -> Oracle:
        """Read the network in float64.

        Raises:
            OSError: there is no such file, or it cannot be opened.
            ValueError: it is not such a file; the message names the path and all that is wrong.
        """

    def read_eager(self, path: Path) -> torch.nn.Module:
        """Read the network as a module on the CPU.

        It takes uint8[N, frames, size, size] and returns ``q_values`` float32[N, actions] and, where the head has
        them, ``logits`` or ``quantiles``, as `compute_outputs` does.

        Raises:
            OSError: there is no such file, or it cannot be opened.
            ValueError: it is not such a file.
        """


def list_originals() -> tuple[str, ...]:
    """Return the names of the sources that can be judged."""
    return tuple(sorted(_find_modules()))


def _find_modules() -> dict[str, str]:
    """Return the full names of the modules; a name of this package is not given to another one."""
    registered = {entry.name: entry.module for entry in entry_points(group=_GROUP)}
    return registered | {module.name: f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)}


def find_original(path: Path) -> OriginalModule:
    """Return the module that judges a source.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: none recognises it.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for _, place in sorted(_find_modules().items()):
        module = cast(OriginalModule, importlib.import_module(place))
        if module.recognise(head, str(path)):
            return module
    raise ValueError(f"{path}: begins with {head[:8]!r}, expected a file of {' or '.join(list_originals())}")


def read_oracle(path: Path) -> Oracle:
    """Read a source as its float64 oracle.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: none recognises it, or it is damaged or another network; the message names all that is wrong.
    """
    return find_original(path).read(path)
