"""One module for each runtime. Listing and describing them imports none of their frameworks.

A backend module begins with literal constants, which are read from its source without running it:

    TARGET      the target whose artefact it opens, a key of ``artifacts`` in ``agent.json``; None: the checkpoint
    EXTRA       the extra that ``pip install 'atari-convert[EXTRA]'`` brings; None: it always is there
    PACKAGES    the packages that it imports
    BOUND       where weights are rounded: ``atol`` and ``rtol`` in place of the command's, and the least share of
                actions that are to be the oracle's; left out elsewhere

and holds one function, see `BackendModule`. Dashes in a backend's name are underscores in its module's.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from convert.agent import Agent
from convert.errors import BackendUnavailable
from convert.names import ask, find_meant, spell

REFERENCE = "checkpoint"


@dataclass(frozen=True)
class Settings:
    """How backends are to run.

    device: ``auto`` (a GPU where the runtime sees one), ``cpu`` or ``gpu``. tf32: let GPUs cut float32 products to
    10 bits of mantissa. batch: the most observations that are answered at once.
    """

    device: str = "auto"
    tf32: bool = False
    batch: int = 1


@dataclass(frozen=True)
class Description:
    """What a backend ran on, for the report.

    precision: the switches that keep float32 whole. graph: what the runtime does to the graph before it runs.
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

    answer: takes uint8[N, 4, 84, 84], oldest frame first, 0–255; returns every output of the artefact by name,
    ``q_values`` float32[N, actions] among them.
    """

    answer: Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]
    description: Description


@dataclass(frozen=True)
class Bound:
    """What is asked of an artefact whose weights are rounded.

    atol, rtol: in place of those that true float32 is held to. agreement: the least share of actions, from 0 to 1,
    that are the oracle's; single ones may differ.
    """

    atol: float
    rtol: float
    agreement: float


class BackendModule(Protocol):
    """What each module in this package holds."""

    def open_artefact(self, path: Path, agent: Agent, settings: Settings) -> Runtime:
        """Open the artefact at ``path`` with the runtime's own loader.

        Raises:
            BackendUnavailable: the runtime has no such device.
            Exception: whatever the runtime raises for an artefact that it cannot load.
        """


@dataclass(frozen=True)
class Backend:
    """What is known of a backend without importing its framework."""

    name: str
    target: str | None
    extra: str | None
    packages: tuple[str, ...]
    bound: Bound | None = None


@cache
def list_backends() -> tuple[Backend, ...]:
    """Return every backend, by name."""
    return tuple(_read_constants(module.name) for module in pkgutil.iter_modules(__path__))


def find_backend(name: str) -> Backend:
    """Return the backend of this name.

    Raises:
        BackendUnavailable: there is none; the message suggests one, and lists all.
    """
    for backend in list_backends():
        if backend.name == name:
            return backend
    raise BackendUnavailable(f"no backend {name!r}; {_hint(name)}Known: {', '.join(_targets_of())}")


def _hint(name: str) -> str:
    if spell(name) == "all":
        return "leave out --backend to check every artefact. "
    known = _targets_of()
    openers = {target: backend for backend, target in reversed(known.items())}
    meant = find_meant(name, [*known, *filter(None, openers)])
    return ask([word if word in known else openers[word] for word in meant])


def _targets_of() -> dict[str, str | None]:
    """Return each backend's target by the backend's name."""
    return {backend.name: backend.target for backend in list_backends()}


def import_backend(name: str) -> BackendModule:
    """Import a backend's module, and with it its framework.

    Raises:
        BackendUnavailable: there is no backend of this name, or its framework is not installed.
    """
    backend = find_backend(name)
    try:
        return cast(BackendModule, importlib.import_module(f"{__name__}.{_module_name(name)}"))
    except ModuleNotFoundError as error:
        # Only what the backend says it needs is a missing extra; anything else is a bug, and must look like one.
        missing = (error.name or "").split(".")[0]
        if missing not in {package.split(".")[0] for package in backend.packages}:
            raise
        raise BackendUnavailable(
            f"backend {name!r} needs {missing}: pip install 'atari-convert[{backend.extra}]'"
        ) from error


def choose_gpu(settings: Settings, name: str, *, has_gpu: bool) -> bool:
    """Return whether a backend runs on a GPU.

    Raises:
        BackendUnavailable: a GPU was asked for, and the runtime sees none.
    """
    if settings.device == "gpu" and not has_gpu:
        raise BackendUnavailable(
            f"backend {name!r} sees no GPU: install its GPU build and a driver, or leave out --device gpu"
        )
    return has_gpu and settings.device != "cpu"


def to_nhwc(obs_nchw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn observations [N, 4, 84, 84] into [N, 84, 84, 4]."""
    return np.ascontiguousarray(obs_nchw.transpose(0, 2, 3, 1))


def _read_constants(module_name: str) -> Backend:
    tree = ast.parse(Path(__path__[0], f"{module_name}.py").read_text("utf-8"))
    constants: dict[str, Any] = {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and statement.targets[0].id in ("TARGET", "EXTRA", "PACKAGES", "BOUND")
    }
    name = module_name.replace("_", "-")
    bound = Bound(**constants["BOUND"]) if "BOUND" in constants else None
    return Backend(name, constants["TARGET"], constants["EXTRA"], constants["PACKAGES"], bound)


def _module_name(name: str) -> str:
    return name.replace("-", "_")
