"""Solo: each backend plays the same seeds on its own, and its choices are held against the reference's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from runtime_check.backends import REFERENCE
from runtime_check.check.answers import Reply, ask, ask_all, close_failed, list_answers
from runtime_check.check.exhibits import Exhibits, add_exhibit, make_exhibit
from runtime_check.check.opening import Candidate, Candidates, require_reference
from runtime_check.check.options import Listeners, Options
from runtime_check.check.shadow import ShadowPlay
from runtime_check.check.verification import Case
from runtime_check.compare import classify
from runtime_check.oracle import compute_outputs
from runtime_check.replay import EpisodeLog, Plan, Replay, replay_log
from runtime_check.tally import Disagreement, Disagreements, Returns

Logs = Mapping[str, list[EpisodeLog]]


@dataclass(frozen=True)
class Solo:
    """Episodes that a backend played alone: how many, how many of them as the reference did, and steps compared."""

    episodes: int = 0
    identical: int = 0
    steps: int = 0


@dataclass(frozen=True, eq=False)
class SoloRecord:
    """What a backend did on its own."""

    solo: Solo = field(default_factory=Solo)
    disagreements: Disagreements = field(default_factory=Disagreements)
    returns: Returns = field(default_factory=Returns)


@dataclass(frozen=True, eq=False)
class SoloPlay:
    """What solo play showed; what was known before where there was none. records: by backend."""

    candidates: Candidates
    exhibits: Exhibits
    records: Mapping[str, SoloRecord] = field(default_factory=dict)


def play_solo(case: Case, shadow: ShadowPlay, options: Options, listeners: Listeners) -> SoloPlay:
    """Let each backend play the same seeds on its own, and hold its actions against the reference's.

    Raises:
        CheckError: the reference failed.
        RuntimeUnavailable: a runtime answered from another device than was asked for.
    """
    played = SoloPlay(shadow.candidates, shadow.exhibits)
    for start in range(0, options.episodes, options.width):
        plan = replace(case.plan, seed=options.seed + start, episodes=min(options.width, options.episodes - start))
        candidates, logs = _play_alone(case, played.candidates, plan, listeners)
        played = replace(played, candidates=require_reference(case, candidates))
        for name, own in logs.items():
            for episode, (log, expected) in enumerate(zip(own, logs[REFERENCE], strict=True), start):
                played = _add_episode(case, played, name, episode, log, expected)
    return played


def _play_alone(case: Case, candidates: Candidates, plan: Plan, listeners: Listeners) -> tuple[Candidates, Logs]:
    """Return the logs of each backend's own episodes in the order of their seeds; nothing of one that fails.

    The backends play at the same time, one step of each by turns.
    """
    running = {name: Replay(plan, plan.episodes) for name, candidate in candidates.items() if candidate.runtime}
    logs: dict[str, list[EpisodeLog]] = {name: [] for name in running}
    with ThreadPoolExecutor(os.cpu_count(), "backend") as pool:
        while running:
            turns = {name: pool.submit(_take_turn, case, candidates[name], replay) for name, replay in running.items()}
            replies = {}
            for name, turn in turns.items():
                steps, finished, replies[name] = turn.result()
                listeners.steps(steps)
                for log in finished:
                    listeners.episode(name, "solo", log)
                logs[name] += finished
                if not steps:
                    del running[name]
            candidates = close_failed(candidates, replies)
    ended = {name: sorted(own, key=lambda log: log.seed) for name, own in logs.items() if candidates[name].runtime}
    return candidates, ended


def _take_turn(case: Case, candidate: Candidate, replay: Replay) -> tuple[int, list[EpisodeLog], Reply]:
    """Let a backend act once in each of its episodes.

    Returns:
        In how many it acted, 0 at the end; the logs of those that are over now; and its reply.
    """
    batch = replay.observe()
    if batch is None:
        return 0, [], Reply()
    reply = ask(candidate, case.shapes, batch.obs_nchw)
    if reply.outputs is None:
        return 0, [], reply
    q_values = reply.outputs["q_values"]
    if not np.isfinite(q_values).all():
        return 0, [], Reply(fault="answers hold NaN or infinity in solo play")
    return len(batch.obs_nchw), replay.act(q_values.argmax(axis=1)), reply


def _add_episode(
    case: Case, played: SoloPlay, name: str, episode: int, log: EpisodeLog, expected: EpisodeLog
) -> SoloPlay:
    """Return what was played with one more episode, whose first step that parts from the reference's is judged."""
    record = played.records.get(name, SoloRecord())
    record.returns.add(log.episode_return)
    if log == expected:
        return _add_steps(played, name, record, len(log.actions), identical=True)
    # Exploration overrules both alike, and would hide what the networks chose.
    pairs = enumerate(zip(log.choices, expected.choices, strict=False))
    parted = next((step for step, (choice, other) in pairs if choice != other), None)
    if parted is None:
        fault = "episodes with the same seed and the same choices differ: the emulator is not deterministic"
        candidates = {**played.candidates, name: played.candidates[name].noted(fault)}
        return _add_steps(replace(played, candidates=candidates), name, record, 0)
    obs_chw = next(islice(replay_log(log), parted, None))
    q_values = compute_outputs(case.oracle, obs_chw[None])["q_values"][0]
    chosen = [log.choices[parted], expected.choices[parted]]
    # The reference's own action may be the one that is off: the pair is a tie only if both are close to the best.
    margin = float(q_values.max() - q_values[chosen].min())
    allowed = float(played.candidates[name].tolerance.allow(q_values[None])[0])
    kind = classify(margin, allowed)
    record.disagreements.add(
        Disagreement(kind, "solo", episode, parted, chosen[0], int(q_values.argmax()), margin, allowed)
    )
    replies = ask_all(played.candidates, case.shapes, obs_chw[None])
    answers = {other: answer["q_values"][0] for other, answer in list_answers(replies).items()}
    exhibit = make_exhibit("solo", episode, parted, {name: kind}, obs_chw, {"oracle": q_values} | answers)
    played = replace(
        played,
        candidates=close_failed(played.candidates, replies),
        exhibits=add_exhibit(played.exhibits, exhibit),
    )
    return _add_steps(played, name, record, parted + 1)


def _add_steps(played: SoloPlay, name: str, record: SoloRecord, steps: int, *, identical: bool = False) -> SoloPlay:
    solo = record.solo
    solo = Solo(solo.episodes + 1, solo.identical + identical, solo.steps + steps)
    return replace(played, records={**played.records, name: replace(record, solo=solo)})
