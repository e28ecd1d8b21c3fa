"""JAX, on the Flax Linen parameters in the orbax checkpoint ``orbax/``."""

from __future__ import annotations

from pathlib import Path

from convert import orbax_folders
from convert.agent import Agent
from runtime_check.backends import Runtime, Settings
from runtime_check.backends.flax import choose_device, run_linen

TARGET = "orbax"
EXTRA = "orbax,flax"
PACKAGES = ("flax", "jax", "orbax.checkpoint", "zstandard")


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:
    """Restore an orbax checkpoint, for the Linen module.

    Raises:
        BackendUnavailable: a GPU was asked for, and JAX sees none.
        UnreadableArtefact: the folder is damaged.
        Exception: Flax's own.
    """
    device = choose_device(settings, "orbax")
    return run_linen(orbax_folders.restore(path), agent, device, settings)
