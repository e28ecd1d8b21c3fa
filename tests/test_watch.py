"""``atari-play watch``, ``human`` and ``replay``: real windows without a screen, and one on a screen of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from builders import BREAKOUT, PONG
from click.testing import CliRunner, Result

from convert.pipeline import convert_checkpoint
from runtime_check import Listeners, Options, check_agent
from runtime_check.play.cli import main
from runtime_check.play.pictures import Painter, enlarge, square
from runtime_check.play.scenes import play_episode
from runtime_check.play.window import find_action
from runtime_check.protocols import PROTOCOLS, Episode, Frame
from runtime_check.replay import Plan, to_json_line

Image = pytest.importorskip("PIL.Image")
pygame = pytest.importorskip("pygame")
av = pytest.importorskip("av")

COMMAND = [sys.executable, "-c", "import sys; from runtime_check.play.cli import main; sys.exit(main())"]


def _run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(autouse=True)
def _windows(monkeypatch, tmp_path):
    """Windows are drawn and heard by nobody; files go to a folder of their own."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("SDL_AUDIODRIVER", "dummy")
    monkeypatch.chdir(tmp_path)
    closing = threading.Timer(60, lambda: pygame.event.post(pygame.event.Event(pygame.QUIT)))
    closing.start()  # a window that nobody closes would stay for ever
    yield
    closing.cancel()


class Person(threading.Thread):
    """Presses keys once a window is there, and reads its title after each.

    A press is a key, or a key and for how long it is held, or what to wait for in the title afterwards.
    """

    def __init__(self, *presses: int | tuple[int, float | str]) -> None:
        super().__init__(daemon=True)
        self._presses = presses
        self.titles: list[str] = []

    def run(self) -> None:
        _wait_for(lambda: "step" in _read_title())
        for press in self._presses:
            key, then = press if isinstance(press, tuple) else (press, 0.0)
            before = _read_title()
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key))
            if isinstance(then, str):
                _wait_for(lambda: then in _read_title() != before)  # noqa: B023 - it is called at once
            else:
                time.sleep(then + 0.2)
            with suppress(pygame.error):  # the window is gone
                pygame.event.post(pygame.event.Event(pygame.KEYUP, key=key))
            self.titles.append(_read_title())


def _wait_for(is_there):
    deadline = time.monotonic() + 20
    while not is_there() and time.monotonic() < deadline:
        time.sleep(0.02)


def _read_title() -> str:
    return "".join(pygame.display.get_caption()[:1]) if pygame.display.get_init() else ""


def _see(*presses, arguments) -> tuple[Result, list[str]]:
    person = Person(*presses)
    person.start()
    done = _run(*arguments)
    person.join(10)
    return done, person.titles


def _play(game, protocol, actions, head) -> list[Frame]:
    frames: list[Frame] = []
    episode = Episode(game, PROTOCOLS[protocol], 0, head, on_frame=frames.append)
    for action in actions:
        episode.step(action)
    return frames


def _find_step(title: str) -> int:
    return int(re.search(r"step (\d+)", title)[1])


def test_a_window_pauses_steps_saves_and_ends():
    step = (pygame.K_PERIOD, "paused")
    keys = ((pygame.K_p, "paused"), step, step, pygame.K_s, pygame.K_p, pygame.K_ESCAPE)
    done, titles = _see(*keys, arguments=("watch", PONG, "--scale", 2, "--episodes", 3))
    assert "paused" in titles[0]
    steps = [_find_step(title) for title in titles[:4]]
    assert [step - steps[0] for step in steps] == [0, 1, 2, 2]
    assert "paused" in titles[3]
    assert "paused" not in titles[4]
    assert re.search(r"seed 0: return reference 0 after \d+ steps, not played to its end", done.stdout)
    assert "seed 1" not in done.stdout
    (saved,) = Path().glob("*.png")
    frame = int(saved.stem.rpartition("-")[2])
    assert frame // 4 == steps[3]
    picture = np.asarray(Image.open(saved))
    scenes = play_pong(frame // 4 + 1)
    assert np.array_equal(picture, square(scenes[frame].frames[0].screen, 2))


def play_pong(steps, answers=None, epsilon=0.001, **options):
    """Return the scenes of the trained Pong agent, which `watch` shows."""
    from runtime_check.play.opening import open_show
    from runtime_check.play.options import Wanted

    show = open_show(Wanted(str(PONG), ("reference",), "cpu", None, False, 1, 0, epsilon, None, None, None))
    plan = Plan(show.plan.game, show.plan.protocol, 6, 0, 1, steps, epsilon)
    return list(play_episode(answers(show.answers[0]) if answers else show.answers, plan, 0, **options))


@pytest.mark.slow
def test_the_speed_changes_and_the_next_episode_comes():
    speeds = ((pygame.K_EQUALS, "2x"), (pygame.K_PLUS, "4x"), (pygame.K_PLUS, "8x"), (pygame.K_MINUS, "4x"))
    keys = (*speeds, pygame.K_m, pygame.K_n, pygame.K_ESCAPE)
    done, titles = _see(*keys, arguments=("watch", PONG, "--scale", 1, "--episodes", 3))
    assert ["2x" in titles[0], "4x" in titles[1], "8x" in titles[2], "4x" in titles[3]] == [True] * 4
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["seed 0", "seed 1"]


@pytest.mark.slow
def test_a_person_takes_over_and_gives_back():
    """The paddle goes to the top of the screen, where no agent of Pong would leave it, as long as a person plays."""
    keys = (pygame.K_EQUALS, (pygame.K_t, "you play"), (pygame.K_RIGHT, 2.0), pygame.K_s, pygame.K_t, pygame.K_ESCAPE)
    _, titles = _see(*keys, arguments=("watch", PONG, "--scale", 1, "--overlay"))
    assert ["you play" in title for title in titles[1:5]] == [True, True, True, False]
    (saved,) = Path().glob("*.png")
    picture = np.asarray(Image.open(saved))
    assert picture.shape[1] > 280  # what the network answers is beside the screen
    paddle = np.array([92, 186, 92])
    rows = np.flatnonzero((picture[34:194, :280] == paddle).all(axis=2).any(axis=1))
    assert rows.min() == 0


@pytest.mark.slow
def test_a_person_plays_against_an_agent():
    """Both under the protocol of the agent, unless another one is named."""
    keys = ((pygame.K_SPACE, 0.3), (pygame.K_n, "Breakout C51"), pygame.K_n)
    done, _ = _see(*keys, arguments=("human", "breakout", "--against", BREAKOUT, "--scale", 1))
    mine, theirs = done.stdout.splitlines()
    assert mine.startswith("seed 0: return you 0 after ")
    assert theirs.startswith("seed 0: return reference 0 after ")


@pytest.mark.parametrize(
    ("held", "actions", "expected"),
    [
        ({"UP", "RIGHT", "FIRE"}, ("NOOP", "FIRE", "UP", "UPRIGHT", "UPRIGHTFIRE"), "UPRIGHTFIRE"),
        ({"UP", "RIGHT"}, ("NOOP", "FIRE", "UP", "RIGHTFIRE"), "UP"),
        ({"LEFT", "RIGHT"}, ("NOOP", "LEFT", "RIGHT"), "NOOP"),
        ({"DOWN"}, ("NOOP", "LEFT", "RIGHT"), "NOOP"),
        (set(), ("NOOP", "LEFT", "RIGHT"), "NOOP"),
    ],
)
def test_keys_mean_the_closest_action(held, actions, expected):
    assert actions[find_action(held, actions)] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("wach", PONG),
            "no command 'wach': did you mean watch? There are games, human, record, replay, score, watch.",
        ),
        (("human", "Pnog"), "no game 'Pnog': did you mean Pong? atari-play games lists them"),
        (("human", "Pong", "--mode", 9), "Pong has no mode 9: expected one of 0, 1"),
        (("human", "Pong", "--protocol", "moderm"), "no protocol 'moderm' can be played"),
        (("human", "Pong", "--against", BREAKOUT), "plays Breakout, not Pong"),
        (("watch", PONG, "--backend", "flex"), "did you mean flax"),
        (("watch", PONG, "--backend", "flax"), "not the folder of a converted agent"),
    ],
)
def test_mistakes_are_told(arguments, message):
    assert message in _run(*arguments, code=2).stderr


def _start(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if "DISPLAY" not in name and not name.startswith("SDL")}
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, env=known | environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems always have a display")
def test_without_a_display_or_a_sound_device_one_line_says_so():
    done = _start("human", "Pong", "--mute")
    assert done.returncode == 2
    assert "no display" in done.stderr
    assert done.stderr.count("\n") == 4  # the usage, where to find help, an empty line, and the error
    done = _start("human", "Pong", SDL_VIDEODRIVER="dummy", SDL_AUDIODRIVER="nowhere")
    assert done.returncode == 2
    assert "no sound device" in done.stderr
    assert "--mute" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("Xvfb") and shutil.which("xdotool")), reason="needs Xvfb and xdotool")
def test_keys_of_a_real_keyboard_reach_a_real_window(tmp_path):
    """The same as without a screen, through an X server: the window appears, is drawn, and obeys."""
    from PIL import ImageGrab

    number = f":{os.getpid() % 20_000 + 100}"
    environment = {**os.environ, "DISPLAY": number}
    server = subprocess.Popen(["Xvfb", number, "-screen", "0", "1000x700x24"], stderr=subprocess.DEVNULL)
    try:
        with subprocess.Popen(
            [*COMMAND, "watch", str(PONG), "--mute", "--scale", "2"],
            env={**environment, "SDL_VIDEODRIVER": "x11"},
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        ) as process:
            deadline, shown = time.monotonic() + 60, 0
            while shown < 100_000 and time.monotonic() < deadline:
                time.sleep(0.5)
                try:
                    picture = np.asarray(ImageGrab.grab(xdisplay=number))
                except OSError:  # the server is not up yet
                    continue
                shown = int((picture == np.array([144, 72, 17])).all(axis=2).sum())  # the ground of Pong
            assert shown > 100_000
            for key in ("p", "s", "Escape"):
                subprocess.run(["xdotool", "key", key], env=environment, check=True)
                time.sleep(0.5)
            output, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "not played to its end" in output
        assert len(list(tmp_path.glob("*.png"))) == 1
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Lines of an episode log of a check of the trained Pong agent: 40 steps."""
    folder, logs = tmp_path_factory.mktemp("agent"), []
    convert_checkpoint(PONG, folder, ["onnx"])
    listeners = Listeners(episode=lambda name, _, each: logs.append(each) if name == "reference" else None)
    check_agent(folder, PONG, Options(("onnxruntime",), max_steps=40), listeners)
    return logs[0]


def test_a_log_is_filmed_as_it_was_played(log, tmp_path):
    (tmp_path / "episodes.jsonl").write_text("{}\n" + to_json_line(log) + "\n")
    done = _run("replay", tmp_path / "episodes.jsonl", "--line", 2, "-o", tmp_path / "a.mkv", "--scale", 1)
    assert "2.7 s of Pong; returns 0" in done.stdout
    with av.open(tmp_path / "a.mkv") as film:
        pictures = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    frames = _play("Pong", "modern", log.actions, 6)
    assert len(pictures) == len(frames) == 160
    assert all(
        np.array_equal(picture, enlarge(frame.screen, 1)) for picture, frame in zip(pictures, frames, strict=True)
    )


@pytest.mark.slow
def test_a_log_is_watched(log):
    Path("episodes.jsonl").write_text(to_json_line(log) + "\n")
    assert "seed 0: return log 0 after 40 steps" in _run("replay", "episodes.jsonl").stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ale": "0.1"}, "played with ale-py 0.1, here is"),
        ({"ale": "\x1b[31m" + "9" * 5000}, "[31m999"),
        ({"noops": 7}, "began with 7 no-ops, here it is 0"),
        ({"return": 5}, "the log tells a return of 5, its replay had 0"),
        ({"game": "Nowhere"}, "no game 'Nowhere'"),
        ({"protocol": "x"}, "no protocol 'x'"),
        ({"seed": -1}, "out of range"),
        ({"actions": "é"}, "not a line of an episode log"),
    ],
)
def test_a_log_that_cannot_be_repeated_is_refused(change, message, log):
    Path("a.jsonl").write_text(json.dumps(json.loads(to_json_line(log)) | change) + "\n")
    told = _run("replay", "a.jsonl", "--mute", code=2).stderr
    assert message in told
    assert "\x1b" not in told
    assert len(told) < 2000


def test_a_log_has_only_so_many_lines(log):
    Path("a.jsonl").write_text(to_json_line(log) + "\n")
    assert "has 1 lines, expected line 3" in _run("replay", "a.jsonl", "--line", 3, code=2).stderr
    Path("b.jsonl").write_bytes(b"x" * 2_000_000)
    assert "longer than 1048576 bytes" in _run("replay", "b.jsonl", code=2).stderr


def test_players_that_part_are_marked():
    """The second one presses other keys from step 20 on: its frames differ soon after, and its title turns red."""

    def choose(answer):
        calls = iter(range(1000))

        def other(obs):
            outputs = dict(answer(obs))
            if next(calls) >= 20:
                outputs["q_values"] = -outputs["q_values"]
            return outputs

        return [answer, other]

    scenes = play_pong(60, choose, epsilon=0.0)
    parted = scenes[-1].parted
    assert parted is not None
    assert 80 <= parted < 200
    differing = [not np.array_equal(*(frame.screen for frame in scene.frames)) for scene in scenes]
    assert differing.index(True) == parted
    assert all(scene.parted is None for scene in scenes[:parted])
    painter = Painter(["one", "two"], ["NOOP"] * 6, scale=1, overlay=False)
    before, after = (painter.paint(scenes[place])[0, 3] for place in (parted - 1, parted))
    assert (int(before[0]) < 100, int(after[0]) > 200) == (True, True)


def test_a_panel_marks_the_action_that_was_taken_and_shows_the_stack():
    scene = play_pong(30, epsilon=1.0)[-1]
    step = scene.steps[0]
    painter = Painter(["agent"], ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"], scale=4, overlay=True)
    picture = painter.paint(scene)
    panel = picture[:, 1120:]
    rows = np.flatnonzero((panel[: len(panel) // 2] == np.array([255, 186, 73])).all(axis=2).sum(axis=1) > 20)
    top, bottom = 840 * 0.03 * 2.6, 840 * 0.56
    marked = int((rows.mean() - top) / (bottom - top) * 6)
    assert marked == step.action
    assert step.by in ("agent", "chance")
    side = panel.shape[1] // 4
    for place, seen in enumerate(step.obs):
        shown = panel[-side - 12 : -12, place * side + 1 : (place + 1) * side - 1, 0]
        small = np.asarray(Image.fromarray(shown).resize((84, 84)), np.int16)
        assert np.abs(small - seen).mean() < 12


def test_a_film_needs_a_name():
    assert "name the film: -o FILE, or --card" in _run("record", PONG, code=2).stderr


def test_another_protocol_has_to_show_what_the_network_sees():
    """The network of the sample sees 4 frames of 84 × 84, as every protocol that is known shows."""
    assert (
        "no protocol 'nowhere' can be played"
        in _run("record", PONG, "-o", "a.gif", "--protocol", "nowhere", code=2).stderr
    )
    done = _run("record", PONG, "-o", "a.webp", "--protocol", "sb3", "--max-seconds", 1)
    assert "1.0 s of Pong" in done.stdout
