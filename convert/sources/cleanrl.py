"""CleanRL's dqn_atari and c51_atari: PyTorch weights in a .cleanrl_model."""

from __future__ import annotations

import re

from convert.agents.games import load_games
from convert.agents.identity import Identity
from convert.files.recognition import list_zip_entries
from convert.formats import cleanrl
from convert.sources import Checkpoint

EXPECTED = "a model of CleanRL"
PATTERNS = ("*.cleanrl_model",)
EXAMPLE = "PongNoFrameskip-v4-dqn_atari-seed1/dqn_atari.cleanrl_model"
PROTOCOL = "cleanrl"

# Of the Hub and of a local run: ``runs/PongNoFrameskip-v4__dqn_atari__1__1670000000``.
_SCRIPT = r"(?P<script>dqn|c51)_atari(?:_jax)?"
_FOLDER = rf"(?P<game>\w+?)NoFrameskip-v4(?:-{_SCRIPT}-seed(?P<seed>\d{{1,9}})|__{_SCRIPT.replace('script', 'run')}__"
_PATH = re.compile(rf"(?:.*/)?{_FOLDER}(?P<number>\d{{1,9}})__\d+)/[^/]+\.cleanrl_model", re.ASCII | re.DOTALL)


def recognise(head: bytes, name: str) -> bool:  # noqa: ARG001
    """Recognise an archive of torch whose state dict is named as CleanRL's networks are."""
    leaves = {entry.rpartition("/")[2] for entry in list_zip_entries(head)}
    return "data.pkl" in leaves and (b"network.0." in head or b"advantage_head." in head)


def read(data: bytes, name: str) -> Checkpoint:
    """Read a model. That of C51 tells the game, the seed and the step, that of DQN nothing but the weights.

    Raises:
        CheckpointError: see `convert.formats.cleanrl.read_torch`.
    """
    return Checkpoint(*cleanrl.read_torch(data, name))


def identify(path: str) -> Identity:
    """Return what a path of the Hub or of a local run tells; an empty identity for any other."""
    match = _PATH.fullmatch(path)
    if match is None or match["game"] not in load_games():
        return Identity()
    algorithm = {"dqn": "DQN", "c51": "C51"}[match["script"] or match["run"]]
    return Identity(cleanrl.ZOO, algorithm, match["game"], cleanrl.PROTOCOL, int(match["seed"] or match["number"]))


find_contradiction = cleanrl.find_contradiction
