"""One module for each runtime: it chooses device, precision, determinism and threads, and answers with an artefact.

`convert.loading` is the only caller. A runtime module begins with literal constants, which are read from its source
without running it:

    EXTRA      the extra that ``pip install 'atari-convert[EXTRA]'`` brings
    PACKAGES   the packages that it imports

and holds two functions, see `RuntimeModule`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from convert.errors import RuntimeUnavailable
from convert.frameworks.leaves import explain_missing, list_names, name_module, read_constants

Answer = Callable[[NDArray[np.uint8]], Mapping[str, NDArray[np.float32]]]
DEVICES = ("auto", "cpu", "gpu")


@dataclass(frozen=True)
class Settings:
    """How a runtime is to run.

    device: ``auto`` (a GPU where the runtime sees one), ``cpu`` or ``gpu``. tf32: let GPUs cut float32 products to
    10 bits of mantissa. batch: the most observations that are answered at once, for the description.
    """

    device: str = "auto"
    tf32: bool = False
    batch: int = 1

    def __post_init__(self) -> None:
        """Refuse a device that there is not, which would be taken for ``auto``."""
        if self.device not in DEVICES:
            raise ValueError(f"device is {self.device!r}, expected {', '.join(map(repr, DEVICES))}")


@dataclass(frozen=True)
class Description:
    """What an artefact runs on.

    precision: the switches that keep float32 whole. graph: what the runtime does to the graph before it runs.
    threads: None for the library's default.
    """

    library: str
    version: str
    device: str
    precision: str
    graph: str
    threads: int | None
    batch: int


@dataclass(frozen=True)
class Runtime:
    """An artefact, opened.

    answer: takes uint8[N, …] in the order of the target's ``AXES``, oldest frame first, 0–255; returns every output
    of the artefact by name, ``q_values`` float32[N, actions] among them.
    """

    answer: Answer
    description: Description


class RuntimeModule(Protocol):
    """What each module in this package holds."""

    def choose_device(self, settings: Settings) -> Any:
        """Return the device to run on, as the runtime calls it, and set up the runtime for it.

        It is called before anything else uses the runtime, which may read its settings but once.

        Raises:
            RuntimeUnavailable: a GPU was asked for, and the runtime sees none.
        """

    def run(self, artefact: Any, device: Any, settings: Settings) -> Runtime:
        """Open an artefact: what its target's ``prepare`` returned, or else its path.

        The path is gone when this returns.

        Raises:
            RuntimeUnavailable: a GPU was asked for, and the runtime fell back to the CPU.
            Exception: whatever the runtime raises for an artefact that it cannot load.
        """


def list_runtimes() -> tuple[str, ...]:
    """Return every runtime's name."""
    return tuple(list_names(__path__))


def import_runtime(name: str) -> RuntimeModule:
    """Import a runtime's module, and with it its framework.

    Raises:
        MissingExtra: its framework is not installed; the message says what to install.
    """
    module = name_module(__name__, name)
    _, constants = read_constants(module, ("EXTRA", "PACKAGES"))
    with explain_missing(f"runtime {name!r}", constants["PACKAGES"], constants["EXTRA"]):
        return cast(RuntimeModule, importlib.import_module(module))


def choose_gpu(settings: Settings, name: str, *, has_gpu: bool) -> bool:
    """Return whether the runtime ``name`` is to use a GPU.

    Raises:
        RuntimeUnavailable: a GPU was asked for, and the runtime sees none.
    """
    if settings.device == "gpu" and not has_gpu:
        raise RuntimeUnavailable(
            f"{name} sees no GPU: install its build for GPUs and a driver, or choose the device 'cpu' or 'auto'"
        )
    return has_gpu and settings.device != "cpu"
