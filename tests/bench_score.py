"""Measure `atari-play score` against bare stepping and inference: ``nox -s bench -- score``."""

from __future__ import annotations

import argparse
import time

import numpy as np
from builders import PONG

from convert.bulk.selection import find_jobs
from convert.runtimes import Settings
from runtime_check.players import Player, open_player
from runtime_check.protocols import Episode
from runtime_check.scores.run import SIDE_BY_SIDE, Work, play


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="of all episodes together")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    (job,) = find_jobs([PONG], "scores")
    print("episodes    score  stepping  inference    both    ratio")
    for episodes in (1, 2, 4, 8, 16):
        player = open_player(job, settings=Settings("cpu", batch=episodes), anonymous=False)
        steps = options.steps // episodes
        work = Work(episodes, max_steps=steps)
        measured = [(time_score(work, player), *time_parts(work, player)) for _ in range(options.rounds)]
        score, stepping, inference = np.median(measured, axis=0) / (steps * episodes)
        both = stepping + inference
        speeds = "".join(f"{1 / seconds:10.0f}" for seconds in (score, stepping, inference, both))
        print(f"{episodes:8}{speeds}{both / score:9.2f}", flush=True)


def time_score(work: Work, player: Player) -> float:
    started = time.perf_counter()
    play(work, player)
    return time.perf_counter() - started


def time_parts(work: Work, player: Player) -> tuple[float, float]:
    """Return how long the emulators take for the same steps with actions that are known, and the network alone."""
    width, steps, count = min(work.episodes, SIDE_BY_SIDE), work.max_steps or 0, player.agent.head.actions
    actions = np.random.default_rng(0).integers(count, size=(steps, width))
    started = time.perf_counter()
    episodes = [Episode(player.game, player.protocol, seed, count) for seed in range(width)]
    for row in actions:
        for episode, action in zip(episodes, row.tolist(), strict=True):
            episode.step(action)
    stepping = time.perf_counter() - started
    seen = np.stack([episode.observation for episode in episodes])
    started = time.perf_counter()
    for _ in range(steps):
        player.answer(seen)
    return stepping, time.perf_counter() - started


if __name__ == "__main__":
    main()
