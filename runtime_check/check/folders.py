"""Where agents are: the folders that a check is given, and those below them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from convert.agents.agent import RECORD_NAME, UNFINISHED_NAME
from convert.errors import AtariConvertError, CheckError
from convert.store.storage import is_url, join, normalise, walk
from convert.targets import list_targets

_DEEPEST = 100  # levels of folders


def find_agent_folders(places: Iterable[str], listed: Iterable[str] = ()) -> list[str]:
    """Return each agent's folder once, in order: the given ones and those below them, at paths and URLs.

    They hold an ``agent.json``, or what atari-convert writes beside one: an agent that has lost its record, or a folder
    that cannot be read, is not passed over in silence but cannot be checked. Links below a given path are not followed.

    Args:
        places: those that the user named.
        listed: those in a list. One that holds no agent is returned itself: checking it tells why.

    Raises:
        CheckError: a place that the user named holds none.
        SelectionError, Unreachable: a URL that the user named cannot be listed.
    """
    found: dict[str, str] = {}
    for folders in (*map(_search, places), *map(_search_listed, listed)):
        for folder in folders:
            found.setdefault(folder if is_url(folder) else os.path.realpath(folder), folder)
    return list(found.values())


def _search(place: str) -> list[str]:
    place = normalise(place)
    folders = list(_walk_url(place)) if is_url(place) else [str(folder) for folder in _walk(Path(place))]
    if not folders:
        raise CheckError(f"{place}: no {RECORD_NAME} in it or below: expected a folder that atari-convert wrote")
    return folders


def _search_listed(line: str) -> list[str]:
    place = line.replace("\0", "\\0")  # which no path can have
    try:
        return _search(place)
    except (AtariConvertError, OSError):
        return [normalise(place)]


def _walk_url(url: str) -> Iterator[str]:
    """Yield the agents' folders in and below a URL, in order."""
    found = []
    for place, folders, files in walk(url):
        if RECORD_NAME in files or UNFINISHED_NAME in files:
            folders.clear()
            found.append(join(url, place) if place else url)
    yield from sorted(found)


def _walk(path: Path) -> Iterator[Path]:
    """Yield the agents' folders in and below a path."""
    closed: list[Path] = []
    # A link that the user names is followed, those below are not: a folder may be a stranger's.
    for name, subfolders, files in os.walk(path, onerror=lambda error: closed.append(Path(error.filename))):
        subfolders.sort()
        folder = Path(name)
        if RECORD_NAME in files:
            subfolders.clear()
            yield folder
        elif UNFINISHED_NAME in (*subfolders, *files) or any(_is_artefact(folder / path) for path in _list_paths()):
            yield folder
        if name.count(os.sep) - str(path).count(os.sep) >= _DEEPEST:
            subfolders.clear()
        # What a conversion has staged is not published.
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
    yield from closed


def _list_paths() -> list[str]:
    return [target.path for target in list_targets()]


def _is_artefact(path: Path) -> bool:
    """Tell an artefact from a folder of agents that has its name, such as ``torch``."""
    try:
        if not path.is_dir():
            return path.is_file()
        return not (path / RECORD_NAME).exists() and any(child.is_file() for child in path.iterdir())
    except OSError:
        return False
