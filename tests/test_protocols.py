"""Observations against an environment of other origin: the emulator's own C++ vector environment, unpooled."""

from __future__ import annotations

import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
from ale_py import ALEInterface
from ale_py._ale_py import ALEVectorInterface  # its public wrapper needs gymnasium

from convert.agents.games import FULL_ACTION_SET, load_games
from convert.errors import CheckError, InvalidArgument, RomUnavailable
from runtime_check.protocols import PROTOCOLS, Episode, draw_noops, find_actions, read_rom
from runtime_check.replay import Plan, Replay, from_json_line, replay_log, to_json_line

MODERN, CLASSIC = PROTOCOLS["modern"], PROTOCOLS["classic"]
STEPS = 8


class PlainFrames:
    """Single resized frames from ale-py's own vector environment."""

    def __init__(self, game: str, sticky: float, seed: int) -> None:
        self.env = ALEVectorInterface(
            read_rom(game).path,
            num_envs=1,
            num_threads=1,
            frame_skip=1,
            maxpool=False,
            stack_num=1,
            noop_max=0,
            use_fire_reset=False,
            reward_clipping=False,
            repeat_action_probability=sticky,
        )
        self.first = self.env.reset([0], [seed])[0][0, 0].copy()

    def act(self, action: int) -> tuple[np.ndarray, float]:
        self.env.send([action], [1.0])
        obs, reward, *_ = self.env.recv()
        return obs[0, 0].copy(), float(reward[0])


@pytest.mark.parametrize(
    ("game", "protocol"), list(zip(load_games(), itertools.cycle([MODERN, CLASSIC]), strict=False))
)
def test_observations_are_those_of_the_release(game, protocol):
    count = len(load_games()[game].actions)
    episode = Episode(game, protocol, 3, count, noops=0)
    frames = PlainFrames(game, protocol.repeat_action_probability, 3)
    stack = [np.zeros((84, 84), np.uint8)] * 3 + [frames.first]
    np.testing.assert_array_equal(episode.observation, stack)
    for action in np.random.default_rng(5).integers(count, size=STEPS):
        shown = [frames.act(int(action)) for _ in range(4)]
        reward = episode.step(int(action))
        stack = [*stack[1:], np.maximum(shown[2][0], shown[3][0])]
        assert not episode.game_over
        np.testing.assert_array_equal(episode.observation, stack)
        assert reward == sum(reward for _, reward in shown)


@pytest.mark.parametrize("game", load_games())
def test_actions_are_those_of_the_emulator(game):
    assert find_actions(game, len(load_games()[game].actions)) == load_games()[game].actions
    assert find_actions(game, 18) == FULL_ACTION_SET


def test_the_full_action_set_is_that_of_the_emulator():
    ale = ALEInterface()
    ale.loadROM(read_rom("Pong").path)
    assert tuple(action.name for action in ale.getLegalActionSet()) == FULL_ACTION_SET


def test_a_head_that_does_not_fit_the_game_is_refused():
    with pytest.raises(CheckError, match="Pong: the head has 7 actions, the game's minimal set 6 and the full one 18"):
        Episode("Pong", MODERN, 0, 7)


def test_an_unknown_game_is_refused():
    with pytest.raises(RomUnavailable, match="no game 'Tetris' in the release"):
        Episode("Tetris", MODERN, 0, 6)


def test_roms_elsewhere_are_looked_up_without_a_word_on_stdout(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path / "none"))
    with pytest.raises(RomUnavailable, match="Pong: ale-py cannot read its ROM 'pong'"):
        read_rom.__wrapped__("Pong")
    assert capsys.readouterr().out == ""


def test_noops_are_drawn_by_seed_from_the_protocols_range():
    assert {draw_noops(CLASSIC, seed) for seed in range(500)} == set(range(30))
    assert {draw_noops(MODERN, seed) for seed in range(50)} == {0}
    assert Episode("Pong", CLASSIC, 4, 6).noops == draw_noops(CLASSIC, 4)


def test_noops_pass_before_the_first_observation():
    frames = PlainFrames("SpaceInvaders", 0.0, 1)
    for _ in range(11):
        frame, _ = frames.act(0)
    episode = Episode("SpaceInvaders", CLASSIC, 1, 6, noops=11)
    np.testing.assert_array_equal(episode.observation[-1], frame)
    assert not episode.observation[:3].any()


def test_sticky_actions_are_those_of_the_protocol():
    """With sticky actions two seeds part under the same actions; without, they stay together."""

    def last_observation(protocol, seed):
        episode = Episode("Pong", protocol, seed, 6, noops=0)
        for step in range(60):
            episode.step(2 + step // 5 % 2)
        return episode.observation

    np.testing.assert_array_equal(last_observation(CLASSIC, 1), last_observation(CLASSIC, 2))
    assert (last_observation(MODERN, 1) != last_observation(MODERN, 2)).any()


def test_an_episode_survives_the_loss_of_a_life_and_ends_at_game_over():
    episode = Episode("Breakout", CLASSIC, 0, 4)
    lives = set()
    for step in range(2000):
        episode.step(step % 4)
        lives.add(episode._ale.lives())
        if episode.game_over:
            break
    assert episode.game_over
    assert lives >= {5, 4, 3, 2, 1}


def test_an_episode_ends_at_the_protocols_bound():
    assert {protocol.max_frames for protocol in PROTOCOLS.values()} == {108_000}
    episode = Episode("Pong", replace(MODERN, max_frames=40), 0, 6)
    steps = 0
    while not episode.game_over:
        episode.step(0)
        steps += 1
    assert steps == 10


class Screens:
    """The emulator's screens in colour, one by one, uint8[210, 160, 3]."""

    def __init__(self, game: str, seed: int) -> None:
        self._ale = ALEInterface()
        self._ale.setInt("random_seed", seed)
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.loadROM(read_rom(game).path)
        self._ale.reset_game()
        self._actions = self._ale.getMinimalActionSet()

    def see(self) -> np.ndarray:
        return self._ale.getScreenRGB()

    def act(self, action: int) -> np.ndarray:
        self._ale.act(self._actions[action])
        return self.see()


def _grey(screen: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(screen, cv2.COLOR_RGB2GRAY)


def _shrink(screen: np.ndarray, how: int = cv2.INTER_AREA) -> np.ndarray:
    return cv2.resize(screen, (84, 84), interpolation=how)


# What other wrappers make of the last two of four screens.
OTHER_PICTURES = {
    "Stable-Baselines3": (
        {"grey": "opencv", "picture": ("pool", "grey", "resize")},
        lambda one, two: _shrink(_grey(np.maximum(one, two))),
    ),
    "CleanRL": (
        {"grey": "opencv", "picture": ("pool", "resize", "grey")},
        lambda one, two: _grey(_shrink(np.maximum(one, two))),
    ),
    "Kaixhin/Rainbow": (
        {"grey": "opencv", "interpolation": "linear"},
        lambda one, two: np.maximum(_shrink(_grey(one), cv2.INTER_LINEAR), _shrink(_grey(two), cv2.INTER_LINEAR)),
    ),
    "no pooling": ({"grey": "opencv", "pooled_frames": 1}, lambda _, two: _shrink(_grey(two))),
}


@pytest.mark.parametrize("game", ["Pong", "MsPacman"])
@pytest.mark.parametrize("wrapper", OTHER_PICTURES)
def test_pictures_are_made_in_the_order_of_the_protocol(wrapper, game):
    options, make_picture = OTHER_PICTURES[wrapper]
    count = len(load_games()[game].actions)
    screens = Screens(game, 3)
    episode = Episode(game, replace(CLASSIC, **options, noops=(0, 0)), 3, count)
    np.testing.assert_array_equal(episode.observation[-1], make_picture(screens.see(), screens.see()))
    for action in np.random.default_rng(5).integers(count, size=60):
        seen = [screens.act(int(action)) for _ in range(4)]
        episode.step(int(action))
        np.testing.assert_array_equal(episode.observation[-1], make_picture(*seen[2:]))


@pytest.mark.parametrize("game", ["Pong", "Seaquest"])
def test_frames_that_are_pooled_first_are_those_of_the_emulators_own_environment(game):
    environment = ALEVectorInterface(
        read_rom(game).path,
        num_envs=1,
        num_threads=1,
        frame_skip=4,
        maxpool=True,
        stack_num=4,
        noop_max=0,
        use_fire_reset=False,
        reward_clipping=False,
        repeat_action_probability=0.25,
    )
    count = len(load_games()[game].actions)
    episode = Episode(game, replace(MODERN, picture=("grey", "pool", "resize")), 3, count)
    np.testing.assert_array_equal(episode.observation, environment.reset([0], [3])[0][0])
    for action in np.random.default_rng(5).integers(count, size=100):
        environment.send([int(action)], [1.0])
        expected, reward, *_ = environment.recv()
        assert episode.step(int(action)) == reward[0]
        np.testing.assert_array_equal(episode.observation, expected[0])


def test_a_protocol_says_how_long_actions_are_held_and_how_observations_are_stacked():
    protocol = replace(
        CLASSIC, frame_skip=3, pooled_frames=1, stack=2, stack_start="repeat", noops=(7, 7), height=80, width=96
    )
    screens, episode = Screens("Breakout", 1), Episode("Breakout", protocol, 1, 4)
    assert episode.noops == 7
    for _ in range(7):
        first = screens.act(0)

    def to_picture(screen):
        return cv2.resize(_grey(screen), (96, 80), interpolation=cv2.INTER_AREA)

    np.testing.assert_array_equal(episode.observation, [to_picture(first)] * 2)
    for action in (1, 2, 3):
        before = episode.observation[1].copy()
        last = [screens.act(action) for _ in range(3)][-1]
        episode.step(action)
        np.testing.assert_array_equal(episode.observation, [before, to_picture(last)])


def test_a_protocol_says_which_action_set_there_is():
    assert find_actions("Pong", 6, "minimal") != find_actions("Pong", 18, "full") == FULL_ACTION_SET
    with pytest.raises(CheckError, match="the head has 18 actions, the game's minimal set 6: the agent is of another"):
        Episode("Pong", replace(MODERN, action_set="minimal"), 0, 18)
    with pytest.raises(CheckError, match="the head has 6 actions, the full one 18: the agent is of another"):
        Episode("Pong", replace(MODERN, action_set="full"), 0, 6)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("fire_at_reset", "RIGHT", r"fire_at_reset 'RIGHT' is not supported; supported: False, True"),
        ("life_loss", "new stack", "life_loss 'new stack' is not supported; supported: 'nothing', 'restart'"),
        ("seeding", "numpy", "seeding 'numpy' is not supported; supported: 'emulator', 'gymnasium'"),
        ("grey", "pil", "grey 'pil' is not supported; supported: 'ale', 'opencv', 'truncated'"),
        ("interpolation", "bilinear", "interpolation 'bilinear' is not supported; supported: 'area', 'linear'"),
        ("stack_start", "noise", "stack_start 'noise' is not supported"),
        ("action_set", "legal", "action_set 'legal' is not supported"),
        ("picture", ("grey", "resize"), r"picture \('grey', 'resize'\) is not supported"),
        ("picture", ("pool", "grey", "resize"), r"picture is \('pool', 'grey', 'resize'\), expected grey first, where"),
        ("pooled_frames", 5, "pooled_frames is 5, expected 1 to 4"),
        ("stack", 0, "stack is 0, expected 1 or more"),
        ("noops", (3, 1), r"noops is \(3, 1\), expected the fewest and the most"),
        ("repeat_action_probability", 25, "repeat_action_probability is 25, expected 0 to 1"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(option, value, message):
    with pytest.raises(ValueError, match=f"protocol 'modern': {message}"):
        replace(MODERN, **{option: value})


def _play(plan: Plan, width: int) -> tuple[dict, dict]:
    """Play with a policy that depends on the observation alone; return observations and logs by episode."""
    replay = Replay(plan, width)
    seen, logs = {}, {}
    while batch := replay.observe():
        for obs, episode, step in zip(batch.obs_nchw, batch.episodes, batch.steps, strict=True):
            seen[int(episode), int(step)] = obs
        sums = batch.obs_nchw.astype(np.int64).sum(axis=(1, 2, 3))
        for log in replay.act(sums % plan.actions):
            logs[log.seed - plan.seed] = log
    return seen, logs


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_episodes_do_not_depend_on_what_runs_beside_them(protocol):
    plan = Plan("Breakout", protocol, 4, seed=7, episodes=5, max_steps=30, epsilon=0.2)
    seen, logs = _play(plan, 3)
    alone, alone_logs = _play(plan, 1)
    assert logs == alone_logs
    assert sorted(logs) == [0, 1, 2, 3, 4]
    assert seen.keys() == alone.keys() == {(episode, step) for episode in range(5) for step in range(30)}
    assert all((seen[key] == alone[key]).all() for key in seen)


@pytest.mark.parametrize(("game", "actions"), [("Breakout", 4), ("Pong", 18)])
def test_a_log_replays_what_was_seen(game, actions):
    seen, logs = _play(Plan(game, CLASSIC, actions, seed=2, max_steps=40, epsilon=0.5), 1)
    log = from_json_line(to_json_line(logs[0]))
    assert log == logs[0]
    assert len(set(log.actions)) > 1
    for step, obs in enumerate(replay_log(log)):
        np.testing.assert_array_equal(obs, seen[0, step])
    assert step == 39


def test_epsilon_is_the_share_of_random_actions():
    replay = Replay(Plan("Pong", MODERN, 6, epsilon=0.5, max_steps=400), 1)
    log = []
    while replay.observe():
        log += replay.act([0])
    share = sum(action != 0 for action in log[0].actions) / 400
    assert share == pytest.approx(0.5 * 5 / 6, abs=0.1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "not a line of an episode log"),
        ("[]", "not a line of an episode log"),
        ('{"game": "Pong"}', "KeyError"),
        (
            '{"game":"Pong","protocol":"new","seed":0,"noops":0,"head_actions":6,"actions":"","choices":"","return":0,"game_over":1}',
            "no protocol 'new'",
        ),
        (
            '{"game":"Pong","protocol":"modern","seed":0,"noops":0,"head_actions":6,"actions":"7","choices":"","return":0,"game_over":1}',
            "out of range",
        ),
        (
            '{"game":"Pong","protocol":"modern","seed":-1,"noops":0,"head_actions":6,"actions":"","choices":"","return":0,"game_over":1}',
            "out of range",
        ),
    ],
)
def test_a_damaged_log_is_refused(line, message):
    with pytest.raises(CheckError, match=message):
        from_json_line(line)


@pytest.mark.parametrize("action", [-1, 6, 9])
def test_an_action_that_there_is_not_is_refused(action):
    episode = Episode("Pong", MODERN, 0, 6)
    before = episode.observation.copy()
    with pytest.raises(InvalidArgument, match=f"^action is {action}, expected 0 to 5$"):
        episode.step(action)
    assert np.array_equal(episode.observation, before)
