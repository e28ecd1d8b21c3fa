"""An agent, its artefacts and the record of both, as values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from convert.agents.architecture import Architecture, Head
from convert.agents.games import FULL_ACTION_SET, load_games
from convert.agents.identity import Identity

RECORD_NAME = "agent.json"
UNFINISHED_NAME = ".atari-convert-new"  # stands in an agent's folder while the folder is written


def name_actions(game: str | None, actions: int) -> tuple[str, ...] | None:
    """Return the meanings of a head's actions in order; None where the game is unknown or the size fits neither set.

    A head of 18 on a game whose minimal set is smaller means the full set.
    """
    if game is None:
        return None
    minimal = load_games()[game].actions
    if actions == len(minimal):
        return minimal
    return FULL_ACTION_SET if actions == len(FULL_ACTION_SET) else None


@dataclass(frozen=True)
class File:
    """A file by its relative path (``/`` between parts), its size in bytes and its lower-case hex sha256."""

    path: str
    size: int
    sha256: str


def find_path_problem(path: str) -> str | None:
    """Return why a path cannot be recorded; None for a relative one with ``/`` between plain names."""
    if len(path) > 4096:
        return f"is {len(path)} characters long, expected at most 4096"
    if re.search(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", path):  # the last turn or break lines
        return "has control characters"
    if "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        return "is not a plain relative path without '..', '.', backslashes and empty parts"
    return None


@dataclass(frozen=True)
class Agent:
    """An agent: who it is, what its network is, and which checkpoint it came from.

    source.path is relative to the root of its zoo, or to the folder that was searched. derived_from: the checkpoint
    that it was trained on from, for an agent that came back with other weights.
    """

    identity: Identity
    architecture: Architecture
    source: File
    action_meanings: tuple[str, ...] | None = None
    derived_from: File | None = None

    @property
    def head(self) -> Head:
        """The head of its architecture."""
        return self.architecture.head


def find_action_problem(agent: Agent) -> str | None:
    """Return how the size of an agent's head fits neither action set of its game; None if it fits or is not known."""
    game = agent.identity.game
    if game is None or name_actions(game, agent.head.actions) is not None:
        return None
    return f"has {agent.head.actions} actions, expected {len(load_games()[game].actions)} or all 18 for {game}"


@dataclass(frozen=True)
class Tensor:
    """An input or output of an artefact. Axes are named in order; a free axis has None in its shape."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Artifact:
    """What one target wrote: its format's version, its files, its inputs and outputs, and what wrote it."""

    format_version: int
    files: tuple[File, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """The content of ``agent.json``: the agent, its artefacts by target, and the versions that read its source."""

    agent: Agent
    artifacts: Mapping[str, Artifact]
    versions: Mapping[str, str]
