"""Shadow: the reference acts, and every backend says what it would have done."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from runtime_check.backends import REFERENCE
from runtime_check.check.answers import ask, close_failed, list_answers
from runtime_check.check.exhibits import Exhibits, add_exhibit, make_exhibit
from runtime_check.check.opening import Candidates, require_reference
from runtime_check.check.options import Listeners, Options
from runtime_check.check.verification import Case
from runtime_check.compare import Float64, Outputs, compare_outputs
from runtime_check.oracle import compute_outputs
from runtime_check.replay import Batch, Replay
from runtime_check.tally import Returns, Tally


@dataclass(frozen=True, eq=False)
class ShadowPlay:
    """What a shadow replay showed; the candidates alone where there was none. tallies, returns: by backend."""

    candidates: Candidates
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    returns: Mapping[str, Returns] = field(default_factory=dict)
    exhibits: Exhibits = ()


def play_shadow(case: Case, candidates: Candidates, options: Options, listeners: Listeners) -> ShadowPlay:
    """Let the reference act, and ask every backend what it would have done.

    All of them answer at once: a small batch keeps none of them from waiting for its own threads. The emulators go
    on as soon as the reference has answered.

    Raises:
        CheckError: the reference failed.
        RuntimeUnavailable: a runtime answered from another device than was asked for.
    """
    replay = Replay(case.plan, options.width)
    tallies, returns = {name: Tally() for name in candidates}, Returns()
    exhibits: Exhibits = ()
    with ThreadPoolExecutor(os.cpu_count(), "backend") as pool:
        while batch := replay.observe():
            asked = {
                name: pool.submit(ask, candidate, case.shapes, batch.obs_nchw) for name, candidate in candidates.items()
            }
            judged = pool.submit(compute_outputs, case.oracle, batch.obs_nchw)
            acting = {REFERENCE: asked[REFERENCE].result()}
            require_reference(case, close_failed(candidates, acting))
            finished = replay.act(list_answers(acting)[REFERENCE]["q_values"].argmax(axis=1))
            replies = {name: future.result() for name, future in asked.items()}
            candidates, answers = close_failed(candidates, replies), list_answers(replies)
            exhibits = _compare(candidates, batch, answers, judged.result(), tallies, exhibits)
            for log in finished:
                returns.add(log.episode_return)
                listeners.episode(REFERENCE, "shadow", log)
            listeners.steps(len(batch.obs_nchw))
    return ShadowPlay(candidates, tallies, {REFERENCE: returns}, exhibits)


def _compare(
    candidates: Candidates,
    batch: Batch,
    answers: Mapping[str, Outputs],
    expected: Mapping[str, Float64],
    tallies: Mapping[str, Tally],
    exhibits: Exhibits,
) -> Exhibits:
    """Add the answers to the tallies, and return the exhibits with what there is to see."""
    disagreeing: dict[int, dict[str, str]] = {}
    for name, answer in answers.items():
        comparison = compare_outputs(answer, expected, candidates[name].tolerance)
        tallies[name].add(comparison, batch.episodes, batch.steps)
        for place, kind in comparison.kinds.items():
            disagreeing.setdefault(place, {})[name] = kind
    for place, kinds in disagreeing.items():
        q_values = {"oracle": expected["q_values"][place]}
        q_values |= {name: answer["q_values"][place] for name, answer in answers.items()}
        where = int(batch.episodes[place]), int(batch.steps[place])
        exhibits = add_exhibit(exhibits, make_exhibit("shadow", *where, kinds, batch.obs_nchw[place], q_values))
    return exhibits
