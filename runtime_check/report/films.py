"""Films as JSON holds them, for the page to show step by step; `templates/player.html` plays them."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from runtime_check.check.films import KINDS, STEPS_PER_REEL, Film


def to_json(film: Film, actions: Sequence[str]) -> dict[str, Any]:
    """Return a film as JSON. Its arrays are little-endian and deflated, in base64; see `Film` for what they are.

    Args:
        film: to be shown.
        actions: the meanings of the head's actions.
    """
    count = film.q_values.shape[1]
    return {
        "episode": film.episode,
        "seed": film.seed,
        "steps": len(film.actions),
        "height": film.height,
        "width": film.width,
        "steps_per_reel": STEPS_PER_REEL,
        "palette": _pack(film.palette, "u1"),
        "reels": [base64.b64encode(reel).decode("ascii") for reel in film.reels],
        "actions": list(actions or map(str, range(count))),
        "taken": _pack(film.actions, "u1"),
        "returns": _pack(film.returns, "<f4"),
        "q_values": _pack(film.q_values, "<f4"),
        "gaps": _pack(film.gaps, "<f4"),
        "allowed": _pack(film.allowed, "<f4"),
        "kinds": list(KINDS),
        "backends": [
            {
                "name": name,
                "differences": _pack(answers.differences, "<f4"),
                "errors": _pack(answers.errors, "<f4"),
                "kinds": _pack(answers.kinds, "u1"),
            }
            for name, answers in film.answers.items()
        ],
    }


def _pack(array: ArrayLike, dtype: str) -> str:
    return base64.b64encode(zlib.compress(np.asarray(array, dtype).tobytes(), 9)).decode("ascii")
