"""The way back: artefacts read into networks, and agents that were trained on elsewhere as agents of their own."""

from __future__ import annotations

from collections.abc import Collection, Generator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from convert.agents.agent import RECORD_NAME, Agent, Record
from convert.agents.identity import Identity
from convert.agents.network import Network, check_network, compute_digest
from convert.agents.record import read_record
from convert.bulk.run import Outcome
from convert.bulk.selection import Job
from convert.errors import ArtefactMissing, OutputExists, UnreadableArtefact
from convert.pipeline import (
    Conversion,
    describe_agent,
    describe_source,
    find_stale,
    raise_failures,
    sum_up,
    to_known,
    write_agent,
)
from convert.store import find_store
from convert.store.local import find_strangers, is_intact
from convert.targets import (
    Target,
    check_architecture,
    checkpoint,
    dopamine,
    find_target,
    import_target,
    missing_extra,
    torch,
)

DOPAMINE, TORCH = "dopamine", "torch"


@dataclass(frozen=True, eq=False)
class StoredAgent:
    """An agent as one of its artefacts holds it.

    agent: who it is now. Where its weights are no longer those that were converted, it is an agent of its own, with
    ``derived_from``. target: what it was read from.
    """

    agent: Agent
    network: Network
    target: str


def read_agent(folder: str | Path, target: str | None = None) -> Network:
    """Read an agent's network back from one of its float32 artefacts.

    Args:
        folder: an agent's folder, or a base folder of Dopamine that was written by this tool or copied from one.
        target: which artefact; by default the one whose weights have changed, or else the first that can be read.

    Raises:
        ArtefactMissing: there is no such artefact.
        RecordError: the folder has no readable record.
        MissingExtra: the target's framework is not installed.
        UnreadableArtefact: it is damaged, quantised, or of another network.
        WeightMismatch: it holds weights that are not finite.
    """
    return open_agent(folder, target).network


def convert_agent(
    folder: str | Path,
    out: str | Path,
    targets: Collection[str],
    *,
    target: str | None = None,
    identity: Identity | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write further targets from an agent's folder in place of its checkpoint; `read_agent` says from which artefact.

    Args:
        folder: an agent's folder, or a base folder of Dopamine.
        out: the folder that receives the agent's, ``FAMILY/Game/seed/model_STEP``.
        targets: names such as ``checkpoint``.
        target: which artefact to read.
        identity: who the agent is, in place of what its record says.
        overwrite: write again what is current.

    Raises:
        OutputExists: the agent's folder would be the one that is read, inside it, or around it.
        TargetsFailed: of several targets, some could not be written; its ``conversion`` tells what was published.
        AtariConvertError: nothing was written; see `convert.errors`.
    """
    stored = open_agent(folder, target, identity)
    place = Path(out, _path_of(stored.agent, Path(folder)).removesuffix(".gz"))
    _refuse_overlap(Path(folder), Path(out), place)
    conversion = write_agent(stored.network, stored.agent, place, targets, overwrite=overwrite)
    return raise_failures(conversion, targets)


def run(
    folder: str,
    out: str,
    targets: Collection[str],
    *,
    target: str | None = None,
    identity: Identity | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Generator[Outcome, None, None]:
    """Yield what became of `convert_agent`, or would: an error is part of the outcome, as it is for a checkpoint."""
    job = Job(folder, Path(folder).absolute().name, out, identity or Identity())
    try:
        stored = open_agent(folder, target, identity)
        job = replace(job, path=_path_of(stored.agent, Path(folder)), identity=stored.agent.identity)
        place = Path(job.folder)
        _refuse_overlap(Path(folder), Path(out), place)
        if dry_run:
            found = find_store(job.folder).inspect(job.folder)
            yield Outcome(job, find_stale(found, stored.agent, targets, overwrite=overwrite, is_rehearsal=True))
            return
        conversion = write_agent(stored.network, stored.agent, place, targets, overwrite=overwrite)
    except Exception as error:  # noqa: BLE001  part of the outcome, foreseen or not
        yield Outcome(job, error=to_known(error, folder))
        return
    written, record, failures = conversion.written, conversion.record, conversion.failures
    yield Outcome(job, written, record, sum_up(record.agent, targets, written, failures))


def _refuse_overlap(folder: Path, out: Path, place: Path) -> None:
    """Refuse an output that overlaps the folder that is read.

    Args:
        folder: what is read.
        out: the folder that receives the agent's.
        place: the agent's folder in it.

    Raises:
        OutputExists: the agent's folder would be the one that is read, inside it, or around it.
    """
    source, target, top = folder.resolve(), place.resolve(), out.resolve()
    if _holds(source, target) or _holds(target, source):
        beside = source if _holds(source, top) else top
        raise OutputExists(
            f"{place}: overlaps {folder}, which is read: nothing was touched; choose an --out outside it, such as "
            f"{beside.with_name(f'{beside.name}-back')}"
        )


def _holds(folder: Path, path: Path) -> bool:
    """Return whether a path is a folder or lies inside it, whatever the spelling."""
    return folder.exists() and any(above.exists() and above.samefile(folder) for above in (path, *path.parents))


def _path_of(agent: Agent, folder: Path) -> str:
    """Return where an agent stands below an output, as a path of the release; a stranger takes its folder's name."""
    identity = agent.identity
    return f"{identity.folder}.gz" if identity.is_complete else folder.absolute().name


def open_agent(folder: str | Path, target: str | None = None, identity: Identity | None = None) -> StoredAgent:
    """Read who an agent is and its network; see `read_agent`."""
    folder = Path(folder)
    if target in (None, DOPAMINE) and not (folder / RECORD_NAME).exists() and (folder / "checkpoints").is_dir():
        return _open_dopamine(folder, identity)
    record = read_record(folder)
    chosen = _choose(folder, record) if target is None else _find(folder, record, target)
    if chosen.name == DOPAMINE:
        return _open_dopamine(folder / chosen.path, identity)
    network = _read(chosen, folder / chosen.path, record.agent)
    if is_intact(folder, record.artifacts[chosen.name]):
        agent = _rename(record.agent, network, identity)
    else:
        agent = _derive(record.agent, network, identity or replace(record.agent.identity, step=None))
    return StoredAgent(agent, network, chosen.name)


def _open_dopamine(base: Path, identity: Identity | None) -> StoredAgent:
    """Open a base folder of Dopamine, which trains in place: its latest checkpoint may be of another step."""
    origin, digest = dopamine.read_origin(base)
    network = _read(find_target(DOPAMINE), base, origin)
    if compute_digest(network) == digest:
        agent = _rename(origin, network, identity)
    else:
        trained = replace(origin.identity, step=dopamine.read_bundle(base).training_steps)
        agent = _derive(origin, network, identity or trained)
    return StoredAgent(agent, network, DOPAMINE)


def _rename(agent: Agent, network: Network, identity: Identity | None) -> Agent:
    """Return the agent under another identity, if one is given. The recorded path of its source changes with it."""
    if identity in (None, agent.identity):
        return describe_agent(network, agent.identity, agent.source, agent.derived_from)
    path = f"{identity.folder}.gz" if identity.is_complete else PurePosixPath(agent.source.path).name
    return describe_agent(network, identity, replace(agent.source, path=path), agent.derived_from)


def _read(target: Target, path: Path, agent: Agent) -> Network:
    if target.is_quantized:
        raise UnreadableArtefact(f"{path}: {target.name} has rounded weights: choose a float32 artefact with --from")
    if strangers := find_strangers(path):
        first, kind = next(iter(strangers.items()))
        raise UnreadableArtefact(f"{first}: {kind}, which is not read: copy in its place what it leads to")
    if target.name == TORCH and not (path / torch.PROGRAM_NAME).exists():
        network = torch.read_state_dict(path, agent)
    else:
        network = import_target(target.name).read(path, agent)
    check_network(network, str(path))
    check_architecture(network, agent, path)
    return network


def _find(folder: Path, record: Record, name: str) -> Target:
    target = find_target(name)
    if name not in record.artifacts:
        found = ", ".join(record.artifacts) or "nothing"
        raise ArtefactMissing(f"{folder}: holds {found}, not {name}")
    return target


def _choose(folder: Path, record: Record) -> Target:
    candidates = [target for target in map(find_target, record.artifacts) if not target.is_quantized]
    changed = [target for target in candidates if _has_changed(folder, record, target)]
    if len(changed) > 1:
        names = ", ".join(target.name for target in changed)
        raise ArtefactMissing(f"{folder}: {names} differ from their record: say with --from which one to take")
    for target in changed or candidates:
        if target.is_installed:
            return target
    if candidates:
        raise missing_extra((changed or candidates)[0])
    raise ArtefactMissing(f"{folder}: holds no float32 artefact: convert the checkpoint again")


def _has_changed(folder: Path, record: Record, target: Target) -> bool:
    artifact = record.artifacts[target.name]
    if target.name == DOPAMINE:
        latest = dopamine.find_latest(folder / target.path).relative_to(folder).as_posix()
        return latest not in [file.path for file in artifact.files] or not is_intact(folder, artifact)
    return not is_intact(folder, artifact)


def _derive(parent: Agent, network: Network, identity: Identity) -> Agent:
    """Return a trained agent: its source is its own checkpoint in the release's format, which it need not have."""
    source = describe_source(checkpoint.to_bytes(network), str(checkpoint.name_checkpoint(identity)))
    return describe_agent(network, identity, source, parent.derived_from or parent.source)
