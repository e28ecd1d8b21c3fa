"""Identity from paths and options, and agent.json to and from its text."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from importlib.resources import files

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert import agent as agents
from convert.agent import Agent, Artifact, File, HeadSpec, Identity, Record, Tensor
from convert.errors import RecordError
from convert.games import FULL_ACTION_SET, load_games

SCHEMA = json.loads(files("convert").joinpath("agent.schema.json").read_text("utf-8"))

hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
file_names = st.from_regex(r"[a-z_]{1,8}(/[a-z_.]{1,6}[a-z])?", fullmatch=True)
recorded_files = st.builds(File, file_names, st.integers(0, 2**40), hashes)
tensors = st.builds(
    Tensor, st.text(), st.just("uint8"), st.tuples(st.none(), st.integers(1, 99)), st.tuples(st.text(), st.text())
)
versions = st.dictionaries(st.text(), st.text(), max_size=2)
artifacts = st.builds(
    Artifact,
    st.integers(1, 9),
    st.lists(recorded_files, min_size=1, max_size=2).map(tuple),
    st.tuples(tensors),
    st.tuples(tensors),
    versions,
)
support = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=4).map(tuple)
heads = st.builds(HeadSpec, st.just("q"), st.integers(1, 18)) | support.map(
    lambda values: HeadSpec("categorical", 3, len(values), values)
)
identities = st.builds(
    Identity,
    st.none() | st.sampled_from(sorted(agents.FAMILIES)),
    st.none() | st.sampled_from(sorted(load_games())),
    st.none() | st.integers(0, 9),
    st.none() | st.integers(0, 10**9),
)
records = st.builds(
    Record,
    st.builds(Agent, identities, heads, recorded_files, st.none() | st.tuples(st.text())),
    st.dictionaries(st.text(), artifacts, max_size=2),
    versions,
)


@given(records)
def test_a_record_comes_back_from_its_text_and_fits_the_schema(record):
    text = agents.to_json(record)
    assert agents.from_json(text, "agent.json") == record
    jsonschema.validate(json.loads(text), SCHEMA)


@given(identities)
def test_a_complete_identity_comes_back_from_its_path_and_from_its_text(identity):
    if identity.is_complete:
        assert agents.identify(f"/anywhere/{identity.folder}.gz") == identity
        text = f"{identity.family}/{identity.game}/{identity.seed}/{identity.step}"
        assert agents.parse_identity(text) == identity


def test_families_tell_algorithm_and_protocol():
    told = {name: (family.algorithm, family.protocol) for name, family in agents.FAMILIES.items()}
    assert told == {
        "DQN_modern": ("DQN", "modern"),
        "MDQN_modern": ("M-DQN", "modern"),
        "C51_classic": ("C51", "classic"),
        "DQN_classic_adam": ("DQN", "classic"),
    }


@pytest.mark.parametrize(
    "path",
    [
        "model_5.gz",
        "Pong/0/model_5.gz",
        "DQN/Pong/0/model_5.gz",
        "DQN_modern/pong/0/model_5.gz",
        "DQN_modern/Pong/0/model_05.gz",
        "DQN_modern/Pong/0/model_5.gz.part",
        "DQN_modern/Pong/0/x/model_5.gz",
    ],
)
def test_other_paths_tell_no_identity(path):
    assert agents.identify(path) == Identity()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DQN_modern", "is not FAMILY/Game"),
        ("DQN_modern/Pong/zero", "is not FAMILY/Game"),
        ("DQN_modern/Pong/0/1/2", "is not FAMILY/Game"),
        ("DQN_moderm/Pong", "no family 'DQN_moderm' in the release; did you mean DQN_modern?"),
        ("DQN_modern/pong", "no game 'pong' in the release; did you mean Pong?"),
        ("xyz/Pong", "no family 'xyz' in the release; known: DQN_modern, MDQN_modern"),
    ],
)
def test_a_wrong_identity_is_explained(text, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        agents.parse_identity(text)


def test_part_of_an_identity_is_enough():
    assert agents.parse_identity("C51_classic/Breakout/2") == Identity("C51_classic", "Breakout", 2, None)


def test_actions_are_named_by_the_minimal_or_the_full_set():
    assert agents.name_actions("Pong", 6) == ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
    assert agents.name_actions("Pong", 18) == FULL_ACTION_SET
    assert agents.name_actions("Pong", 5) is None
    assert agents.name_actions(None, 6) is None


RECORD = Record(
    Agent(Identity("DQN_modern", "Pong", 0, 5), HeadSpec("q", 6), File("a/model_5.gz", 1, "0" * 64), ("NOOP",)),
    {"onnx": Artifact(1, (File("model.onnx", 3, "1" * 64),), (), (), {})},
    {},
)


def _replaced(*keys: str | int, by: object) -> str:
    document = json.loads(agents.to_json(RECORD))
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = by
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "format_version is None, expected 1"),
        (_replaced("format_version", by=2), "format_version is 2, expected 1"),
        (_replaced("head", by=[]), "head is .*expected dict"),
        (_replaced("head", "kind", by="dueling"), "head kind is 'dueling'"),
        (_replaced("head", "actions", by="6"), "actions is '6', expected int"),
        (_replaced("head", "actions", by=True), "actions is True, expected int"),
        (_replaced("game", by="Chess"), "no game 'Chess'"),
        (_replaced("artifacts", "onnx", "files", 0, "path", by="../../etc/passwd"), "leaves its folder"),
        (_replaced("artifacts", "onnx", "files", 0, "path", by="/etc/passwd"), "leaves its folder"),
        (_replaced("artifacts", "onnx", "files", 0, "sha256", by="A" * 64), "not 64 lower-case hex digits"),
        (agents.to_json(RECORD).replace('"seed"', '"sead"'), "no field 'seed'"),
    ],
)
def test_a_damaged_record_is_refused(text, message):
    with pytest.raises(RecordError, match=message) as caught:
        agents.from_json(text, "x/agent.json")
    assert str(caught.value).startswith("x/agent.json: ")
    assert "convert the agent again" in str(caught.value)


@given(st.data())
def test_a_record_with_any_field_replaced_is_read_or_refused(data):
    junk = data.draw(st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2))
    document = json.loads(agents.to_json(RECORD))
    key = data.draw(st.sampled_from(sorted(document)))
    document[key] = junk
    with contextlib.suppress(RecordError):
        assert agents.from_json(json.dumps(document), "agent.json")


def test_records_are_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECORD.agent.identity.seed = 1
