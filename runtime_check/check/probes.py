"""Probe: three observations at once and one by one, for an artefact may be made for one size of batch alone."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from runtime_check.check.answers import ask_all, close_failed, list_answers
from runtime_check.check.opening import Candidate, Candidates
from runtime_check.check.options import Options
from runtime_check.check.verification import Case
from runtime_check.compare import Float64, Outputs, compare_outputs
from runtime_check.oracle import compute_outputs
from runtime_check.replay import Plan, Replay
from runtime_check.tally import Tally, judge

_PROBES = 3


def probe_backends(case: Case, candidates: Candidates, options: Options) -> Candidates:
    """Return the candidates with what the first three observations of an episode show.

    They are also all whose error is measured where no shadow replay follows: solo play compares actions.
    """
    observations = _observe(replace(case.plan, episodes=1, max_steps=None, epsilon=0.0))
    alone = []
    for observation in observations:
        replies = ask_all(candidates, case.shapes, observation)
        candidates = close_failed(candidates, replies)
        alone.append(list_answers(replies))
    obs_nchw = np.concatenate(observations)
    replies = ask_all(candidates, case.shapes, obs_nchw)
    candidates, together = close_failed(candidates, replies), list_answers(replies)
    expected = compute_outputs(case.oracle, obs_nchw)
    found = dict(candidates)
    for name, answer in together.items():
        one_by_one = np.concatenate([answers[name]["q_values"] for answers in alone])
        faults = _find_batch_faults(candidates[name], answer["q_values"], one_by_one, expected["q_values"])
        if not options.shadow:
            faults += _find_errors(candidates[name], answer, expected)
        found[name] = candidates[name].noted(*faults)
    return found


@lru_cache(maxsize=64)
def _observe(plan: Plan) -> tuple[NDArray[np.uint8], ...]:
    """Return the first observations of an episode, the same for every agent: to open an emulator takes long."""
    replay = Replay(plan, 1)
    observations: list[NDArray[np.uint8]] = []
    while len(observations) < _PROBES and (batch := replay.observe()):
        observations.append(batch.obs_nchw)
        replay.act([0])
    return tuple(observations)


def _find_batch_faults(
    candidate: Candidate, together: NDArray[np.float32], one_by_one: NDArray[np.float32], expected: Float64
) -> list[str]:
    with np.errstate(invalid="ignore"):  # infinite ones are counted in the replay
        difference = np.abs(together - one_by_one).max(axis=1)
    if not (difference > 2 * candidate.tolerance.allow(expected)).any():
        return []
    return [
        f"answers to {len(expected)} observations at once are not those to each alone: off by up to "
        f"{difference.max():.2g}"
    ]


def _find_errors(candidate: Candidate, answer: Outputs, expected: dict[str, Float64]) -> list[str]:
    tally, steps = Tally(), np.arange(len(expected["q_values"]))
    tally.add(compare_outputs(answer, expected, candidate.tolerance), np.zeros_like(steps), steps)
    return [f"before solo play: {reason}" for reason in judge(tally)]
