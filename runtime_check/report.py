"""What was found, as JSON, as a table for the terminal, and as one HTML page.

A report is written aside, agent by agent, and put in place when all is done: memory does not grow with the number
of agents, and an interrupted check leaves no half report.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import secrets
import shutil
import signal
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import ale_py
import cv2
import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from convert import __version__
from convert.console.signals import hold_signals
from convert.errors import UnwritableOutput
from convert.formats.atari_agents import find_family
from runtime_check import plots
from runtime_check.check import Options
from runtime_check.compare import Tolerance
from runtime_check.log_file import LogFile
from runtime_check.replay import EpisodeLog
from runtime_check.results import AgentResult, BackendResult, Exhibit, Returns

FORMAT_VERSION = 1
AGREE, DISAGREE, UNCHECKED = "agree", "disagree", "unchecked"
JSON_NAME, HTML_NAME, LOG_NAME = "check.json", "check.html", "episodes.jsonl"
# Every agent that does not agree gets its plots and pictures; of those that do, the first ones.
_MAX_AGREEING_SECTIONS = 50
_WIDTH = 100

Document = dict[str, Any]


def describe_result(result: AgentResult) -> Document:
    """Return an agent's part of ``check.json``."""
    agent, plan = result.agent, result.plan
    return {
        "folder": str(result.folder),
        "verdict": AGREE if result.agrees else DISAGREE,
        "faults": result.faults,
        "error": None,
        "family": find_family(agent.identity),
        "game": agent.identity.game,
        "seed": agent.identity.seed,
        "step": agent.identity.step,
        "source": {"path": agent.source.path, "sha256": agent.source.sha256},
        "protocol": asdict(plan.protocol),
        "rom_md5": result.rom_md5,
        "actions": list(result.actions),
        "episodes": {"first_seed": plan.seed, "count": plan.episodes, "max_steps": plan.max_steps},
        "tolerance": asdict(result.tolerance),
        "unchecked_targets": list(result.unchecked),
        "backends": {
            name: _describe_backend(outcome, outcome.tolerance(result.tolerance))
            for name, outcome in result.backends.items()
        },
    }


def describe_failure(folder: Path, error: Exception) -> Document:
    """Return the part of ``check.json`` of an agent that could not be checked."""
    return {
        "folder": str(folder),
        "verdict": UNCHECKED,
        "faults": [],
        "error": {"kind": type(error).__name__, "message": str(error)},
        "backends": {},
    }


def _describe_backend(outcome: BackendResult, tolerance: Tolerance) -> Document:
    tally, solo = outcome.tally, outcome.solo
    return {
        "verdict": DISAGREE if outcome.reasons else AGREE,
        "reasons": outcome.reasons,
        "tolerance": asdict(tolerance),
        "least_agreement": outcome.bound.agreement if outcome.bound else None,
        "agreement": tally.agreement,
        "steps": tally.steps + solo.steps,
        "ties": tally.ties,
        "wrong": tally.wrong,
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
        "listed": [asdict(disagreement) for disagreement in tally.listed],
        "runtime": asdict(outcome.description) if outcome.description else None,
    }


def _describe_returns(returns: Returns) -> Document | None:
    if not returns.count:
        return None
    return {"mean": returns.mean, "std": returns.std, "n": returns.count, "first": returns.first}


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return float(value) if np.isfinite(value) else None


def format_agent(document: Document, *, verbose: bool = False) -> str:
    """Return an agent's part of the table, in lines of at most 100 columns."""
    lines = [_shorten(document["folder"], _WIDTH)]
    if document["verdict"] == UNCHECKED:
        return "\n".join([*lines, *_wrap(f"not checked: {document['error']['message']}")])
    episodes, tolerance = document["episodes"], document["tolerance"]
    last = episodes["first_seed"] + episodes["count"] - 1
    seeds = f"seeds {episodes['first_seed']} to {last}" if episodes["count"] > 1 else f"seed {last}"
    lines += _wrap(f"{document['protocol']['name']} protocol, {seeds}, allowed error {format_tolerance(tolerance)}")
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
    for target in document["unchecked_targets"]:
        lines += _wrap(f"{target}: not checked, no backend opens it")
    return "\n".join(lines)


_HEADER = (
    f"  {'backend':<15}{'verdict':<9}{'steps':>8}{'ties':>5}{'wrong':>6}{'max error':>11}{'/allowed':>9}"
    f"{'median':>9}{'margin':>9}{'return':>17}"
)


def _format_row(name: str, outcome: Document) -> str:
    return (
        f"  {name:<15}{outcome['verdict']:<9}{outcome['steps']:>8}{outcome['ties']:>5}{outcome['wrong']:>6}"
        f"{_number(outcome['max_error']):>11}{_number(outcome['max_ratio']):>9}{_number(outcome['median_error']):>9}"
        f"{_number(outcome['smallest_margin']):>9}{format_returns(outcome):>17}"
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


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}" if value and not 0.01 <= abs(value) < 1000 else f"{value:.3g}"


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ")


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[1 - width :]


def combine_verdicts(counts: Mapping[str, int]) -> str:
    """Return the verdict over all agents: one disagreement makes it ``disagree``, else one unchecked ``unchecked``."""
    if counts.get(DISAGREE):
        return DISAGREE
    return UNCHECKED if counts.get(UNCHECKED) else AGREE


class ReportWriter:
    """Collects a report agent by agent, in files aside; `finish` puts it in place.

    A context manager: what is not finished is removed. Files are staged in the report's own folder, which may be
    where another disk is mounted.
    """

    def __init__(self, directory: Path | None, options: Options) -> None:
        """Prepare a report.

        Args:
            directory: where it goes; None to have the JSON document alone, for `finish` to return.
            options: how the agents are checked.
        """
        self._directory = directory
        self._is_new = directory is not None and not directory.exists()
        self._aside = (directory or Path(tempfile.gettempdir())) / f".atari-check-{secrets.token_hex(8)}"
        self._options = options
        self._counts: dict[str, int] = {}
        self._sections = 0
        self._stack = ExitStack()
        self._files: dict[str, TextIO] = {}
        self._log: LogFile
        loader = jinja2.PackageLoader("runtime_check")
        self._templates = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        self._templates.globals |= {
            "colours": plots.COLOURS,
            "colour_of": plots.colour,
            "number_of": _number,
            "format_returns": format_returns,
            "format_tolerance": format_tolerance,
            "format_bound": format_bound,
        }

    def __enter__(self) -> Self:
        """Open the files.

        Raises:
            UnwritableOutput: the folder cannot be made or written.
        """
        with self._writing():
            if self._directory is not None:
                self._directory.mkdir(parents=True, exist_ok=True)
            self._aside.mkdir(mode=0o700)
            for name in ("agents", "rows", "sections"):
                self._files[name] = self._stack.enter_context(_create(self._aside / name))
            self._log = self._stack.enter_context(LogFile(self._aside / LOG_NAME, self._aside / "waiting"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was written aside."""
        with suppress(OSError):  # what cannot be written any more is not wanted any more
            self._stack.close()
        self.discard()

    def discard(self) -> None:
        """Remove what was written aside, and the folder where this run made it and nothing is in it."""
        shutil.rmtree(self._aside, ignore_errors=True)
        if self._directory is not None and self._is_new:
            with suppress(OSError):
                self._directory.rmdir()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many agents have each verdict."""
        return self._counts

    def add_episode(self, folder: Path, backend: str, mode: str, log: EpisodeLog) -> None:
        """Add the log of an episode of the agent that `add_agent` adds next.

        Raises:
            UnwritableOutput: the disk is full, or something like it.
        """
        with self._writing():
            self._log.add(folder, backend, mode, log)

    def add_agent(self, document: Document, result: AgentResult | None) -> None:
        """Add an agent's result, or the document of one that could not be checked.

        Raises:
            UnwritableOutput: the disk is full, or something like it.
        """
        number = sum(self._counts.values())
        self._counts[document["verdict"]] = self._counts.get(document["verdict"], 0) + 1
        with self._writing():
            self._log.finish_agent(document["backends"])
            self._files["agents"].write(("," if number else "") + "\n" + textwrap.indent(_dump(document), "    "))
            if self._directory is not None:
                self._add_to_page(document, result, number)

    def _add_to_page(self, document: Document, result: AgentResult | None, number: int) -> None:
        has_section = document["verdict"] != AGREE or self._sections < _MAX_AGREEING_SECTIONS
        rows = self._templates.get_template("rows.html")
        self._files["rows"].write(rows.render(agent=document, number=number, has_section=has_section))
        if has_section:
            self._sections += 1
            section = self._templates.get_template("agent.html")
            self._files["sections"].write(section.render(agent=document, number=number, **_illustrate(result)))

    def finish(self) -> Iterator[str]:
        """Put the report in place, and return ``check.json`` in pieces.

        Raises:
            UnwritableOutput: the disk is full, or something like it.
        """
        with self._writing():
            for file in self._files.values():
                file.close()
            self._log.close()
            self._write_json()
            if self._directory is not None:
                self._write_html()
                with hold_signals(signal.SIGINT, signal.SIGTERM):
                    # The document that carries the verdict comes last.
                    for name in (LOG_NAME, HTML_NAME, JSON_NAME):
                        os.replace(self._aside / name, self._directory / name)
        return _read_lines((self._directory or self._aside) / JSON_NAME)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Tell an error of the report from those of the agents."""
        try:
            yield
        except OSError as error:
            self.discard()
            place = self._directory or self._aside.parent
            raise UnwritableOutput(
                f"{place}: the report cannot be written ({error}): make room, or name another folder with --report"
            ) from error

    def _write_json(self) -> None:
        head = _dump(self._describe_run())
        with _create(self._aside / JSON_NAME) as out:
            out.write(head[: head.rindex("\n}")] + ',\n  "agents": [')
            out.writelines(_read_lines(self._aside / "agents"))
            out.write("\n  ]\n}\n")

    def _write_html(self) -> None:
        page = self._templates.get_template("page.html").generate(
            run=self._describe_run(),
            rows=_read_markup(self._aside / "rows"),
            sections=_read_markup(self._aside / "sections"),
            hidden=sum(self._counts.values()) - self._sections,
            log_name=LOG_NAME,
        )
        with _create(self._aside / HTML_NAME) as out:
            out.writelines(page)

    def _describe_run(self) -> Document:
        options = self._options
        return {
            "format_version": FORMAT_VERSION,
            "verdict": combine_verdicts(self._counts),
            "counts": {name: self._counts.get(name, 0) for name in (AGREE, DISAGREE, UNCHECKED)},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "options": asdict(options) | {"side_by_side": options.width},
            "versions": {
                "atari-convert": __version__,
                "python": platform.python_version(),
                "ale-py": ale_py.__version__,
                "numpy": np.__version__,
                "opencv": cv2.__version__,
            },
            "platform": platform.platform(),
        }


def _illustrate(result: AgentResult | None) -> dict[str, Any]:
    if result is None or not result.backends:
        return {"plots": [], "exhibits": []}
    return {
        "plots": plots.draw_plots(result),
        "exhibits": [_illustrate_exhibit(exhibit, result.actions) for exhibit in result.exhibits],
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


def _create(path: Path) -> TextIO:
    """Open a file to write. The name of a folder need not be UTF-8."""
    return path.open("w", encoding="utf-8", errors="backslashreplace")


def _dump(document: Document) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)


def _read_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from file


def _read_markup(path: Path) -> Iterator[Markup]:
    return (Markup(line) for line in _read_lines(path))  # noqa: S704 - these lines were rendered, and escaped, above
