"""Shadow: the reference acts, and every backend says what it would have done."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from runtime_check.backends import REFERENCE
from runtime_check.check.answers import Reply, ask, close_failed, list_answers
from runtime_check.check.exhibits import Exhibits, add_exhibit, make_exhibit
from runtime_check.check.films import Film, FilmMaker
from runtime_check.check.opening import Candidates, require_reference
from runtime_check.check.options import Listeners, Options
from runtime_check.check.verification import Case
from runtime_check.compare import Comparison, Float64, Outputs, Tolerance, compare_outputs
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
    films: tuple[Film, ...] = ()


def play_shadow(case: Case, candidates: Candidates, options: Options, listeners: Listeners) -> ShadowPlay:
    """Let the reference act, and ask every backend what it would have done.

    The reference acts step by step. What it saw is put to the other backends and to the oracle in blocks, which takes
    a fraction of the time: their weights are read from memory once for a block. All of them answer at once, while the
    reference plays on.

    Raises:
        CheckError: the reference failed.
        RuntimeUnavailable: a runtime answered from another device than was asked for.
    """
    tallies, returns = {name: Tally() for name in candidates}, Returns()
    exhibits: Exhibits = ()
    films = FilmMaker(options.frames)
    with ThreadPoolExecutor(os.cpu_count(), "backend") as pool:
        asked: _Asked | None = None
        for block in chain(_play(case, candidates, options, returns, films, listeners), [None]):
            if asked is not None:
                candidates, exhibits = _settle(asked, candidates, case.tolerance, tallies, exhibits, films)
            asked = None if block is None else _ask(pool, case, candidates, block)
    return ShadowPlay(candidates, tallies, {REFERENCE: returns}, exhibits, films.develop())


@dataclass(frozen=True, eq=False)
class _Block:
    """What the reference saw in some steps, and its answers."""

    batch: Batch
    outputs: Outputs


@dataclass(frozen=True, eq=False)
class _Asked:
    """A block, with the answers of the other backends and of the oracle, which are to come."""

    block: _Block
    replies: Mapping[str, Future[Reply]]
    expected: Future[dict[str, Float64]]


def _play(
    case: Case, candidates: Candidates, options: Options, returns: Returns, films: FilmMaker, listeners: Listeners
) -> Generator[_Block, None, None]:
    """Let the reference act in every episode."""
    replay, reference = Replay(case.plan, options.width), candidates[REFERENCE]
    batches: list[Batch] = []
    answers: list[Outputs] = []
    while batch := replay.observe():
        films.see(batch, replay.lanes)
        acting = {REFERENCE: ask(reference, case.shapes, batch.obs_nchw)}
        require_reference(case, close_failed(candidates, acting))
        outputs = list_answers(acting)[REFERENCE]
        batches.append(batch)
        answers.append(outputs)
        for log in replay.act(outputs["q_values"].argmax(axis=1)):
            returns.add(log.episode_return)
            films.end(log)
            listeners.episode(REFERENCE, "shadow", log)
        listeners.steps(len(batch.obs_nchw))
        if sum(len(each.steps) for each in batches) + options.width > options.batch:
            yield _join(batches, answers)
            batches, answers = [], []
    if batches:
        yield _join(batches, answers)


def _join(batches: Sequence[Batch], answers: Sequence[Outputs]) -> _Block:
    batch = Batch(
        np.concatenate([batch.obs_nchw for batch in batches]),
        np.concatenate([batch.episodes for batch in batches]),
        np.concatenate([batch.steps for batch in batches]),
    )
    return _Block(batch, {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]})


def _ask(pool: Executor, case: Case, candidates: Candidates, block: _Block) -> _Asked:
    obs_nchw = block.batch.obs_nchw
    others = {name: candidate for name, candidate in candidates.items() if name != REFERENCE}
    replies = {name: pool.submit(ask, candidate, case.shapes, obs_nchw) for name, candidate in others.items()}
    return _Asked(block, replies, pool.submit(compute_outputs, case.oracle, obs_nchw))


def _settle(
    asked: _Asked,
    candidates: Candidates,
    tolerance: Tolerance,
    tallies: Mapping[str, Tally],
    exhibits: Exhibits,
    films: FilmMaker,
) -> tuple[Candidates, Exhibits]:
    """Wait for the answers to a block, and return the candidates and exhibits as they are after it."""
    replies = {name: future.result() for name, future in asked.replies.items()}
    candidates = close_failed(candidates, replies)
    answers = {REFERENCE: asked.block.outputs, **list_answers(replies)}
    batch, expected = asked.block.batch, asked.expected.result()
    comparisons = {
        name: compare_outputs(answer, expected, candidates[name].tolerance) for name, answer in answers.items()
    }
    for name, comparison in comparisons.items():
        tallies[name].add(comparison, batch.episodes, batch.steps)
    films.judge(batch, answers, comparisons, expected, tolerance.allow(expected["q_values"]))
    return candidates, _add_exhibits(batch, answers, comparisons, expected, exhibits)


def _add_exhibits(
    batch: Batch,
    answers: Mapping[str, Outputs],
    comparisons: Mapping[str, Comparison],
    expected: Mapping[str, Float64],
    exhibits: Exhibits,
) -> Exhibits:
    """Return the exhibits with what there is to see in a batch."""
    disagreeing: dict[int, dict[str, str]] = {}
    for name, comparison in comparisons.items():
        for place, kind in comparison.kinds.items():
            disagreeing.setdefault(place, {})[name] = kind
    for place, kinds in disagreeing.items():
        q_values = {"oracle": expected["q_values"][place]}
        q_values |= {name: answer["q_values"][place] for name, answer in answers.items()}
        where = int(batch.episodes[place]), int(batch.steps[place])
        exhibits = add_exhibit(exhibits, make_exhibit("shadow", *where, kinds, batch.obs_nchw[place], q_values))
    return exhibits
