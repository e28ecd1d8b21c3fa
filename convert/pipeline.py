"""One checkpoint: read, validate, write aside, read back and compare, publish."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import traceback
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import cast

import numpy as np

from convert import __version__
from convert.agents.agent import (
    Agent,
    Artifact,
    File,
    Record,
    find_path_problem,
    name_actions,
)
from convert.agents.games import load_games
from convert.agents.identity import Identity, combine, find_conflict, find_identity_problem
from convert.agents.network import Network, find_differences
from convert.artefacts import describes
from convert.errors import (
    AtariConvertError,
    CheckpointError,
    InvalidArgument,
    OutputExists,
    RoundTripError,
    SelectionError,
    TargetsFailed,
    UnexpectedError,
    UnwritableOutput,
)
from convert.sources import (
    choose_folder,
    choose_identity,
    find_contradiction,
    import_source,
    import_sources,
    locate,
    parse_identity,
    read_file,
)
from convert.store import find_store
from convert.store.folders import Folder, describe_bytes, find_misplaced
from convert.store.local import describe_files
from convert.store.storage import format_error, is_url, normalise, read_source
from convert.targets import (
    QuantizedModule,
    Target,
    check_holds,
    describe_tensors,
    explain_missing,
    find_target,
    import_target,
    list_targets,
)

# Errors that every other target would meet as well.
_OUTPUT_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@dataclass(frozen=True)
class Conversion:
    """The result of converting one checkpoint.

    folder: the agent's folder, or its URL. written: the targets that were written; the rest was up to date or failed.
    record: what is published of the agent. failures: why targets failed, by name.
    """

    folder: Path | str
    written: tuple[str, ...]
    record: Record
    failures: Mapping[str, AtariConvertError] = field(default_factory=dict)


def convert_checkpoint(
    source: str | Path,
    folder: str | Path,
    targets: Collection[str],
    *,
    identity: Identity | str | None = None,
    path: str | None = None,
    artefact: str | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Convert one agent into a folder. What is up to date there is left alone.

    Args:
        source: a file, such as a ``model_*.gz`` of the release, or its URL; or a folder: that of a converted agent,
            or a base folder of Dopamine.
        folder: the agent's folder, a path or a URL. It is made if it is missing, and locked meanwhile if it is a path.
        targets: names such as ``onnx``, at least one.
        identity: who the agent is, as a value or as the text that ``--identity`` takes, such as
            ``DQN_modern/Pong/0/50000000``; by default what the source tells. It may not contradict the path of a file.
        path: of a file, its path for the record; by default the one in its zoo, or the file's name.
        artefact: of an agent's folder, the target whose artefact is read; by default the one whose weights have
            changed, or else the first that can be read.
        overwrite: write again what is current.

    Raises:
        InvalidArgument: targets or the identity are not as above.
        UnknownTarget: there is no target of one of these names.
        OutputExists: the two folders are the same, or one is inside the other.
        TargetsFailed: of several targets, at least one failed; its ``conversion`` says what was published.
        AtariConvertError: see `convert.errors`; the folder is then as it was.
    """
    check_targets(targets)
    given = _to_identity(identity)
    place = str(source)
    if not is_url(place) and Path(source).is_dir():
        if not is_url(str(folder)):
            check_apart(Path(source), Path(folder))
        network, agent = read_from_folder(Path(source), choose_folder(Path(source)), given, artefact)
    else:
        if artefact is not None:
            raise SelectionError(f"{source}: is no folder, and so holds no artefact {artefact!r}: leave it out")
        who = choose_identity(place, place if is_url(place) else Path(source).absolute().as_posix(), given)
        data, _ = read_source(place)
        network, agent = read_from_file(data, place, who, path or locate(who) or PurePosixPath(source).name)
    return raise_failures(write_agent(network, agent, folder, targets, overwrite=overwrite), targets)


def _to_identity(given: Identity | str | None) -> Identity | None:
    """Return the identity that a user gave.

    Raises:
        InvalidArgument: it is none, or one that cannot be recorded.
    """
    try:
        identity = parse_identity(given) if isinstance(given, str) else given
    except ValueError as error:
        raise InvalidArgument(f"identity: {error}") from error
    if identity is None:
        return None
    if not isinstance(identity, Identity):
        raise InvalidArgument(f"identity is {given!r}, expected a convert.Identity or FAMILY/Game[/SEED[/STEP]]")
    if problem := find_identity_problem(identity):
        raise InvalidArgument(f"identity: {problem}")
    return identity


def raise_failures(conversion: Conversion, targets: Collection[str]) -> Conversion:
    """Return a conversion if no target of it failed.

    Raises:
        AtariConvertError: at least one did; see `sum_up`.
    """
    error = sum_up(conversion.record.agent, targets, conversion.written, conversion.failures)
    if error is None:
        return conversion
    if isinstance(error, TargetsFailed):
        error.conversion = conversion
    raise error


def sum_up(
    agent: Agent, targets: Collection[str], written: Collection[str], failures: Mapping[str, AtariConvertError]
) -> AtariConvertError | None:
    """Return one error for all targets that failed: if only one was asked for, its own; None if none failed.

    Args:
        agent: the agent.
        targets: the targets that were asked for.
        written: the targets that were written.
        failures: why the others failed.
    """
    if not failures:
        return None
    if failures.keys() == set(targets) and len(failures) == 1:
        return next(iter(failures.values()))
    reasons = "; ".join(f"{name}: {error}" for name, error in failures.items())
    rest = f"but published {', '.join(written)}" if written else "published nothing"
    return TargetsFailed(f"{agent.source.path}: could not write {', '.join(failures)}, {rest}: {reasons}")


def read_from_file(data: bytes, name: str, identity: Identity, path: str) -> tuple[Network, Agent]:
    """Return the network in the content of a file, and whose it is.

    Args:
        data: the content.
        name: how messages call the file.
        identity: who the agent is; what it does not tell may be told by the content.
        path: the file's path for the record.

    Raises:
        CheckpointError: the content is damaged, or tells of another agent; see `describe_agent`.
    """
    checkpoint = read_file(data, name)
    if field := find_conflict(identity, checkpoint.facts):
        raise CheckpointError(
            f"{name}: holds an agent of {field} {getattr(checkpoint.facts, field)}, expected "
            f"{getattr(identity, field)}: check its path or --identity"
        )
    who = combine(identity, checkpoint.facts)
    return checkpoint.network, describe_agent(checkpoint.network, who, describe_bytes(data, path))


def read_from_folder(
    folder: Path, source: str, identity: Identity | None = None, artefact: str | None = None
) -> tuple[Network, Agent]:
    """Return the network in a folder, and whose it is.

    Args:
        folder: the folder.
        source: the source that reads it, such as ``agent-folder``.
        identity: who the agent is, in place of what the folder tells, unless it leaves the algorithm to the folder. The
            recorded path of its source changes with it.
        artefact: the target whose artefact is read; by default the one whose weights have changed.

    Raises:
        AtariConvertError: the folder is damaged, or holds no such artefact; see `describe_agent`.
    """
    checkpoint = import_source(source).read(folder, artefact)
    file, who = checkpoint.source, identity or checkpoint.facts
    if who.algorithm is None:  # as in ``sb3/Pong``: the rest is left to the folder
        who = combine(who, checkpoint.facts)
    if who != checkpoint.facts:
        file = replace(file, path=locate(who) or PurePosixPath(file.path).name)
    return checkpoint.network, describe_agent(checkpoint.network, who, file, checkpoint.derived_from)


def check_apart(source: Path, folder: Path, out: Path | None = None) -> None:
    """Refuse to write an agent into the folder that it is read from.

    Args:
        source: the folder that is read.
        folder: the agent's folder that is to be written.
        out: the folder that receives the agents' folders.

    Raises:
        OutputExists: the two are the same, or one is inside the other.
    """
    read, written, top = source.resolve(), folder.resolve(), (out or folder).resolve()
    if _holds(read, written) or _holds(written, read):
        beside = read if _holds(read, top) else top
        raise OutputExists(
            f"{folder}: overlaps {source}, which is read: nothing was touched; choose an --out outside it, such as "
            f"{beside.with_name(f'{beside.name}-back')}"
        )


def _holds(folder: Path, path: Path) -> bool:
    """Return whether a path is a folder or lies inside it, whatever the spelling."""
    return folder.exists() and any(above.exists() and above.samefile(folder) for above in (path, *path.parents))


def write_agent(
    network: Network, agent: Agent, folder: str | Path, targets: Collection[str], *, overwrite: bool = False
) -> Conversion:
    """Write a network's targets into the agent's folder, a path or a URL. What is up to date there is left alone.

    If a target fails, the others are published, and the conversion lists the failure. The artefact that it should have
    replaced stays if it is of the same agent, and is removed otherwise. If all fail, the folder stays as it was.

    Raises:
        AtariConvertError: the folder cannot be written, and is as it was; see `convert.errors`.
    """
    check_targets(targets)
    place = normalise(str(folder))
    store = find_store(place)
    found = store.inspect(place)
    stale = find_stale(found, agent, targets, overwrite=overwrite)
    if found.record and found.is_settled and not stale:
        return Conversion(_to_folder(place), (), found.record)
    with store.open_folder(found) as staging:
        if staging.found != found:  # another run was at work, or a killed one had left something
            stale = find_stale(staging.found, agent, targets, overwrite=overwrite)
        written, failures = _write_artifacts(stale, network, agent, staging.path)
        record = Record(agent, {**_find_kept(staging.found, agent), **written}, own_versions())
        if written:
            store.publish(staging, record)
    return Conversion(_to_folder(place), tuple(written), record, failures)


def _to_folder(place: str) -> Path | str:
    return place if is_url(place) else Path(place)


def _find_kept(found: Folder, agent: Agent) -> Mapping[str, Artifact]:
    """Return the artefacts in a folder that stay if they are not written again."""
    return found.record.artifacts if found.record and found.is_whole and found.record.agent == agent else {}


def check_targets(targets: Collection[str]) -> None:
    """Raise unless this is a collection of names of targets.

    Raises:
        InvalidArgument: it is empty or no collection; a single name would be taken for a collection of letters.
        UnknownTarget: a name is not that of a target.
    """
    if isinstance(targets, str) or not isinstance(targets, Collection):
        example = [targets] if isinstance(targets, str) else ["onnx"]
        raise InvalidArgument(f"targets is {targets!r}, expected a collection of names such as {example}")
    if not targets:
        known = ", ".join(target.name for target in list_targets())
        raise InvalidArgument(f"targets is empty, expected at least one of {known}")
    for target in targets:
        find_target(target)


def _write_artifacts(
    targets: Iterable[str], network: Network, agent: Agent, folder: Path
) -> tuple[dict[str, Artifact], dict[str, AtariConvertError]]:
    """Write targets into a folder; return what was written and why the rest failed. Failed ones leave no files."""
    written: dict[str, Artifact] = {}
    failures: dict[str, AtariConvertError] = {}
    for target in targets:
        before = set(os.listdir(folder))
        try:
            written[target] = write_artifact(target, network, agent, folder)
        except UnwritableOutput:
            raise
        except Exception as error:  # frameworks raise their own
            if isinstance(error, OSError) and error.errno in _OUTPUT_FAILS:
                raise
            failures[target] = to_known(error, agent.source.path)
            for name in set(os.listdir(folder)) - before:
                _remove(folder / name)
    return written, failures


def to_known(error: Exception, name: str) -> AtariConvertError:
    """Return an error of this tool as it is, and any other one as `UnexpectedError`; ``name`` begins its message."""
    if isinstance(error, AtariConvertError):
        return error
    frame = traceback.extract_tb(error.__traceback__)[-1]
    reason = f"{type(error).__name__} at {frame.filename}:{frame.lineno}: {format_error(error)}"
    problem = UnexpectedError(f"{name}: {reason}: a bug of atari-convert, please report it")
    problem.__cause__ = error
    return problem


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def read_checkpoint(path: str | Path) -> Network:
    """Read the network in a checkpoint file, such as a gzipped PyTorch state dict of the release.

    Raises:
        CheckpointError: it cannot be read, or no source reads such a file; see `convert.errors`.
    """
    data, _ = read_source(str(path))
    return read_file(data, str(path)).network


def read_agent(folder: str | Path, target: str | None = None) -> Network:
    """Read an agent's network back from one of its float32 artefacts.

    Args:
        folder: an agent's folder, or a base folder of Dopamine.
        target: which artefact; by default the one whose weights have changed, or else the first that can be read.

    Raises:
        ArtefactMissing: there is no such artefact.
        RecordError: the folder has no readable record.
        MissingExtra: the target's framework is not installed.
        UnreadableArtefact: it is damaged, quantised, or of another network.
        WeightMismatch: it holds weights that are not finite.
    """
    folder = Path(folder)
    network: Network = import_source(choose_folder(folder)).read(folder, target).network
    return network


def load_frameworks(targets: Collection[str]) -> None:
    """Import what converting to these targets will import."""
    import_sources()
    for target in targets:
        import_target(target)


def describe_agent(network: Network, identity: Identity, source: File, derived_from: File | None = None) -> Agent:
    """Return who the network is.

    Raises:
        CheckpointError: the agent breaks the rules of its zoo, or its identity or the path of its source cannot be
            recorded.
    """
    if problem := find_path_problem(source.path):
        raise CheckpointError(f"{source.path!r}: the path {problem}: rename the checkpoint")
    if problem := find_identity_problem(identity):
        raise CheckpointError(f"{source.path}: {problem}: check --identity")
    meanings = name_actions(identity.game, network.head.actions)
    agent = Agent(identity, network.architecture, source, meanings, derived_from)
    if problem := find_contradiction(agent):
        raise CheckpointError(f"{source.path}: {problem}: check its folder or --identity")
    return agent


def find_stale(
    found: Folder, agent: Agent | None, targets: Collection[str], *, overwrite: bool, is_rehearsal: bool = False
) -> tuple[str, ...]:
    """Return the targets to be written: those asked for that are missing, outdated, damaged or to be overwritten.

    Targets that the record describes wrongly are written too, even if not asked for. A rehearsal loads no framework,
    so it does not look at what an artefact says of its agent.

    Args:
        found: what stands in the agent's folder.
        agent: who the checkpoint is. If the record is another agent's, every recorded target is outdated too. None is
            unlike any agent.
        targets: names such as ``onnx``.
        overwrite: write again what is current.
        is_rehearsal: whether nothing is going to be written.
    """
    record = found.record
    if record is None:
        return tuple(dict.fromkeys(targets))
    if record.agent != agent or not found.is_whole:
        return tuple(dict.fromkeys((*targets, *record.artifacts)))
    stale = [
        name
        for name in targets
        if overwrite
        or not found.is_exact
        or name not in record.artifacts
        or not _is_current(name, found, record, is_rehearsal=is_rehearsal)
    ]
    known = [target for target in list_targets() if target.name in record.artifacts]
    lying = [target.name for target in known if not _is_described(target, record)]
    return tuple(dict.fromkeys((*stale, *lying)))


def _is_described(target: Target, record: Record) -> bool:
    artifact = record.artifacts[target.name]
    tensors = describe_tensors(target, record.agent.architecture)
    return (artifact.inputs, artifact.outputs) == tensors and not find_misplaced(target, artifact)


def _is_current(name: str, found: Folder, record: Record, *, is_rehearsal: bool) -> bool:
    target, artifact, store = find_target(name), record.artifacts[name], find_store(found.place)
    return (
        artifact.format_version == target.format_version
        and artifact.versions.get("atari-convert") == __version__
        and _is_described(target, record)
        and store.has_artifact(found, target, artifact, is_rehearsal=is_rehearsal)
        and (is_rehearsal or _is_true(target, found, record))
    )


def _is_true(target: Target, found: Folder, record: Record) -> bool:
    """Return whether an artefact says of its agent what its target writes."""
    if not target.describes:
        return True
    with find_store(found.place).open_artifact(found, record.artifacts[target.name]) as folder:
        return describes(target.name, folder / target.path, record.agent)


def write_artifact(name: str, network: Network, agent: Agent, folder: Path) -> Artifact:
    """Write one target into a folder, read it back, and return what the record says of it.

    Raises:
        RoundTripError: it does not read back as the same network, bit for bit (if quantised: but for rounding).
    """
    target, module = find_target(name), import_target(name)
    path = folder / target.path
    check_holds(name, network.architecture, agent.source.path)
    with explain_missing(target):  # of what only writing needs
        module.write(network, agent, path)
    if target.is_quantized:
        differences = cast(QuantizedModule, module).find_losses(path, network)
    else:
        differences = find_differences(module.read(path, agent), network)
    if differences:
        raise RoundTripError(
            f"{agent.source.path}: {name} does not read back as it was written ({'; '.join(differences)}): "
            "a bug of atari-convert, please report it; it was not published"
        )
    inputs, outputs = describe_tensors(target, agent.architecture)
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
        zoo = agent.identity.zoo
        untold = f"{agent.source.path}: nothing tells its game, so it cannot be checked: give --identity {zoo}/Game"
        return [untold] if zoo else []
    actions, minimal = agent.head.actions, len(load_games()[game].actions)
    if agent.action_meanings is None:
        return [f"{agent.source.path}: {actions} actions fit neither {game}'s {minimal} nor all 18: meanings stay null"]
    if actions != minimal:
        return [f"{agent.source.path}: {actions} actions on {game}, which needs {minimal}: taken as the full set"]
    return []
