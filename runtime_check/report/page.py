"""The parts of ``check.html``: a page that needs nothing from outside, and whose plots and pictures are inline."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from runtime_check.check.exhibits import Exhibit
from runtime_check.check.results import AgentResult
from runtime_check.report import films, plots
from runtime_check.report.documents import AGREE, DISAGREE, UNCHECKED, Document
from runtime_check.report.terminal import format_bound, format_number, format_protocol, format_returns, format_tolerance


def load_templates() -> jinja2.Environment:
    """Return the templates of the page, its rows and its sections, with what they call."""
    loader = jinja2.PackageLoader("runtime_check.report")
    templates = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.globals |= {
        "colours": plots.COLOURS,
        "colour_of": plots.name_colour,
        "number_of": format_number,
        "format_returns": format_returns,
        "format_tolerance": format_tolerance,
        "format_bound": format_bound,
        "format_options": format_options,
        "format_protocol": format_protocol,
        "name_agent": name_agent,
    }
    return templates


def format_options(options: Mapping[str, Any]) -> str:
    """Return the options of a run in words; those that were left open are left out."""
    return " · ".join(
        f"{name.replace('_', ' ')}: {_format_value(value)}"
        for name, value in options.items()
        if value not in (None, ())
    )


def name_agent(document: Document) -> str:
    """Return what a list calls an agent: game, family, seed and step; its folder where these are not known."""
    who = [document.get(field) for field in ("family", "seed", "step")]
    if document.get("game") is None:
        return str(document["folder"])
    return f"{document['game']} {'/'.join('?' if part is None else str(part) for part in who)}"


def format_headline(counts: Mapping[str, int]) -> str:
    """Return what happened, the worst first: ``1 disagrees, 34 agree, 2 not checked``."""
    words = {DISAGREE: ("disagrees", "disagree"), AGREE: ("agrees", "agree"), UNCHECKED: ("not checked", "not checked")}
    found = [(counts.get(name, 0), *word) for name, word in words.items()]
    return ", ".join(f"{count:,} {one if count == 1 else many}" for count, one, many in found if count) or "no agents"


def _format_value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def illustrate(result: AgentResult) -> dict[str, Any]:
    """Return plots, films and exhibits of a result, as an agent's template takes them and as JSON can hold them."""
    if not result.backends:
        return {}
    return {
        "plots": [asdict(plot) for plot in plots.draw_plots(result)],
        "films": [films.to_json(film, result.agent.action_meanings or ()) for film in result.films],
        "exhibits": [_illustrate_exhibit(exhibit, result.agent.action_meanings or ()) for exhibit in result.exhibits],
    }


def _illustrate_exhibit(exhibit: Exhibit, actions: tuple[str, ...]) -> dict[str, Any]:
    chosen = {name: int(np.argmax(values)) for name, values in exhibit.q_values.items()}
    return {
        "kind": exhibit.kind,
        "mode": exhibit.mode,
        "episode": exhibit.episode,
        "step": exhibit.step,
        "backends": exhibit.backends,
        "frames": [_to_data_url(frame) for frame in exhibit.obs_chw],
        "actions": actions,
        "q_values": exhibit.q_values,
        "chosen": chosen,
    }


def _to_data_url(frame: NDArray[np.uint8]) -> str:
    _, png = cv2.imencode(".png", frame)
    return "data:image/png;base64," + base64.b64encode(png.tobytes()).decode("ascii")
