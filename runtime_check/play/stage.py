"""Episodes in a window, and what is printed of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from runtime_check.play.scenes import Scene
from runtime_check.play.window import Window


def show_episode(window: Window, scenes: Iterable[Scene]) -> tuple[Scene | None, str | None]:
    """Show an episode; return its last scene, and ``next`` or ``quit`` if a person did not want the rest."""
    scene = None
    for scene in scenes:
        wish = window.show(scene)
        if wish is not None:
            return scene, wish
    return scene, None


def format_episode(seed: int, names: Sequence[str], scene: Scene | None, wish: str | None) -> str:
    """Return a line on an episode that was shown.

    Args:
        seed: of the episode.
        names: of the players.
        scene: the last that was shown.
        wish: what ended it.
    """
    if scene is None:
        return f"seed {seed}: over at once"
    returns = ", ".join(f"{name} {value:g}" for name, value in zip(names, scene.returns, strict=True))
    parted = "" if scene.parted is None else f"; parted at frame {scene.parted}"
    left = "" if wish is None else ", not played to its end"
    steps = max(step.number for step in scene.steps) + 1
    return f"seed {seed}: return {returns} after {steps} steps{left}{parted}"
