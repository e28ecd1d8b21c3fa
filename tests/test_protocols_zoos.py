"""Protocols of other zoos against their wrappers, which are told anew here; ``nox -s zoos`` takes the real ones."""

from __future__ import annotations

from dataclasses import replace

import ale_py
import cv2
import gymnasium
import numpy as np
import pytest
from ale_py import Action, ALEInterface
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from PIL import Image

from convert.agents.games import load_games
from runtime_check.protocols import PROTOCOLS, Episode, draw_noops, read_rom
from runtime_check.replay import EpisodeLog, Plan, Replay, replay_log

GAMES = ("Breakout", "RoadRunner", "Freeway")  # lives and FIRE; lives without FIRE; neither
SEED = 11


class Game:
    """A game in colour, one frame after the other, seeded as ale-py's Gymnasium environment is."""

    def __init__(self, game, seed, noops, sticky=0.0):
        numbers, emulator = np.random.SeedSequence(seed).generate_state(2)
        self.open(game, np.int32(emulator), np.random.Generator(np.random.PCG64(int(numbers))).integers(*noops), sticky)

    def open(self, game, seed, noops, sticky):
        self.ale = ALEInterface()
        self.ale.setInt("random_seed", seed)
        self.ale.setFloat("repeat_action_probability", sticky)
        self.ale.loadROM(read_rom(game).path)
        self.ale.reset_game()
        self.actions = self.ale.getMinimalActionSet()
        for _ in range(noops):
            self.ale.act(Action.NOOP)

    def hold(self, action):
        """Hold an action for 4 frames and return the last two."""
        frames = []
        for _ in range(4):
            self.ale.act(self.actions[action])
            frames.append(self.ale.getScreenRGB())
        return frames[2:]


class Lives:
    """What Stable-Baselines3 and CleanRL show: each life is an episode, which FIRE begins where there is FIRE."""

    def __init__(self, name, game, seed):
        self.game, self.name = Game(game, seed, (1, 31)), name
        self.begin([self.game.ale.getScreenRGB()])

    def begin(self, frames):
        if Action.FIRE in self.game.actions:
            self.game.hold(1)
            frames = self.game.hold(2)
        picture = self.make_picture(frames)
        before = picture if self.name == "cleanrl" else np.zeros((84, 84), np.uint8)
        self.stack = [before] * 3 + [picture]

    def act(self, action):
        """Return whether a life was lost."""
        lives = self.game.ale.lives()
        frames = self.game.hold(action)
        self.stack = [*self.stack[1:], self.make_picture(frames)]
        if 0 < self.game.ale.lives() < lives:
            self.begin(self.game.hold(0))
            return True
        return False

    def make_picture(self, frames):
        frame = np.max(frames, axis=0)
        for turn in (self.shrink, self.fade) if self.name == "cleanrl" else (self.fade, self.shrink):
            frame = turn(frame)
        return frame

    @staticmethod
    def shrink(frame):
        return cv2.resize(frame, (84, 84), interpolation=cv2.INTER_AREA)

    @staticmethod
    def fade(frame):
        return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


class SeededGame(Game):
    """A game that the emulator's seed alone begins, with its number of no-ops."""

    def __init__(self, game, seed, noops, sticky=0.0):
        self.open(game, seed, noops, sticky)


class Whole:
    """What PFRL, Kaixhin/Rainbow, DQN Zoo and Dopamine show in evaluation: the loss of a life is nothing to see."""

    def __init__(self, name, game, seed):
        self.name, protocol = name, PROTOCOLS[name]
        sticky = 0.25 if name == "dopamine" else 0.0
        self.game = SeededGame(game, seed, draw_noops(protocol, seed), sticky)
        picture, zeros = self.make_picture([self.game.ale.getScreenRGB()]), np.zeros((84, 84), np.uint8)
        self.seen = [picture]
        self.stack = [zeros] * 3 + [picture]
        if name == "pfrl":
            self.stack = [picture] * 4
        elif name == "dqn_zoo":
            self.stack = [picture] + [zeros] * 3

    def act(self, action):
        self.seen = [*self.seen, self.make_picture(self.game.hold(action))][-4:]
        self.stack = [*self.stack[1:], self.seen[-1]]
        if self.name == "dqn_zoo":
            self.stack = (self.seen + [np.zeros((84, 84), np.uint8)] * 3)[:4]
        return False

    def make_picture(self, frames):
        if self.name == "pfrl":
            return Lives.shrink(Lives.fade(np.max(frames, axis=0)))
        if self.name == "dqn_zoo":
            red, green, blue = np.moveaxis(np.max(frames, axis=0).astype(np.float64), -1, 0)
            grey = (0.299 * red + 0.587 * green + (1 - (0.299 + 0.587)) * blue).astype(np.uint8)
            return np.asarray(Image.fromarray(grey).resize((84, 84), Image.Resampling.BILINEAR))
        greys = [Lives.fade(frame) for frame in frames]  # the emulator's grey is OpenCV's in its palette
        if self.name == "dopamine":
            return Lives.shrink(np.max(greys, axis=0))
        return np.max([cv2.resize(grey, (84, 84), interpolation=cv2.INTER_LINEAR) for grey in greys], axis=0)


class Gymnasium:
    """Gymnasium's own AtariPreprocessing and FrameStackObservation, on its own environment with its own defaults."""

    def __init__(self, _name, game, seed):
        gymnasium.register_envs(ale_py)
        env = gymnasium.make(f"ALE/{game}-v5", frameskip=1, disable_env_checker=True)
        self.env = FrameStackObservation(AtariPreprocessing(env), 4)
        self.stack = self.env.reset(seed=seed)[0]

    def act(self, action):
        self.stack = self.env.step(action)[0]
        return False


def play(name, game, make_wrapped, steps=300, protocol=None):
    """Hold an episode against a wrapped game, and return how often a life was lost."""
    count = len(load_games()[game].actions)
    episode, wrapped = Episode(game, protocol or PROTOCOLS[name], SEED, count), make_wrapped(name, game, SEED)
    np.testing.assert_array_equal(episode.observation, wrapped.stack)
    lost = 0
    for action in np.random.default_rng(5).integers(count, size=steps):
        episode.step(int(action))
        ended = wrapped.act(int(action))
        if episode.game_over:
            break
        assert episode.restarted == ended
        np.testing.assert_array_equal(episode.observation, wrapped.stack)
        lost += ended
    return lost


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("name", ["sb3", "cleanrl"])
def test_a_lost_life_begins_another_stack_in_the_same_game(name, game):
    assert play(name, game, Lives) == {"Breakout": 4, "RoadRunner": 2, "Freeway": 0}[game]


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("name", ["pfrl", "dopamine", "kaixhin", "dqn_zoo"])
def test_a_whole_episode_shows_what_the_zoo_shows(name, game):
    assert play(name, game, Whole) == 0


@pytest.mark.parametrize("game", GAMES)
def test_gymnasiums_own_preprocessing_shows_the_same(game):
    assert play("gymnasium", game, Gymnasium) == 0


@pytest.mark.parametrize(
    "fault",
    [
        {"picture": ("grey", "pool", "resize")},
        {"picture": ("pool", "resize", "grey")},
        {"stack_start": "repeat"},
        {"noops": (0, 30)},
        {"fire_at_reset": False},
        {"life_loss": "nothing"},
        {"seeding": "emulator"},
    ],
    ids=lambda fault: next(iter(fault)),
)
def test_a_wrong_option_of_sb3_shows_in_the_observations(fault):
    with pytest.raises(AssertionError):
        play("sb3", "Seaquest", Lives, protocol=replace(PROTOCOLS["sb3"], **fault))


def test_noops_are_drawn_as_by_the_wrappers():
    assert {draw_noops(PROTOCOLS["sb3"], seed) for seed in range(500)} == set(range(1, 31))


def test_episodes_with_lost_lives_replay_from_their_logs():
    replay = Replay(Plan("Breakout", PROTOCOLS["sb3"], 4, seed=3, max_steps=150), 1)
    seen, random, logs = [], np.random.default_rng(2), []
    while batch := replay.observe():
        seen.append(batch.obs_nchw[0])
        logs += replay.act([int(random.integers(4))])
    log = logs[0]
    assert isinstance(log, EpisodeLog)
    assert sum(not observation[:3].any() for observation in seen) > 2
    for observation, expected in zip(seen, replay_log(log), strict=True):
        np.testing.assert_array_equal(observation, expected)
