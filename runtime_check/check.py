"""One agent: verify its files, open them, replay episodes, judge every answer."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.agents.agent import Agent, Record
from convert.agents.layout import nhwc_from_nchw
from convert.artefacts import Screened
from convert.errors import ArtefactMissing, AtariConvertError, CheckError, MissingExtra, RuntimeUnavailable
from convert.loading import open_artefact
from convert.runtimes import Runtime, Settings
from convert.sources import read_record
from convert.targets import find_target
from runtime_check.backends import REFERENCE, Backend, find_backend, list_backends
from runtime_check.compare import (
    DEFAULT_ATOL,
    DEFAULT_RTOL,
    TIE,
    WRONG,
    Float64,
    Outputs,
    Tolerance,
    classify,
    compare_outputs,
    find_faults,
    scale_of,
)
from runtime_check.inputs import (
    Sources,
    find_artefact,
    find_changes,
    find_content_faults,
    find_record_faults,
    find_tensor_faults,
    find_version_faults,
    find_weight_faults,
)
from runtime_check.oracle import Oracle, compute_outputs, read_oracle
from runtime_check.protocols import PROTOCOLS, read_rom
from runtime_check.reference import open_checkpoint
from runtime_check.replay import Batch, EpisodeLog, Plan, Replay, replay_log
from runtime_check.results import AgentResult, BackendResult, Exhibit
from runtime_check.tally import Disagreement, Tally, judge

SIDE_BY_SIDE = 16
MAX_EXHIBITS = 12
_PROBES = 3


@dataclass(frozen=True)
class Options:
    """How to check, the same for every agent. backends: their names; empty for all artefacts that are there."""

    backends: tuple[str, ...] = ()
    episodes: int = 1
    max_steps: int | None = None
    seed: int = 0
    epsilon: float = 0.0
    shadow: bool = True
    solo: bool = False
    device: str = "auto"
    tf32: bool = False
    atol: float = DEFAULT_ATOL
    rtol: float = DEFAULT_RTOL

    @property
    def width(self) -> int:
        """How many episodes run side by side."""
        return min(self.episodes, SIDE_BY_SIDE)


@dataclass(frozen=True)
class Listeners:
    """Who wants to hear of a check under way.

    start: called with the number of episodes to be played. steps: with the number of steps that were just taken.
    episode: with a backend's name, the mode and the log of an episode that ended.
    """

    start: Callable[[int], None]
    steps: Callable[[int], None]
    episode: Callable[[str, str, EpisodeLog], None]


def check_agent(folder: Path, sources: Sources, options: Options, listeners: Listeners) -> AgentResult:
    """Check the artefacts in an agent's folder against the checkpoint that they came from.

    Raises:
        AtariConvertError: it could not be checked; see `convert.errors`. A disagreement is a result, not an exception.
    """
    record = read_record(folder)
    backends = choose_backends(folder, record, options.backends)
    rounded = [backend.name for backend in backends if backend.bound]
    if rounded and not options.shadow:
        raise CheckError(
            f"{folder}: {', '.join(rounded)} may part from the checkpoint, and is measured in a shadow replay: use "
            "--mode shadow or both"
        )
    result, oracle = _begin(folder, record, sources, options, backends)
    if result.faults:
        return result
    _open_all(result, record, oracle, backends, options)
    _compare_batches(result, oracle, options)
    listeners.start(options.episodes * (options.shadow + options.solo * len(backends)))
    if options.shadow:
        _play_shadow(result, oracle, options, listeners)
    if options.solo:
        _play_solo(result, oracle, options, listeners)
    return result


def choose_backends(folder: Path, record: Record, names: Collection[str]) -> list[Backend]:
    """Return the backends to check, the reference first.

    Raises:
        ArtefactMissing: the agent has no artefact for one that was named, or none at all.
        UnknownBackend: there is no backend of a name.
        CheckError: the agent has an artefact that no backend opens, which would be passed over.
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


def _begin(
    folder: Path, record: Record, sources: Sources, options: Options, backends: list[Backend]
) -> tuple[AgentResult, Oracle]:
    agent = record.agent
    game, protocol = agent.identity.game, agent.identity.protocol
    if game is None or protocol is None:
        raise CheckError(
            f"{folder}: agent.json says neither game nor protocol: convert again with --identity FAMILY/Game"
        )
    source = sources.find(agent)
    try:
        oracle = read_oracle(source)
    except (OSError, ValueError) as error:
        raise CheckError(f"{error}: not a checkpoint of this release") from error
    covered = {backend.target for backend in list_backends()}
    faults = find_record_faults(folder, record, oracle)
    result = AgentResult(
        folder=folder,
        source=source,
        agent=agent,
        plan=Plan(
            game=game,
            protocol=PROTOCOLS[protocol],
            actions=oracle.actions,
            seed=options.seed,
            episodes=options.episodes,
            max_steps=options.max_steps,
            epsilon=options.epsilon,
        ),
        rom_md5=read_rom(game).md5,
        tolerance=Tolerance(options.atol, options.rtol, scale_of(oracle.support)),
        actions=agent.action_meanings or (),
        faults=faults,
        unchecked=tuple(name for name in record.artifacts if name not in covered),
        # Nobody is asked where the record misleads: no verdict of theirs would mean a thing.
        backends={} if faults else {backend.name: BackendResult(backend.name, backend.bound) for backend in backends},
    )
    return result, oracle


def _open_all(result: AgentResult, record: Record, oracle: Oracle, backends: list[Backend], options: Options) -> None:
    settings = Settings(options.device, options.tf32, options.width)
    for backend in backends:
        _open(result, record, oracle, backend, settings)
    if result.backends[REFERENCE].runtime is None:
        raise _reference_failed(result)


def _reference_failed(result: AgentResult) -> CheckError:
    return CheckError(f"{result.source}: {'; '.join(result.backends[REFERENCE].tally.faults)}")


def _open(result: AgentResult, record: Record, oracle: Oracle, backend: Backend, settings: Settings) -> None:
    """Hold an artefact against its record and open it; what keeps it closed becomes a fault of the backend."""
    outcome, path = result.backends[backend.name], result.source
    if backend.target is not None:
        path = find_artefact(result.folder, backend.target)
        if faults := _find_file_faults(result.folder, record, backend.target):
            outcome.fail("; ".join(faults))
            return
    try:
        runtime, screened = open_backend(backend, path, record.agent, settings)
    except (RuntimeUnavailable, MissingExtra):
        raise
    except Exception as error:  # noqa: BLE001 - each runtime raises its own, and any means that it does not load
        outcome.fail(f"{path.name} does not load: {_first_line(error)}")
        return
    if backend.target is not None and screened is not None:
        if faults := find_content_faults(record.artifacts[backend.target], screened):
            outcome.fail("; ".join(faults))
            return
        # They are no reason not to play: a replay shows what they amount to.
        for fault in find_weight_faults(screened.network, oracle):
            outcome.tally.add_fault(fault)
    outcome.runtime, outcome.description = runtime, runtime.description


def _find_file_faults(folder: Path, record: Record, target: str) -> list[str]:
    artifact = record.artifacts[target]
    return [
        *find_changes(folder, target, artifact),
        *find_tensor_faults(target, artifact, record.agent.head),
        *find_version_faults(target, artifact),
    ]


def open_backend(backend: Backend, path: Path, agent: Agent, settings: Settings) -> tuple[Runtime, Screened | None]:
    """Open the artefact at ``path`` as its users do, or the original checkpoint.

    Returns:
        What answers for uint8[N, 4, 84, 84], whatever order of axes the artefact takes; and what was read of the
        artefact, None of the original.

    Raises:
        MissingExtra: a framework is not installed.
        RuntimeUnavailable: a GPU was asked for, and the runtime sees none.
        Exception: whatever a runtime raises for what it cannot load.
    """
    if backend.target is None:
        return open_checkpoint(path, agent, settings), None
    opened = open_artefact(backend.target, path, agent, settings)
    runtime, answer = opened.runtime, opened.runtime.answer
    if find_target(backend.target).axes == "NHWC":
        runtime = replace(runtime, answer=lambda obs_nchw: answer(nhwc_from_nchw(obs_nchw)))
    return runtime, opened.screened


def _compare_batches(result: AgentResult, oracle: Oracle, options: Options) -> None:
    """Ask each backend for three observations at once and one by one: an artefact may be made for one size alone.

    They are also all whose error is measured where no shadow replay follows: solo play compares actions.
    """
    replay = Replay(replace(result.plan, episodes=1, max_steps=None), 1)
    observations: list[NDArray[np.uint8]] = []
    while len(observations) < _PROBES and (batch := replay.observe()):
        observations.append(batch.obs_nchw)
        replay.act([0])
    obs_nchw = np.concatenate(observations)
    alone = [_ask_all(result, observation) for observation in observations]
    together = _ask_all(result, obs_nchw)
    expected = compute_outputs(oracle, obs_nchw)
    for name, outcome in result.backends.items():
        if outcome.runtime is None:
            continue
        tolerance = outcome.tolerance(result.tolerance)
        one_by_one = np.concatenate([answers[name]["q_values"] for answers in alone])
        with np.errstate(invalid="ignore"):  # infinite ones are counted in the replay
            difference = np.abs(together[name]["q_values"] - one_by_one).max(axis=1)
        if (difference > 2 * tolerance.allow(expected["q_values"])).any():
            outcome.tally.add_fault(
                f"answers to {len(observations)} observations at once are not those to each alone: off by up to "
                f"{difference.max():.2g}"
            )
        if not options.shadow:
            probes, steps = Tally(), np.arange(len(observations))
            probes.add(compare_outputs(together[name], expected, tolerance), np.zeros_like(steps), steps)
            for reason in judge(probes):
                outcome.tally.add_fault(f"before solo play: {reason}")


def _play_shadow(result: AgentResult, oracle: Oracle, options: Options, listeners: Listeners) -> None:
    """Let the checkpoint act, and ask every backend what it would have done.

    All of them answer at once: a small batch keeps none of them from waiting for its own threads. The emulators go
    on as soon as the checkpoint has answered.
    """
    replay = Replay(result.plan, options.width)
    others = [outcome for outcome in result.backends.values() if outcome.name != REFERENCE]
    with ThreadPoolExecutor(os.cpu_count(), "backend") as pool:
        while batch := replay.observe():
            obs_nchw = batch.obs_nchw
            asked = pool.submit(_ask, result, result.backends[REFERENCE], obs_nchw)
            also_asked = {outcome.name: pool.submit(_ask, result, outcome, obs_nchw) for outcome in others}
            judged = pool.submit(compute_outputs, oracle, obs_nchw)
            acting = asked.result()
            if acting is None:
                raise _reference_failed(result)
            finished = replay.act(acting["q_values"].argmax(axis=1))
            answers = {REFERENCE: acting} | _keep_answers(
                {name: future.result() for name, future in also_asked.items()}
            )
            _compare_all(result, batch, answers, judged.result())
            for log in finished:
                result.backends[REFERENCE].shadow_returns.add(log.episode_return)
                listeners.episode(REFERENCE, "shadow", log)
            listeners.steps(len(obs_nchw))


def _ask_all(result: AgentResult, obs_nchw: NDArray[np.uint8]) -> dict[str, Outputs]:
    """Return the answers of the backends that still give some that can be compared."""
    return _keep_answers({name: _ask(result, outcome, obs_nchw) for name, outcome in result.backends.items()})


def _keep_answers(answers: Mapping[str, Outputs | None]) -> dict[str, Outputs]:
    return {name: answer for name, answer in answers.items() if answer is not None}


def _ask(result: AgentResult, outcome: BackendResult, obs_nchw: NDArray[np.uint8]) -> Outputs | None:
    if outcome.runtime is None:
        return None
    try:
        answer = outcome.runtime.answer(obs_nchw.copy())  # an artefact may write into its input
    except RuntimeUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 - each runtime raises its own, and any means that it does not run
        faults = [f"does not run: {_first_line(error)}"]
    else:
        faults = find_faults(answer, _shapes(result.agent, len(obs_nchw)))
    if not faults:
        return answer
    outcome.fail("; ".join(faults))
    return None


def _shapes(agent: Agent, count: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"q_values": (count, agent.head.actions)}
    if agent.head.atoms is not None:
        shapes["logits"] = (count, agent.head.actions, agent.head.atoms)
    return shapes


def _compare_all(
    result: AgentResult, batch: Batch, answers: Mapping[str, Outputs], expected: Mapping[str, Float64]
) -> None:
    disagreeing: dict[int, dict[str, str]] = {}
    for name, answer in answers.items():
        tolerance = result.backends[name].tolerance(result.tolerance)
        comparison = compare_outputs(answer, expected, tolerance)
        result.backends[name].tally.add(comparison, batch.episodes, batch.steps)
        for place, kind in comparison.kinds.items():
            disagreeing.setdefault(place, {})[name] = kind
    for place, kinds in disagreeing.items():
        q_values = {"oracle": expected["q_values"][place]}
        q_values |= {name: answer["q_values"][place] for name, answer in answers.items()}
        where = int(batch.episodes[place]), int(batch.steps[place])
        _exhibit(result, "shadow", *where, kinds, batch.obs_nchw[place], q_values)


def _exhibit(
    result: AgentResult,
    mode: str,
    episode: int,
    step: int,
    kinds: Mapping[str, str],
    obs_chw: NDArray[np.uint8],
    q_values: Mapping[str, Any],
) -> None:
    """Keep an observation to look at, unless the same one is there or the others are worth more."""
    if any(np.array_equal(other.obs_chw, obs_chw) for other in result.exhibits):
        return
    kind = WRONG if WRONG in kinds.values() else TIE
    values = {name: tuple(row.tolist()) for name, row in q_values.items()}
    result.exhibits.append(Exhibit(mode, episode, step, kind, tuple(kinds), obs_chw.copy(), values))
    if len(result.exhibits) > MAX_EXHIBITS:
        drop_least(result.exhibits)


def drop_least(exhibits: list[Exhibit]) -> None:
    """Drop a tie before a wrong action, then one of the backends that are shown most, then the latest."""
    shown = Counter(name for exhibit in exhibits for name in exhibit.backends)

    def worth(exhibit: Exhibit) -> tuple[bool, int]:
        return exhibit.kind == WRONG, -min(shown[name] for name in exhibit.backends)

    exhibits.remove(min(reversed(exhibits), key=worth))


def _play_solo(result: AgentResult, oracle: Oracle, options: Options, listeners: Listeners) -> None:
    """Let each backend play the same seeds by itself, and hold its actions against the checkpoint's."""
    for start in range(0, options.episodes, options.width):
        plan = replace(result.plan, seed=options.seed + start, episodes=min(options.width, options.episodes - start))
        logs = _play_alone(result, plan, listeners)
        if REFERENCE not in logs:
            raise _reference_failed(result)
        for name, own in logs.items():
            for episode, (log, expected) in enumerate(zip(own, logs[REFERENCE], strict=True), start):
                result.backends[name].solo_returns.add(log.episode_return)
                _compare_logs(result, name, episode, log, expected, oracle)


def _play_alone(result: AgentResult, plan: Plan, listeners: Listeners) -> dict[str, list[EpisodeLog]]:
    """Return the logs of each backend's own episodes in the order of their seeds; nothing of one that fails.

    The backends play at the same time, one step of each by turns.
    """
    running = {name: Replay(plan, plan.episodes) for name, outcome in result.backends.items() if outcome.runtime}
    logs: dict[str, list[EpisodeLog]] = {name: [] for name in running}
    with ThreadPoolExecutor(os.cpu_count(), "backend") as pool:
        while running:
            turns = {name: pool.submit(_take_turn, result, name, replay) for name, replay in running.items()}
            for name, turn in turns.items():
                steps, finished = turn.result()
                listeners.steps(steps)
                for log in finished:
                    listeners.episode(name, "solo", log)
                logs[name] += finished
                if not steps:
                    del running[name]
    return {name: sorted(own, key=lambda log: log.seed) for name, own in logs.items() if result.backends[name].runtime}


def _take_turn(result: AgentResult, name: str, replay: Replay) -> tuple[int, list[EpisodeLog]]:
    """Let a backend act once in each of its episodes: return how many, 0 at the end, and the logs of those now over."""
    outcome, batch = result.backends[name], replay.observe()
    if batch is None:
        return 0, []
    answer = _ask(result, outcome, batch.obs_nchw)
    if answer is not None and not np.isfinite(answer["q_values"]).all():
        outcome.fail("answers hold NaN or infinity in solo play")
        answer = None
    if answer is None:
        return 0, []
    return len(batch.obs_nchw), replay.act(answer["q_values"].argmax(axis=1))


def _compare_logs(
    result: AgentResult, name: str, episode: int, log: EpisodeLog, expected: EpisodeLog, oracle: Oracle
) -> None:
    """Judge the first step on which an episode parts from the checkpoint's."""
    outcome = result.backends[name]
    outcome.solo.episodes += 1
    if log == expected:
        outcome.solo.identical += 1
        outcome.solo.steps += len(log.actions)
        return
    # Exploration overrules both alike, and would hide what the networks chose.
    pairs = enumerate(zip(log.choices, expected.choices, strict=False))
    parted = [step for step, (choice, other) in pairs if choice != other]
    if not parted:
        outcome.tally.add_fault("episodes of one seed and the same choices parted: the emulator is not deterministic")
        return
    step = parted[0]
    outcome.solo.steps += step + 1
    obs_chw = next(islice(replay_log(log), step, None))
    q_values = compute_outputs(oracle, obs_chw[None])["q_values"][0]
    chosen = [log.choices[step], expected.choices[step]]
    # The checkpoint's own action may be the one that is off: the pair is a tie only if both are close to the best.
    margin = float(q_values.max() - q_values[chosen].min())
    allowed = float(outcome.tolerance(result.tolerance).allow(q_values[None])[0])
    kind = classify(margin, allowed)
    outcome.tally.add_disagreement(
        Disagreement(kind, "solo", episode, step, chosen[0], int(q_values.argmax()), margin, allowed)
    )
    answers = {other: answer["q_values"][0] for other, answer in _ask_all(result, obs_chw[None]).items()}
    _exhibit(result, "solo", episode, step, {name: kind}, obs_chw, {"oracle": q_values} | answers)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return text[0][:600] if isinstance(error, AtariConvertError) else f"{type(error).__name__}: {text[0]}"[:300]
