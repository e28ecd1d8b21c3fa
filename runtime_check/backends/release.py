"""The release's own format, as ``--to checkpoint`` writes it back: opened the way that the original is."""

from __future__ import annotations

from pathlib import Path

from convert.agent import Agent
from convert.targets.checkpoint import name_checkpoint
from runtime_check.backends import Runtime, Settings, checkpoint

TARGET = "checkpoint"
EXTRA = None
PACKAGES = ("torch",)


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:
    """Open the checkpoint below ``path``, at the place that its identity names.

    Raises:
        BackendUnavailable: a GPU was asked for, and torch sees none.
        OSError, RuntimeError, ValueError: it is not there, or not a checkpoint of the release's network.
    """
    return checkpoint.open_artefact(path / name_checkpoint(agent.identity), agent, settings)
