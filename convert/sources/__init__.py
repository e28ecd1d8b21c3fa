"""What can be read: one module for each kind of source. Listing and describing them imports none of them.

A source is a file, such as a checkpoint of the release, or a folder, such as that of a converted agent. It is
recognised by its content, never by its name alone. A module begins with literal constants, which are read from its
source code without running it:

    EXPECTED   what messages call it, such as ``a gzipped checkpoint of this release``
    PATTERNS   of files: the names that a search picks up, such as ``("model_*.gz",)``
    MARKS      of folders, in place of PATTERNS: the names that all stand in such a folder, such as ``("agent.json",)``
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
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

from convert.agents.agent import File
from convert.agents.identity import Identity
from convert.agents.network import Network
from convert.errors import BrokenPlugin, UnknownSource, UnreadableCheckpoint
from convert.files.recognition import HEAD_SIZE, describe_content
from convert.frameworks import leaves

_GROUP = "atari_convert.sources"
_CONSTANTS = ("EXPECTED", "PATTERNS", "MARKS", "LAYOUT", "PACKAGES", "EXTRA")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a source holds.

    facts: what its content tells of who the agent is; what it does not tell is None.
    source: the checkpoint that the agent came from, where that is not the file that was read.
    derived_from: the checkpoint that the agent was trained on from, where its weights are others by now.
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
    """What is known of a source without importing it. Either ``patterns`` or ``marks`` is empty."""

    name: str
    module: str
    summary: str
    expected: str
    patterns: tuple[str, ...]
    marks: tuple[str, ...]
    layout: str | None
    packages: tuple[str, ...]
    extra: str | None

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
    files = [source for source in list_sources() if source.patterns]
    for source in files:
        if source.is_installed and cast(FileSource, import_source(source.name)).recognise(head, name):
            return source.name
    for source in files:
        if not source.is_installed and name.endswith(suffixes_of(source)):
            raise leaves.missing_extra(f"source {source.name!r}", source.packages, source.extra)
    expected = " or ".join(dict.fromkeys(source.expected for source in reversed(files)))
    if not head:
        raise UnreadableCheckpoint(f"{name}: the file is empty, expected {expected}: take another copy")
    raise UnreadableCheckpoint(f"{name}: {describe_content(head, name)}, expected {expected}")


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


def suffixes_of(source: Source) -> tuple[str, ...]:
    """Return the suffixes in a source's patterns, such as ``.gz``."""
    return tuple(f".{suffix}" for _, dot, suffix in (p.rpartition(".") for p in source.patterns) if dot)


@cache
def list_patterns() -> tuple[str, ...]:
    """Return the names of files that a search picks up."""
    return tuple(dict.fromkeys(pattern for source in reversed(list_sources()) for pattern in source.patterns))


def strip_suffix(path: str) -> str:
    """Return the path of a file without the suffix that the patterns of a source give it."""
    for suffix in _suffixes():
        if path.endswith(suffix):
            return path.removesuffix(suffix)
    return path


@cache
def _suffixes() -> tuple[str, ...]:
    return tuple(dict.fromkeys(suffix for source in list_sources() for suffix in suffixes_of(source)))


@cache
def _modules() -> dict[str, str]:
    return leaves.find_modules(__name__, __path__, _GROUP)


@cache
def _read_constants(name: str) -> Source:
    module = _modules()[name]
    summary, constants = leaves.read_constants(module, _CONSTANTS)
    if "EXPECTED" not in constants or ("PATTERNS" in constants) == ("MARKS" in constants):
        raise BrokenPlugin(f"{module}: lacks EXPECTED, or one of PATTERNS and MARKS: not a source; see convert.sources")
    return Source(
        name,
        module,
        summary,
        constants["EXPECTED"],
        constants.get("PATTERNS", ()),
        constants.get("MARKS", ()),
        constants.get("LAYOUT"),
        constants.get("PACKAGES", ()),
        constants.get("EXTRA"),
    )
