"""What was found, as the dictionaries that ``check.json`` holds; ``check.schema.json`` describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from convert.formats.atari_agents import find_family
from runtime_check.check.results import AgentResult, BackendResult
from runtime_check.tally import Returns

FORMAT_VERSION = 1
AGREE, DISAGREE, UNCHECKED = "agree", "disagree", "unchecked"

Document = dict[str, Any]


def to_document(result: AgentResult) -> Document:
    """Return an agent's part of ``check.json``."""
    agent, plan = result.agent, result.plan
    return {
        "folder": str(result.folder),
        "verdict": AGREE if result.agrees else DISAGREE,
        "faults": list(result.faults),
        "error": None,
        "family": find_family(agent.identity),
        "game": agent.identity.game,
        "seed": agent.identity.seed,
        "step": agent.identity.step,
        "source": {"path": agent.source.path, "sha256": agent.source.sha256},
        "protocol": asdict(plan.protocol),
        "rom_md5": result.rom_md5,
        "actions": list(agent.action_meanings or ()),
        "episodes": {"first_seed": plan.seed, "count": plan.episodes, "max_steps": plan.max_steps},
        "tolerance": asdict(result.tolerance),
        "unchecked_targets": list(result.unchecked),
        "not_judged": list(result.others),
        "backends": {name: _describe_backend(outcome) for name, outcome in result.backends.items()},
    }


def to_failure(folder: Path, error: Exception) -> Document:
    """Return the part of ``check.json`` of an agent that could not be checked."""
    return {
        "folder": str(folder),
        "verdict": UNCHECKED,
        "faults": [],
        "error": {"kind": type(error).__name__, "message": str(error)},
        "backends": {},
    }


def _describe_backend(outcome: BackendResult) -> Document:
    tally, solo = outcome.tally, outcome.solo
    return {
        "verdict": DISAGREE if outcome.reasons else AGREE,
        "reasons": outcome.reasons,
        "tolerance": asdict(outcome.tolerance),
        "least_agreement": outcome.bound.agreement if outcome.bound else None,
        "agreement": tally.agreement,
        "steps": tally.steps + solo.steps,
        "ties": tally.disagreements.ties,
        "wrong": tally.disagreements.wrong,
        "max_error": tally.max_error if tally.max_error_at else None,
        "max_error_at": dict(zip(("episode", "step"), tally.max_error_at, strict=True)) if tally.max_error_at else None,
        "max_ratio": _finite(tally.max_ratio) if tally.max_error_at else None,
        "median_error": tally.errors.median(),
        "smallest_margin": _finite(tally.smallest_gap),
        "returns": {
            "shadow": _describe_returns(outcome.shadow_returns),
            "solo": _describe_returns(outcome.solo_returns),
        },
        "solo": asdict(solo) if solo.episodes else None,
        "listed": [asdict(disagreement) for disagreement in tally.disagreements.listed],
        "runtime": asdict(outcome.description) if outcome.description else None,
    }


def _describe_returns(returns: Returns) -> Document | None:
    if not returns.count:
        return None
    return {"mean": returns.mean, "std": returns.std, "n": returns.count, "first": returns.first}


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return float(value) if np.isfinite(value) else None


def combine_verdicts(counts: Mapping[str, int]) -> str:
    """Return the verdict over all agents: one disagreement makes it ``disagree``, else one unchecked ``unchecked``."""
    if counts.get(DISAGREE):
        return DISAGREE
    return UNCHECKED if counts.get(UNCHECKED) else AGREE
