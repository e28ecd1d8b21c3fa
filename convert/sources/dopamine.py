"""Dopamine: the ckpt.N of a JAX agent, published or self-trained: DQN, C51, Rainbow, quantile, full Rainbow."""

from __future__ import annotations

import re

from convert.agents.agent import Agent, find_action_problem
from convert.agents.games import load_games
from convert.agents.identity import Identity
from convert.formats import dopamine
from convert.sources import Checkpoint

EXPECTED = "a checkpoint of Dopamine's JAX agents"
CANDIDATES = ("ckpt.*",)
EXAMPLE = "jax/dqn/Pong/1/ckpt.199"
PROTOCOL = "dopamine"

# The first entry of a pickled dict, after the pickle's protocol and frame: in each version the agent's last stack.
_START = re.compile(rb"\x80[\x02-\x05](\x95.{8})?\}(\x94|q.)?\(?(\x8c\x05|X\x05\0\0\0)state", re.DOTALL)
# As Dopamine and "Reincarnating RL" publish them.
_PATH = re.compile(r"(?:^|.*/)([\w-]+)/(\w+)/([1-9]\d{0,3})/ckpt\.\d+", re.ASCII | re.DOTALL)
_ALGORITHMS = {
    "dqn": dopamine.DQN,
    "dqn_adam_mse": dopamine.DQN,
    "DQN_400": dopamine.DQN,
    "c51": dopamine.C51,
    "rainbow": dopamine.RAINBOW,
    "full_rainbow": dopamine.RAINBOW,
    "quantile": dopamine.QR_DQN,
    "implicit_quantile": dopamine.IQN,
    "iqn": dopamine.IQN,
}
_HEADS = {
    dopamine.DQN: ("q",),
    dopamine.C51: ("categorical",),
    dopamine.RAINBOW: ("categorical", "q"),
    dopamine.QR_DQN: ("quantile",),
    None: ("categorical",),  # C51 or Rainbow
}


def recognise(head: bytes, name: str) -> bool:  # noqa: ARG001
    """Recognise a pickle of a dict that begins with ``state``."""
    return _START.match(head) is not None


def read(data: bytes, name: str) -> Checkpoint:
    """Read a checkpoint. It tells the step, and the algorithm where no two share its network; not the game.

    Raises:
        CheckpointError: see `convert.formats.dopamine.read`.
    """
    return Checkpoint(*dopamine.read(data, name))


def identify(path: str) -> Identity:
    """Return what a path such as ``jax/dqn/Pong/1/ckpt.199`` tells; an empty identity for any other one."""
    match = _PATH.fullmatch(path)
    if match is None or match[1] not in _ALGORITHMS or match[2] not in load_games():
        return Identity()
    return Identity(dopamine.ZOO, _ALGORITHMS[match[1]], match[2], PROTOCOL, int(match[3]))


def find_contradiction(agent: Agent) -> str | None:
    """Return how an agent of Dopamine contradicts itself; None if it does not.

    Its algorithm has such a head, and its actions are those of its game.
    """
    identity, head = agent.identity, agent.head
    if identity.zoo != dopamine.ZOO:
        return None
    is_full = head.streams != "single"
    if head.kind not in _HEADS.get(identity.algorithm, ()) or (is_full and identity.algorithm != dopamine.RAINBOW):
        streams = " of two streams" if is_full else ""
        return f"has a {head.kind} head{streams}, expected that of {identity.algorithm}"
    return find_action_problem(agent)
