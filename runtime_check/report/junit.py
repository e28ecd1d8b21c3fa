"""The verdicts as JUnit XML, which CI systems read: a suite is an agent, a case a backend, a failure its reasons."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from runtime_check.report.documents import UNCHECKED, Document

# What XML 1.0 cannot hold, not even escaped.
_UNPRINTABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(suites: Sequence[str]) -> str:
    """Return the document of suites that `to_suite` made."""
    return "\n".join(['<?xml version="1.0" encoding="utf-8"?>', "<testsuites>", *suites, "</testsuites>", ""])


def to_suite(document: Document) -> str:
    """Return the suite of an agent, from its part of ``check.json``."""
    name = document["folder"]
    suite = ElementTree.Element("testsuite", name=_clean(name))
    if document["verdict"] == UNCHECKED:
        case = _add_case(suite, name, "agent")
        _add_text(case, "error", document["error"]["kind"], document["error"]["message"])
    elif document["faults"]:
        _add_text(_add_case(suite, name, "agent"), "failure", "record", "\n".join(document["faults"]))
    for backend, outcome in document["backends"].items():
        case = _add_case(suite, name, backend)
        if outcome["reasons"]:
            _add_text(case, "failure", outcome["verdict"], "\n".join(outcome["reasons"]))
    counts = {kind: len(suite.findall(f"testcase/{kind}")) for kind in ("failure", "error")}
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(counts["failure"]))
    suite.set("errors", str(counts["error"]))
    return ElementTree.tostring(suite, encoding="unicode")


def _add_case(suite: ElementTree.Element, agent: str, backend: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=_clean(agent), name=_clean(backend))


def _add_text(case: ElementTree.Element, tag: str, kind: str, text: Any) -> None:
    element = ElementTree.SubElement(case, tag, type=_clean(kind), message=_clean(text.splitlines()[0] if text else ""))
    element.text = _clean(text)


def _clean(text: str) -> str:
    return _UNPRINTABLE.sub("\ufffd", text)
