"""What was found, as the dictionaries that ``check.json`` holds; ``check.schema.json`` describes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from convert.agents.agent import Agent
from convert.files.documents import show
from convert.formats.atari_agents import find_family
from runtime_check.check.results import AgentResult, BackendResult
from runtime_check.tally import Returns

FORMAT_VERSION = 1
AGREE, DISAGREE, UNCHECKED = "agree", "disagree", "unchecked"

Document = dict[str, Any]


def to_document(result: AgentResult) -> Document:
    """Return an agent's part of ``check.json``."""
    plan = result.plan
    return {
        "folder": str(result.folder),
        "verdict": AGREE if result.agrees else DISAGREE,
        "faults": list(result.faults),
        "error": None,
        **describe_agent(result.agent),
        "protocol": asdict(plan.protocol),
        "rom_md5": result.rom_md5,
        "episodes": {"first_seed": plan.seed, "count": plan.episodes, "max_steps": plan.max_steps},
        "tolerance": asdict(result.tolerance),
        "unchecked_targets": list(result.unchecked),
        "not_judged": list(result.others),
        "backends": {name: _describe_backend(outcome) for name, outcome in result.backends.items()},
    }


def describe_agent(agent: Agent) -> Document:
    """Return what ``check.json`` says of who an agent is."""
    return {
        "family": find_family(agent.identity),
        "game": agent.identity.game,
        "seed": agent.identity.seed,
        "step": agent.identity.step,
        "source": {"path": agent.source.path, "sha256": agent.source.sha256},
        "actions": list(agent.action_meanings or ()),
        "own_protocol": agent.identity.protocol,
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


def find_worst(document: Document) -> str | None:
    """Return the backend of an agent that disagrees, or else the one nearest to the allowed error; None without any."""
    backends = document["backends"]
    disagreeing = [name for name, outcome in backends.items() if outcome["reasons"]]
    return next(iter(disagreeing), max(backends, key=lambda name: backends[name]["max_ratio"] or 0.0, default=None))


def find_reason(document: Document) -> str:
    """Return in one line why an agent does not agree; empty where it does."""
    if document["verdict"] == UNCHECKED:
        reasons = [document["error"]["message"]]
    else:
        reasons = list(document["faults"])
        for name, outcome in document["backends"].items():
            reasons += [f"{name}: {reason}" for reason in outcome["reasons"]]
    return " ".join("; ".join(reasons).split())


def find_problem(document: Document) -> str | None:
    """Return why a document, perhaps a stranger's, is no agent's part of ``check.json``; None if it is one."""
    import jsonschema  # late: only for what is read from files

    schema = json.loads(files("runtime_check.report").joinpath("check.schema.json").read_text("utf-8"))
    validator = jsonschema.Draft202012Validator({"$defs": schema["$defs"], "$ref": "#/$defs/agent"})
    error = next(validator.iter_errors(document), None)
    return None if error is None else f"has no valid {show(error.json_path.removeprefix('$.'))}"


def combine_verdicts(counts: Mapping[str, int]) -> str:
    """Return the verdict over all agents: one disagreement makes it ``disagree``, else one unchecked ``unchecked``."""
    if counts.get(DISAGREE):
        return DISAGREE
    return UNCHECKED if counts.get(UNCHECKED) else AGREE
