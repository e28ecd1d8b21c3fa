"""Stable-Baselines3 and sb3-contrib: the zip of a DQN or QR-DQN agent, of SB3 1.x and 2.x."""

from __future__ import annotations

import re

from convert.agents.agent import Agent, find_action_problem
from convert.agents.games import load_games
from convert.agents.identity import Identity
from convert.files.recognition import list_zip_entries
from convert.formats import sb3
from convert.sources import Checkpoint

EXPECTED = "a zip of Stable-Baselines3"
CANDIDATES = ("*.zip",)
EXAMPLE = "dqn-PongNoFrameskip-v4.zip"
PROTOCOL = "sb3"

# As rl_zoo3 and the Hub name them; the zip itself does not tell the game.
_NAME = re.compile(r"(?:^|.*/)(dqn|qrdqn)-(\w+)NoFrameskip-v4(?:_\d+)?\.zip", re.ASCII | re.DOTALL)
_ALGORITHMS = {"dqn": sb3.DQN.name, "qrdqn": sb3.QR_DQN.name}


def recognise(head: bytes, name: str) -> bool:  # noqa: ARG001
    """Recognise the zip of any algorithm of SB3: ``read`` says which one it is."""
    entries = list_zip_entries(head)
    return {"policy.pth", "pytorch_variables.pth"} <= {*entries} or (
        entries[:1] == [sb3.DATA] and b'"policy_class"' in head
    )


def read(data: bytes, name: str) -> Checkpoint:
    """Read a zip. It tells the algorithm, the seed and the step, and not the game.

    Raises:
        CheckpointError: see `convert.formats.sb3.read_zip`.
    """
    return Checkpoint(*sb3.read_zip(data, name))


def identify(path: str) -> Identity:
    """Return what a name such as ``dqn-PongNoFrameskip-v4.zip`` tells; an empty identity for any other path."""
    match = _NAME.fullmatch(path)
    if match is None or match[2] not in load_games():
        return Identity()
    return Identity(sb3.ZOO, _ALGORITHMS[match[1]], match[2], sb3.PROTOCOL)


def find_contradiction(agent: Agent) -> str | None:
    """Return how an agent of SB3 contradicts itself; None if it does not.

    Its algorithm has such a head, and its actions are those of its game.
    """
    if agent.identity.zoo != sb3.ZOO:
        return None
    algorithm = sb3.find_algorithm(agent.head)
    if algorithm is None or agent.identity.algorithm != algorithm.name:
        return f"has a {agent.head.kind} head, expected that of {agent.identity.algorithm}"
    return find_action_problem(agent)
