"""A report, written aside agent by agent and put in place when all is done.

Memory does not grow with the number of agents, and an interrupted check leaves no half report.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import ale_py
import cv2
import numpy as np
from markupsafe import Markup

from convert import __version__
from convert.errors import UnwritableOutput
from convert.signals import hold_signals
from convert.store.local import hold_lock
from runtime_check.check.options import Options
from runtime_check.report.documents import (
    AGREE,
    DISAGREE,
    FORMAT_VERSION,
    UNCHECKED,
    Document,
    combine_verdicts,
    find_reason,
    find_worst,
)
from runtime_check.report.episode_logs import add_folder
from runtime_check.report.page import format_headline, load_templates, name_agent

JSON_NAME, HTML_NAME, LOG_NAME = "check.json", "check.html", "episodes.jsonl"
PAGES_NAME = "agents"
_ASIDE = ".atari-check-"
# So many agents have a row for each backend, plots and pictures on one page. Of more, each has one row; those that do
# not agree come first, with a page of their own, and the others are folded by family and game.
_MOST_ON_ONE_PAGE = 50


class ReportWriter:
    """Collects a report agent by agent, in files aside; `finish` puts it in place.

    A context manager: what is not finished is removed, and so is what a killed run left. Files are staged in the
    report's own folder, which may be where another disk is mounted.
    """

    def __init__(self, directory: Path | None, options: Options | None, total: int = 0) -> None:
        """Prepare a report.

        Args:
            directory: where it goes; None to have the JSON document alone, for `finish` to return.
            options: how the agents are checked; None for a report from proofs, each of which says how.
            total: how many agents are to come, which decides how they are shown.
        """
        self._directory = directory
        self._is_new = directory is not None and not directory.exists()
        self._aside = (directory or Path(tempfile.gettempdir())) / f"{_ASIDE}{secrets.token_hex(8)}"
        self._options = options
        self._counts: dict[str, int] = {}
        self._is_long = total > _MOST_ON_ONE_PAGE
        self._group: tuple[str, list[str]] = ("", [])
        self._stack = ExitStack()
        self._files: dict[str, TextIO] = {}
        self._templates = load_templates()
        self._has_films = False

    def __enter__(self) -> Self:
        """Open the files.

        Raises:
            UnwritableOutput: the folder cannot be made or written.
        """
        with self._writing():
            if self._directory is not None:
                self._directory.mkdir(parents=True, exist_ok=True)
            if self._directory is None:
                self._aside.mkdir(mode=0o700)
            else:
                self._clear_up(self._directory)
            for name in ("documents", "rows", "sections", "groups", LOG_NAME):
                self._files[name] = self._stack.enter_context(_create(self._aside / name))
        return self

    def _clear_up(self, directory: Path) -> None:
        """Make the folder aside, whose lock tells other runs that this one lives, and remove those of killed runs."""
        with hold_lock(directory):
            _remove_left(directory)
            self._aside.mkdir(mode=0o700)
            self._stack.enter_context(hold_lock(self._aside))

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

    def add_agent(self, document: Document, pictures: Mapping[str, Any], log: str) -> None:
        """Add an agent.

        Args:
            document: its part of ``check.json``.
            pictures: its plots and exhibits, see `runtime_check.report.page.illustrate`.
            log: its episodes, see `runtime_check.report.episode_logs`.

        Raises:
            UnwritableOutput: the disk is full, or something like it.
        """
        number = sum(self._counts.values())
        self._counts[document["verdict"]] = self._counts.get(document["verdict"], 0) + 1
        with self._writing():
            self._files[LOG_NAME].write(add_folder(log, document["folder"]))
            text = _dump(document).replace("\n", "\n    ")
            self._files["documents"].write(("," if number else "") + "\n    " + text)
            if self._directory is not None:
                self._add_to_page(document, pictures, number)

    def _add_to_page(self, document: Document, pictures: Mapping[str, Any], number: int) -> None:
        if self._is_long:
            self._add_line(document, pictures, number)
            return
        self._has_films |= bool(pictures.get("films"))
        rows = self._templates.get_template("rows.html")
        self._files["rows"].write(rows.render(agent=document, number=number))
        section = self._templates.get_template("agent.html")
        self._files["sections"].write(section.render(agent=document, number=number, **pictures))

    def _add_line(self, document: Document, pictures: Mapping[str, Any], number: int) -> None:
        agrees, link = document["verdict"] == AGREE, None
        if not agrees:
            link, detail = f"{PAGES_NAME}/{number}.html", self._templates.get_template("detail.html")
            (self._aside / PAGES_NAME).mkdir(exist_ok=True)
            with _create(self._aside / link) as page:
                page.write(detail.render(agent=document, number=number, **pictures))
        worst = find_worst(document)
        line = self._templates.get_template("line.html").render(
            agent=document,
            name=name_agent(document),
            link=link,
            worst=worst,
            outcome=document["backends"].get(worst),
            reason=find_reason(document),
        )
        if not agrees:
            self._files["rows"].write(line)
            return
        group = f"{document['family'] or 'unknown family'} {document['game']}"
        if group != self._group[0]:
            self._end_group()
            self._group = (group, [])
        self._group[1].append(line)

    def _end_group(self) -> None:
        """Write the group of agents that have come; those of one family and game come one after the other."""
        name, lines = self._group
        if lines:
            self._files["groups"].write(json.dumps([name, len(lines), "".join(lines)]) + "\n")

    def finish(self) -> Iterator[str]:
        """Put the report in place, and return ``check.json`` in pieces.

        Raises:
            UnwritableOutput: the disk is full, or something like it.
        """
        with self._writing():
            self._end_group()
            for file in self._files.values():
                file.close()
            self._write_json()
            if self._directory is not None:
                self._write_html()
                with hold_signals(signal.SIGINT, signal.SIGTERM):
                    self._replace_pages()
                    # The document that carries the verdict comes last.
                    for name in (LOG_NAME, HTML_NAME, JSON_NAME):
                        os.replace(self._aside / name, self._directory / name)
        return _read_lines((self._directory or self._aside) / JSON_NAME)

    def _replace_pages(self) -> None:
        """Put the pages of single agents in place of those of an earlier report."""
        new, old = self._aside / PAGES_NAME, (self._directory or self._aside) / PAGES_NAME
        if old.is_dir() and not old.is_symlink():
            os.replace(old, self._aside / "old")
        if new.is_dir():
            os.replace(new, old)

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
            out.writelines(_read_lines(self._aside / "documents"))
            out.write("\n  ]\n}\n")

    def _write_html(self) -> None:
        page = self._templates.get_template("page.html").generate(
            run=self._describe_run(),
            headline=format_headline(self._counts),
            rows=_read_markup(self._aside / "rows"),
            sections=_read_markup(self._aside / "sections"),
            is_long=self._is_long,
            problems=sum(self._counts.values()) - self._counts.get(AGREE, 0),
            groups=_read_groups(self._aside / "groups"),
            log_name=LOG_NAME,
            films=self._has_films,
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
            "options": asdict(options) | {"side_by_side": options.width} if options else None,
            "versions": {
                "atari-convert": __version__,
                "python": platform.python_version(),
                "ale-py": ale_py.__version__,
                "numpy": np.__version__,
                "opencv": cv2.__version__,
            },
            "platform": platform.platform(),
        }


def _remove_left(parent: Path) -> None:
    """Remove what runs left aside that were killed: nobody holds its lock."""
    for path in parent.glob(f"{_ASIDE}*"):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def _create(path: Path) -> TextIO:
    """Open a file to write. The name of a folder need not be UTF-8."""
    return path.open("w", encoding="utf-8", errors="backslashreplace")


def _dump(document: Document) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)


def _read_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from file


def _read_groups(path: Path) -> Iterator[tuple[str, int, Markup]]:
    for line in _read_lines(path):
        name, count, lines = json.loads(line)
        yield name, count, Markup(lines)  # noqa: S704 - rendered, and escaped, above


def _read_markup(path: Path) -> Iterator[Markup]:
    return (Markup(line) for line in _read_lines(path))  # noqa: S704 - these lines were rendered, and escaped, above
