"""JAX, on the online network of the latest checkpoint in the Dopamine base folder ``dopamine/``.

Dopamine's own agents, runner and environment are another matter: ``nox -s dopamine`` runs them.
"""

from __future__ import annotations

from pathlib import Path

from convert.agent import Agent
from convert.errors import UnreadableArtefact
from convert.targets.dopamine import GIN_NAME, read_bundle, to_gin
from runtime_check.backends import Runtime, Settings
from runtime_check.backends.flax import choose_device, run_linen

TARGET = "dopamine"
EXTRA = "flax"
PACKAGES = ("flax", "jax")


def open_artefact(path: Path, agent: Agent, settings: Settings) -> Runtime:
    """Open a Dopamine checkpoint, for the Linen module that ``agent.gin`` binds.

    Raises:
        BackendUnavailable: a GPU was asked for, and JAX sees none.
        ArtefactMissing: there is no complete checkpoint.
        UnreadableArtefact: it is damaged, or wants to run code; or ``agent.gin``, which is code for Dopamine, is not
            the one of this agent.
        Exception: Flax's own.
    """
    device = choose_device(settings, "dopamine")
    if (path / GIN_NAME).read_bytes() != to_gin(agent).encode():
        raise UnreadableArtefact(f"{path / GIN_NAME}: not as atari-convert writes it for this agent")
    return run_linen(read_bundle(path).online_params, agent, device, settings)
