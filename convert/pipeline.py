"""One checkpoint: read, validate, write aside, read back and compare, publish."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from convert import __version__
from convert.agent import (
    Agent,
    Artifact,
    File,
    Identity,
    Record,
    describe_head,
    identify,
    name_actions,
    read_record,
)
from convert.artefacts import open_screened
from convert.errors import ArtefactMissing, CheckpointError, RoundTripError
from convert.games import load_games
from convert.network import Float32, Network, find_differences
from convert.publish import describe_files, find_record, is_intact, is_settled, open_folder, publish
from convert.storage import read_source
from convert.targets import Policy, QuantizedModule, describe_tensors, find_target, import_target


@dataclass(frozen=True)
class Conversion:
    """What became of one checkpoint: the agent's folder, the targets written (none: all were current), its record."""

    folder: Path
    written: tuple[str, ...]
    record: Record


def convert_checkpoint(
    source: str | Path,
    folder: str | Path,
    targets: Collection[str],
    *,
    identity: Identity | None = None,
    path: str | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Convert one checkpoint into an agent's folder; what is current there is left alone.

    Args:
        source: a ``model_*.gz`` of the release.
        folder: the agent's folder; made if it is missing, and locked meanwhile.
        targets: names such as ``onnx``.
        identity: who the agent is; by default what the source's path tells.
        path: the source's path for the record; by default the one in the release, or the file's name.
        overwrite: write again what is current.

    Raises:
        AtariConvertError: see `convert.errors`; the folder is then as it was.
    """
    source, folder = Path(source), Path(folder)
    identity = identity or identify(source.absolute().as_posix())
    data, _ = read_source(str(source))
    path = path or _default_path(source, identity)
    return convert_data(data, str(source), folder, targets, identity=identity, path=path, overwrite=overwrite)


def convert_data(
    data: bytes,
    name: str,
    folder: Path,
    targets: Collection[str],
    *,
    identity: Identity,
    path: str,
    overwrite: bool = False,
) -> Conversion:
    """Convert the bytes of a checkpoint as `convert_checkpoint` does; ``name`` is how messages call it."""
    checkpoint = describe_source(data, path)
    record = find_record(folder)
    if record and is_settled(folder) and not find_stale(folder, identity, checkpoint, targets, overwrite=overwrite):
        return Conversion(folder, (), record)
    network = read_network(data, name)
    agent = describe_agent(network, identity, checkpoint)
    return write_agent(network, agent, folder, targets, overwrite=overwrite)


def write_agent(
    network: Network, agent: Agent, folder: Path, targets: Collection[str], *, overwrite: bool = False
) -> Conversion:
    """Write a network's targets into the agent's folder, those that are not current there.

    Raises:
        AtariConvertError: see `convert.errors`; the folder is then as it was.
    """
    with open_folder(folder) as staging:
        stale = find_stale(folder, agent.identity, agent.source, targets, overwrite=overwrite)
        written = {target: write_artifact(target, network, agent, staging) for target in stale}
        previous = find_record(folder)
        record = Record(agent, {**(previous.artifacts if previous else {}), **written}, own_versions())
        if written:
            publish(staging, record)
    return Conversion(folder, tuple(written), record)


def read_checkpoint(path: str | Path) -> Network:
    """Read a checkpoint of the release: a gzipped PyTorch state dict.

    Raises:
        CheckpointError: it cannot be read, or is not a network of the release; see `convert.errors`.
    """
    data, _ = read_source(str(path))
    return read_network(data, str(path))


def load_frameworks(targets: Collection[str]) -> None:
    """Import what converting to these targets will import."""
    from convert.sources import atari_agents  # noqa: F401

    for target in targets:
        import_target(target)


def read_network(data: bytes, name: str) -> Network:
    """Read the bytes of a checkpoint of the release; ``name`` is how messages call it."""
    from convert.sources import atari_agents

    return atari_agents.read(data, name)


def describe_source(data: bytes, path: str) -> File:
    """Return what the record says of a source: its path, size and sha256."""
    return File(path, len(data), hashlib.sha256(data).hexdigest())


def describe_agent(network: Network, identity: Identity, source: File) -> Agent:
    """Return who the network is.

    Raises:
        CheckpointError: its family has another kind of head.
    """
    head = describe_head(network)
    if identity.algorithm and (identity.algorithm == "C51") != (head.kind == "categorical"):
        raise CheckpointError(
            f"{source.path}: has a {head.kind} head, expected that of {identity.family} ({identity.algorithm}): "
            "check its folder or --identity"
        )
    return Agent(identity, head, source, name_actions(identity.game, head.actions))


def find_stale(
    folder: Path, identity: Identity, source: File, targets: Collection[str], *, overwrite: bool
) -> tuple[str, ...]:
    """Return the targets to be written into a folder: those that are missing there, outdated or to be overwritten."""
    record = find_record(folder)
    intact = partial(is_intact, folder)
    return choose_stale(record, identity, source, targets, overwrite=overwrite, is_intact=intact)


def choose_stale(
    record: Record | None,
    identity: Identity,
    source: File,
    targets: Collection[str],
    *,
    overwrite: bool,
    is_intact: Callable[[Artifact], bool],
) -> tuple[str, ...]:
    """Return the targets to be written: those asked for that are missing, outdated, damaged or to be overwritten.

    Where the record is of another source, or of another identity of it, every recorded target is outdated too.

    Raises:
        TypeError: ``targets`` is one name, which would be taken for its letters.
    """
    if isinstance(targets, str):
        raise TypeError(f"targets is {targets!r}, expected a collection of names such as [{targets!r}]")
    if record is None:
        return tuple(targets)
    if (record.agent.identity, record.agent.source) != (identity, source):
        return tuple(dict.fromkeys((*targets, *record.artifacts)))
    return tuple(
        name
        for name in targets
        if overwrite or name not in record.artifacts or not _is_current(name, record.artifacts[name], is_intact)
    )


def _is_current(name: str, artifact: Artifact, is_intact: Callable[[Artifact], bool]) -> bool:
    return (
        artifact.format_version == find_target(name).format_version
        and artifact.versions.get("atari-convert") == __version__
        and is_intact(artifact)
    )


def write_artifact(name: str, network: Network, agent: Agent, folder: Path) -> Artifact:
    """Write one target into a folder, read it back, and return what the record says of it.

    Raises:
        RoundTripError: it does not read back as the same network, bit for bit (if quantised: but for rounding).
    """
    target, module = find_target(name), import_target(name)
    path = folder / target.path
    module.write(network, agent, path)
    if target.is_quantized:
        differences = cast(QuantizedModule, module).find_losses(path, network)
    else:
        differences = find_differences(module.read(path, agent), network)
    if differences:
        raise RoundTripError(
            f"{agent.source.path}: {name} does not read back as it was written ({'; '.join(differences)}): "
            "a bug of atari-convert, please report it; nothing was published"
        )
    inputs, outputs = describe_tensors(target, agent.head)
    return Artifact(
        target.format_version,
        describe_files(folder, target.path),
        inputs,
        outputs,
        {"atari-convert": __version__} | {name: sys.modules[name].__version__ for name in target.packages},
    )


def own_versions() -> dict[str, str]:
    """Return the versions of what reads checkpoints."""
    return {"atari-convert": __version__, "numpy": np.__version__}


def _default_path(source: Path, identity: Identity) -> str:
    return f"{identity.folder}.gz" if identity.is_complete else source.name


@dataclass(frozen=True)
class LoadedAgent:
    """A converted agent, ready to act. Call it on observations for Q-values.

    agent: who it is, with ``identity``, ``head`` and ``action_meanings``.
    target: what it was loaded from.
    axes: the observation's axes, in order, as the artefact wants them.
    run: observations to every output by name, such as ``logits``.
    """

    agent: Agent
    target: str
    axes: tuple[str, ...]
    run: Policy

    def __call__(self, observation: object) -> Float32:
        """Return float32[N, actions] for uint8[N, …] observations in the order of ``axes``, oldest frame first."""
        return self.run(observation)["q_values"]  # type: ignore[arg-type]


def load_agent(folder: str | Path, target: str) -> LoadedAgent:
    """Load an agent from its folder with the target's own runtime.

    Raises:
        RecordError: the folder has no readable ``agent.json``.
        ArtefactMissing: it holds no artefact of this target.
        UnreadableArtefact: the artefact is damaged, or holds what the target does not write.
        MissingExtra: the target's framework is not installed.
    """
    folder = Path(folder)
    record = read_record(folder)
    if target not in record.artifacts:
        find_target(target)
        found = ", ".join(record.artifacts) or "nothing"
        raise ArtefactMissing(f"{folder}: holds {found}, not {target}: atari-convert --to {target} writes it")
    module = import_target(target)
    with open_screened(target, folder / find_target(target).path, record.agent) as screened:
        run = module.load(screened.path, record.agent)
    return LoadedAgent(record.agent, target, record.artifacts[target].inputs[0].axes, run)


def find_warnings(record: Record) -> list[str]:
    """Return what a user should know of an agent that was converted all the same."""
    agent = record.agent
    game = agent.identity.game
    if agent.derived_from and agent.identity.step is None:
        return [
            f"{agent.source.path}: other weights than those of {agent.derived_from.path}, of a step that is not known: "
            "--identity tells it"
        ]
    if game is None:
        return []
    actions, minimal = agent.head.actions, len(load_games()[game].actions)
    if agent.action_meanings is None:
        return [f"{agent.source.path}: {actions} actions fit neither {game}'s {minimal} nor all 18: meanings stay null"]
    if actions != minimal:
        return [f"{agent.source.path}: {actions} actions on {game}, which needs {minimal}: taken as the full set"]
    return []
