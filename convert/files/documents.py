"""Untrusted JSON, and untrusted names in messages."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable
from typing import Any

LARGEST_DOCUMENT = 2**20  # bytes; an agent.json with every target has 27,000
_SHOWN = 10
_DEEPEST = 100  # levels of JSON; the config of a Keras model has about 15

# Never the whole value: its parts may contain each other billions of times.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2


def read_json(data: bytes | str, largest: int = LARGEST_DOCUMENT) -> Any:
    """Return what a JSON document holds.

    Raises:
        ValueError: it is not JSON in UTF-8, larger than ``largest`` bytes, too deep, or says a key twice.
    """
    if len(data) > largest:
        raise ValueError(f"JSON of {len(data)} bytes, expected at most {largest}")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        document = json.loads(text, object_pairs_hook=_to_object, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    _check_depth(document)
    return document


def show(name: object) -> str:
    """Return an untrusted name for a message: on one line, without control characters, not too long."""
    text = name if isinstance(name, str) else _SHORT.repr(name)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 80 else f"{text[:77]}..."


def join(problems: Iterable[str]) -> str:
    """Return problems for a message: the first ten, and how many more there are."""
    every = list(problems)
    more = [f"and {len(every) - _SHOWN} more"] if len(every) > _SHOWN else []
    return "; ".join(every[:_SHOWN] + more)


def _check_depth(document: Any) -> None:
    """Raise where a document is nested so deeply that a function that calls itself would fail on it."""
    level = [document]
    for _ in range(_DEEPEST):
        parts = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [value for each in parts for value in each]
    if level:
        raise ValueError(f"JSON that is nested deeper than {_DEEPEST} levels")


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("JSON that says a key twice")
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"JSON with {name}, which is no number")
