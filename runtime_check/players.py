"""Agents ready to act in an emulator: a source of any zoo with its own network, or an artefact with its runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from convert.agents.agent import Agent
from convert.agents.layout import nhwc_from_nchw
from convert.agents.network import Network
from convert.bulk.selection import Job
from convert.errors import ArtefactMissing, CheckError, UnreadableCheckpoint
from convert.loading import load_agent
from convert.pipeline import read_from_file, read_from_folder
from convert.runtimes import Answer, Settings
from convert.store import storage
from convert.targets import find_target
from runtime_check.backends import REFERENCE, find_backend
from runtime_check.protocols import Protocol, check_fit, find_protocol


@dataclass(frozen=True, eq=False)
class Player:
    """An agent that can play.

    game: its name in the release's paths. backend: what answers for it. answer: uint8[N, frames, size, size] to every
    output by name. device: what it runs on.
    """

    agent: Agent
    game: str
    protocol: Protocol
    backend: str
    answer: Answer
    device: str


def open_player(
    job: Job,
    backend: str = REFERENCE,
    settings: Settings | None = None,
    protocol: str | None = None,
    *,
    anonymous: bool,
) -> Player:
    """Open an agent to play.

    Args:
        job: a checkpoint of any source, or an agent's folder, see `convert.bulk.selection.find_jobs`.
        backend: ``reference`` for the weights of the source in torch, or an artefact of an agent's folder.
        settings: of the runtime.
        protocol: the name of the one that it plays; None for its own.
        anonymous: read URLs without credentials.

    Raises:
        AtariConvertError: it cannot be read, its game or its protocol is not known, or the runtime does not take it.
    """
    if job.problem:
        raise UnreadableCheckpoint(job.problem)
    settings = settings or Settings()
    network, agent = _read(job, anonymous=anonymous)
    game, name = agent.identity.game, protocol or agent.identity.protocol
    if game is None or name is None:
        raise CheckError(f"{job.source}: its game or its protocol is not known: name it with --identity FAMILY/Game")
    played, seen = find_protocol(name), agent.architecture.observation
    try:
        check_fit(played, seen.frames, seen.size)
    except CheckError as error:
        raise CheckError(f"{job.source}: {error}") from error
    target = find_backend(backend).target
    if target is None:
        answer, device = _run(network, settings)
    else:
        answer, device = _load(job, target, settings)
    return Player(agent, game, played, backend, answer, device)


def _read(job: Job, *, anonymous: bool) -> tuple[Network, Agent]:
    if job.kind is not None:
        return read_from_folder(Path(job.source), job.kind, job.identity if job.is_named else None)
    data, _ = storage.read_source(job.source, anonymous=anonymous)
    return read_from_file(data, job.source, job.identity, job.path)


def _run(network: Network, settings: Settings) -> tuple[Answer, str]:
    """Return what answers for a network in torch."""
    from convert.networks.torch import load_module, to_state_dict
    from convert.runtimes import torch as runtime

    module = load_module(network.architecture, to_state_dict(network))
    opened = runtime.run(module, runtime.choose_device(settings), settings)
    return opened.answer, opened.description.device


def _load(job: Job, target: str, settings: Settings) -> tuple[Answer, str]:
    if job.kind is None:
        raise ArtefactMissing(f"{job.source}: a checkpoint, not the folder of a converted agent, and holds no {target}")
    loaded = load_agent(job.source, target, settings.device)
    if find_target(target).axes == "NCHW":
        return loaded.run, loaded.device
    return lambda obs_nchw: loaded.run(nhwc_from_nchw(obs_nchw)), loaded.device
