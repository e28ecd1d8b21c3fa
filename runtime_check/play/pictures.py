"""Pictures of scenes: the screen with square pixels, what the network answers beside it, several players in a grid."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import MissingExtra
from runtime_check.play.scenes import AGENT, CHANCE, Scene, Step

Picture = NDArray[np.uint8]

_BACKGROUND, _DIM, _TEXT, _CHOSEN, _OTHER, _ALARM = (
    (20, 22, 28),
    (58, 63, 75),
    (224, 226, 232),
    (255, 186, 73),
    (96, 134, 196),
    (214, 62, 62),
)
_REMEMBERED = 200  # steps of the curve of values
_RECENT = 15  # steps whose values are the range of the bars


def enlarge(screen: Picture, scale: int) -> Picture:
    """Return a screen, uint8[height, width, 3], with each pixel 2 · scale wide and scale high.

    The console's pixels are nearly twice as wide as they are high.
    """
    return np.ascontiguousarray(screen.repeat(scale, axis=0).repeat(2 * scale, axis=1))


def square(screen: Picture, scale: int) -> Picture:
    """Return a screen, uint8[height, width, 3], scale times as high, and as wide as 4:3 takes with square pixels."""
    height, width = screen.shape[:2]
    wide = _make_even(height * scale * 4 / 3)
    columns = np.arange(wide) * width // wide
    return np.ascontiguousarray(screen.repeat(scale, axis=0)[:, columns])


class Painter:
    """Makes a picture of each scene: sides are even, as films need them.

    Attributes:
        overlay: whether what the networks answer is beside the screens.
    """

    def __init__(self, names: Sequence[str], actions: Sequence[str], *, scale: int, overlay: bool) -> None:
        """Take what is to be painted.

        Args:
            names: of the players, which stand above their screens where there are several.
            actions: the meanings of the head's actions, in its order.
            scale: how many pixels high a pixel of the screen is.
            overlay: whether what the networks answer is beside the screens.

        Raises:
            MissingExtra: Pillow is not installed.
        """
        _import_pillow()
        self.overlay = overlay
        self._names, self._scale = names, scale
        self._panels = [Panel(actions) for _ in names]

    def remember(self, scene: Scene) -> None:
        """Take a scene into the curves of values, whether or not it is painted."""
        for panel, step in zip(self._panels, scene.steps, strict=True):
            panel.remember(step)

    def paint(self, scene: Scene) -> Picture:
        """Return the picture of a scene, uint8[height, width, 3]."""
        self.remember(scene)
        tiles = []
        for place, name in enumerate(self._names):
            tile = square(scene.frames[place].screen, self._scale)
            if self.overlay:
                panel = self._panels[place].paint(scene.steps[place], scene.returns[place], len(tile))
                tile = np.hstack([tile, panel])
            if len(self._names) > 1:
                tile = np.vstack([self._paint_title(name, scene, place, tile.shape[1]), tile])
            tiles.append(tile)
        return _arrange(tiles)

    def _paint_title(self, name: str, scene: Scene, place: int, width: int) -> Picture:
        height = _make_even(16 * max(1, self._scale / 2) + 4)
        canvas = _Canvas(width, height, _ALARM if scene.parted is not None else _DIM)
        size = height * 0.62
        canvas.write(6, height / 2, name, size, anchor="lm")
        text = f"{scene.returns[place]:g}"
        if scene.parted is not None:
            text = f"parted at frame {scene.parted}   {text}"
        canvas.write(width - 6, height / 2, text, size, anchor="rm")
        return canvas.to_array()


class Panel:
    """What a network answers at each step: a bar or a distribution for each action, the value over time, the stack."""

    def __init__(self, actions: Sequence[str]) -> None:
        """Take the meanings of the head's actions, in its order."""
        self._actions = actions
        self._values: deque[tuple[float, float, float]] = deque(maxlen=_REMEMBERED)  # least, chosen and largest
        self._last: Step | None = None
        self._picture: Picture | None = None

    def remember(self, step: Step) -> None:
        """Take a step into the curve of values; one that is known changes nothing."""
        if step is self._last:
            return
        if step.number == 0:
            self._values.clear()
        self._last, self._picture = step, None
        if step.outputs:
            values = step.outputs["q_values"]
            self._values.append((float(values.min()), float(values[step.action]), float(values.max())))

    def paint(self, step: Step, episode_return: float, height: int) -> Picture:
        """Return the panel of a step, uint8[height, width, 3]; it is painted once for all frames of the step."""
        self.remember(step)
        if self._picture is None or len(self._picture) != height:
            self._picture = self._paint(step, episode_return, height)
        return self._picture

    def _paint(self, step: Step, episode_return: float, height: int) -> Picture:
        width = _make_even(height * 0.8)
        canvas, text = _Canvas(width, height, _BACKGROUND), height * 0.03
        canvas.write(text, text * 1.4, f"step {step.number}", text, anchor="lm")
        canvas.write(width - text, text * 1.4, f"return {episode_return:g}", text, anchor="rm")
        if step.by != AGENT:
            word, color = ("random action", _ALARM) if step.by == CHANCE else ("a person plays", _CHOSEN)
            canvas.write(width / 2, text * 1.4, word, text, color, anchor="mm")
        stack_top = height - width / len(step.obs) - text / 2
        if step.outputs:
            self._paint_actions(canvas, step, text * 2.6, height * 0.56, text)
            self._paint_curve(canvas, height * 0.6, stack_top - text, text)
        self._paint_stack(canvas, step, stack_top)
        return canvas.to_array()

    def _paint_actions(self, canvas: _Canvas, step: Step, top: float, bottom: float, text: float) -> None:
        values = step.outputs["q_values"]
        row, left, right = (bottom - top) / len(values), canvas.width * 0.3, canvas.width * 0.84
        size = min(text, row * 0.8)
        recent = list(self._values)[-_RECENT:]
        least, largest = min(low for low, _, _ in recent), max(high for _, _, high in recent)
        masses = _find_masses(step)
        for action, (name, value) in enumerate(zip(self._actions, values, strict=True)):
            middle, color = top + row * (action + 0.5), _CHOSEN if action == step.action else _OTHER
            ink = _CHOSEN if action == step.action else _TEXT
            canvas.write(left - text / 2, middle, name, size, ink, anchor="rm")
            canvas.write(canvas.width - text / 2, middle, f"{value:.3g}", size, ink, anchor="rm")
            low, high = middle - row * 0.42, middle + row * 0.42
            if masses is None:
                share = (float(value) - least) / (largest - least or 1)
                canvas.fill(left, low + row * 0.12, left + max(share * (right - left), 1), high - row * 0.12, color)
                continue
            bar = (right - left) / masses.shape[1]
            for atom, mass in enumerate(masses[action] / masses.max()):
                x = left + atom * bar
                canvas.fill(x, high - max(mass * (high - low), 0.6), x + bar, high, color)

    def _paint_curve(self, canvas: _Canvas, top: float, bottom: float, text: float) -> None:
        """Draw the value of the action that was taken, within the range of all actions' values."""
        least, largest = min(low for low, _, _ in self._values), max(high for _, _, high in self._values)
        left, right = canvas.width * 0.17, canvas.width - text / 2
        canvas.write(left - text / 2, top + text / 2, f"{largest:.3g}", text * 0.8, anchor="rm")
        canvas.write(left - text / 2, bottom - text / 2, f"{least:.3g}", text * 0.8, anchor="rm")
        canvas.write(left - text / 2, (top + bottom) / 2, "value", text * 0.8, _CHOSEN, anchor="rm")
        heights = [
            tuple(bottom - (value - least) / (largest - least or 1) * (bottom - top) for value in values)
            for values in self._values
        ]
        places = [
            right - (len(heights) - 1 - place) * (right - left) / (_REMEMBERED - 1) for place in range(len(heights))
        ]
        for x, (low, _, high) in zip(places, heights, strict=True):
            canvas.fill(x, high, x + 1, low, _DIM)
        canvas.line([(x, value) for x, (_, value, _) in zip(places, heights, strict=True)], _CHOSEN)

    def _paint_stack(self, canvas: _Canvas, step: Step, top: float) -> None:
        side = canvas.width / len(step.obs)
        for place, picture in enumerate(step.obs):
            canvas.paste(picture, place * side + 1, top, side - 2)


def _find_masses(step: Step) -> NDArray[np.float64] | None:
    """Return the probability of each atom of each action, float64[actions, atoms]; None for other heads."""
    if "logits" not in step.outputs:
        return None
    logits = step.outputs["logits"].astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def _arrange(tiles: Sequence[Picture]) -> Picture:
    """Return tiles of one size in a grid that is at least as wide as it is high."""
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = []
    for start in range(0, len(tiles), columns):
        row = list(tiles[start : start + columns])
        row += [np.zeros_like(tiles[0])] * (columns - len(row))
        rows.append(np.hstack(row))
    return np.vstack(rows)


class _Canvas:
    """Pixels to draw on. Places are in pixels from the left and the top."""

    def __init__(self, width: int, height: int, color: tuple[int, int, int]) -> None:
        pillow = _import_pillow()
        self.width = width
        self._image = pillow.Image.new("RGB", (width, height), color)
        self._draw = pillow.ImageDraw.Draw(self._image)

    def write(
        self, x: float, y: float, text: str, size: float, color: tuple[int, int, int] = _TEXT, *, anchor: str
    ) -> None:
        font = _import_pillow().ImageFont.load_default(max(size, 6))
        self._draw.text((x, y), text, fill=color, font=font, anchor=anchor)

    def fill(self, left: float, top: float, right: float, bottom: float, color: tuple[int, int, int]) -> None:
        self._draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), fill=color)

    def line(self, points: Sequence[tuple[float, float]], color: tuple[int, int, int]) -> None:
        self._draw.line(list(points), fill=color, width=2)

    def paste(self, picture: NDArray[np.uint8], left: float, top: float, side: float) -> None:
        image = _import_pillow().Image.fromarray(picture).resize((round(side), round(side)))
        self._image.paste(image.convert("RGB"), (round(left), round(top)))

    def to_array(self) -> Picture:
        return np.asarray(self._image)


def _make_even(number: float) -> int:
    return 2 * round(number / 2)


def _import_pillow() -> Any:
    try:
        import PIL.Image
        import PIL.ImageDraw
        import PIL.ImageFont
    except ModuleNotFoundError as error:
        raise MissingExtra("pictures need Pillow: pip install 'atari-convert[play]'") from error
    return PIL
