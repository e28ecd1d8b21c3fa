"""Identity from paths and options, and agent.json to and from its text."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from importlib.resources import files

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.agents.agent import Agent, Artifact, File, Record, Tensor, name_actions
from convert.agents.architecture import STREAMS, Architecture, Conv, Head, Observation, nature_cnn
from convert.agents.games import FULL_ACTION_SET, load_games
from convert.agents.identity import Identity
from convert.agents.record import from_json, to_json
from convert.errors import RecordError
from convert.formats.atari_agents import FAMILIES, find_family, locate, make_identity
from convert.sources import identify, parse_identity, read_record

SCHEMA = json.loads(files("convert.agents").joinpath("agent.schema.json").read_text("utf-8"))

hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
file_names = st.from_regex(r"[a-z_]{1,8}(/[a-z_.]{1,6}[a-z])?", fullmatch=True)
recorded_files = st.builds(File, file_names, st.integers(0, 2**27), hashes)
names = st.from_regex(r"[A-Za-z0-9_]{1,64}", fullmatch=True)
tensors = st.builds(Tensor, names, st.just("uint8"), st.tuples(st.none(), st.integers(1, 99)), st.tuples(names, names))
versions = st.dictionaries(
    st.sampled_from(["atari-convert", "orbax.checkpoint"]), st.from_regex(r"[!-~]{1,64}", fullmatch=True)
)
artifacts = st.builds(
    Artifact,
    st.integers(1, 9),
    st.lists(recorded_files, min_size=1, max_size=2, unique_by=lambda file: file.path).map(tuple),
    st.tuples(tensors),
    st.tuples(tensors),
    versions,
)
support = st.sets(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=4).map(
    lambda values: tuple(sorted(values))
)
streams = st.sampled_from(STREAMS)
heads = st.one_of(
    st.builds(Head, st.just("q"), st.integers(1, 18), st.none(), st.none(), streams),
    st.builds(Head, st.just("categorical"), st.just(3), support, st.none(), streams),
    st.builds(Head, st.just("quantile"), st.just(3), st.none(), st.integers(1, 200), streams),
)
paddings = st.tuples(st.integers(0, 2), st.integers(0, 2))
convs = st.builds(Conv, st.integers(1, 9), st.integers(3, 5), st.integers(1, 3), paddings)
architectures = st.builds(
    Architecture,
    st.builds(Observation, st.integers(1, 4), st.just(84), st.sampled_from([1, 255])),
    st.lists(
        st.builds(Conv, st.integers(1, 9), st.integers(3, 5), st.integers(1, 3), paddings), min_size=1, max_size=2
    ).map(tuple),
    st.lists(st.sampled_from([2, 8, 64]), min_size=1, max_size=2).map(tuple),
    heads,
)
games = st.sampled_from(sorted(load_games()))
words = st.none() | st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
seeds, steps = st.none() | st.integers(0, 9), st.none() | st.integers(0, 10**9)
of_the_release = st.builds(make_identity, st.sampled_from(sorted(FAMILIES)), games, seeds, steps)
identities = of_the_release | st.builds(Identity, words, words, st.none() | games, words, seeds, steps)
records = st.builds(
    Record,
    st.builds(
        lambda identity, network, source: Agent(
            identity, network, source, name_actions(identity.game, network.head.actions)
        ),
        identities,
        architectures,
        recorded_files,
    ),
    st.dictionaries(st.sampled_from(["onnx", "litert-int8"]), artifacts, max_size=1),
    versions,
)


@given(records)
def test_a_record_comes_back_from_its_text_and_fits_the_schema(record):
    text = to_json(record)
    assert from_json(text, "agent.json") == record
    jsonschema.validate(json.loads(text), SCHEMA)


@given(of_the_release)
def test_a_complete_identity_comes_back_from_its_path_and_from_its_text(identity):
    if identity.is_complete:
        assert identify(f"/anywhere/{locate(identity)}") == identity
        text = f"{find_family(identity)}/{identity.game}/{identity.seed}/{identity.step}"
        assert parse_identity(text) == identity


def test_families_tell_algorithm_and_protocol():
    told = {name: (family.algorithm, family.protocol) for name, family in FAMILIES.items()}
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
    assert identify(path) == Identity()


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
        parse_identity(text)


def test_part_of_an_identity_is_enough():
    assert parse_identity("C51_classic/Breakout/2") == make_identity("C51_classic", "Breakout", 2)


def test_actions_are_named_by_the_minimal_or_the_full_set():
    assert name_actions("Pong", 6) == ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
    assert name_actions("Pong", 18) == FULL_ACTION_SET
    assert name_actions("Pong", 5) is None
    assert name_actions(None, 6) is None


TENSORS = (Tensor("observation", "uint8", (None, 84), ("batch", "height")),)
ARTIFACT = Artifact(1, (File("model.onnx", 3, "1" * 64),), TENSORS, TENSORS, {"atari-convert": "0.1.0"})
RECORD = Record(
    Agent(
        make_identity("DQN_modern", "Pong", 0, 5),
        nature_cnn(Head("q", 6)),
        File("DQN_modern/Pong/0/model_5.gz", 1, "0" * 64),
        name_actions("Pong", 6),
    ),
    {"onnx": ARTIFACT},
    {"atari-convert": "0.1.0"},
)
C51 = Record(
    Agent(
        make_identity("C51_classic", "Breakout"),
        nature_cnn(Head("categorical", 4, (-1.0, 0.5, 1.0))),
        File("model_5.gz", 1, "0" * 64),
        name_actions("Breakout", 4),
        File("x/model_4.gz", 2, "2" * 64),
    ),
    {},
    {},
)


def _replaced(*keys: str | int, by: object, record: Record = RECORD) -> str:
    document = json.loads(to_json(record))
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = by
    return json.dumps(document)


HEAD = ("architecture", "head")
FILE = ("artifacts", "onnx", "files", 0)
TENSOR = ("artifacts", "onnx", "inputs", 0)

# What the schema refuses too.
OUTSIDE_OF_THE_SCHEMA = [
    (_replaced("format_version", by=1), "format_version is 1, expected 2"),
    (_replaced("format_version", by=True), "format_version is True, expected 2"),
    (_replaced(*HEAD, by=[]), "head is .*expected an object"),
    (_replaced(*HEAD, "kind", by="dueling"), "head is 'dueling', 'single', expected q, categorical"),
    (_replaced(*HEAD, "actions", by="6"), "actions is '6', expected an integer"),
    (_replaced(*HEAD, "actions", by=True), "actions is True, expected an integer"),
    (_replaced(*HEAD, "actions", by=0), "actions is 0, expected 1 to 18"),
    (_replaced(*HEAD, "actions", by=3_000_000), "actions is 3000000, expected 1 to 18"),
    (_replaced(*HEAD, "atoms", by=51), "atoms is 51, expected None"),
    (_replaced(*HEAD, "support", by=[0, 1]), "a q head has a support if it is categorical"),
    (_replaced(*HEAD, "atoms", by=1_000_000_000, record=C51), "atoms is 1000000000, expected 3"),
    (_replaced(*HEAD, "atoms", by=None, record=C51), "atoms is None, expected 3"),
    (_replaced(*HEAD, "support", by=None, record=C51), "a categorical head has a support"),
    (_replaced(*HEAD, "support", by=[0.0], record=C51), "support has 1 values, expected 2 to 512"),
    (_replaced(*HEAD, "quantiles", by=200), "a q head has .* quantiles if it is quantile"),
    (_replaced(*HEAD, "streams", by="double"), "'double', expected"),
    (_replaced(*HEAD, "support", by=[0, "1"], record=C51), "support holds '1'"),
    (_replaced(*HEAD, "support", by=[0, 1e300, 2e300], record=C51), "a number is outside the range of float32"),
    (_replaced("zoo", by="my zoo"), "zoo is 'my zoo', expected"),
    (_replaced("family", by="DQN_modern"), "unknown field 'family'"),
    (_replaced("protocol", by=4), "protocol is 4, expected a text"),
    (_replaced("algorithm", by="D" * 65), "algorithm is 'DD.*, expected"),
    (_replaced("seed", by=-1), "seed is -1, expected 0 to"),
    (_replaced("step", by=10**15), "step is 1000000000000000, expected 0 to"),
    (_replaced("step", by=5.5), "step is 5.5, expected an integer"),
    (_replaced("action_meanings", by=["NOOP"] * 6), "action_meanings are .*expected the names of 6 different actions"),
    (_replaced("action_meanings", by=[]), "action_meanings are"),
    (_replaced("action_meanings", 0, by="JUMP"), "action_meanings are"),
    (
        _replaced("architecture", "observation", "order", by="newest first"),
        "order is 'newest first', expected 'oldest first'",
    ),
    (_replaced("architecture", "observation", "divided_by", by=127), "scale is 127, expected 255 or 1"),
    (_replaced("architecture", "observation", "frames", by=10**9), "frames is 1000000000, expected 1 to 16"),
    (_replaced("architecture", "convs", by=[]), "convs is .*expected at least one object"),
    (_replaced("architecture", "convs", 0, "kernel", by=0), "kernel is 0, expected 1 to"),
    (_replaced("architecture", "convs", 0, "stride", by=10**6), "stride is 1000000, expected 1 to 8"),
    (_replaced("architecture", "convs", 0, "features", by=10**6), "features is 1000000, expected 1 to"),
    (_replaced("architecture", "convs", 0, "padding", by=[0, 99]), "padding is .*expected less than the kernel, 8"),
    (_replaced("architecture", "hidden", by=[]), "number of hidden layers is 0"),
    (_replaced("architecture", "hidden", by=[True]), "hidden is True, expected an integer"),
    (_replaced("architecture", "hidden", by=[10**6]), "number of hidden units is 1000000"),
    (_replaced("source", "size", by=-1), "size is -1, expected 0 to"),
    (_replaced("source", "size", by=2**40), "size is 1099511627776, expected 0 to"),
    (_replaced("source", "sha256", by="A" * 64), "not 64 lower-case hex digits"),
    (_replaced("notes", by="mine"), "unknown field 'notes'"),
    (_replaced(*HEAD, "dueling", by=True), "unknown field 'dueling'"),
    (_replaced("artifacts", by={"../onnx": {}}), "target is '../onnx', expected"),
    (_replaced("artifacts", by={f"x{number}": {} for number in range(65)}), "lists 65 targets, expected at most 64"),
    (_replaced("artifacts", "onnx", "format_version", by=0), "format_version is 0, expected 1 to"),
    (_replaced("artifacts", "onnx", "files", by=[]), "files is .*expected at least one object"),
    (_replaced("artifacts", "onnx", "inputs", by=[]), "inputs is .*expected at least one object"),
    (_replaced("artifacts", "onnx", "outputs", by=["q_values"]), "outputs is .*expected at least one object"),
    (_replaced(*FILE, "mode", by=0o755), "unknown field 'mode'"),
    *(
        (
            _replaced(*FILE, "path", by=path),
            "path .*(is not a plain relative path|has control characters|is 5000 characters)",
        )
        for path in (
            "",
            "/etc/passwd",
            "../../etc/passwd",
            "a/../b",
            "a//b",
            "a/",
            "./a",
            "a\\b",
            "a\0",
            "\x1b[2J",
            "\u202egz.a",
        )
    ),
    (_replaced(*FILE, "path", by="a" * 5000), "path .* is 5000 characters long"),
    (_replaced(*TENSOR, "name", by="a b"), "name is 'a b', expected"),
    (_replaced(*TENSOR, "dtype", by="u" * 65), "dtype is 'u.*, expected"),
    (_replaced(*TENSOR, "shape", by=[0, 84]), "shape is 0, expected 1 to"),
    (_replaced(*TENSOR, "axes", by=["", "height"]), "axes is '', expected"),
    (_replaced("versions", by={"torch": "1" * 65}), "version of torch is '1.*, expected"),
    (_replaced("versions", by={"torch": "\x1b[2J"}), "version of torch is"),
    (_replaced("versions", by={"": "1"}), "package is '', expected"),
    (_replaced("derived_from", by={"path": "m.gz"}), "no field 'sha256'"),
    (to_json(RECORD).replace('"seed"', '"sead"'), "no field 'seed'"),
]
# What is well-formed by the schema, which cannot say it, or is none of its business.
BEYOND_THE_SCHEMA = [
    ("", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("[]", "format_version is None, expected 2"),
    (" " * 2**20 + to_json(RECORD), "expected at most 1048576"),
    (_replaced("notes", by=[[[[[[[[0]]]]]]]]), "nested deeper than 8 levels"),
    (to_json(RECORD).replace('"step": 5', '"step": NaN'), "not JSON .*NaN"),
    (to_json(C51).replace("0.5", "1e400"), "a number is outside the range of float32"),
    (to_json(RECORD).replace('"step": 5', f'"step": {"9" * 400}'), "a number is outside the range of float32"),
    (to_json(RECORD).replace('"step": 5', f'"step": {"9" * 9999}'), "not JSON .*integer string"),
    (to_json(RECORD).replace('"step": 5', '"step": 5, "step": 6'), "not JSON .*twice"),
    (_replaced("notes", by="\ud800"), "surrogates not allowed"),
    (_replaced("game", by="Chess"), "no game 'Chess'"),
    (_replaced("architecture", "convs", 2, "kernel", by=10), "convolutions leave planes of .* pixels"),
    (_replaced("architecture", "observation", "width", by=42), "width is 42, expected 84"),
    (_replaced("architecture", "convs", 0, "padding", by=[0, 9]), "padding is .*expected less than the kernel, 8"),
    (_replaced("architecture", "hidden", by=[2**14] * 8), "weights, expected at most"),
    (_replaced("rom_id", by="breakout"), "rom_id is 'breakout', expected 'pong'"),
    (_replaced(*HEAD, "atoms", by=2, record=C51), "atoms is 2, expected 3"),
    (_replaced(*HEAD, "support", by=[0, 2, 1], record=C51), "support does not increase"),
    (_replaced(*HEAD, "support", by=[0, 0, 1], record=C51), "support does not increase"),
    (_replaced(*HEAD, "support", by=[0, 0.1, 1], record=C51), "support holds 0.1, which is not a float32 value"),
    (_replaced(*HEAD, "actions", by=5), "action_meanings are .*expected the names of 5 different actions"),
    (_replaced("source", "file", by="other.gz"), "file is 'other.gz', expected 'model_5.gz'"),
    (_replaced("artifacts", "flax", by=json.loads(to_json(RECORD))["artifacts"]["onnx"]), "listed twice"),
    (_replaced(*TENSOR, "axes", by=["batch"]), "has other axes than"),
]


@pytest.mark.parametrize(("text", "message"), OUTSIDE_OF_THE_SCHEMA + BEYOND_THE_SCHEMA)
def test_a_damaged_record_is_refused(text, message):
    with pytest.raises(RecordError, match=message) as caught:
        from_json(text, "x/agent.json")
    assert str(caught.value).startswith("x/agent.json: ")
    assert "convert the agent again" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", [text for text, _ in OUTSIDE_OF_THE_SCHEMA])
def test_the_schema_refuses_it_too(text):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize("record", [RECORD, C51])
def test_layout_and_order_of_a_record_are_free_and_so_is_the_way_to_write_a_number(record):
    document = dict(reversed(json.loads(to_json(record)).items()))
    if record is C51:
        document["architecture"]["head"]["support"] = [-1, 0.5, 1]
    assert from_json(json.dumps(document), "agent.json") == record
    jsonschema.validate(document, SCHEMA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"game": "Boxing", "rom_id": "boxing"},
            "claims to be DQN_modern/Boxing/0/5, but the path of its source says DQN_modern",
        ),
        ({"algorithm": "M-DQN"}, "claims to be MDQN_modern/Pong/0/5, but the path of its source says"),
        ({"protocol": "classic"}, "claims to be DQN_classic_adam/Pong/0/5"),
        ({"algorithm": "C51", "protocol": "classic"}, "has a q head, expected that of C51"),
        ({"algorithm": "C51"}, "has algorithm C51 and protocol modern, expected those of a family"),
        ({"algorithm": None}, "has algorithm None and protocol modern, expected those of a family"),
        ({"zoo": None}, "claims to be ./Pong/0/5, but the path of its source says"),
        ({"seed": 1}, "claims to be DQN_modern/Pong/1/5, but the path of its source says DQN_modern/Pong/0/model_5"),
        ({"step": 6}, "claims to be DQN_modern/Pong/0/6"),
        ({"step": None}, r"claims to be DQN_modern/Pong/0/\?, "),
    ],
)
def test_a_record_that_breaks_the_rules_of_the_release_is_refused(changes, message, tmp_path):
    document = json.loads(to_json(RECORD)) | changes
    document["action_meanings"] = None
    (tmp_path / "agent.json").write_text(json.dumps(document))
    with pytest.raises(RecordError, match=rf"agent\.json: {message}.*: the file is damaged, convert the agent again"):
        read_record(tmp_path)


def test_an_agent_of_another_zoo_keeps_to_no_rules_of_the_release(tmp_path):
    document = json.loads(to_json(RECORD)) | {"zoo": "mine", "algorithm": "PQN", "protocol": "v5", "seed": 7}
    (tmp_path / "agent.json").write_text(json.dumps(document))
    assert read_record(tmp_path).agent.identity == Identity("mine", "PQN", "Pong", "v5", 7, 5)


JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]) | st.just({})


@given(st.data())
def test_a_record_with_anything_replaced_is_refused_or_fits_the_schema(data):
    document = json.loads(to_json(data.draw(st.sampled_from([RECORD, C51]))))
    inner = document
    while True:
        key = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        if not inner[key] or not isinstance(inner[key], dict | list) or data.draw(st.booleans()):
            break
        inner = inner[key]
    inner[key] = data.draw(JUNK)
    with contextlib.suppress(RecordError):
        assert from_json(json.dumps(document), "agent.json")
        jsonschema.validate(document, SCHEMA)


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "huge", "latin-1"])
def test_a_record_that_is_no_small_file_is_refused_at_once(kind, tmp_path):
    path = tmp_path / "agent.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "other").write_text(to_json(RECORD))
        path.symlink_to("other")
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(2**40)
    else:
        path.write_bytes("é".encode("latin-1"))
    with pytest.raises(RecordError, match=r"agent\.json: .*(regular file|symbolic link|expected at most|can't decode)"):
        read_record(tmp_path)


def test_records_are_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECORD.agent.identity.seed = 1
