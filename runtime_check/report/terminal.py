"""What was found, as a table for a terminal of 100 columns."""

from __future__ import annotations

import textwrap

from convert.names import to_printable
from runtime_check.report.documents import UNCHECKED, Document

_WIDTH = 100


def format_protocol(document: Document) -> str:
    """Return which protocol was played, and which one is the agent's own if it is another."""
    played, own = document["protocol"]["name"], document["own_protocol"]
    return f"{played} protocol" if played == own else f"{played} protocol (its own is {own}; no proof is written)"


def format_agent(document: Document, *, verbose: bool = False) -> str:
    """Return an agent's part of the table, in lines of at most 100 columns."""
    lines = [_shorten(to_printable(document["folder"]), _WIDTH)]
    if document["verdict"] == UNCHECKED:
        return "\n".join([*lines, *_wrap(f"not checked: {document['error']['message']}")])
    episodes, tolerance = document["episodes"], document["tolerance"]
    last = episodes["first_seed"] + episodes["count"] - 1
    seeds = f"seeds {episodes['first_seed']} to {last}" if episodes["count"] > 1 else f"seed {last}"
    lines += _wrap(f"{format_protocol(document)}, {seeds}, allowed error {format_tolerance(tolerance)}")
    if document["backends"]:
        lines.append(_HEADER)
    lines += [_format_row(name, outcome) for name, outcome in document["backends"].items()]
    for fault in document["faults"]:
        lines += _wrap(fault)
    for name, outcome in document["backends"].items():
        for reason in outcome["reasons"]:
            lines += _wrap(f"{name}: {reason}")
        if verbose and outcome["runtime"]:
            known = {key: value for key, value in outcome["runtime"].items() if value is not None}
            lines += _wrap(f"{name}: " + ", ".join(f"{key} {value}" for key, value in known.items()))
        if outcome["least_agreement"] is not None:
            lines += _wrap(f"{name}: {format_bound(outcome)}")
    if document["unchecked_targets"]:
        lines += _wrap(f"not checked: {', '.join(document['unchecked_targets'])}")
    if document["not_judged"]:
        lines += _wrap(f"not judged: {', '.join(document['not_judged'])}")
    return "\n".join(lines)


_HEADER = (
    f"  {'backend':<15}{'verdict':<9}{'steps':>8}{'ties':>5}{'wrong':>6}{'max error':>11}{'/allowed':>9}"
    f"{'median':>9}{'margin':>9}{'return':>17}"
)


def _format_row(name: str, outcome: Document) -> str:
    return (
        f"  {name:<15}{outcome['verdict']:<9}{outcome['steps']:>8}{outcome['ties']:>5}{outcome['wrong']:>6}"
        f"{format_number(outcome['max_error']):>11}{format_number(outcome['max_ratio']):>9}{format_number(outcome['median_error']):>9}"
        f"{format_number(outcome['smallest_margin']):>9}{format_returns(outcome):>17}"
    )


def format_returns(outcome: Document) -> str:
    """Return ``mean ± std`` of a backend's own episodes, or of those in which it acted for all; ``–`` of none."""
    returns = outcome["returns"]["solo"] or outcome["returns"]["shadow"]
    return f"{_score(returns['mean'])} ± {_score(returns['std'])}" if returns else "–"


def format_tolerance(tolerance: Document) -> str:
    """Return what error is allowed, such as ``2e-05 + 2e-05·max|q|``."""
    return f"{tolerance['atol'] * tolerance['scale']:.2g} + {tolerance['rtol']:.2g}·max|q|"


def format_bound(outcome: Document) -> str:
    """Return what a backend of rounded weights is held to, and how often it acted as the oracle."""
    agreement = "not measured" if outcome["agreement"] is None else f"{outcome['agreement']:.2%}"
    return (
        f"rounded weights, held to an error of {format_tolerance(outcome['tolerance'])} and to the oracle's action on "
        f"{outcome['least_agreement']:.0%} of the steps of a shadow replay: {agreement}"
    )


def _score(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def format_number(value: float | None) -> str:
    """Return a number in few characters; ``–`` for none."""
    return "–" if value is None else f"{value:.1e}" if value and not 0.01 <= abs(value) < 1000 else f"{value:.3g}"


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(to_printable(text), _WIDTH, initial_indent="  ", subsequent_indent="    ")


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[1 - width :]
