"""The 60 games of the release: their ROM ids and minimal action sets.

``games.json`` is generated from ale-py by ``python -m runtime_check.games``, so that converting needs no
emulator; a test holds it against the installed ale-py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

FULL_ACTION_SET = (
    *("NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "UPLEFT", "DOWNRIGHT", "DOWNLEFT"),
    *("UPFIRE", "RIGHTFIRE", "LEFTFIRE", "DOWNFIRE"),
    *("UPRIGHTFIRE", "UPLEFTFIRE", "DOWNRIGHTFIRE", "DOWNLEFTFIRE"),
)


@dataclass(frozen=True)
class Game:
    """A game of the release: its name in paths, its ROM id in ale-py, its minimal action set in ALE's order."""

    name: str
    rom_id: str
    actions: tuple[str, ...]


@cache
def load_games() -> Mapping[str, Game]:
    """Return the 60 games of the release by name (``SpaceInvaders``)."""
    table = json.loads(files("convert.agents").joinpath("games.json").read_text("utf-8"))
    return MappingProxyType({name: Game(name, row["rom_id"], tuple(row["actions"])) for name, row in table.items()})
