"""JAX, on the online network of the latest checkpoint in the Dopamine base folder ``dopamine/``.

Dopamine's own agents, runner and environment are another matter: ``nox -s dopamine`` runs them.
"""

from __future__ import annotations

from pathlib import Path

from convert.agent import Agent
from convert.targets.dopamine import read_bundle
from runtime_check.backends import Runtime, Settings
from runtime_check.backends.flax import choose_device, run_linen

TARGET = "dopamine"
EXTRA = "flax"
PACKAGES = ("flax", "jax")


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:
    """Open a Dopamine checkpoint, for the Linen module that ``agent.gin`` binds.

    Raises:
        BackendUnavailable: a GPU was asked for, and JAX sees none.
        Exception: Flax's own.
    """
    device = choose_device(settings, "dopamine")
    return run_linen(read_bundle(path).online_params, agent, device, settings)
