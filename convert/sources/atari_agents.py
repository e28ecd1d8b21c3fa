"""The release "Pretrained Atari Agents" (2022): gzipped PyTorch state dicts in FAMILY/Game/seed/model_STEP.gz."""

from __future__ import annotations

from convert.agents.identity import Identity
from convert.formats import atari_agents
from convert.sources import Checkpoint

PATTERNS = ("model_*.gz",)
EXPECTED = "a gzipped checkpoint of this release"


def recognise(head: bytes, name: str) -> bool:  # noqa: ARG001
    """Recognise a gzip file. What is inside is looked at by `read`, which says what is wrong with it."""
    return head.startswith(b"\x1f\x8b")


def read(data: bytes, name: str) -> Checkpoint:
    """Read a checkpoint. Its content does not tell who the agent is.

    Raises:
        CheckpointError: it cannot be read, or is not a network of the release; see `convert.errors`.
    """
    return Checkpoint(atari_agents.read(data, name), Identity())
