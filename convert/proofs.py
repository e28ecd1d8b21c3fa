"""What ``atari-check`` proved of an agent: ``proof.json``, which stands beside ``agent.json``.

It is an in-toto statement (v1) with a predicate of type test-result (v0.1): the subjects are the files that were
checked, and the configuration is what they were checked against: the checkpoint, the ROM, how, and what ``agent.json``
says of the agent and of these files. It is no signature: whoever can change an agent's folder can write another one.
Whether it is about the files that are there, their checksums tell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from convert.agents.agent import RECORD_NAME, Artifact, Record
from convert.agents.record import to_json as record_to_json
from convert.errors import ProofError, UnreadableArtefact
from convert.files.disk import read_file
from convert.files.documents import LARGEST_DOCUMENT, read_json
from convert.files.hashes import compute_sha256
from convert.sources import read_record
from convert.store.local import is_intact
from convert.targets import find_target

PROOF_NAME = "proof.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
RESULTS = ("PASSED", "FAILED")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Proof:
    """What a ``proof.json`` says, and whether it is about the files that are there.

    result: ``PASSED`` if every backend acts like the checkpoint, else ``FAILED``.
    passed, failed: the names of the backends.
    holds: whether ``agent.json`` says the same of the agent and of these files as it did then, and the files are there
        with the same sha256. It may list other artefacts too. It does not tell who wrote the statement.
    statement: all of it, as in-toto defines it.
    """

    result: str
    passed: tuple[str, ...]
    failed: tuple[str, ...]
    holds: bool
    statement: Mapping[str, Any]


def to_json(statement: Mapping[str, Any]) -> str:
    """Return the text of ``proof.json``, in ASCII: the same for the same statement."""
    return json.dumps(statement, indent=2, allow_nan=False) + "\n"


def read_proof(folder: str | Path) -> Proof:
    """Read an agent's ``proof.json``, and tell whether it is about the files in the folder.

    Args:
        folder: the agent's folder on this computer, with its ``agent.json``.

    Raises:
        ProofError: there is no proof, or it is no statement of this form.
        RecordError: the folder has no readable ``agent.json``.
    """
    folder = Path(folder)
    path = folder / PROOF_NAME
    record = read_record(folder)
    try:
        data = read_file(path, LARGEST_DOCUMENT)
    except UnreadableArtefact as error:
        raise ProofError(f"{error}: run atari-check on the folder to write one") from error
    try:
        statement = read_json(data)
    except ValueError as error:
        raise ProofError(f"{path}: not JSON ({error}): run atari-check on the folder again") from error
    if problem := _find_problem(statement):
        raise ProofError(f"{path}: {problem}: run atari-check on the folder again")
    predicate = statement["predicate"]
    return Proof(
        predicate["result"],
        tuple(predicate["passedTests"]),
        tuple(predicate["failedTests"]),
        _holds(folder, record, statement),
        statement,
    )


def list_covered(record: Record, statement: Mapping[str, Any]) -> dict[str, Artifact]:
    """Return the artefacts of a record that a statement is about, by target."""
    names = {subject["name"] for subject in statement["subject"]}
    return {
        target: artifact
        for target, artifact in record.artifacts.items()
        if any(file.path in names for file in artifact.files)
    }


def describe_record(record: Record, covered: Collection[str]) -> dict[str, Any]:
    """Return what a statement says of ``agent.json``: a digest of all that it tells of the agent and some artefacts.

    Artefacts that are added later change the file and not the digest.
    """
    artifacts = {target: artifact for target, artifact in record.artifacts.items() if target in covered}
    text = record_to_json(replace(record, artifacts=artifacts, versions={}))
    return {
        "name": RECORD_NAME,
        "digest": {"sha256": compute_sha256(text.encode())},
        "annotations": {"artifacts": sorted(artifacts)},
    }


def are_intact(folder: Path, artifacts: Mapping[str, Artifact]) -> bool:
    """Return whether the files of artefacts, by target, are there as recorded."""
    return all(is_intact(folder, find_target(target), artifact) for target, artifact in artifacts.items())


def _holds(folder: Path, record: Record, statement: Mapping[str, Any]) -> bool:
    source = statement["predicate"]["configuration"][0]["digest"]["sha256"]
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    covered = list_covered(record, statement)
    recorded = {file.path: file.sha256 for artifact in covered.values() for file in artifact.files}
    is_told = describe_record(record, covered) in statement["predicate"]["configuration"]
    is_same = is_told and source == record.agent.source.sha256 and subjects == recorded
    return is_same and are_intact(folder, covered)


def _find_problem(statement: Any) -> str | None:
    """Return why a document is no proof; None if it is one."""
    if not isinstance(statement, dict) or statement.get("_type") != STATEMENT_TYPE:
        return f"no in-toto statement, expected _type {STATEMENT_TYPE}"
    if statement.get("predicateType") != PREDICATE_TYPE:
        return f"another predicate than expected, {PREDICATE_TYPE}"
    predicate, subjects = statement.get("predicate"), statement.get("subject")
    configuration = predicate.get("configuration") if isinstance(predicate, dict) else None
    if not isinstance(predicate, dict) or not _is_filled_list(configuration) or not _is_resource(configuration[0]):
        return "no configuration that begins with the sha256 of the checkpoint"
    if not _is_filled_list(subjects) or not all(map(_is_resource, subjects)):
        return "subjects without name and sha256"
    if len({subject["name"] for subject in subjects}) != len(subjects):
        return "a subject that is named twice"
    if predicate.get("result") not in RESULTS:
        return f"result is none of {', '.join(RESULTS)}"
    if not all(_are_names(predicate.get(field)) for field in ("passedTests", "failedTests")):
        return "passedTests or failedTests is no list of names"
    return None


def _is_filled_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) > 0


def _is_resource(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return False
    digest = value.get("digest")
    sha256 = digest.get("sha256") if isinstance(digest, dict) else None
    return isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
