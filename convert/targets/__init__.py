"""One module for each format that is written. Listing and describing them imports none of their frameworks.

A target module begins with literal constants, which are read from its source without running it:

    PATH            what it writes, relative to the agent's folder
    AXES            the order of an observation's axes: ``NCHW`` or ``NHWC``
    RUNTIME         what runs it: the name of a module in `convert.runtimes`
    FORMAT_VERSION  raised when the same agent would be written differently
    EXTRA           the extra that ``pip install 'atari-convert[EXTRA]'`` brings
    PACKAGES        the packages it imports, here or when it writes
    IN_ALL          whether ``--to all`` means it too
    DESCRIBES       True where the artefact has text that follows from the agent, such as who it is; left out elsewhere
    QUANTIZED       True where weights are rounded, so that the artefact cannot be read back; left out elsewhere

and holds two functions, see `TargetModule`. More are optional:

    rebuild(network, agent, path, to)
        where an artefact is not to be opened as ``write`` would write the network that ``read`` finds, see
        `convert.artefacts`
    find_obstacle(architecture)
        where the format cannot hold every architecture: returns why it cannot hold this one, None where it can
    prepare(path, agent)
        where the runtime does not open ``path`` itself: returns what it runs, such as a module with its weights; the
        runtime's ``run`` says what it takes
    read_trained(path, agent)
        where people train on in the artefact itself, so that it is no longer what ``write`` wrote: returns a `Trained`;
        without it, ``read`` reads such an artefact too

Dashes in a target's name are underscores in its module's. Another package brings a target by an entry point of the
group ``atari_convert.targets``: its name is the target's, its value is the module.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol, cast

from convert.agents.agent import Agent, Tensor
from convert.agents.architecture import Architecture, describe, erase_support
from convert.agents.network import Network
from convert.errors import BrokenPlugin, MissingExtra, TargetError, UnknownTarget, UnreadableArtefact
from convert.frameworks import leaves
from convert.names import find_meant, format_suggestion

_CONSTANTS = ("PATH", "AXES", "RUNTIME", "FORMAT_VERSION", "EXTRA", "PACKAGES", "IN_ALL", "DESCRIBES", "QUANTIZED")
_GROUP = "atari_convert.targets"
_VALUE_AXES = {"logits": "atom", "quantiles": "quantile"}


class TargetModule(Protocol):
    """What each module in this package holds."""

    def write(self, network: Network, agent: Agent, path: Path) -> None:
        """Write the artefact at ``path``, which does not exist yet."""

    def read(self, path: Path, agent: Agent) -> Network:
        """Read the artefact back, bit for bit. What the format cannot hold comes from ``agent``.

        The file may be a stranger's: nothing of it is run, nothing outside of it is read, memory stays within its
        size, and all but its weights has to be what ``write`` writes.
        """


class QuantizedModule(TargetModule, Protocol):
    """What a module of rounded weights holds besides; its ``read`` refuses."""

    def find_losses(self, path: Path, network: Network) -> list[str]:
        """Return the weights that are further from the network's than rounding explains."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What an artefact holds in which people may have trained on.

    step: the agent step that training has reached; None where the format does not tell.
    is_changed: whether the weights are others than those that were written; None where only the checksums of the files
    tell.
    """

    network: Network
    step: int | None = None
    is_changed: bool | None = None


@dataclass(frozen=True)
class Target:
    """What is known of a target without importing its framework."""

    name: str
    summary: str
    path: str
    axes: str
    runtime: str
    format_version: int
    extra: str
    packages: tuple[str, ...]
    in_all: bool
    describes: bool
    is_quantized: bool

    @property
    def is_installed(self) -> bool:
        return not self.missing_packages

    @property
    def missing_packages(self) -> tuple[str, ...]:
        return leaves.find_missing(self.packages)


def list_targets() -> tuple[Target, ...]:
    """Return every target, by name."""
    return tuple(find_target(name) for name in _names())


def find_target(name: str) -> Target:
    """Return the target of this name.

    Raises:
        UnknownTarget: there is none; the message suggests one, and lists all.
    """
    if name not in _names():
        known = f"Known: {', '.join(_names())}; the option --to also takes all"
        hint = format_suggestion(find_meant(name, _names())) if isinstance(name, str) else ""
        raise UnknownTarget(f"no target {name!r}; {hint}{known}")
    return _read_constants(name)


def import_target(name: str) -> TargetModule:
    """Import a target's module, and with it its framework.

    Raises:
        UnknownTarget: there is no target of this name.
        MissingExtra: its framework is not installed; the message says what to install.
    """
    with explain_missing(find_target(name)):
        return cast(TargetModule, importlib.import_module(_modules()[name]))


def explain_missing(target: Target) -> AbstractContextManager[None]:
    """Turn a failed import of what a target needs into the error that says how to install it."""
    return leaves.explain_missing(f"target {target.name!r}", target.packages, target.extra)


def missing_extra(target: Target) -> MissingExtra:
    """Return the error that says how to install what a target needs."""
    return leaves.missing_extra(f"target {target.name!r}", target.packages, target.extra)


def find_obstacle(name: str, architecture: Architecture) -> str | None:
    """Return why a target's format cannot hold an architecture; None where it can.

    Raises:
        MissingExtra: the target's framework is not installed.
    """
    find = getattr(import_target(name), "find_obstacle", None)
    return find(architecture) if find else None


def check_holds(name: str, architecture: Architecture, source: str) -> None:
    """Raise unless a target's format can hold an architecture; ``source`` begins the message.

    Raises:
        TargetError: it cannot; the message tells why.
        MissingExtra: the target's framework is not installed.
    """
    if obstacle := find_obstacle(name, architecture):
        raise TargetError(f"{source}: {name} {obstacle}; the network is {describe(architecture)}: choose other targets")


def check_architecture(network: Network, agent: Agent, path: Path) -> None:
    """Raise unless the network that was read from ``path`` is one of the agent's; the values of a support are free.

    Raises:
        UnreadableArtefact: it is of another agent.
    """
    if erase_support(network.architecture) != erase_support(agent.architecture):
        raise UnreadableArtefact(
            f"{path}: holds {describe(network.architecture)}, its record says {describe(agent.architecture)}: of "
            "another agent, convert it again"
        )


def describe_tensors(target: Target, architecture: Architecture) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the inputs and outputs of a target's artefact: they follow from its axis order and the architecture."""
    head, observation = architecture.head, architecture.observation
    outputs = [Tensor("q_values", "float32", (None, head.actions), ("batch", "action"))]
    for name in head.outputs[1:]:
        shape = (None, head.actions, head.width)
        outputs.append(Tensor(name, "float32", shape, ("batch", "action", _VALUE_AXES[name])))
    sizes = {"N": None, "C": observation.frames, "H": observation.size, "W": observation.size}
    names = {"N": "batch", "C": "frame", "H": "height", "W": "width"}
    taken = tuple(sizes[axis] for axis in target.axes), tuple(names[axis] for axis in target.axes)
    return (Tensor("observation", "uint8", *taken),), tuple(outputs)


def _names() -> list[str]:
    return sorted(_modules())


@cache
def _modules() -> dict[str, str]:
    return leaves.find_modules(__name__, __path__, _GROUP)


@cache
def _read_constants(name: str) -> Target:
    summary, constants = leaves.read_constants(_modules()[name], _CONSTANTS)
    if missing := [constant for constant in _CONSTANTS if constant not in (*constants, "DESCRIBES", "QUANTIZED")]:
        raise BrokenPlugin(f"{_modules()[name]}: has no {missing[0]}: not a target; see convert.targets")
    return Target(
        name,
        summary,
        constants["PATH"],
        constants["AXES"],
        constants["RUNTIME"],
        constants["FORMAT_VERSION"],
        constants["EXTRA"],
        constants["PACKAGES"],
        constants["IN_ALL"],
        constants.get("DESCRIBES", False),
        constants.get("QUANTIZED", False),
    )
