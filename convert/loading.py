"""Artefacts opened to act: the one way in which users and ``atari-check`` open them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.agents.agent import Agent, Tensor
from convert.agents.identity import Identity
from convert.agents.network import Float32
from convert.artefacts import Screened, open_screened
from convert.errors import ArtefactMissing, InvalidArgument
from convert.runtimes import Answer, Runtime, Settings, import_runtime
from convert.sources import read_record, strip_suffix
from convert.targets import describe_tensors, find_target, import_target


@dataclass(frozen=True, repr=False)
class LoadedAgent:
    """A converted agent, ready to act. Call it on observations for Q-values.

    agent: who it is, what its network is, and which checkpoint it came from.
    target: what it was loaded from.
    axes: the observation's axes, in order, as the artefact wants them.
    run: observations to every output by name: ``run(observation)["logits"]`` of a C51 agent. It takes what a call
    takes, and raises what a call raises.
    device: what it runs on, in the runtime's words: ``cpu``, or the name of the GPU.
    """

    agent: Agent
    target: str
    axes: tuple[str, ...]
    run: Answer
    device: str

    def __call__(self, observation: NDArray[np.uint8]) -> Float32:
        """Return float32[N, actions] for uint8[N, …] observations in the order of ``axes``, 0–255, oldest frame first.

        Raises:
            InvalidArgument: the observation is no NumPy array of this dtype and shape; a ValueError too.
        """
        return self.run(observation)["q_values"]

    def __repr__(self) -> str:
        """Return who it is, what it was loaded from and what it runs on."""
        return f"LoadedAgent({self.agent.source.path}, {self.target}, {'×'.join(self.axes)}, {self.device})"

    @property
    def identity(self) -> Identity:
        """Who the agent is."""
        return self.agent.identity

    @property
    def action_meanings(self) -> tuple[str, ...] | None:
        """What each action means in the game, in the order of the Q-values; None where that is not known."""
        return self.agent.action_meanings


@dataclass(frozen=True)
class Opened:
    """An artefact that is open, and what was read of it. The path of ``screened`` is gone."""

    runtime: Runtime
    screened: Screened


def load_agent(folder: str | Path, target: str, device: str = "auto") -> LoadedAgent:
    """Load an agent from its folder with its target's runtime, as ``atari-check`` does.

    The runtime computes in true float32 and with deterministic kernels. Most runtimes know these switches for the
    whole process only.

    Args:
        folder: the agent's folder.
        target: which of its artefacts, such as ``onnx``.
        device: ``auto`` (a GPU where the runtime sees one), ``cpu`` or ``gpu``. LiteRT always runs on the CPU.

    Raises:
        InvalidArgument: there is no such device; a ValueError too.
        UnknownTarget: there is no such target.
        RecordError: the folder has no readable ``agent.json``.
        ArtefactMissing: it holds no artefact of this target.
        UnreadableArtefact: the artefact is damaged, or holds what the target does not write.
        MissingExtra: the target's framework or its runtime is not installed.
        RuntimeUnavailable: a GPU was asked for, and the runtime sees none.
    """
    folder, settings, known = Path(folder), Settings(device), find_target(target)
    record = read_record(folder)
    if target not in record.artifacts:
        found = ", ".join(record.artifacts) or "nothing"
        how = _explain_conversion(folder, record.agent.source.path, target)
        raise ArtefactMissing(f"{folder}: holds {found}, not {target}: to write it, run {how}")
    runtime = open_artefact(target, folder / known.path, record.agent, settings).runtime
    (observation,), _ = describe_tensors(known, record.agent.architecture)

    def run(obs: NDArray[np.uint8]) -> Mapping[str, Float32]:
        return runtime.answer(check_observation(obs, observation))

    return LoadedAgent(record.agent, target, observation.axes, run, runtime.description.device)


def check_observation(obs: NDArray[np.uint8], expected: Tensor) -> NDArray[np.uint8]:
    """Return an observation as every runtime takes it: contiguous and writable, copied if it is not.

    Some runtimes convert other dtypes, answer to other shapes, or end the process: none is to see them.

    Raises:
        InvalidArgument: it is no NumPy array of the expected dtype and shape, or holds no observation.
    """
    sizes = ", ".join("N" if size is None else str(size) for size in expected.shape)
    wanted = f"expected {expected.dtype}[{sizes}] ({', '.join(expected.axes)})"
    if not isinstance(obs, np.ndarray):
        raise InvalidArgument(f"observation is of type {type(obs).__name__}, {wanted} in NumPy: use numpy.asarray")
    found = f"observation is {obs.dtype}[{', '.join(map(str, obs.shape))}], {wanted}"
    if obs.dtype != expected.dtype:
        raise InvalidArgument(f"{found}: pass the frames as they are, 0–255, not scaled and not as another dtype")
    if obs.shape[1:] != expected.shape[1:] or obs.ndim != len(expected.shape):
        raise InvalidArgument(f"{found}{_suggest_shape(obs.shape, expected.shape[1:])}")
    if not len(obs):
        raise InvalidArgument(f"{found}, N at least 1")
    return np.require(np.asarray(obs), requirements=("C", "W"))


def _suggest_shape(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> str:
    """Return what makes an observation fit, as the end of a message: a batch axis, another order of axes, or both."""
    orders = {(0, 1, 2): "", (2, 0, 1): ".transpose(0, 3, 1, 2)", (1, 2, 0): ".transpose(0, 2, 3, 1)"}
    is_single = len(shape) == len(expected)
    axes = shape if is_single else shape[1:]
    for order, transpose in orders.items():
        if len(axes) == len(order) and tuple(axes[index] for index in order) == expected:
            return f": use observation{'[None]' if is_single else ''}{transpose}"
    return ""


def _explain_conversion(folder: Path, source: str, target: str) -> str:
    """Return the command or the call that adds a target to an agent's folder; ``source`` is the path in its record."""
    path = strip_suffix(source)
    out = folder.absolute().as_posix().removesuffix(f"/{path}")
    if out == folder.absolute().as_posix():
        call = f"convert.convert_checkpoint(CHECKPOINT, {str(folder)!r}, [{target!r}])"
        return f"{call}, where CHECKPOINT is the path of {source}"
    out = shlex.quote(os.path.relpath(out) if not folder.is_absolute() else out)
    return f"atari-convert RELEASE/{source} --to {target} -o {out}, where RELEASE is the folder of the checkpoints"


def open_artefact(target: str, path: Path, agent: Agent, settings: Settings) -> Opened:
    """Screen the artefact of a target at ``path``, and open what was screened with the target's runtime.

    Raises:
        UnreadableArtefact: the artefact is damaged, or holds what the target does not write.
        MissingExtra: the target's framework or its runtime is not installed.
        RuntimeUnavailable: a GPU was asked for, and the runtime sees none.
        Exception: whatever the runtime raises for an artefact that it cannot load.
    """
    module, runtime = import_target(target), import_runtime(find_target(target).runtime)
    device = runtime.choose_device(settings)  # before the screening, which may start the framework
    with open_screened(target, path, agent) as screened:
        prepare = getattr(module, "prepare", None)
        artefact = prepare(screened.path, agent) if prepare else screened.path
        return Opened(runtime.run(artefact, device, settings), screened)
