"""A window that shows scenes with their sound, and what its keys do."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import click
import numpy as np

from convert.errors import CheckError, MissingExtra
from convert.frameworks.native_logs import without_native_logs
from runtime_check.play.pictures import Painter
from runtime_check.play.recording import FRAMES_PER_SECOND, SAMPLES, SOUND_RATE
from runtime_check.play.scenes import Scene

NEXT, QUIT = "next", "quit"  # what a person may want instead of the next frame

_SPEEDS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
_FRAMES_OF_SOUND = 4  # that are played at once: one by one they would stutter
_LONGEST_QUEUE = 4  # of these; what comes too late is left out
_WIDEST = 0.9  # of the desktop
_INSTEAD = "atari-play record writes a film instead"


class Window:
    """Shows scenes in their own time. A context manager.

    Attributes:
        has_taken_over: whether a person plays.
    """

    def __init__(self, title: str, painter: Painter, *, mute: bool, has_taken_over: bool = False) -> None:
        """Take what is shown.

        Args:
            title: of the window.
            painter: makes the pictures.
            mute: whether no sound device is opened.
            has_taken_over: whether a person plays from the start.
        """
        self.has_taken_over = has_taken_over
        self._pygame = pygame = _import_pygame()
        self._directions = {
            pygame.K_UP: "UP",
            pygame.K_DOWN: "DOWN",
            pygame.K_LEFT: "LEFT",
            pygame.K_RIGHT: "RIGHT",
            pygame.K_SPACE: "FIRE",
        }
        self._title, self._painter = title, painter
        self._screen: Any = None
        self._channel: Any = None
        self._sound: list[bytes] = []
        self._waiting: deque[bytes] = deque(maxlen=_LONGEST_QUEUE)
        self._held: set[int] = set()
        self._speed = _SPEEDS.index(1)
        self._is_paused, self._is_stepping = False, False
        self._is_silent = mute
        self._step = -1
        self._due = time.perf_counter()

    def __enter__(self) -> Self:
        """Open the display and the sound device.

        Raises:
            CheckError: there is none.
        """
        try:
            with without_native_logs():
                self._open_display()
                if not self._is_silent:
                    self._open_sound()
        except CheckError:
            self._pygame.quit()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them."""
        self._pygame.quit()

    def show(self, scene: Scene) -> str | None:
        """Show a scene when its time has come, as long as a person wants; return ``next`` or ``quit`` if they do.

        Raises:
            CheckError: no window can be opened.
        """
        speed = _SPEEDS[self._speed]
        is_new = scene.steps[0].number != self._step
        if is_new and self._is_stepping:
            self._is_paused, self._is_stepping = True, False
        self._step = scene.steps[0].number
        if scene.number % math.ceil(speed) == 0:
            self._draw(scene)
            self._wait(math.ceil(speed) / speed / FRAMES_PER_SECOND)
        self._play(scene, speed)
        wish = self._obey(scene)
        while self._is_paused and wish is None:
            time.sleep(1 / FRAMES_PER_SECOND)
            wish = self._obey(scene)
        return wish

    def find_action(self, actions: Sequence[str]) -> int | None:
        """Return the action that the keys held down mean; None while no person plays.

        Args:
            actions: those of the head, in its order.
        """
        if not self.has_taken_over:
            return None
        return find_action({self._directions[key] for key in self._held if key in self._directions}, actions)

    def _open_display(self) -> None:
        pygame = self._pygame
        try:
            pygame.display.init()
            self._desktop = pygame.display.get_desktop_sizes()[0]
        except (pygame.error, IndexError) as error:
            raise CheckError(f"no display ({error}): {_INSTEAD}") from error
        # SDL draws into the void where it finds no display and was not told to.
        if pygame.display.get_driver() == "offscreen" and "SDL_VIDEODRIVER" not in os.environ:
            raise CheckError(f"no display (neither DISPLAY nor WAYLAND_DISPLAY leads to one): {_INSTEAD}")

    def _open_sound(self) -> None:
        pygame = self._pygame
        try:
            pygame.mixer.init(SOUND_RATE, 8, 1, buffer=2 * SAMPLES, allowedchanges=0)
        except pygame.error as error:
            raise CheckError(f"no sound device ({error}): use --mute") from error
        self._channel = pygame.mixer.Channel(0)

    def _draw(self, scene: Scene) -> None:
        pygame = self._pygame
        picture = self._painter.paint(scene)
        height, width = picture.shape[:2]
        if self._screen is None:
            self._resize(width, height)
        surface = pygame.image.frombuffer(np.ascontiguousarray(picture), (width, height), "RGB")
        room = self._screen.get_size()
        factor = min(room[0] / width, room[1] / height)
        size = max(1, round(width * factor)), max(1, round(height * factor))
        scale = pygame.transform.scale if factor == int(factor) else pygame.transform.smoothscale
        self._screen.fill((0, 0, 0))
        self._screen.blit(scale(surface, size), ((room[0] - size[0]) // 2, (room[1] - size[1]) // 2))
        pygame.display.flip()
        pygame.display.set_caption(self._describe(scene))

    def _resize(self, width: int, height: int) -> None:
        pygame = self._pygame
        factor = min(1.0, self._desktop[0] * _WIDEST / width, self._desktop[1] * _WIDEST / height)
        try:
            self._screen = pygame.display.set_mode((round(width * factor), round(height * factor)), pygame.RESIZABLE)
        except pygame.error as error:
            raise CheckError(f"no display ({error}): {_INSTEAD}") from error

    def _describe(self, scene: Scene) -> str:
        speed = _SPEEDS[self._speed]
        states = [f"step {scene.steps[0].number}", f"return {scene.returns[0]:g}"]
        states += [f"{speed:g}x"] if speed != 1 else []
        states += ["you play"] if self.has_taken_over else []
        states += ["paused"] if self._is_paused else []
        return f"{self._title} - {', '.join(states)}"

    def _wait(self, seconds: float) -> None:
        """Wait until a picture is due; one that is late by far begins a new count."""
        now = time.perf_counter()
        self._due = max(self._due + seconds, now - 0.25)
        if self._due > now:
            time.sleep(self._due - now)

    def _play(self, scene: Scene, speed: float) -> None:
        """Play the sound of the first player's frame, at the game's own speed alone."""
        if self._channel is None or self._is_silent or speed != 1:
            return
        self._sound.append(scene.frames[0].sound.tobytes())
        if len(self._sound) == _FRAMES_OF_SOUND:
            self._waiting.append(b"".join(self._sound))
            self._sound.clear()
        while self._waiting and self._channel.get_queue() is None:
            sound = self._pygame.mixer.Sound(buffer=self._waiting.popleft())
            (self._channel.queue if self._channel.get_busy() else self._channel.play)(sound)

    def _obey(self, scene: Scene) -> str | None:
        """Do what keys and the window's own buttons ask for; return a wish that ends the episode."""
        pygame = self._pygame
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                return QUIT
            if event.type == pygame.KEYUP:
                self._held.discard(event.key)
            elif event.type == pygame.WINDOWFOCUSLOST:
                self._held.clear()
            elif event.type == pygame.VIDEORESIZE and self._screen is not None:
                self._screen = pygame.display.get_surface()
                self._draw(scene)
            elif event.type == pygame.KEYDOWN:
                self._held.add(event.key)
                wish = self._press(event.key, scene)
                if wish is not None:
                    return wish
        return None

    def _press(self, key: int, scene: Scene) -> str | None:
        pygame = self._pygame
        wishes = {pygame.K_ESCAPE: QUIT, pygame.K_n: NEXT}
        if key in wishes:
            self._is_paused = False
            return wishes[key]
        orders: dict[int, Callable[[], None]] = {
            pygame.K_p: self._toggle_pause,
            pygame.K_PERIOD: self._take_step,
            pygame.K_MINUS: lambda: self._change_speed(-1),
            pygame.K_KP_MINUS: lambda: self._change_speed(-1),
            pygame.K_PLUS: lambda: self._change_speed(1),
            pygame.K_EQUALS: lambda: self._change_speed(1),  # plus without Shift on most keyboards
            pygame.K_KP_PLUS: lambda: self._change_speed(1),
            pygame.K_o: self._toggle_overlay,
            pygame.K_t: self._take_over,
            pygame.K_s: lambda: self._save(scene),
            pygame.K_m: self._toggle_sound,
        }
        if key in orders:
            orders[key]()
            self._draw(scene)
        return None

    def _toggle_pause(self) -> None:
        self._is_paused = not self._is_paused

    def _take_step(self) -> None:
        self._is_paused, self._is_stepping = False, True

    def _change_speed(self, by: int) -> None:
        self._speed = min(max(self._speed + by, 0), len(_SPEEDS) - 1)

    def _toggle_overlay(self) -> None:
        self._painter.overlay = not self._painter.overlay
        self._screen = None  # another size

    def _take_over(self) -> None:
        self.has_taken_over = not self.has_taken_over

    def _toggle_sound(self) -> None:
        self._is_silent = not self._is_silent

    def _save(self, scene: Scene) -> None:
        name = "-".join(self._title.split())
        path = Path(f"{name}-frame-{scene.number}.png")
        self._pygame.image.save(self._pygame.surfarray.make_surface(self._painter.paint(scene).swapaxes(0, 1)), path)
        click.echo(f"saved: {path}")


def find_action(held: set[str], actions: Sequence[str]) -> int:
    """Return the action that comes closest to the directions and FIRE held down, as an index.

    Args:
        held: of UP, DOWN, LEFT, RIGHT and FIRE.
        actions: those of the head, in its order; the console's names join directions and FIRE.
    """
    wanted = held - ({"UP", "DOWN"} if {"UP", "DOWN"} <= held else set())
    wanted -= {"LEFT", "RIGHT"} if {"LEFT", "RIGHT"} <= held else set()
    parts = [{part for part in ("UP", "DOWN", "LEFT", "RIGHT", "FIRE") if part in name} for name in actions]
    fitting = [place for place, part in enumerate(parts) if part <= wanted]
    return max(fitting, key=lambda place: len(parts[place]), default=0)


def _import_pygame() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
    except ModuleNotFoundError as error:
        raise MissingExtra("a window needs pygame-ce: pip install 'atari-convert[play]'") from error
    return pygame
