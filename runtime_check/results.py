"""What is found of an agent while it is checked. Its size does not depend on the number of episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.agents.agent import Agent
from convert.runtimes import Description, Runtime
from runtime_check.backends import Bound
from runtime_check.compare import Tolerance
from runtime_check.replay import Plan
from runtime_check.tally import Tally, judge

MAX_RETURNS = 500


@dataclass
class Returns:
    """Unclipped returns of episodes: their number, mean and deviation (Welford's sums), and the first 500."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    first: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        """Add an episode's return."""
        self.count += 1
        deviation = value - self.mean
        self.mean += deviation / self.count
        self.squares += deviation * (value - self.mean)
        if len(self.first) < MAX_RETURNS:
            self.first.append(value)

    @property
    def std(self) -> float:
        """The standard deviation over the episodes, that of a population."""
        return float((self.squares / self.count) ** 0.5) if self.count else 0.0


@dataclass
class Solo:
    """Episodes that a backend played by itself: how many, how many of them as the checkpoint did, steps compared."""

    episodes: int = 0
    identical: int = 0
    steps: int = 0


@dataclass
class BackendResult:
    """What a backend did.

    bound: what is asked of rounded weights; None where all is to be as in float32. runtime: None once it has failed,
    or was not opened. description: None if never opened.
    """

    name: str
    bound: Bound | None = None
    runtime: Runtime | None = None
    description: Description | None = None
    tally: Tally = field(default_factory=Tally)
    solo: Solo = field(default_factory=Solo)
    shadow_returns: Returns = field(default_factory=Returns)
    solo_returns: Returns = field(default_factory=Returns)

    @property
    def reasons(self) -> list[str]:
        """Why it does not act like its checkpoint; empty when it does."""
        return judge(self.tally, self.bound.agreement if self.bound else None)

    def tolerance(self, of_float32: Tolerance) -> Tolerance:
        """Return the tolerance that it is held to, given the one for true float32."""
        return Tolerance(self.bound.atol, self.bound.rtol, of_float32.scale) if self.bound else of_float32

    def fail(self, fault: str) -> None:
        """Note a fault and ask no more of it."""
        self.tally.add_fault(fault)
        self.runtime = None


@dataclass(frozen=True, eq=False)
class Exhibit:
    """A tie or wrong action to look at: obs_chw uint8[4, 84, 84], and every backend's Q-values for it."""

    mode: str
    episode: int
    step: int
    kind: str
    backends: tuple[str, ...]
    obs_chw: NDArray[np.uint8]
    q_values: Mapping[str, tuple[float, ...]]


@dataclass
class AgentResult:
    """What was found of one agent. faults: what is wrong with its record. unchecked: artefacts without a backend."""

    folder: Path
    source: Path
    agent: Agent
    plan: Plan
    rom_md5: str
    tolerance: Tolerance
    actions: tuple[str, ...]
    faults: list[str]
    unchecked: tuple[str, ...]
    backends: dict[str, BackendResult] = field(default_factory=dict)
    exhibits: list[Exhibit] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether every backend acts like the checkpoint, and the record tells the truth."""
        return not self.faults and not any(result.reasons for result in self.backends.values())
