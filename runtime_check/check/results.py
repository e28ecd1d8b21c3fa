"""What was found of an agent. Its size does not depend on the number of episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from convert.agents.agent import Agent, Record
from convert.runtimes import Description
from runtime_check.backends import Bound
from runtime_check.check.exhibits import Exhibit
from runtime_check.check.films import Film
from runtime_check.check.opening import Candidate
from runtime_check.check.shadow import ShadowPlay
from runtime_check.check.solo import Solo, SoloPlay
from runtime_check.check.verification import Case
from runtime_check.compare import Tolerance
from runtime_check.replay import Plan
from runtime_check.tally import Returns, Tally, judge


@dataclass(frozen=True, eq=False)
class BackendResult:
    """What a backend did.

    tolerance: what it was held to. bound: what is asked of rounded weights; None for float32. description: what it ran
    on; None if it was never opened. faults: what is wrong with its files or its answers, apart from their numbers.
    """

    name: str
    tolerance: Tolerance
    bound: Bound | None = None
    description: Description | None = None
    faults: tuple[str, ...] = ()
    tally: Tally = field(default_factory=Tally)
    solo: Solo = field(default_factory=Solo)
    shadow_returns: Returns = field(default_factory=Returns)
    solo_returns: Returns = field(default_factory=Returns)

    @property
    def reasons(self) -> list[str]:
        """Why it does not act like its checkpoint; empty when it does."""
        return [*self.faults, *judge(self.tally, self.bound.agreement if self.bound else None)]


@dataclass(frozen=True, eq=False)
class AgentResult:
    """What was found of one agent.

    record: its ``agent.json``, as it was checked. source: the checkpoint that it was compared with. faults: what is
    wrong with its record or its folder; its backends are not run then. unchecked: its other
    artefacts. others: what else is in its folder, which is not judged. backends: by name, the reference first.
    """

    folder: Path
    source: Path
    record: Record
    plan: Plan
    rom_md5: str
    tolerance: Tolerance
    faults: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    backends: Mapping[str, BackendResult] = field(default_factory=dict)
    exhibits: tuple[Exhibit, ...] = ()
    films: tuple[Film, ...] = ()

    @property
    def agent(self) -> Agent:
        """Who it is."""
        return self.record.agent

    @property
    def agrees(self) -> bool:
        """Whether every backend acts like the checkpoint and the record is right."""
        return not self.faults and not any(result.reasons for result in self.backends.values())


def refuse_agent(case: Case) -> AgentResult:
    """Return the result of an agent whose record is wrong: no verdict on its backends would mean anything."""
    return _to_result(case, {}, (), ())


def to_result(case: Case, shadow: ShadowPlay, solo: SoloPlay) -> AgentResult:
    """Return what the stages of a check found."""
    backends = {name: _to_backend_result(candidate, shadow, solo) for name, candidate in solo.candidates.items()}
    return _to_result(case, backends, solo.exhibits, shadow.films)


def _to_backend_result(candidate: Candidate, shadow: ShadowPlay, solo: SoloPlay) -> BackendResult:
    name, alone = candidate.backend.name, solo.records.get(candidate.backend.name)
    tally = shadow.tallies.get(name, Tally())
    if alone:
        tally = replace(tally, disagreements=tally.disagreements.joined(alone.disagreements))
    return BackendResult(
        name,
        candidate.tolerance,
        candidate.backend.bound,
        candidate.description,
        candidate.faults,
        tally,
        alone.solo if alone else Solo(),
        shadow.returns.get(name, Returns()),
        alone.returns if alone else Returns(),
    )


def _to_result(
    case: Case, backends: Mapping[str, BackendResult], exhibits: tuple[Exhibit, ...], films: tuple[Film, ...]
) -> AgentResult:
    return AgentResult(
        case.folder,
        case.source,
        case.record,
        case.plan,
        case.rom_md5,
        case.tolerance,
        case.faults,
        case.unchecked,
        case.others,
        backends,
        exhibits,
        films,
    )
