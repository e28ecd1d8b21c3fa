"""Record the observations that the int8 target is calibrated on: ``python -m runtime_check.calibration``.

Writes ``convert/formats/calibration.npz``: for each game of the release, uint8[8, 4, 84, 84], oldest frame first,
0–255, the first three of an episode, whose older frames are still zero, and then at even distances, under uniformly
random actions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import convert
from convert.agents.games import load_games
from runtime_check.protocols import PROTOCOLS, Episode

STEPS = (0, 1, 2, 40, 80, 120, 160, 200)


def record_observations(game: str) -> NDArray[np.uint8]:
    """Return uint8[8, 4, 84, 84] of one game, oldest frame first; the same on every run."""
    actions = len(load_games()[game].actions)
    rng = np.random.default_rng(0)
    seed = 0
    episode = Episode(game, PROTOCOLS["classic"], seed, actions)
    observations = [episode.observation.copy()]
    for step in range(1, STEPS[-1] + 1):
        episode.step(int(rng.integers(actions)))
        if episode.game_over:
            seed += 1
            episode = Episode(game, PROTOCOLS["classic"], seed, actions)
        if step in STEPS:
            observations.append(episode.observation.copy())
    return np.stack(observations)


if __name__ == "__main__":
    place = Path(convert.__file__).with_name("formats") / "calibration.npz"
    recorded = {game: record_observations(game) for game in load_games()}
    np.savez_compressed(place, **recorded)  # type: ignore[arg-type]
    print(f"{place}: {place.stat().st_size} bytes")
