"""From emulator frames to observations, pixel for pixel: what a protocol says, and what it means.

A `Protocol` is a value. `PROTOCOLS` holds those that are known, and an `Episode` interprets any of them. The release
"Pretrained Atari Agents" has two, which differ in sticky actions and no-ops alone. ``modern`` is Machado et al. (2018),
"Revisiting the Arcade Learning Environment"; ``classic`` is Mnih et al. (2015). The others are those of other zoos, see
``docs/protocol.md``.

In the release's, a frame is resized first, and the maximum of the last two is taken after that; other wrappers pool
first, and their pixels differ on most steps. Worked trace, where gN is emulator frame N in gray, resized to 84 × 84,
and ``|`` is the pixelwise maximum::

    a new episode    emulator frame 0           observation [0,     0,     0,       g0     ]
    step(a)          a is held, frames 1–4      observation [0,     0,     g0,      g3|g4  ]
    step(b)          b is held, frames 5–8      observation [0,     g0,    g3|g4,   g7|g8  ]
    step(c)          c is held, frames 9–12     observation [g0,    g3|g4, g7|g8,   g11|g12]
    step(d)          game over at frame 15      observation [g3|g4, g7|g8, g11|g12, g15|0  ]

After n no-ops the first frame is n instead of 0. A step that ends the game early pools the frames that it
reached, zeros in place of the others, so an observation after game over is no basis for a comparison.

Where FIRE is pressed at reset and the loss of a life restarts the agent's episode, as in ``sb3``, an action is held for
FIRE, and one for the action after it in the minimal set (RIGHT in Breakout), before there is anything to see. pN is the
picture of the pooled frames N - 1 and N, with 3 no-ops::

    a new episode    frames 1–3 no-op, 4–7 FIRE, 8–11 RIGHT           observation [0, 0, 0,   p11]
    step(a)          a is held, frames 12–15                          observation [0, 0, p11, p15]
    step(b)          b is held, frames 16–19, a life is lost;
                     frames 20–23 no-op, 24–27 FIRE, 28–31 RIGHT      observation [0, 0, 0,   p31]
    step(c)          c is held, frames 32–35                          observation [0, 0, p31, p35]

The wrappers end an episode in step(b), and do the rest of it when they are reset. An `Episode` is a whole game.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, reduce
from itertools import permutations
from pathlib import Path

import cv2
import numpy as np
from ale_py import Action, ALEInterface, LoggerMode, roms
from numpy.typing import NDArray

from convert.agents.games import FULL_ACTION_SET, load_games
from convert.errors import CheckError, InvalidArgument, RomUnavailable

# One resize of 84 × 84 is over before a second thread has started.
cv2.setNumThreads(1)
ALEInterface.setLoggerMode(LoggerMode.Error)


@dataclass(frozen=True)
class Protocol:
    """How an agent is evaluated: what it sees, and what becomes of what it does.

    frame_skip: for how many frames an action is held.
    pooled_frames: how many of these, the last ones, make a picture.
    picture: the order of what is done to them: ``grey``, ``resize`` and ``pool``, the pixelwise maximum. Resized after
        pooling, or each before it; pooled in grey, or each of red, green and blue.
    grey: ``ale``, as the emulator shows them, which comes first; or made of the colours, which rounds the luma of
        ITU-R BT.601 with ``opencv`` and truncates it with ``truncated``.
    interpolation: how OpenCV resizes, ``area`` or ``linear``; or ``pillow_bilinear``, as Pillow 10 does.
    height, width: of a picture.
    stack: how many pictures an observation has, oldest first.
    stack_start: what is beside the first picture: ``zeros`` before it; ``repeat``, copies of it; or ``fill``, zeros
        after it, whose places the next pictures take.
    noops: the fewest and the most no-op frames at reset, drawn uniformly by the seed.
    fire_at_reset: whether FIRE, and then the action after it, is held at reset, where the game has FIRE.
    repeat_action_probability: of a sticky action, in each frame.
    life_loss: what the loss of a life does: ``nothing``; or ``restart``, by which the agent's episode ends and the next
        begins in the same game: a no-op is held, then FIRE as at reset, and the stack begins anew.
    max_frames: where an episode is truncated.
    seeding: what a seed is: ``emulator``, the emulator's own, and that of Python's random numbers, which draw the
        no-ops; or ``gymnasium``, what it is for the ``reset(seed=…)`` of Gymnasium's Atari environments.
    action_set: ``minimal``, ``full``, or ``either``: the one that has the size of the agent's head.

    Raises:
        ValueError: an option has a value that is not supported.
    """

    name: str
    frame_skip: int
    pooled_frames: int
    picture: tuple[str, str, str]
    grey: str
    interpolation: str
    height: int
    width: int
    stack: int
    stack_start: str
    noops: tuple[int, int]
    fire_at_reset: bool
    repeat_action_probability: float
    life_loss: str
    max_frames: int
    seeding: str
    action_set: str

    def __post_init__(self) -> None:
        """Refuse what `Episode` does not do, by name."""
        for option, supported in _SUPPORTED.items():
            if (value := getattr(self, option)) not in supported:
                known = ", ".join(map(repr, supported))
                raise ValueError(f"protocol {self.name!r}: {option} {value!r} is not supported; supported: {known}")
        ranges = (
            ("pooled_frames", 1 <= self.pooled_frames <= self.frame_skip, f"1 to {self.frame_skip}"),
            ("stack", self.stack >= 1, "1 or more"),
            ("noops", 0 <= self.noops[0] <= self.noops[1], "the fewest and the most"),
            ("repeat_action_probability", 0 <= self.repeat_action_probability <= 1, "0 to 1"),
            ("picture", self.grey != "ale" or self.picture[0] == "grey", "grey first, where the emulator makes it"),
        )
        for option, is_good, expected in ranges:
            if not is_good:
                raise ValueError(f"protocol {self.name!r}: {option} is {getattr(self, option)!r}, expected {expected}")


_OPENCV = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR}
_PILLOW_ONE = 2**22  # what stands for a weight of 1
_LUMA = (0.299, 0.587, 1 - (0.299 + 0.587))  # of red, green and blue, ITU-R BT.601, summed as in DQN Zoo
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "picture": tuple(permutations(("grey", "resize", "pool"))),
    "grey": ("ale", "opencv", "truncated"),
    "interpolation": (*_OPENCV, "pillow_bilinear"),
    "stack_start": ("zeros", "repeat", "fill"),
    "fire_at_reset": (False, True),
    "life_loss": ("nothing", "restart"),
    "seeding": ("emulator", "gymnasium"),
    "action_set": ("minimal", "full", "either"),
}

_MODERN = Protocol(
    name="modern",
    frame_skip=4,
    pooled_frames=2,
    picture=("grey", "resize", "pool"),
    grey="ale",
    interpolation="area",
    height=84,
    width=84,
    stack=4,
    stack_start="zeros",
    noops=(0, 0),
    fire_at_reset=False,
    repeat_action_probability=0.25,
    life_loss="nothing",
    max_frames=108_000,
    seeding="emulator",
    action_set="either",
)
_CLASSIC = replace(_MODERN, name="classic", repeat_action_probability=0.0, noops=(0, 29))
_SB3 = replace(
    _CLASSIC,
    name="sb3",
    picture=("pool", "grey", "resize"),
    grey="opencv",
    noops=(1, 30),
    fire_at_reset=True,
    life_loss="restart",
    seeding="gymnasium",
    action_set="minimal",
)
_CLEANRL = replace(_SB3, name="cleanrl", picture=("pool", "resize", "grey"), stack_start="repeat")
_PFRL = replace(_SB3, name="pfrl", stack_start="repeat", fire_at_reset=False, life_loss="nothing", seeding="emulator")
_DOPAMINE = replace(_MODERN, name="dopamine", picture=("grey", "pool", "resize"), action_set="minimal")
_GYMNASIUM = replace(_DOPAMINE, name="gymnasium", stack_start="repeat", noops=(1, 30), seeding="gymnasium")
_KAIXHIN = replace(_CLASSIC, name="kaixhin", interpolation="linear", action_set="minimal")
_DQN_ZOO = replace(
    _PFRL,
    name="dqn_zoo",
    picture=("pool", "grey", "resize"),
    grey="truncated",
    interpolation="pillow_bilinear",
    stack_start="fill",
)
_ALL = (_MODERN, _CLASSIC, _SB3, _CLEANRL, _PFRL, _DOPAMINE, _GYMNASIUM, _KAIXHIN, _DQN_ZOO)
PROTOCOLS = {protocol.name: protocol for protocol in _ALL}


def find_protocol(name: str) -> Protocol:
    """Return the protocol of this name.

    Raises:
        CheckError: there is none; the message lists all.
    """
    if name not in PROTOCOLS:
        raise CheckError(f"no protocol {name!r} can be played: expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def check_fit(protocol: Protocol, frames: int, size: int) -> None:
    """Raise unless a protocol shows what a network sees.

    Args:
        protocol: that is to be played.
        frames: how many pictures the network sees at once.
        size: their height and width.

    Raises:
        CheckError: it does not; the message names the protocols that do.
    """
    if not _fits(protocol, frames, size):
        fitting = ", ".join(name for name, each in PROTOCOLS.items() if _fits(each, frames, size))
        raise CheckError(
            f"the network sees {frames} frames of {size} × {size}, the protocol {protocol.name!r} shows "
            f"{protocol.stack} of {protocol.height} × {protocol.width}; protocols that fit: {fitting or 'none'}"
        )


def _fits(protocol: Protocol, frames: int, size: int) -> bool:
    return (protocol.stack, protocol.height, protocol.width) == (frames, size, size)


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


def find_actions(game: str, count: int, action_set: str = "either") -> tuple[str, ...]:
    """Return the meanings of the actions of a head of this size, as the emulator orders them.

    Args:
        game: its name in the release's paths, such as ``SpaceInvaders``.
        count: the size of the agent's head.
        action_set: that of a protocol.

    Raises:
        CheckError: the size is not that of the game's action set: of ``either``, of the minimal one or of all 18.
        RomUnavailable: there is no such game or ROM.
    """
    sets = (
        ("minimal", "the game's minimal set", read_rom(game).minimal_actions),
        ("full", "the full one", FULL_ACTION_SET),
    )
    allowed = [(text, actions) for name, text, actions in sets if action_set in (name, "either")]
    for _, actions in allowed:
        if len(actions) == count:
            return actions
    expected = " and ".join(f"{text} {len(actions)}" for text, actions in allowed)
    raise CheckError(f"{game}: the head has {count} actions, {expected}: the agent is of another game")


def draw_noops(protocol: Protocol, seed: int) -> int:
    """Return the number of no-ops with which an episode of this seed begins."""
    fewest, most = protocol.noops
    if protocol.seeding == "gymnasium":
        return int(np.random.default_rng(int(_spread_seed(seed)[0])).integers(fewest, most + 1))
    return random.Random(seed).randrange(fewest, most + 1)  # noqa: S311 - no secret, a reset


def _find_emulator_seed(protocol: Protocol, seed: int) -> int:
    return int(_spread_seed(seed)[1].astype(np.int32)) if protocol.seeding == "gymnasium" else seed


def _spread_seed(seed: int) -> NDArray[np.uint32]:
    """Return what ale-py's Gymnasium environment makes of a seed: that of its random numbers and the emulator's."""
    return np.asarray(np.random.SeedSequence(seed).generate_state(2), np.uint32)


@dataclass(frozen=True, eq=False)
class Frame:
    """One emulator frame as a person sees and hears it.

    screen: uint8[height, width, 3], RGB, 210 × 160 in most games.
    sound: uint8[512], mono at 30,720 Hz, which is 60 frames a second; 128 is silence.
    """

    screen: NDArray[np.uint8]
    sound: NDArray[np.uint8]


@dataclass(frozen=True)
class Variation:
    """A game's mode and difficulty, as the switches of the console; None for those that it starts with."""

    mode: int | None = None
    difficulty: int | None = None


STANDARD = Variation()


def list_variations(game: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the modes and the difficulties that a game has, each with the one that it starts with first.

    Raises:
        RomUnavailable: there is no such game or ROM.
    """
    ale = ALEInterface()
    ale.loadROM(read_rom(game).path)  # the emulator ends the process where it is asked before
    return tuple(ale.getAvailableModes()), tuple(ale.getAvailableDifficulties())


def check_variation(game: str, variation: Variation) -> None:
    """Raise unless a game has a mode and a difficulty.

    Raises:
        CheckError: it has not; the message lists those that it has.
        RomUnavailable: there is no such game or ROM.
    """
    if variation == STANDARD:
        return
    chosen = (variation.mode, variation.difficulty)
    for name, value, known in zip(("mode", "difficulty"), chosen, list_variations(game), strict=True):
        if value is not None and value not in known:
            raise CheckError(f"{game} has no {name} {value}: expected one of {', '.join(map(str, known))}")


class Episode:
    """One episode in an emulator of its own: a whole game, whatever the loss of a life does.

    A fresh emulator each time, because a second ``reset_game()`` does not start as the first did in every game.

    Attributes:
        observation: uint8[stack, height, width], [4, 84, 84] in all `PROTOCOLS`, oldest frame first, 0–255.
            Changed in place by ``step``: copy to keep.
        game_over: whether the episode has ended, by game over or at the protocol's bound.
        truncated: whether it has ended at the bound.
        restarted: whether the last step lost a life and, as the protocol has it, the observation begins a new stack.
        noops: the number of no-op frames at its beginning.
    """

    def __init__(
        self,
        game: str,
        protocol: Protocol,
        seed: int,
        actions: int,
        noops: int | None = None,
        variation: Variation = STANDARD,
        on_frame: Callable[[Frame], None] | None = None,
    ) -> None:
        """Start an episode.

        Args:
            game: its name in the release's paths, such as ``SpaceInvaders``.
            protocol: one of `PROTOCOLS`, or another value.
            seed: 0 … 2**31 - 1, of the emulator's sticky actions and of the number of no-ops.
            actions: how many the agent's head has: the size of the minimal action set or of the full one.
            noops: their number, for a replay; by default drawn by the seed.
            variation: the game's mode and difficulty.
            on_frame: is called with every frame of every step, also those that the agent never sees. It changes
                nothing in the episode.

        Raises:
            CheckError: the number of actions fits neither action set of the game, or it has no such mode or difficulty.
            RomUnavailable: there is no such game or ROM.
        """
        names = find_actions(game, actions, protocol.action_set)
        self._protocol = protocol
        self.noops = draw_noops(protocol, seed) if noops is None else noops
        check_variation(game, variation)
        self._on_frame = on_frame
        has_sound = on_frame is not None
        rom, emulator_seed = read_rom(game).path, _find_emulator_seed(protocol, seed)
        self._ale = _open_emulator(rom, protocol, emulator_seed, variation, has_sound=has_sound)
        meanings = {action.name: action for action in self._ale.getLegalActionSet()}
        self._actions = [meanings[name] for name in names]
        self._opening = self._actions[1:3] if protocol.fire_at_reset and "FIRE" in names else []
        for _ in range(self.noops):
            self._ale.act(meanings["NOOP"])
            if self._ale.game_over():
                self._ale.reset_game()
        self.game_over = self.truncated = self.restarted = False
        self.observation: NDArray[np.uint8] = np.zeros((protocol.stack, protocol.height, protocol.width), np.uint8)
        self._lives = self._ale.lives()
        self._open([self._read_frame()])

    def step(self, action: int) -> float:
        """Hold an action for the protocol's frames and return the reward as the game gives it, unclipped.

        What the loss of a life leads to is part of the step, its reward too.

        Args:
            action: its index in the agent's head.

        Raises:
            InvalidArgument: there is no such action.
        """
        if not 0 <= action < len(self._actions):
            raise InvalidArgument(f"action is {action}, expected 0 to {len(self._actions) - 1}")
        reward, frames = self._hold(self._actions[action])
        self.restarted = self._has_lost_life()
        if self.restarted:
            gained, frames = self._hold(Action.NOOP)
            self._lives = self._ale.lives()
            reward += gained + self._open(frames)
        else:
            self._add(frames)
        self.truncated = self._ale.game_truncated()
        return reward

    def _hold(self, action: Action) -> tuple[float, list[NDArray[np.uint8]]]:
        """Hold an action; return the reward and those frames, of the ones to be pooled, that the game reached."""
        frames: list[NDArray[np.uint8]] = []
        reward = 0.0
        for left in reversed(range(self._protocol.frame_skip)):
            if self.game_over:
                break
            reward += self._ale.act(action)
            if self._on_frame is not None:
                self._on_frame(Frame(self.read_screen(), np.asarray(self._ale.getAudio(), np.uint8)))
            if left < self._protocol.pooled_frames:
                frames.append(self._read_frame())
            self.game_over = self._ale.game_over()
        return reward, frames

    def _has_lost_life(self) -> bool:
        """Return whether the last action lost a life that restarts the agent's episode; the last life ends the game."""
        before, self._lives = self._lives, self._ale.lives()
        return self._protocol.life_loss == "restart" and 0 < self._lives < before and not self.game_over

    def _open(self, frames: list[NDArray[np.uint8]]) -> float:
        """Press FIRE where that is to be done, and begin a stack; return the reward.

        Args:
            frames: what there is to see where FIRE is not pressed.
        """
        reward = 0.0
        for action in self._opening:
            gained, frames = self._hold(action)
            reward += gained
            if self._has_lost_life():  # the wrappers take a step as for every lost life, and show the frames before it
                reward += self._hold(Action.NOOP)[0]
                self._lives = self._ale.lives()
        self._shown = 0
        self.observation[:] = 0
        self._add(frames)
        return reward

    def _add(self, frames: list[NDArray[np.uint8]]) -> None:
        """Add the picture of the pooled frames to the stack; zeros where the game reached none of them."""
        picture = to_picture(frames, self._protocol) if frames else 0
        if self._shown == 0 and self._protocol.stack_start == "repeat":
            self.observation[:] = picture
        elif self._shown < self._protocol.stack and self._protocol.stack_start == "fill":
            self.observation[self._shown] = picture
        else:
            self.observation[:-1] = self.observation[1:]
            self.observation[-1] = picture
        self._shown += 1

    def read_screen(self) -> NDArray[np.uint8]:
        """Return what the screen shows: uint8[height, width, 3], RGB, 210 × 160 in most games."""
        return np.asarray(self._ale.getScreenRGB(), np.uint8)

    def read_indices(self) -> NDArray[np.uint8]:
        """Return what the screen shows as indices into the console's palette: uint8[height, width]."""
        return np.array(self._ale.getScreen(), np.uint8)

    def _read_frame(self) -> NDArray[np.uint8]:
        if self._protocol.grey == "ale":
            return np.asarray(self._ale.getScreenGrayscale(), np.uint8)
        return self.read_screen()


def to_picture(frames: list[NDArray[np.uint8]], protocol: Protocol) -> NDArray[np.uint8]:
    """Return the picture that a protocol makes of emulator frames, uint8[height, width].

    Args:
        frames: those to be pooled, at least one: uint8[210, 160] for the grey of the emulator, or with RGB last.
        protocol: in which order to pool, resize and make grey, and how.
    """
    for step in protocol.picture:
        if step == "pool":
            frames = [reduce(np.maximum, frames)]
        elif step == "resize":
            frames = [_resize(frame, protocol) for frame in frames]
        elif protocol.grey == "opencv":
            frames = [np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8) for frame in frames]
        elif protocol.grey == "truncated":
            frames = [np.tensordot(frame, _LUMA, 1).astype(np.uint8) for frame in frames]
    return frames[0]


def _resize(frame: NDArray[np.uint8], protocol: Protocol) -> NDArray[np.uint8]:
    height, width = protocol.height, protocol.width
    if protocol.interpolation == "pillow_bilinear":
        for size in (width, height):  # each row, then each column: Pillow 13 begins with the columns of tall frames
            weighed = _weigh_bilinear(frame.shape[1], size) @ frame.swapaxes(0, 1).astype(np.float64)
            frame = np.floor(weighed / _PILLOW_ONE + 0.5).astype(np.uint8)
        return frame
    return np.asarray(cv2.resize(frame, (width, height), interpolation=_OPENCV[protocol.interpolation]), np.uint8)


@cache
def _weigh_bilinear(before: int, after: int) -> NDArray[np.float64]:
    """Return by which weights Pillow's bilinear filter, which averages as it shrinks, makes a row of another length.

    Returns:
        float64[after, before], integers as Pillow rounds them: in sums of theirs, no order and no computer matters.
    """
    scale = before / after
    centres = (np.arange(after)[:, None] + 0.5) * scale
    weights = np.maximum(1 - np.abs(np.arange(before) + 0.5 - centres) / max(scale, 1.0), 0)
    return np.asarray(np.floor(weights / weights.sum(axis=1, keepdims=True) * _PILLOW_ONE + 0.5), np.float64)


def _open_emulator(rom: Path, protocol: Protocol, seed: int, variation: Variation, *, has_sound: bool) -> ALEInterface:
    ale = ALEInterface()
    ale.setInt("random_seed", seed)
    ale.setFloat("repeat_action_probability", protocol.repeat_action_probability)
    ale.setInt("max_num_frames_per_episode", protocol.max_frames)
    ale.setBool("truncate_on_loss_of_life", False)
    ale.setInt("frame_skip", 1)  # actions are repeated here, where the frames between are seen
    ale.setBool("color_averaging", False)
    ale.setBool("display_screen", False)
    ale.setBool("sound", False)
    ale.setBool("sound_obs", has_sound)
    ale.loadROM(rom)
    if variation.mode is not None:
        ale.setMode(variation.mode)  # from the next reset on
    if variation.difficulty is not None:
        ale.setDifficulty(variation.difficulty)
    ale.reset_game()
    return ale
