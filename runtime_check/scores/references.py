"""What random play and people score, by which returns are normalised."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Reference:
    """The unclipped returns of random play and of a person in a game."""

    random: float
    human: float

    def normalise(self, score: float) -> float:
        """Return a return on the scale where random play is 0 and a person is 1."""
        return (score - self.random) / (self.human - self.random)


def find_reference(game: str) -> Reference | None:
    """Return the references of a game; None for the five of the release that have none."""
    return _read_references().get(game)


@cache
def _read_references() -> dict[str, Reference]:
    text = files("runtime_check.scores").joinpath("references.json").read_text("utf-8")
    return {game: Reference(**values) for game, values in json.loads(text)["games"].items()}
