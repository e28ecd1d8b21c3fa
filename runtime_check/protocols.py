"""The two evaluation protocols of the release: from emulator frames to observations, pixel for pixel.

============================  ========  =====================
option                        modern    classic
============================  ========  =====================
sticky actions (probability)  0.25      0.0
no-ops at reset               none      0–29, drawn by seed
============================  ========  =====================

Both: minimal action set, an action repeated for 4 frames, an episode of at most 108,000 frames that ends at
game over and not at the loss of a life, rewards as the game gives them. ``modern`` is Machado et al. (2018),
"Revisiting the Arcade Learning Environment"; ``classic`` is Mnih et al. (2015).

A frame is resized first, and the maximum of the last two is taken after that; other wrappers pool first, and
their pixels differ on most steps. Worked trace, where gN is emulator frame N in gray, resized to 84 × 84, and
``|`` is the pixelwise maximum::

    a new episode    emulator frame 0           observation [0,     0,     0,       g0     ]
    step(a)          a is held, frames 1–4      observation [0,     0,     g0,      g3|g4  ]
    step(b)          b is held, frames 5–8      observation [0,     g0,    g3|g4,   g7|g8  ]
    step(c)          c is held, frames 9–12     observation [g0,    g3|g4, g7|g8,   g11|g12]
    step(d)          game over at frame 15      observation [g3|g4, g7|g8, g11|g12, g15|0  ]

After n no-ops the first frame is n instead of 0. A step that ends the game early pools the frames that it
reached, zeros in place of the others, so an observation after game over is no basis for a comparison.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from ale_py import ALEInterface, LoggerMode, roms
from numpy.typing import NDArray

from convert.agents.games import FULL_ACTION_SET, load_games
from convert.errors import CheckError, RomUnavailable

FRAMES_PER_STEP = 4
MAX_FRAMES = 108_000
STACK, HEIGHT, WIDTH = 4, 84, 84

# One resize of 84 × 84 is over before a second thread has started.
cv2.setNumThreads(1)
ALEInterface.setLoggerMode(LoggerMode.Error)


@dataclass(frozen=True)
class Protocol:
    """How an agent is evaluated.

    repeat_action_probability: of a sticky action, in each frame. noop_range: the number of no-ops at reset is
    drawn uniformly from 0 … noop_range - 1.
    """

    name: str
    repeat_action_probability: float
    noop_range: int


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("modern", repeat_action_probability=0.25, noop_range=1),
        Protocol("classic", repeat_action_probability=0.0, noop_range=30),
    )
}


@dataclass(frozen=True)
class Rom:
    """A game's ROM as ale-py has it: the file, its md5, and the meanings of its minimal action set in order."""

    path: Path
    md5: str
    minimal_actions: tuple[str, ...]


@cache
def read_rom(game: str) -> Rom:
    """Return the ROM of a game of the release.

    Args:
        game: its name in the release's paths, such as ``SpaceInvaders``.

    Raises:
        RomUnavailable: the release has no such game, or ale-py no such ROM.
    """
    if game not in load_games():
        raise RomUnavailable(f"no game {game!r} in the release: expected one of {', '.join(load_games())}")
    rom_id = load_games()[game].rom_id
    try:
        # With ALE_ROMS_DIR set, ale-py prints to stdout, where a JSON document may be under way.
        with contextlib.redirect_stdout(sys.stderr):
            path = roms.get_rom_path(rom_id)
    except OSError as error:
        raise RomUnavailable(f"{game}: ale-py cannot read its ROM {rom_id!r} ({error}): reinstall ale-py") from error
    if path is None:
        raise RomUnavailable(f"{game}: ale-py has no ROM {rom_id!r}: pip install -U ale-py")
    ale = ALEInterface()
    ale.loadROM(path)
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return Rom(path, md5, tuple(action.name for action in ale.getMinimalActionSet()))


def find_actions(game: str, count: int) -> tuple[str, ...]:
    """Return the meanings of the actions of a head of this size, as the emulator orders them.

    Raises:
        CheckError: the size is neither that of the game's minimal action set nor 18, the full one.
        RomUnavailable: there is no such game or ROM.
    """
    minimal = read_rom(game).minimal_actions
    if count == len(minimal):
        return minimal
    if count == len(FULL_ACTION_SET):
        return FULL_ACTION_SET
    raise CheckError(
        f"{game}: the head has {count} actions, the game's minimal set {len(minimal)} and the full one "
        f"{len(FULL_ACTION_SET)}: the agent is of another game"
    )


def draw_noops(protocol: Protocol, seed: int) -> int:
    """Return the number of no-ops with which an episode of this seed begins."""
    return random.Random(seed).randrange(protocol.noop_range)  # noqa: S311 - no secret, a reset


class Episode:
    """One episode in an emulator of its own.

    A fresh emulator each time, because a second ``reset_game()`` does not start as the first did in every game.

    Attributes:
        observation: uint8[4, 84, 84], oldest frame first, 0–255. Changed in place by ``step``: copy to keep.
        game_over: whether the episode has ended, by game over or at 108,000 frames.
        truncated: whether it has ended at 108,000 frames.
        noops: the number of no-op frames at its beginning.
    """

    def __init__(self, game: str, protocol: Protocol, seed: int, actions: int, noops: int | None = None) -> None:
        """Start an episode.

        Args:
            game: its name in the release's paths, such as ``SpaceInvaders``.
            protocol: sticky actions and no-ops.
            seed: 0 … 2**31 - 1, of the emulator's sticky actions and of the number of no-ops.
            actions: how many the agent's head has, which tells the minimal action set from the full one.
            noops: their number, where a log tells it; drawn by the seed otherwise.

        Raises:
            CheckError: the number of actions fits neither action set of the game.
            RomUnavailable: there is no such game or ROM.
        """
        names = find_actions(game, actions)
        self.noops = draw_noops(protocol, seed) if noops is None else noops
        self._ale = _open_emulator(read_rom(game).path, protocol, seed)
        meanings = {action.name: action for action in self._ale.getLegalActionSet()}
        self._actions = [meanings[name] for name in names]
        for _ in range(self.noops):
            self._ale.act(meanings["NOOP"])
            if self._ale.game_over():
                self._ale.reset_game()
        self.game_over = self.truncated = False
        self.observation: NDArray[np.uint8] = np.zeros((STACK, HEIGHT, WIDTH), np.uint8)
        self.observation[-1] = self._read_frame()

    def step(self, action: int) -> float:
        """Hold an action for 4 frames and return the reward as the game gives it, unclipped.

        Args:
            action: its index in the agent's head.
        """
        pooled = np.zeros((HEIGHT, WIDTH), np.uint8)
        reward = 0.0
        for frame in range(FRAMES_PER_STEP):
            reward += self._ale.act(self._actions[action])
            if frame >= FRAMES_PER_STEP - 2:
                np.maximum(pooled, self._read_frame(), out=pooled)
            self.game_over = self._ale.game_over()
            if self.game_over:
                break
        self.observation[:-1] = self.observation[1:]
        self.observation[-1] = pooled
        self.truncated = self._ale.game_truncated()
        return reward

    def read_screen(self) -> NDArray[np.uint8]:
        """Return what the screen shows: uint8[height, width, 3], RGB, 210 × 160 in most games."""
        return np.asarray(self._ale.getScreenRGB(), np.uint8)

    def _read_frame(self) -> NDArray[np.uint8]:
        frame = self._ale.getScreenGrayscale()
        return np.asarray(cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), np.uint8)


def _open_emulator(rom: Path, protocol: Protocol, seed: int) -> ALEInterface:
    ale = ALEInterface()
    ale.setInt("random_seed", seed)
    ale.setFloat("repeat_action_probability", protocol.repeat_action_probability)
    ale.setInt("max_num_frames_per_episode", MAX_FRAMES)
    ale.setBool("truncate_on_loss_of_life", False)
    ale.setInt("frame_skip", 1)  # actions are repeated here, where the frames between are seen
    ale.setBool("color_averaging", False)
    ale.setBool("display_screen", False)
    ale.setBool("sound", False)
    ale.setBool("sound_obs", False)
    ale.loadROM(rom)
    ale.reset_game()
    return ale
