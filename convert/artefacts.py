"""Screen an artefact and rebuild it before a runtime opens it: the runtime gets a copy, written from what was found.

Runtimes read formats with parsers that were not made for files of strangers, and run what those files say. So none is
given a file as it was found. The target's own reader, which runs nothing, takes it apart: the weights are free, all
else has to be what the target writes for this agent, what it tells of the agent too. What the target then writes of
these weights goes to the runtime: for a file of the same versions, the same file again, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convert.agents.agent import Agent
from convert.agents.network import Network
from convert.errors import CheckpointError, UnreadableArtefact
from convert.files.disk import make_temporary_folder, read_files, write_files
from convert.targets import check_architecture, find_target, import_target


@dataclass(frozen=True)
class Screened:
    """An artefact that is safe to open.

    path: what to open, gone when the context ends. files: what was read, by its path relative to the agent's folder.
    changed: the files that are not, byte for byte, what is opened in their place. network: what was read; None of
    rounded weights.
    """

    path: Path
    files: Mapping[str, bytes]
    changed: tuple[str, ...]
    network: Network | None


@contextmanager
def open_screened(name: str, path: Path, agent: Agent) -> Iterator[Screened]:
    """Read an artefact once, and give what can be opened in its place.

    Args:
        name: the target that wrote it.
        path: its file or folder.
        agent: whose it is.

    Raises:
        UnreadableArtefact: a file is missing, a link, damaged or too large, or holds what the target does not write.
        MissingExtra: the target's framework is not installed.
    """
    files = read_files(path)
    with make_temporary_folder() as folder:
        copy, rebuilt = Path(folder, "copy", find_target(name).path), Path(folder, "rebuilt", find_target(name).path)
        write_files(copy.parent, files)
        rebuilt.parent.mkdir()
        try:
            network = _rebuild(name, copy, agent, rebuilt)
        except (UnreadableArtefact, CheckpointError) as error:  # which name the copy
            raise type(error)(str(error).replace(str(copy.parent), str(path.parent))) from error
        opened = read_files(rebuilt)
        names = sorted(files.keys() | opened.keys())
        yield Screened(rebuilt, files, tuple(each for each in names if files.get(each) != opened.get(each)), network)


def describes(name: str, path: Path, agent: Agent) -> bool:
    """Tell whether an artefact says of its agent what its target writes; True where it says nothing of it.

    Raises:
        MissingExtra: the target's framework is not installed.
    """
    if not find_target(name).describes:
        return True
    try:
        with open_screened(name, path, agent):
            return True
    except (UnreadableArtefact, CheckpointError):
        return False


def _rebuild(name: str, path: Path, agent: Agent, to: Path) -> Network | None:
    module, target = import_target(name), find_target(name)
    network = None
    if not target.is_quantized:
        network = module.read(path, agent)
        check_architecture(network, agent, path)
    if rebuild := getattr(module, "rebuild", None):
        rebuild(network, agent, path, to)
    elif network is not None:
        module.write(network, agent, to)
    return network
