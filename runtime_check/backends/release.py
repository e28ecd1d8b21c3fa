"""The release's own format, as ``--to checkpoint`` writes it back: opened the way that the original is."""

from __future__ import annotations

from pathlib import Path

from convert.agent import Agent
from runtime_check.backends import Runtime, Settings, checkpoint

TARGET = "checkpoint"
EXTRA = None
PACKAGES = ("torch",)


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:
    """Open the one checkpoint below ``path``, whatever its identity has named it.

    Raises:
        BackendUnavailable: a GPU was asked for, and torch sees none.
        OSError, RuntimeError, ValueError: it is not one checkpoint of the release's network.
    """
    files = list(path.rglob("model_*.gz"))
    if len(files) != 1:
        raise ValueError(f"{path}: holds {len(files)} files model_*.gz, expected one")
    return checkpoint.open_artefact(files[0], agent, settings)
