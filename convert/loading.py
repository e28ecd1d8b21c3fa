"""Artefacts opened to act: the one way in which users and ``atari-check`` open them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.agents.agent import Agent
from convert.agents.network import Float32
from convert.artefacts import Screened, open_screened
from convert.errors import ArtefactMissing
from convert.runtimes import Answer, Runtime, Settings, import_runtime
from convert.sources import read_record
from convert.targets import describe_tensors, find_target, import_target


@dataclass(frozen=True)
class LoadedAgent:
    """A converted agent, ready to act. Call it on observations for Q-values.

    agent: who it is, with ``identity``, ``head`` and ``action_meanings``.
    target: what it was loaded from.
    axes: the observation's axes, in order, as the artefact wants them.
    run: observations to every output by name, such as ``logits``.
    device: what it runs on, in the runtime's words: ``cpu``, or the name of the GPU.
    """

    agent: Agent
    target: str
    axes: tuple[str, ...]
    run: Answer
    device: str

    def __call__(self, observation: NDArray[np.uint8]) -> Float32:
        """Return float32[N, actions] for uint8[N, …] observations in the order of ``axes``, oldest frame first."""
        return self.run(observation)["q_values"]


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
        RecordError: the folder has no readable ``agent.json``.
        ArtefactMissing: it holds no artefact of this target.
        UnreadableArtefact: the artefact is damaged, or holds what the target does not write.
        MissingExtra: the target's framework or its runtime is not installed.
        RuntimeUnavailable: a GPU was asked for, and the runtime sees none.
    """
    folder, settings = Path(folder), Settings(device)
    record = read_record(folder)
    if target not in record.artifacts:
        find_target(target)
        found = ", ".join(record.artifacts) or "nothing"
        raise ArtefactMissing(f"{folder}: holds {found}, not {target}: atari-convert --to {target} writes it")
    runtime = open_artefact(target, folder / find_target(target).path, record.agent, settings).runtime
    (observation,), _ = describe_tensors(find_target(target), record.agent.architecture)
    return LoadedAgent(record.agent, target, observation.axes, runtime.answer, runtime.description.device)


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
