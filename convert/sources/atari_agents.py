"""The release "Pretrained Atari Agents" (2022): gzipped PyTorch state dicts in FAMILY/Game/seed/model_STEP.gz.

A family is an algorithm and a protocol, see `convert.formats.atari_agents`.
"""

from __future__ import annotations

import re

from convert.agents.agent import Agent
from convert.agents.games import load_games
from convert.agents.identity import Identity, check_known
from convert.formats import atari_agents
from convert.formats.atari_agents import FAMILIES, find_family, make_identity
from convert.sources import Checkpoint

EXPECTED = "a gzipped checkpoint of this release"
PATTERNS = ("model_*.gz",)
EXAMPLE = "DQN_modern/Pong/0/model_50000000.gz"
LAYOUT = "FAMILY/Game/seed/model_STEP.gz"

_NUMBER = r"(0|[1-9]\d{0,14})"
_PATH = re.compile(rf"(?:^|.*/)([^/]+)/([^/]+)/{_NUMBER}/model_{_NUMBER}\.gz", re.ASCII | re.DOTALL)


def recognise(head: bytes, name: str) -> bool:  # noqa: ARG001
    """Recognise a gzip file. What is inside is looked at by `read`, which says what is wrong with it."""
    return head.startswith(b"\x1f\x8b")


def read(data: bytes, name: str) -> Checkpoint:
    """Read a checkpoint. Its content does not tell who the agent is.

    Raises:
        CheckpointError: it cannot be read, or is not a network of the release; see `convert.errors`.
    """
    return Checkpoint(atari_agents.read(data, name), Identity())


def identify(path: str) -> Identity:
    """Return the identity that a path in the release's layout tells; an empty one for any other path.

    Args:
        path: with ``/`` between its parts, such as ``…/DQN_modern/Pong/0/model_50000000.gz``.
    """
    match = _PATH.fullmatch(path)
    if match is None or match[1] not in FAMILIES or match[2] not in load_games():
        return Identity()
    return make_identity(match[1], match[2], int(match[3]), int(match[4]))


locate = atari_agents.locate  # shared with the target that writes this format


def parse_identity(text: str) -> Identity:
    """Return the identity that ``FAMILY/Game[/SEED[/STEP]]`` tells.

    Raises:
        ValueError: another form, a family or a game that the release does not have.
    """
    parts = text.strip("/").split("/")
    if not 2 <= len(parts) <= 4 or not all(re.fullmatch(_NUMBER, part, re.ASCII) for part in parts[2:]):
        raise ValueError(f"{text!r} is not FAMILY/Game[/SEED[/STEP]], such as DQN_modern/Pong/0/50000000")
    check_known("family", parts[0], list(FAMILIES))
    check_known("game", parts[1], list(load_games()))
    seed, step, *_ = (*map(int, parts[2:]), None, None)
    return make_identity(parts[0], parts[1], seed, step)


def find_contradiction(agent: Agent) -> str | None:
    """Return how an agent of the release contradicts itself; None if it does not.

    Its algorithm and protocol are those of a family, its head is of the kind that this family has, and its identity is
    that of its source's path, if that path is in the release's layout.
    """
    identity, head = agent.identity, agent.head
    family = find_family(identity)
    if identity.zoo is not None:
        if family is None:
            return f"has algorithm {identity.algorithm} and protocol {identity.protocol}, expected those of a family"
        if (identity.algorithm == "C51") != (head.kind == "categorical"):
            return f"has a {head.kind} head, expected that of {family} ({identity.algorithm})"
    told = identify(agent.source.path)
    if told not in (Identity(), identity):
        found = (family, identity.game, identity.seed, identity.step)
        claimed = "/".join("?" if part is None else str(part) for part in found)
        return f"claims to be {claimed}, but the path of its source says {str(locate(told)).removesuffix('.gz')}"
    return None
