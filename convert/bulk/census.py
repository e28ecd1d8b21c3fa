"""What a search for agents met instead: to say why nothing was found, and what to do next."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass, field

from convert.agents.agent import RECORD_NAME, UNFINISHED_NAME
from convert.files.recognition import HEAD_SIZE, describe_content
from convert.sources import list_pattern_suffixes, list_patterns
from convert.store.storage import is_url

_SHOWN = 4
_NEXT = "name a checkpoint (model_STEP.gz), or a folder with some; atari-convert sources lists what else is read"


@dataclass
class Census:
    """What a search met: folders, files by suffix with one of each, agents' folders and base folders of Dopamine.

    Of the latter two, those that cannot be read are of interest: any other would have been found.
    """

    folders: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)
    samples: dict[str, str] = field(default_factory=dict)
    agents: list[str] = field(default_factory=list)

    def add_folder(self, folder: str, names: Collection[str]) -> None:
        """Count a folder, and notice what it is by the names in it."""
        self.folders += 1
        if is_agent(names):
            self.agents.append(folder)

    def add_files(self, paths: Iterable[str]) -> None:
        """Count files by their suffix."""
        for path in sorted(paths):
            suffix = os.path.splitext(path)[1]
            self.suffixes[suffix] += 1
            self.samples.setdefault(suffix, path)


def is_agent(names: Container[str]) -> bool:
    """Tell the folder of a converted agent, or of one that is being written, by the names in it."""
    return RECORD_NAME in names or UNFINISHED_NAME in names


def explain_nothing(census: Census, searched: Sequence[str]) -> str:
    """Return where was searched, what was there, and what to do, for a search that found no checkpoint."""
    places = ", ".join(_name_place(place) for place in searched[:_SHOWN]) + (" …" if len(searched) > _SHOWN else "")
    if not places:
        return f"the list is empty: {_NEXT}"
    if census.agents:
        agent, *others = census.agents
        more = f" and {len(others)} more" if others else ""
        if is_url(agent):
            return f"{agent}{more}: converted already: name the checkpoint that was converted, or a local copy of it"
        return f"{agent}{more}: converted already, but without a readable {RECORD_NAME}: convert the checkpoint again"
    below = census.folders - len(searched)
    where = f"searched {places}" + (f" and {_count(below, 'folder')} below it" if below > 0 else "")
    return f"{where}, {_describe_files(census)}"


def _name_place(place: str) -> str:
    return f"the current folder {os.getcwd()}" if place == "." else place


def _describe_files(census: Census) -> str:
    total = census.suffixes.total()
    if not total:
        return f"no files: {_NEXT}"
    common = sorted(census.suffixes.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
    kinds = [f"{count} {suffix or 'without a suffix'}" for suffix, count in common]
    rest = total - sum(count for _, count in common)
    text = f"{_count(total, 'file')} ({', '.join(kinds)}{f', {rest} others' if rest else ''})"
    for suffix in list_pattern_suffixes():
        if suffix in census.suffixes:
            named = " or ".join(pattern for pattern in list_patterns() if pattern.endswith(suffix))
            return f"{text}, none named {named}: name other {suffix} files one by one"
    sample = census.samples[common[0][0]]
    return f"{text}: {_NEXT}" if is_url(sample) else f"{text}; {sample} is {_describe_file(sample)}: {_NEXT}"


def _describe_file(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return describe_content(file.read(HEAD_SIZE), path)
    except OSError as error:
        return f"unreadable ({error.strerror})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
