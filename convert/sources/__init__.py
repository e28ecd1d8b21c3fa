"""What can be read: one module for each kind of source. Listing and describing them imports none of them.

A source is a file, such as a checkpoint of the release, or a folder, such as that of a converted agent. It is
recognised by its content, never by its name alone. A module begins with literal constants, which are read from its
source code without running it:

    EXPECTED   what messages call it, such as ``a gzipped checkpoint of this release``
    PATTERNS   of files: the names that a search picks up, such as ``("model_*.gz",)``
    CANDIDATES of files, in place of PATTERNS, where the name tells too little: the names of files that a search looks
               into, such as ``("*.zip",)``, to pick up those that are recognised
    MARKS      of folders, in place of both: the names that all stand in such a folder, such as ``("agent.json",)``
    EXAMPLE    what one is called, such as ``dqn-PongNoFrameskip-v4.zip``, for the list of sources
    PROTOCOL   the protocol of all agents of a zoo, where there is one: ``--identity`` then takes ``ZOO/Game``
    LAYOUT     the layout of paths that ``identify`` reads, for messages; left out where paths tell nothing
    PACKAGES   the packages that it imports beyond those that atari-convert needs itself; left out where there are none
    EXTRA      the extra of atari-convert that brings them; left out where there is none

and holds two functions, see `FileSource` and `FolderSource`. Of a zoo whose identities follow rules, it holds more:

    identify(path) -> Identity
        of files: who an agent is, as its path tells; an empty identity for a path that is not in the layout
    locate(identity) -> str | None
        the inverse: the path, relative to the zoo's root, of the agent's file; None where the identity has none
    parse_identity(text) -> Identity
        what ``--identity`` means; raises ValueError for a text of another form
    find_contradiction(agent) -> str | None
        how an agent breaks the zoo's rules, such as a C51 agent without a categorical head

The name of a source is that of its module, with dashes in place of underscores, and it is also the ``zoo`` of the
identities that it tells. Another package brings a source by an entry point of the group ``atari_convert.sources``: its
name is the source's, its value is the module.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

from convert.agents.agent import RECORD_NAME, Agent, File, Record
from convert.agents.games import load_games
from convert.agents.identity import Identity, check_known, combine, find_conflict
from convert.agents.network import Network
from convert.agents.record import read_record as read_document
from convert.errors import BrokenPlugin, MissingExtra, RecordError, SelectionError, UnknownSource, UnreadableCheckpoint
from convert.files.recognition import HEAD_SIZE, describe_content
from convert.frameworks import leaves

AGENT_FOLDER = "agent-folder"  # the source that reads what this tool writes

_GROUP = "atari_convert.sources"
_FILE_CONSTANTS = ("PATTERNS", "CANDIDATES")
_CONSTANTS = ("EXPECTED", *_FILE_CONSTANTS, "MARKS", "EXAMPLE", "LAYOUT", "PROTOCOL", "PACKAGES", "EXTRA")
_OF_ZOO = re.compile(r"([\w-]+)/(\w+)(?:/(0|[1-9]\d{0,14}))?(?:/(0|[1-9]\d{0,14}))?", re.ASCII)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a source holds.

    facts: what its content tells of who the agent is; what it does not tell is None.
    source: of a folder, the file that the agent came from, with its path as the record is to have it; of a file None,
    for it is the source itself.
    derived_from: the file that the agent was trained on from, where its weights are others by now.
    """

    network: Network
    facts: Identity
    source: File | None = None
    derived_from: File | None = None


class FileSource(Protocol):
    """What each module of a kind of file holds."""

    def recognise(self, head: bytes, name: str) -> bool:
        """Tell whether this reads a file.

        A damaged file of this kind is recognised too: ``read`` says what is wrong with it.

        Args:
            head: its first `HEAD_SIZE` bytes, or all of a shorter file.
            name: its path or URL, which only refines what the content tells.
        """

    def read(self, data: bytes, name: str) -> Checkpoint:
        """Read the content of a file. It may be a stranger's: nothing in it is run, and memory stays bounded.

        Args:
            data: the content.
            name: how messages call it, such as its path.

        Raises:
            CheckpointError: it is damaged, or holds another network; the message names all that is wrong.
        """


class FolderSource(Protocol):
    """What each module of a kind of folder holds."""

    def recognise(self, folder: Path) -> bool:
        """Tell whether this reads a folder in which all MARKS stand."""

    def read(self, folder: Path, artefact: str | None = None) -> Checkpoint:
        """Read a folder. Its files may be a stranger's: nothing in them is run, no link is followed.

        Args:
            folder: the folder.
            artefact: the target whose artefact is to be read; by default the one whose weights have changed.

        Raises:
            AtariConvertError: it is damaged, or holds no such artefact.
        """

    def identify(self, folder: Path, artefact: str | None = None) -> Identity:
        """Return the facts that ``read`` would return.

        Raises:
            AtariConvertError: as ``read`` does.
        """


@dataclass(frozen=True)
class Source:
    """What is known of a source without importing it: it has ``patterns``, ``candidates`` or ``marks``."""

    name: str
    module: str
    summary: str
    expected: str
    patterns: tuple[str, ...]
    candidates: tuple[str, ...]
    marks: tuple[str, ...]
    example: str | None
    layout: str | None
    protocol: str | None
    packages: tuple[str, ...]
    extra: str | None

    @property
    def is_file(self) -> bool:
        """Whether it reads files, and not folders."""
        return not self.marks

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The suffixes of the names of its files, such as ``.gz``."""
        return _suffixes_of((*self.patterns, *self.candidates))

    @property
    def is_installed(self) -> bool:
        return not leaves.find_missing(self.packages)


def list_sources() -> tuple[Source, ...]:
    """Return every source: those of other packages first, so that they may claim a container that ours share."""
    return tuple(map(find_source, _modules()))


def find_source(name: str) -> Source:
    """Return the source of this name.

    Raises:
        UnknownSource: there is none.
        BrokenPlugin: another package registers it, and its module cannot be used.
    """
    if name not in _modules():
        raise UnknownSource(f"no source {name!r}; known: {', '.join(_modules())}")
    return _read_constants(name)


def import_source(name: str) -> Any:
    """Import a source's module: a `FileSource` or a `FolderSource`.

    Raises:
        UnknownSource: there is no source of this name.
        MissingExtra: a package that it needs is not installed; the message says what to install.
    """
    source = find_source(name)
    with leaves.explain_missing(f"source {name!r}", source.packages, source.extra):
        return importlib.import_module(source.module)


def import_sources() -> None:
    """Import every source that is installed."""
    for source in list_sources():
        if source.is_installed:
            import_source(source.name)


def read_file(data: bytes, name: str) -> Checkpoint:
    """Read the content of a file with the source that recognises it; ``name`` is how messages call the file.

    Raises:
        UnreadableCheckpoint: no source recognises it.
        CheckpointError: it is damaged, or holds another network.
        MissingExtra: by its name it is of a source that needs a package that is not installed.
    """
    return cast(FileSource, import_source(recognise_file(data[:HEAD_SIZE], name))).read(data, name)


def recognise_file(head: bytes, name: str) -> str:
    """Return the name of the source that recognises a file.

    Args:
        head: its first `HEAD_SIZE` bytes.
        name: how messages call it.

    Raises:
        UnreadableCheckpoint: none does; the message says what the file is.
        MissingExtra: by its name it is of a source that needs a package that is not installed.
    """
    files = [source for source in list_sources() if source.is_file]
    for source in files:
        if source.is_installed and cast(FileSource, import_source(source.name)).recognise(head, name):
            return source.name
    for source in files:
        if not source.is_installed and name.endswith(source.suffixes):
            raise leaves.missing_extra(f"source {source.name!r}", source.packages, source.extra)
    files.sort(key=lambda source: not source.module.startswith(f"{__name__}."))  # ours come first
    *others, last = dict.fromkeys(source.expected for source in files)
    expected = f"{', '.join(others)} or {last}" if others else last
    if not head:
        raise UnreadableCheckpoint(f"{name}: the file is empty, expected {expected}: take another copy")
    raise UnreadableCheckpoint(f"{name}: {describe_content(head, name)}, expected {expected}")


def picks_up(path: str, read_head: Callable[[], bytes]) -> bool:
    """Tell whether a search picks up a file: by its name, or by its content where the name tells too little.

    Args:
        path: a path or URL.
        read_head: returns its first `HEAD_SIZE` bytes. A file that cannot be read is picked up: reading it in earnest
            tells why.
    """
    name = path.rpartition("/")[2]
    if any(fnmatchcase(name, pattern) for pattern in list_patterns()):
        return True
    if not any(fnmatchcase(name, pattern) for pattern in list_candidates()):
        return False
    try:
        recognise_file(read_head(), path)
    except UnreadableCheckpoint:
        return False
    except (MissingExtra, OSError):
        pass
    return True


def recognise_folder(folder: Path, names: Collection[str]) -> str | None:
    """Return the name of the source that recognises a folder by its content; None where none does.

    Args:
        folder: the folder.
        names: the names of what stands in it.
    """
    for source in list_sources():
        is_candidate = source.marks and all(mark in names for mark in source.marks) and source.is_installed
        if is_candidate and cast(FolderSource, import_source(source.name)).recognise(folder):
            return source.name
    return None


def choose_folder(folder: Path) -> str:
    """Return the name of the source that reads a folder, or else of the one that can say best what is wrong with it."""
    try:
        names = os.listdir(folder)
    except OSError:
        names = []
    marked = (source.name for source in list_sources() if any(mark in names for mark in source.marks))
    return recognise_folder(folder, names) or next(marked, AGENT_FOLDER)


def identify(path: str) -> Identity:
    """Return who an agent is, as the path of its file tells; an empty identity where no source knows the layout.

    Args:
        path: with ``/`` between its parts.
    """
    told = (function(path) for _, function in _find_functions("identify"))
    return next((identity for identity in told if identity != Identity()), Identity())


def choose_identity(name: str, path: str, given: Identity | None) -> Identity:
    """Return who an agent is by the path of its file, and by what a user says besides.

    Args:
        name: how messages call the file.
        path: its path, with ``/`` between the parts.
        given: what the user says.

    Raises:
        SelectionError: the two contradict each other.
    """
    told = identify(path)
    if given and (field := find_conflict(given, told)):
        raise SelectionError(
            f"{name}: --identity says {field} {getattr(given, field)}, but the path says {getattr(told, field)}: leave "
            "--identity out, or copy the file to another place"
        )
    return combine(given or Identity(), told)


def locate(identity: Identity) -> str | None:
    """Return the path of an agent's file in its zoo's layout; None where the zoo has none, or too little is known."""
    found = (function(identity) for zoo, function in _find_functions("locate") if zoo == identity.zoo)
    return next(found, None)


def parse_identity(text: str) -> Identity:
    """Return what ``--identity`` means: ``ZOO/Game[/SEED[/STEP]]``, or else what the first source takes.

    Raises:
        ValueError: there is no such game, or no source takes it; the message is that of the last one.
    """
    match = _OF_ZOO.fullmatch(text.strip("/"))
    source = next((source for source in list_sources() if source.protocol and match and source.name == match[1]), None)
    if match and source:
        check_known("game", match[2], list(load_games()))
        seed, step = (None if number is None else int(number) for number in match.groups()[2:])
        return Identity(source.name, None, match[2], source.protocol, seed, step)
    problem = ValueError(f"{text!r}: no source knows how to read an identity")
    for _, function in _find_functions("parse_identity"):
        try:
            return cast(Identity, function(text))
        except ValueError as error:
            problem = error
    raise problem


def find_contradiction(agent: Agent) -> str | None:
    """Return how an agent breaks the rules of its zoo, or, where that is not known, of any; None if it does not."""
    zoo = agent.identity.zoo
    found = (function(agent) for name, function in _find_functions("find_contradiction") if zoo in (None, name))
    return next((problem for problem in found if problem), None)


def read_record(folder: str | Path) -> Record:
    """Read the ``agent.json`` of an agent's folder, and hold it against the rules of the agent's zoo.

    Raises:
        RecordError: there is none, it is damaged or of another format, or it contradicts itself.
    """
    record = read_document(folder)
    check_rules(record.agent, str(Path(folder, RECORD_NAME)))
    return record


def check_rules(agent: Agent, name: str) -> None:
    """Raise unless the agent of a record keeps to the rules of its zoo; ``name`` is the record's path.

    Raises:
        RecordError: it does not.
    """
    if problem := find_contradiction(agent):
        raise RecordError(f"{name}: {problem}: the file is damaged, convert the agent again")


def find_layout(name: str) -> str | None:
    """Return the layout of paths that tells who a file's agent is; None where the file's suffix is of no such zoo."""
    layouts = (source.layout for source in list_sources() if name.endswith(source.suffixes))
    return next(layouts, None)


@cache
def list_patterns() -> tuple[str, ...]:
    """Return the names of files that a search picks up, such as ``model_*.gz``."""
    return tuple(dict.fromkeys(pattern for source in reversed(list_sources()) for pattern in source.patterns))


@cache
def list_candidates() -> tuple[str, ...]:
    """Return the names of files that a search looks into, such as ``*.zip``."""
    return tuple(dict.fromkeys(pattern for source in list_sources() for pattern in source.candidates))


@cache
def list_pattern_suffixes() -> tuple[str, ...]:
    """Return the suffixes of `list_patterns`, such as ``.gz``."""
    return tuple(dict.fromkeys(suffix for pattern in list_patterns() for suffix in _suffixes_of((pattern,))))


@cache
def list_suffixes() -> tuple[str, ...]:
    """Return the suffixes of `list_patterns` and `list_candidates`."""
    return (*list_pattern_suffixes(), *_suffixes_of(list_candidates()))


def is_file_name(path: str) -> bool:
    """Tell whether a path is called as files of a source are: by its suffix, or, such as ``ckpt.199``, by its name."""
    name = path.rpartition("/")[2]
    return name.endswith(list_suffixes()) or any(fnmatchcase(name, pattern) for pattern in list_candidates())


def strip_suffix(path: str) -> str:
    """Return the path of a file without the suffix that a source's patterns give it."""
    suffix = next((suffix for suffix in list_suffixes() if path.endswith(suffix)), "")
    return path.removesuffix(suffix)


def _suffixes_of(patterns: Iterable[str]) -> tuple[str, ...]:
    parts = (pattern.rpartition(".") for pattern in patterns)
    return tuple(f".{suffix}" for _, dot, suffix in parts if dot and re.fullmatch(r"\w+", suffix, re.ASCII))


@cache
def _find_functions(name: str) -> tuple[tuple[str, Callable[..., Any]], ...]:
    """Return an optional function of each file source that holds it, with the source's name."""
    sources = (source for source in list_sources() if source.is_file and source.is_installed)
    modules = ((source.name, import_source(source.name)) for source in sources)
    return tuple((source, getattr(module, name)) for source, module in modules if hasattr(module, name))


@cache
def _modules() -> dict[str, str]:
    return leaves.find_modules(__name__, __path__, _GROUP)


@cache
def _read_constants(name: str) -> Source:
    module = _modules()[name]
    summary, constants = leaves.read_constants(module, _CONSTANTS)
    if "EXPECTED" not in constants or len(constants.keys() & {*_FILE_CONSTANTS, "MARKS"}) != 1:
        raise BrokenPlugin(
            f"{module}: lacks EXPECTED, or one of PATTERNS, CANDIDATES and MARKS: not a source; see convert.sources"
        )
    return Source(
        name,
        module,
        summary,
        constants["EXPECTED"],
        constants.get("PATTERNS", ()),
        constants.get("CANDIDATES", ()),
        constants.get("MARKS", ()),
        constants.get("EXAMPLE"),
        constants.get("LAYOUT"),
        constants.get("PROTOCOL"),
        constants.get("PACKAGES", ()),
        constants.get("EXTRA"),
    )
