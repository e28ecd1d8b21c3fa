"""JAX, on the Flax NNX module whose state is in ``nnx/``."""

from __future__ import annotations

from pathlib import Path

from convert.agent import Agent
from convert.targets.nnx import open_module
from runtime_check.backends import Runtime, Settings
from runtime_check.backends.flax import choose_device, run_jax

TARGET = "nnx"
EXTRA = "nnx"
PACKAGES = ("flax", "jax", "orbax.checkpoint", "zstandard")


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:
    """Restore the state, for the NNX module that users get with it.

    Raises:
        BackendUnavailable: a GPU was asked for, and JAX sees none.
        UnreadableArtefact: the folder is damaged.
        Exception: Flax's own.
    """
    device = choose_device(settings, "nnx")
    apply, state = open_module(path, agent)
    return run_jax(apply, state, device, settings)
