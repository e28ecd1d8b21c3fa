"""Write what a check found as ``proof.json`` beside ``agent.json``: an in-toto statement of a test result.

The statement holds no times and no paths, so the same check of the same files on the same computer writes the same
bytes. `convert.read_proof` reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ale_py
import cv2
import numpy as np

from convert import __version__
from convert.agents.agent import RECORD_NAME, Record
from convert.errors import CheckError, ProofError
from convert.files.documents import show
from convert.files.hashes import compute_sha256
from convert.proofs import (
    PREDICATE_TYPE,
    PROOF_NAME,
    STATEMENT_TYPE,
    Proof,
    are_intact,
    describe_record,
    list_covered,
    to_json,
)
from convert.sources import read_record
from convert.store.local import hold_lock
from runtime_check.backends import REFERENCE, find_backend, list_backends
from runtime_check.check.options import Options
from runtime_check.check.results import AgentResult
from runtime_check.check.surroundings import find_surroundings
from runtime_check.check.verification import find_unlisted
from runtime_check.protocols import PROTOCOLS
from runtime_check.report.documents import AGREE, DISAGREE, Document, describe_agent, find_problem

_FOUND = ("protocol", "rom_md5", "episodes", "tolerance")
_LONGEST_TEXT = 2000  # characters
_LARGEST_NUMBER = 1e300  # above it, sums of what is read would be infinite
_PART = f".{PROOF_NAME}.part"


def to_statement(result: AgentResult, document: Document, options: Options) -> dict[str, Any]:
    """Return what a check proved, as an in-toto statement (v1) with the predicate test-result (v0.1).

    Args:
        result: of an agent whose backends were run.
        document: its part of ``check.json``.
        options: how it was checked.
    """
    backends = {name: _hide_paths(outcome, result.folder) for name, outcome in document["backends"].items()}
    failed = [name for name, outcome in backends.items() if outcome["reasons"]]
    covered = [target for name in backends if (target := find_backend(name).target)]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [subject for name in backends for subject in _list_subjects(name, result.record)],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "result": "FAILED" if failed else "PASSED",
            "configuration": _describe_configuration(result.record, covered, document, options),
            "passedTests": [name for name in backends if name not in failed],
            "warnedTests": [],
            "failedTests": failed,
            "annotations": {**{name: document[name] for name in _FOUND}, "backends": backends},
        },
    }


def from_proof(folder: str, record: Record, proof: Proof) -> Document:
    """Return an agent's part of ``check.json``, as it was when the proof was written.

    The proof may be a stranger's. What the record and the folder tell is taken from there; the rest has to be what this
    version writes.

    Raises:
        ProofError: the proof is not about the files that are there, or it is not of the form that this version writes.
    """
    again = "run atari-check on it again"
    if not proof.holds:
        raise ProofError(f"{folder}: its {PROOF_NAME} is not about the agent and the files that are there: {again}")
    surroundings = find_surroundings(Path(folder))
    if strangers := [*find_unlisted(Path(folder), record), *surroundings.faults]:
        raise ProofError(f"{folder}: {strangers[0]}; it was not there when the agent was checked: {again}")
    annotations = proof.statement["predicate"].get("annotations")
    parts = annotations if isinstance(annotations, dict) else {}
    covered = list_covered(record, proof.statement)
    failed = bool(proof.failed) or proof.result != "PASSED"
    document = {
        "folder": folder,
        "verdict": DISAGREE if failed else AGREE,
        "faults": [],
        "error": None,
        **describe_agent(record.agent),
        "unchecked_targets": [name for name in record.artifacts if name not in covered],
        "not_judged": list(surroundings.others),
        **{name: parts.get(name) for name in (*_FOUND, "backends")},
    }
    if problem := find_problem(document) or _find_value_problem(parts):
        raise ProofError(f"{folder}: {PROOF_NAME} {problem}: {again}")
    told = tuple(name for name, outcome in document["backends"].items() if outcome["reasons"])
    if told != proof.failed or {*document["backends"]} != {*proof.passed, *proof.failed}:
        raise ProofError(f"{folder}: {PROOF_NAME} contradicts itself: {again}")
    names = {backend.target: backend.name for backend in list_backends()}
    if {*document["backends"]} != {REFERENCE, *(names.get(target) for target in covered)}:
        raise ProofError(f"{folder}: the backends of {PROOF_NAME} are not those of the files that it names: {again}")
    if not _is_known_protocol(document["protocol"], record.agent.identity.protocol):
        raise ProofError(f"{folder}: {PROOF_NAME} has not the protocol that agent.json names: {again}")
    return document


def _is_known_protocol(found: Document, name: str | None) -> bool:
    if name not in PROTOCOLS:
        return False
    expected: Document = json.loads(json.dumps(asdict(PROTOCOLS[name])))
    return found == expected


def _find_value_problem(value: Any) -> str | None:
    """Return whether a part of a statement holds what a terminal, a page or a computation cannot take."""
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            parts += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            parts += part
        elif isinstance(part, str) and not (part.isprintable() and len(part) <= _LONGEST_TEXT):
            return f"holds the text {show(part)}, which is too long or not printable"
        elif isinstance(part, int | float) and not abs(part) < _LARGEST_NUMBER:
            return "holds a number that is too large"
    return None


def list_versions() -> dict[str, str]:
    """Return the versions of what every check runs on; those of runtimes stand with each backend."""
    return {
        "atari-convert": __version__,
        "ale-py": ale_py.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


def publish_proof(folder: Path, record: Record, statement: Mapping[str, Any]) -> None:
    """Put ``proof.json`` in place, if the files in the folder are still those that were checked.

    Conversions of the agent wait meanwhile, and a reader finds the old proof or the new one, whole.

    Raises:
        CheckError: the record or a file is another one by now; nothing was written.
        OSError: the folder cannot be written.
    """
    with hold_lock(folder):
        check_unchanged(folder, record, statement)
        part = folder / _PART
        part.unlink(missing_ok=True)  # of a check that was killed
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(to_json(statement))
            os.replace(part, folder / PROOF_NAME)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def check_unchanged(folder: Path, record: Record, statement: Mapping[str, Any]) -> None:
    """Raise unless an agent's record and the files that a statement is about are as the record says.

    Raises:
        CheckError: they are not.
    """
    covered = list_covered(record, statement)
    is_same = read_record(folder) == record and are_intact(folder, covered)
    if not is_same:
        raise CheckError(f"{folder}: its files or its {RECORD_NAME} changed while they were checked: check it again")


def _list_subjects(backend: str, record: Record) -> list[dict[str, Any]]:
    target = find_backend(backend).target
    files = record.artifacts[target].files if target else ()
    return [
        {"name": file.path, "digest": {"sha256": file.sha256}, "annotations": {"backend": backend}} for file in files
    ]


def _describe_configuration(
    record: Record, covered: Collection[str], document: Document, options: Options
) -> list[dict[str, Any]]:
    how = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(options).items()}
    del how["frames"]  # which change what is shown, not what is proven
    how |= {"side_by_side": options.width, "protocol": document["protocol"], "versions": list_versions()}
    digest = compute_sha256(json.dumps(how, sort_keys=True).encode())
    return [
        {"name": document["source"]["path"], "digest": {"sha256": document["source"]["sha256"]}},
        describe_record(record, covered),
        {"name": f"ROM of {document['game']}", "digest": {"md5": document["rom_md5"]}},
        {"name": "atari-check", "digest": {"sha256": digest}, "annotations": how},
    ]


def _hide_paths(outcome: Document, folder: Path) -> Document:
    return outcome | {"reasons": [reason.replace(f"{folder}{os.sep}", "") for reason in outcome["reasons"]]}
