"""Verify: an agent's record and files, held against each other, its checkpoint and the emulator."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from convert import __version__
from convert.agents.agent import RECORD_NAME, UNFINISHED_NAME, Agent, Artifact, Record, Tensor
from convert.agents.architecture import Architecture, Conv, Head, Observation, describe, erase_support
from convert.agents.identity import find_conflict
from convert.agents.network import SUPPORT, Float32, from_arrays, name_array
from convert.artefacts import Screened
from convert.errors import ArtefactMissing, CheckError, to_message
from convert.files.disk import make_temporary_folder, write_files
from convert.files.hashes import compute_sha256
from convert.sources import identify, read_record
from convert.store.folders import find_misplaced
from convert.store.local import find_strangers
from convert.targets import QuantizedModule, describe_tensors, find_target, import_target, list_targets
from runtime_check.backends import REFERENCE, Backend, find_backend, list_backends
from runtime_check.check.options import Options
from runtime_check.check.sources import Sources, find_change
from runtime_check.check.surroundings import find_surroundings
from runtime_check.compare import Tolerance, compute_scale
from runtime_check.oracle import Conv as JudgedConv
from runtime_check.oracle import Dense, Float64, Oracle
from runtime_check.originals import read_oracle
from runtime_check.protocols import check_fit, find_actions, find_protocol, read_rom
from runtime_check.replay import Plan


@dataclass(frozen=True, eq=False)
class Case:
    """An agent that can be checked: what is checked, and what it is compared with.

    faults: where its record contradicts the checkpoint or the emulator, and what in its folder a program would load.
    unchecked: artefacts that were not asked for, or that no backend opens. others: what else is in its folder, see
    `Surroundings`. backends: the reference first.
    """

    folder: Path
    source: Path
    record: Record
    oracle: Oracle
    backends: tuple[Backend, ...]
    plan: Plan
    rom_md5: str
    tolerance: Tolerance
    faults: tuple[str, ...]
    unchecked: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The outputs that every backend has to give for one observation, with their shapes."""
        return self.oracle.shapes


def verify_agent(folder: Path, sources: Sources, options: Options) -> Case:
    """Read an agent's record and its checkpoint, and hold them against each other and the emulator.

    Raises:
        RecordError: there is no readable record.
        CheckpointError: the checkpoint is not there.
        CheckError: the agent cannot be checked.
    """
    record = read_record(folder)
    if os.path.lexists(folder / UNFINISHED_NAME):
        raise CheckError(f"{folder}: a conversion has not finished there: rerun it, and check again")
    backends = choose_backends(folder, record, options.backends)
    rounded = [backend.name for backend in backends if backend.bound]
    if rounded and not options.shadow:
        raise CheckError(
            f"{folder}: {', '.join(rounded)} has rounded weights, which only a shadow replay can measure: use --mode "
            "shadow or both"
        )
    agent = record.agent
    game, protocol = agent.identity.game, agent.identity.protocol
    if game is None or protocol is None:
        raise CheckError(
            f"{folder}: agent.json says neither game nor protocol: convert again with --identity FAMILY/Game"
        )
    shown = find_protocol(options.protocol or protocol)
    source = sources.find(agent)
    try:
        oracle = read_oracle(source)
        to_architecture(oracle)  # whose bounds are those of all that is converted
    except (OSError, ValueError) as error:
        raise CheckError(f"{error}: the source cannot be judged") from error
    seen = oracle.observation
    try:
        check_fit(shown, seen.frames, seen.size)
    except CheckError as error:
        raise CheckError(f"{folder}: {error}") from error
    covered = {backend.target for backend in backends}
    plan = Plan(
        game,
        shown,
        oracle.actions,
        options.seed,
        options.episodes,
        options.max_steps,
        options.epsilon,
    )
    surroundings = find_surroundings(folder)
    faults = [
        *find_record_faults(folder, record, oracle, plan),
        *find_identity_faults(record.agent, source),
        *surroundings.faults,
    ]
    return Case(
        folder,
        source,
        record,
        oracle,
        tuple(backends),
        plan,
        read_rom(game).md5,
        Tolerance(options.atol, options.rtol, compute_scale(oracle.support)),
        tuple(map(to_message, faults)),
        tuple(name for name in record.artifacts if name not in covered),
        surroundings.others,
    )


def choose_backends(folder: Path, record: Record, names: Collection[str]) -> list[Backend]:
    """Return the backends to check, the reference first.

    Raises:
        ArtefactMissing: the agent has no artefact for one that was named, or none at all.
        UnknownBackend: there is no backend of a name.
        CheckError: the agent has an artefact that no backend opens, which would otherwise be skipped silently.
    """
    if names:
        chosen = [find_backend(name) for name in dict.fromkeys(names)]
    else:
        chosen = [backend for backend in list_backends() if backend.target in record.artifacts]
        strangers = record.artifacts.keys() - {backend.target for backend in chosen}
        if strangers:
            raise CheckError(
                f"{folder}: agent.json lists {', '.join(sorted(strangers))}, which no backend of this version opens: "
                "name the backends to check with --backend, or check with the version that wrote it"
            )
    for backend in chosen:
        if backend.target is not None and backend.target not in record.artifacts:
            found = ", ".join(record.artifacts) or "nothing"
            raise ArtefactMissing(
                f"{folder}: holds {found}, not {backend.target}: atari-convert --to {backend.target} writes it"
            )
    if not record.artifacts:
        raise ArtefactMissing(f"{folder}: its agent.json lists no artefact: atari-convert --to all writes some")
    return [find_backend(REFERENCE), *(backend for backend in chosen if backend.target is not None)]


def find_file_faults(folder: Path, record: Record, target: str) -> list[str]:
    """Return how the files of an artefact, or what the record says of it, are not as they should be."""
    artifact = record.artifacts[target]
    return [
        *find_changes(folder, target, artifact),
        *find_tensor_faults(target, artifact, record.agent.architecture),
        *find_version_faults(target, artifact),
    ]


def find_artefact(folder: Path, target: str) -> Path:
    """Return the file or folder of a target in an agent's folder: what its users load, whatever the record says."""
    return folder / find_target(target).path


def find_changes(folder: Path, target: str, artifact: Artifact) -> list[str]:
    """Return how the files of an artefact differ from their record: missing, changed, or not recorded."""
    top = find_artefact(folder, target)
    changes = find_strange_files(folder, top)
    if changes:  # they may lead anywhere: open nothing
        return changes
    misplaced = find_misplaced(find_target(target), artifact)
    for file in artifact.files:
        path = folder / file.path
        if file.path in misplaced:
            changes.append(f"{file.path} is no part of {target}, whose place is {top.name}")
        elif not path.is_file():
            changes.append(f"{file.path} is missing: convert the agent again")
        elif change := find_change(path, file):
            kind, found, recorded = change
            changes.append(f"{kind}: {file.path} has {found}, agent.json says {recorded}")
    listed = {folder / file.path for file in artifact.files}
    changes += [
        f"{path.relative_to(folder).as_posix()} is not in agent.json"
        for path in (top, *sorted(top.rglob("*")))
        if path.is_file() and path not in listed
    ]
    return changes


def find_strange_files(folder: Path, path: Path) -> list[str]:
    """Return which files at or below a path are links, pipes or devices."""
    return [
        f"{stranger.relative_to(folder).as_posix()} is {kind}, which atari-convert never writes"
        for stranger, kind in find_strangers(path).items()
    ]


def find_version_faults(target: str, artifact: Artifact) -> list[str]:
    """Return whether another version of the format or of atari-convert wrote an artefact."""
    faults = []
    expected = find_target(target).format_version
    if artifact.format_version != expected:
        faults.append(f"format_version of {target} is {artifact.format_version}, this version writes {expected}")
    wrote = artifact.versions.get("atari-convert")
    if wrote != __version__:
        faults.append(f"{target} was written by atari-convert {wrote}, this is {__version__}")
    return [f"agent.json: {fault}: convert the agent again, or check it with that version" for fault in faults]


def find_content_faults(artifact: Artifact, screened: Screened) -> list[str]:
    """Return where what users load of an artefact is not, byte for byte, what is judged.

    That is what this computer's versions write of the same weights.
    """
    recorded = {file.path: file.sha256 for file in artifact.files}
    if {name: compute_sha256(content) for name, content in screened.files.items()} != recorded:
        return ["its files changed while they were checked: check it again"]
    if not screened.changed:
        return []
    versions = ", ".join(f"{name} {version}" for name, version in artifact.versions.items() if name != "atari-convert")
    return [
        f"{', '.join(screened.changed[:3])}: not the bytes that are written here of these weights (the record names "
        f"{versions}): convert the agent again, or check with these versions"
    ]


def find_weight_faults(target: str, screened: Screened, oracle: Oracle) -> list[str]:
    """Return which weights of an artefact are not the checkpoint's: bit for bit, or but for the format's rounding."""
    if screened.network is None:
        return _find_losses(target, screened, oracle)
    network = screened.network
    expected = list_arrays(oracle)
    names = {**network.arrays, **expected}
    different = [name_array(name) for name in names if not _is_same(network.arrays.get(name), expected.get(name))]
    return [f"other weights than the checkpoint's: {', '.join(different)}"] if different else []


def _find_losses(target: str, screened: Screened, oracle: Oracle) -> list[str]:
    arrays = {name: array.astype(np.float32) for name, array in list_arrays(oracle).items()}
    module = cast(QuantizedModule, import_target(target))
    with make_temporary_folder() as folder:
        write_files(Path(folder), screened.files)
        network = from_arrays(arrays, to_architecture(oracle))
        losses = module.find_losses(Path(folder, find_target(target).path), network)
    return [f"other weights than the checkpoint's, beyond rounding: {'; '.join(losses)}"] if losses else []


def list_arrays(oracle: Oracle) -> dict[str, Float64]:
    """Return the arrays of a checkpoint by the names of a network's."""
    layers: dict[str, Dense | JudgedConv] = {f"convs.{index}": conv for index, conv in enumerate(oracle.convs)}
    architecture = to_architecture(oracle)
    layers |= dict(zip(architecture.hidden_layers, oracle.hidden, strict=True))
    heads = [oracle.head.dense, *([oracle.head.value] if oracle.head.value else [])]
    layers |= dict(zip(architecture.head.layers, heads, strict=True))
    arrays: dict[str, Float64] = {}
    for name, layer in layers.items():
        arrays |= {f"{name}.kernel": layer.kernel, f"{name}.bias": layer.bias}
    return arrays if oracle.support is None else arrays | {SUPPORT: oracle.support}


def to_architecture(oracle: Oracle) -> Architecture:
    """Return the architecture of a checkpoint as the record describes it."""
    observation, head = oracle.observation, oracle.head
    support = None if head.support is None else tuple(head.support.tolist())
    quantiles = head.size if head.kind == "quantile" else None
    return Architecture(
        Observation(observation.frames, observation.size, observation.scale),
        tuple(Conv(len(conv.kernel), conv.kernel.shape[-1], conv.stride, conv.padding) for conv in oracle.convs),
        tuple(len(layer.bias) for layer in oracle.hidden),
        Head(head.kind, head.actions, support, quantiles, head.streams),
    )


def _is_same(found: Float32 | None, expected: Float64 | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return found.shape == expected.shape and found.tobytes() == expected.astype(np.float32).tobytes()


def find_tensor_faults(target: str, artifact: Artifact, architecture: Architecture) -> list[str]:
    """Return where ``agent.json`` describes other inputs and outputs, and so other axes, than the target has."""
    inputs, outputs = describe_tensors(find_target(target), architecture)
    pairs = (("inputs", artifact.inputs, inputs), ("outputs", artifact.outputs, outputs))
    return [
        f"agent.json: {name} of {target} are {_format_tensors(found)}, expected {_format_tensors(expected)}: "
        "convert the agent again"
        for name, found, expected in pairs
        if found != expected
    ]


def _format_tensors(tensors: Iterable[Tensor]) -> str:
    return "; ".join(f"{tensor.name} {tensor.dtype}{list(tensor.shape)} {tensor.axes}" for tensor in tensors)


def find_unlisted(folder: Path, record: Record) -> list[str]:
    """Return what stands in the place of an artefact and is not in the record: users would load it unchecked."""
    tops = {target.path: target.name for target in list_targets() if target.name not in record.artifacts}
    return [
        f"{top} is not in agent.json: remove it, or convert the agent to {name} again"
        for top, name in sorted(tops.items())
        if os.path.lexists(folder / top)
    ]


def find_identity_faults(agent: Agent, source: Path) -> list[str]:
    """Return where ``agent.json`` tells of another agent than the path of its checkpoint, which is trusted, does."""
    told = identify(source.absolute().as_posix())
    if field := find_conflict(agent.identity, told):
        found, expected = getattr(agent.identity, field), getattr(told, field)
        return [f"agent.json: {field} is {found}, but the path of its checkpoint says {expected}: {source}"]
    return []


def find_record_faults(folder: Path, record: Record, oracle: Oracle, plan: Plan) -> list[str]:
    """Return where ``agent.json`` contradicts the checkpoint or the emulator, which would mislead a user.

    Raises:
        CheckError: the head fits no action set of the game.
        RomUnavailable: there is no such game or ROM.
    """
    agent = record.agent
    faults = [*find_strange_files(folder, folder / RECORD_NAME), *find_unlisted(folder, record)]
    found, expected = agent.architecture, to_architecture(oracle)
    if erase_support(found) != erase_support(expected):
        faults.append(f"agent.json: the network is {describe(found)}, the checkpoint's {describe(expected)}")
    elif found != expected:
        faults.append("agent.json: the support is not the checkpoint's")
    meanings = find_actions(plan.game, oracle.actions, plan.protocol.action_set)
    if agent.action_meanings != meanings:
        faults.append(f"agent.json: action_meanings are {agent.action_meanings}, the emulator's {meanings}")
    return faults
