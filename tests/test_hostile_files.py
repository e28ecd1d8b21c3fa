"""Files that were made to harm whoever reads them: each is refused in one line, within bounds, and nothing runs."""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import os
import pickle
import re
import shutil
import socket
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import flatbuffers
import h5py
import numpy as np
import onnx
import pytest
import tensorflow as tf
import torch
import zstandard
from ai_edge_litert import schema_py_generated as schema
from builders import list_holding, make_state, save_checkpoint, save_gzip
from examiner import Examiner, Finding
from onnx import helper
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import convert
from convert.agents.network import Network
from convert.errors import UnreadableArtefact
from convert.formats import litert_files
from convert.targets import find_target, import_target, list_targets

pytestmark = pytest.mark.slow

LONGEST_MESSAGE = 600
SLOWEST = 30  # seconds; the machine may be busy
MARKER = Path(tempfile.gettempdir(), "atari-convert-hostile-file-was-here")


class Evil:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {MARKER}",)


@pytest.fixture(scope="module")
def examiner() -> Iterator[Examiner]:
    examiner = Examiner()
    yield examiner
    examiner.close()


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An agent of each kind of head in every target. Not to be changed."""
    out = tmp_path_factory.mktemp("agents")
    for family, atoms in (("DQN_modern", None), ("C51_classic", 5)):
        source = save_checkpoint(out / "release" / family / "Pong/0/model_250000.gz", make_state(3, atoms))
        convert.convert_checkpoint(source, out / family, list_holding(source))
    return {"q": out / "DQN_modern", "c51": out / "C51_classic"}


@pytest.fixture(scope="module")
def answers(agents: dict[str, Path], examiner: Examiner) -> dict[str, list[float]]:
    """What each target of the Q agent answers, as it was written."""
    found = {target.name: examiner.examine(target.name, agents["q"], 60) for target in list_targets()}
    assert {name: finding.message for name, finding in found.items() if finding.error} == {}
    return {name: finding.answer for name, finding in found.items()}


@pytest.fixture(autouse=True)
def _nothing_ran() -> Iterator[None]:
    MARKER.unlink(missing_ok=True)
    yield
    assert not MARKER.exists()


def _check(finding: Finding) -> None:
    assert finding.is_ours, f"{finding.error}: {finding.message[:1000]}"
    assert finding.message.isprintable(), repr(finding.message[:1000])
    assert len(finding.message) <= LONGEST_MESSAGE
    assert finding.seconds < SLOWEST


@dataclass(frozen=True)
class Entry:
    """An entry of an archive. What its local header says may differ from what the directory says of it."""

    name: str
    content: bytes
    local_name: str | None = None
    method: int = 0
    flags: int = 0
    claimed: int | None = None
    extra: bytes = b""


def _zip(
    entries: list[Entry], prefix: bytes = b"", middle: bytes = b"", suffix: bytes = b"", comment: bytes = b""
) -> bytes:
    data, directory = bytearray(prefix), bytearray()
    for entry in entries:
        name, local = entry.name.encode(), (entry.local_name or entry.name).encode()
        stored = entry.content
        if entry.method == 8:
            packer = zlib.compressobj(9, zlib.DEFLATED, -15)
            stored = packer.compress(entry.content) + packer.flush()
        size = len(entry.content) if entry.claimed is None else entry.claimed
        common = struct.pack(
            "<HHHHHIII", 20, entry.flags, entry.method, 0, 33, zlib.crc32(entry.content), len(stored), size
        )
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + common
        directory += struct.pack("<HHHHHII", len(name), len(entry.extra), 0, 0, 0, 0, len(data)) + name + entry.extra
        data += b"PK\x03\x04" + common + struct.pack("<HH", len(local), 0) + local + stored
    start = len(data) + len(middle)
    end = struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(directory), start, len(comment))
    return bytes(data + middle + directory) + b"PK\x05\x06" + end + comment + suffix


def _entries(data: bytes) -> list[Entry]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [Entry(name, archive.read(name)) for name in archive.namelist()]


def _evil_pickle(data: bytes) -> list[Entry]:
    """Return the entries of a torch archive whose pickle wants to run a command."""
    return [Entry(e.name, pickle.dumps(Evil())) if e.name.endswith("data.pkl") else e for e in _entries(data)]


def _case(entry: Entry) -> Entry:
    return Entry(entry.name.swapcase(), entry.content)


MORE, DEFLATED = "two entries named|at most", "is compressed or encrypted|at most"
BEFORE = "before|at most|damaged|not a PyTorch checkpoint"

ZIP_TRICKS: dict[str, tuple[Callable[[bytes], bytes], str | None]] = {
    "names that differ in case": (lambda data: _zip([*_entries(data), _case(_entries(data)[-1])]), MORE),
    "two entries of a name": (lambda data: _zip([*_entries(data), _entries(data)[-1]]), MORE),
    "a second archive after it": (lambda data: data + _zip(_entries(data)[:1]), None),
    "a second archive before it": (lambda data: _zip(_entries(data), prefix=_zip(_entries(data))), BEFORE),
    "a second directory inside": (
        lambda data: _zip(_entries(data), middle=_zip([])[-22:]),
        None,
    ),
    "bytes before it": (lambda data: _zip(_entries(data), prefix=b"#!/bin/sh\n"), BEFORE),
    "bytes after it": (lambda data: _zip(_entries(data), suffix=b"x" * 100), "after|damaged"),
    "a comment": (lambda data: _zip(_entries(data), comment=b"PK\x05\x06" + b"\0" * 18), "after|damaged"),
    "a local name of its own": (
        lambda data: _zip([Entry(e.name, e.content, local_name=e.name.swapcase()) for e in _entries(data)]),
        "differ|no data.pkl|File name in directory",
    ),
    "deflated": (
        lambda data: _zip([Entry(e.name, e.content, method=8) for e in _entries(data)]),
        DEFLATED,
    ),
    "a bomb": (
        lambda data: _zip([*_entries(data), Entry(_entries(data)[0].name + "x", b"\0" * 2**26, method=8)]),
        DEFLATED,
    ),
    "encrypted": (
        lambda data: _zip([Entry(e.name, e.content, flags=1) for e in _entries(data)]),
        DEFLATED,
    ),
    "a claimed size": (
        lambda data: _zip([Entry(e.name, e.content, claimed=2**31) for e in _entries(data)]),
        "more than the file holds",
    ),
    "a size of 64 bits": (
        lambda data: _zip(
            [
                Entry(e.name, e.content, claimed=2**32 - 1, extra=struct.pack("<HHQ", 1, 8, 2**62))
                for e in _entries(data)
            ]
        ),
        "more than the file holds",
    ),
    "a damaged extra field": (
        lambda data: _zip([Entry(e.name, e.content, extra=b"\x01\x00\xff\xff") for e in _entries(data)]),
        "damaged",
    ),
    "a way out": (lambda data: _zip([*_entries(data), Entry("../../x", b"x")]), "has an entry named '../../x'"),
    "a name on two lines": (lambda data: _zip([*_entries(data), Entry("x\nFAKE: all is well", b"x")]), "entry named"),
    "many entries": (lambda _: _zip([Entry(str(i), b"") for i in range(60_000)]), "more than 1000 entries"),
}


@pytest.mark.parametrize("place", ["checkpoint", "keras", "torch/state_dict.pt", "torch/model.pt2"])
@pytest.mark.parametrize("trick", ZIP_TRICKS)
def test_an_archive_with_a_trick(trick, place, agents, answers, examiner, tmp_path):
    change, message = ZIP_TRICKS[trick]
    if place == "checkpoint":
        path = tmp_path / "model.gz"
        raw = gzip.decompress(next((agents["q"] / "checkpoint").rglob("*.gz")).read_bytes())
        save_gzip(path, change(raw))
        finding = examiner.examine("source", path)
    else:
        target, *_ = place.split("/")
        folder = _take(agents["q"], target, tmp_path)
        file = folder / (find_target(target).path if place == target else place)
        file.write_bytes(change(file.read_bytes()))
        finding = examiner.examine(target, folder)
    _check(finding)
    if message is None and finding.error is None:
        assert place == "checkpoint" or finding.answer == answers[target]
    else:
        assert re.search(message or ".", finding.message), finding


def _take(folder: Path, target: str, tmp_path: Path) -> Path:
    """Copy an agent's record and one artefact of it."""
    copy = tmp_path / "agent"
    copy.mkdir()
    shutil.copy(folder / "agent.json", copy)
    path = find_target(target).path
    if (folder / path).is_dir():
        shutil.copytree(folder / path, copy / path)
    else:
        shutil.copy(folder / path, copy / path)
    return copy


PROTO = b"\x80\x04"


def _text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def _wide_text() -> bytes:
    """Return a text whose one emoji makes every other character take four bytes of memory."""
    text = ("\U0001f47e" + 65_000 * "a").encode()
    return b"X" + struct.pack("<I", len(text)) + text


def _storage_of(key: bytes) -> bytes:
    """Return the instructions of a dict with one tensor, whose reference to its storage holds ``key``."""
    return (
        PROTO + b"}" + _text("estimator_state") + b"}" + _text("_AtariNet__head.2.bias")
        + b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + key
        + _text("cpu") + b"K\x03tQ" + b"K\x00K\x03\x85K\x01\x85\x89}tRss."
    )  # fmt: skip


def _shared(depth: int = 60) -> bytes:
    """Return the instructions of a list that holds a list twice, which holds a list twice …"""
    levels = b"".join(b"](" + b"h" + bytes([n]) + b"h" + bytes([n]) + b"e\x94" for n in range(depth))
    return b"]\x94" + levels


def _long(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(data)) + data


def _nested_tuples(depth: int = 60) -> bytes:
    """Return the instructions of a tuple that holds a tuple twice, which holds a tuple twice …"""
    return b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86\x94" for n in range(depth))


def _many_keys(count: int) -> bytes:
    """Return the instructions of a dict whose keys all have the same hash, 0."""
    modulus = 2**61 - 1
    return b"}(" + b"".join(_long(n * modulus) + b"N" for n in range(1, count)) + b"u"


_ARRAY_BEGIN = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01("
_ARRAY_END = (
    b"tcnumpy\ndtype\n" + _text("f4") + b"\x89\x88\x87R(K\x03" + _text("<")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89C\x04abcdtb."
)  # fmt: skip

PICKLES: dict[str, bytes] = {
    "a command": pickle.dumps(Evil()),
    "a command by a stack of names": PROTO + _text("posix") + _text("system") + b"\x93" + _text("true") + b"\x85R.",
    "a command as a class": PROTO + b"(" + _text("true") + b"iposix\nsystem\n.",
    "a command as an object": PROTO + b"(cposix\nsystem\n" + _text("true") + b"o.",
    "an extension code": PROTO + b"\x82\x01.",
    "a memo of nine bytes": PROTO + b"Nr" + struct.pack("<I", 2**28) + b"0N.",
    "the last place of a memo": PROTO + b"Nr" + struct.pack("<I", 2**32 - 1) + b"0N.",
    "a hash that takes for ever": PROTO + b"}" + b")\x94" + _nested_tuples() + b"Ns.",
    "keys of one hash": PROTO + _many_keys(60_000) + b".",
    "a state for a shared object": PROTO + b"ccollections\nOrderedDict\n)R\x94h\x00N" + b"h\x00bh\x00b" * 10 + b".",
    "a state for a list": PROTO + b"]}b.",
    "a shape that is shared lists": _storage_of(_text("0")).replace(b"K\x03\x85K\x01\x85", _shared() + b"K\x01\x85"),
    "a storage that is shared lists": _storage_of(_shared()),
    "a device that is shared lists": _storage_of(_text("0")).replace(_text("cpu"), _shared()),
    "2 ** 60 lists": PROTO + _shared() + b".",
    "a list in itself": PROTO + b"]\x94h\x00a.",
    "a dict in itself": PROTO + b"}\x94" + _text("x") + b"h\x00s.",
    "a call in itself": PROTO + b"ccollections\nOrderedDict\n)R\x94h\x00b.",
    "deep lists": PROTO + b"]" * 500_000 + b"a" * 499_999 + b".",
    "deep tuples": PROTO + b")" + b"\x85" * 1_000_000 + b".",
    "deep calls": PROTO + b")" + b"ccollections\nOrderedDict\n)R\x85" * 50_000 + b".",
    "many marks": PROTO + b"(" * 1_900_000 + b".",
    "many dicts": PROTO + b"}" * 1_900_000 + b".",
    "bytes that are claimed": PROTO + b"\x96" + struct.pack("<Q", 2**40) + b"x.",
    "bytes beyond all": PROTO + b"\x96" + struct.pack("<Q", 2**64 - 1) + b"x.",
    "text that is claimed": PROTO + b"\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "a frame that is claimed": PROTO + b"\x95" + struct.pack("<Q", 2**62) + b"N.",
    "a huge number": PROTO + _long(2 ** (8 * 2**22)) + b".",
    "a huge number as text": PROTO + b"L" + b"9" * 4000 + b"L\n.",
    "a huge key": PROTO + b"}" + _long(2 ** (8 * 2**22)) + b"Ns.",
    "a shape of huge numbers": _storage_of(_text("0")).replace(
        b"K\x03\x85K\x01\x85", b"(" + _long(2 ** (8 * 2**21)) * 8 + b"t(" + b"K\x01" * 8 + b"t"
    ),
    "a negative length": PROTO + b"\x8b\xff\xff\xff\xffN.",
    "an array of huge numbers": PROTO + _ARRAY_BEGIN + _long(2**100) * 20_000 + _ARRAY_END,
    "a dtype of nothing": PROTO + b"cnumpy\ndtype\n)R.",
    "a dtype of a short state": PROTO + b"cnumpy\ndtype\n" + _text("f4") + b"\x85R)b.",
    "an array of objects": PROTO + b"cnumpy\ndtype\n" + _text("O8") + b"\x89\x88\x87R.",
    "a name on two lines": PROTO + _text("torch\nFAKE: all is well") + _text("x" * 200) + b"\x93.",
    "a long name": PROTO + b"ctorch.nn\n" + b"x" * 100_000 + b"\n.",
    "a dict that is copied again and again": PROTO + b"}(" + b"".join(
        _text(str(number)) + b"N" for number in range(50_000)
    ) + b"u\x94(" + b"ccollections\nOrderedDict\nh\0\x85R" * 2000 + b"t.",
    "a dict of 20,000 that is copied 2,000 times": PROTO + b"](}(" + b"".join(
        b"J" + number.to_bytes(4, "little") + b"N" for number in range(20_000)
    ) + b"u\x94" + b"ccollections\nOrderedDict\nh\0\x85R" * 2000 + b"e.",
    "the same pair a million times, again and again": PROTO + b"](" + _text("a") + b"N\x86\x94](" + b"h\0" * 900_000 + (
        b"e\x94" + b"ccollections\nOrderedDict\nh\1\x85R" * 3000 + b"e."
    ),
    "a memo of millions": PROTO + b"N" + b"\x94" * 1_900_000 + b".",
    "a memo of many millions": PROTO + b"N" + b"\x94" * 60_000_000 + b".",
    "texts with a wide character in each": PROTO + b"](" + _wide_text() * 1900 + b"e.",
    "nothing": b"",
    "only a stop": b".",
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_means_harm(name, agents, examiner, tmp_path):
    raw = gzip.decompress(next((agents["q"] / "checkpoint").rglob("*.gz")).read_bytes())
    entries = [
        Entry(e.name, PICKLES[name]) if e.name.endswith("data.pkl") else e
        for e in _entries(raw)
        if len(e.content) < 9000
    ]
    for content in (_zip(entries), PICKLES[name], pickle.dumps(0x1950A86A20F9469CFC6C, 2) + PICKLES[name]):
        path = save_gzip(tmp_path / "model.gz", content)
        for reader in ("source", "oracle"):
            finding = examiner.examine(reader, path)
            _check(finding)
            assert finding.error
            assert "Re-running" not in finding.message
    (tmp_path / "ckpt.0").write_bytes(PICKLES[name])
    _check(examiner.examine("pickle", tmp_path / "ckpt.0"))


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_means_harm_in_a_base_folder_of_dopamine(name, agents, examiner, tmp_path):
    folder = _take(agents["q"], "dopamine", tmp_path)
    params = PICKLES[name].removeprefix(PROTO).removesuffix(b".")
    content = PROTO + b"}(" + _text("training_steps") + b"K\x05" + _text("online_params") + params + b"u."
    (folder / "dopamine/checkpoints/ckpt.0").write_bytes(content)
    finding = examiner.examine("dopamine", folder)
    _check(finding)
    assert finding.error


def _wide_texts(size: int, count: int) -> bytes:
    """Return the instructions of a list of texts, each of ``size`` bytes that take four times as many in memory."""
    text = "\U0001f600".encode() + b"a" * (size - 4)
    return b"](" + (b"X" + struct.pack("<I", size) + text) * count + b"e"


@pytest.mark.parametrize(("size", "count"), [(65_000, 2000), (255, 500_000), (60, 1_900_000)])
def test_texts_of_many_megabytes_take_no_more_memory_than_their_file(size, count, agents, tmp_path):
    examiner = Examiner()  # whose memory no other file has grown
    try:
        folder = _take(agents["q"], "dopamine", tmp_path)
        before = examiner.examine("dopamine", folder).memory
        content = _wide_texts(size, count)
        begin = PROTO + b"}(" + _text("training_steps") + b"K\x05" + _text("online_params")
        (folder / "dopamine/checkpoints/ckpt.0").write_bytes(begin + content + b"u.")
        (tmp_path / "archive").write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + PROTO + content + b".")
        checkpoint = save_gzip(tmp_path / "model.gz", (tmp_path / "archive").read_bytes())
        for reader, path in (("dopamine", folder), ("source", checkpoint)):
            finding = examiner.examine(reader, path)
            _check(finding)
            assert "texts of more than 4194304 characters" in finding.message
            assert finding.memory < before + 3 * len(content) / 2**20  # what is read, and copies of it
    finally:
        examiner.close()


def test_parameters_that_hold_each_other_billions_of_times(agents, examiner, tmp_path):
    levels = b"}\x94"
    for level in range(7):
        pairs = b"".join(_text(str(n)) + b"h" + bytes([level]) for n in range(200))
        levels += b"}(" + pairs + b"u\x94"
    folder = _take(agents["q"], "dopamine", tmp_path)
    content = PROTO + b"}(" + _text("training_steps") + b"K\x05" + _text("online_params")
    (folder / "dopamine/checkpoints/ckpt.0").write_bytes(content + levels + b"u.")
    finding = examiner.examine("dopamine", folder)
    _check(finding)
    assert finding.error


@cache
def _bomb(size: int = 2**30) -> bytes:
    """Return a gzip member of a few MB that inflates to zeros."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(2**24)) for _ in range(size // 2**24)) + packer.flush()


GZIPS: dict[str, Callable[[bytes], bytes]] = {
    "a bomb": lambda _: _bomb(),
    "a bomb that claims to be small": lambda _: _bomb()[:-4] + struct.pack("<I", 7_000_000),
    "a bomb after a checkpoint": lambda data: data + _bomb(),
    "a checkpoint after a bomb": lambda data: _bomb() + data,
    "two checkpoints": lambda data: data * 2,
    "many empty members": lambda data: gzip.compress(b"") * 100_000 + data,
    "bytes after it": lambda data: data + b"x" * 100,
    "a long name": lambda data: data[:3] + b"\x08" + data[4:10] + b"x" * 2**22 + b"\0" + data[10:],
    "a wrong checksum": lambda data: data[:-8] + b"\0\0\0\0" + data[-4:],
    "half of it": lambda data: data[: len(data) // 2],
    "nothing but a header": lambda data: data[:10],
}


@pytest.mark.parametrize("name", GZIPS)
@pytest.mark.parametrize("reader", ["source", "oracle"])
def test_a_gzip_that_means_harm(name, reader, agents, examiner, tmp_path):
    path = tmp_path / "model.gz"
    path.write_bytes(GZIPS[name](next((agents["q"] / "checkpoint").rglob("*.gz")).read_bytes()))
    finding = examiner.examine(reader, path)
    _check(finding)
    assert finding.error or name == "a long name" or reader == "oracle"


def _record(*keys: str, value: Any) -> Callable[[str], str]:
    def change(text: str) -> str:
        document = json.loads(text)
        inner = document
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return json.dumps(document)

    return change


RECORDS: dict[str, Callable[[str], str]] = {
    "actions": _record("architecture", "head", "actions", value=10**9),
    "no actions": _record("architecture", "head", "actions", value=0),
    "negative actions": _record("architecture", "head", "actions", value=-3),
    "actions beyond all": _record("architecture", "head", "actions", value=10**300),
    "atoms without a support": _record("architecture", "head", "atoms", value=10**9),
    "a support without atoms": _record("architecture", "head", "support", value=[0.0] * 1000),
    "a kind without atoms": _record("architecture", "head", "kind", value="categorical"),
    "a huge observation": _record("architecture", "observation", "height", value=2**20),
    "many frames": _record("architecture", "observation", "frames", value=10**9),
    "many convolutions": _record(
        "architecture",
        "convs",
        value=[{"features": 4096, "kernel": 1, "stride": 1, "padding": [0, 0]}] * 10_000,
    ),
    "a convolution that takes for ever": _record(
        "architecture",
        "convs",
        value=[{"features": 64, "kernel": 32, "stride": 1, "padding": [31, 31]}] * 4,
    ),
    "a negative padding": _record("architecture", "convs", 0, "padding", value=[-4, 0]),
    "no stride": _record("architecture", "convs", 0, "stride", value=0),
    "many hidden units": _record("architecture", "hidden", value=[2**30]),
    "many hidden layers": _record("architecture", "hidden", value=[512] * 100_000),
    "a negative step": _record("step", value=-1),
    "a step beyond all": _record("step", value=10**400),
    "a step of many digits": lambda text: text.replace('"step": 250000', '"step": ' + "9" * 100_000),
    "a seed beyond all": _record("seed", value=2**70),
    "a size": _record("source", "size", value=-(10**400)),
    "NaN": lambda text: text.replace('"step": 250000', '"step": NaN'),
    "a key said twice": lambda text: text.replace('"step": 250000', '"step": 1, "step": 250000'),
    "deep lists": lambda text: text.replace('"step": 250000', '"step": ' + "[" * 100_000),
    "a long value": _record("architecture", "head", "kind", value="x" * 500_000),
    "a value on two lines": _record("architecture", "head", "kind", value="x\nFAKE: all is well"),
    "a game on two lines": _record("game", value="x\nFAKE: all is well"),
    "a long key": lambda text: text.replace('"format_version": 2', '"format_version": "' + "x" * 500_000 + '"'),
    "a long list": _record("action_meanings", value=["x" * 1000, 1]),
    "a large file": lambda text: text + " " * 2**28,
    "half of a surrogate pair": lambda text: text.replace('"step": 250000', '"step": "\\ud800"'),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_means_harm(name, agents, examiner, tmp_path):
    folder = _take(agents["q"], "flax", tmp_path)
    record = folder / "agent.json"
    record.write_text(RECORDS[name](record.read_text("utf-8")), "utf-8")
    finding = examiner.examine("record", folder)
    _check(finding)
    assert finding.error == "RecordError", finding


@pytest.mark.parametrize("reader", ["record", "flax", "source", "safetensors", "dopamine"])
@pytest.mark.parametrize("kind", ["link", "fifo", "device", "folder", "socket"])
def test_what_is_no_file_is_refused_at_once(reader, kind, agents, examiner, tmp_path):
    target = "flax" if reader in ("record", "source") else reader
    folder = _take(agents["q"], target, tmp_path)
    path = {
        "record": folder / "agent.json",
        "flax": folder / "params.msgpack",
        "source": tmp_path / "model.gz",
        "safetensors": folder / "huggingface/model.safetensors",
        "dopamine": folder / "dopamine/checkpoints/ckpt.0",
    }[reader]
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        before = Path.cwd()
        os.chdir(path.parent)  # the path of a socket has to be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(before)
    finding = examiner.examine(reader, path if reader == "source" else folder, 20)
    _check(finding)
    assert finding.error, finding
    assert "root:" not in finding.message


CASES: dict[str, tuple[str, str, str | None, Callable[[Path], None]]] = {}


def case(
    target: str, message: str | None, head: str = "q"
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Register how an artefact is changed, and what is said of it; None: it may be taken if it answers as before."""

    def register(change: Callable[[Path], None]) -> Callable[[Path], None]:
        CASES[f"{target}: {change.__name__.replace('_', ' ')}"] = target, head, message, change
        return change

    return register


def _change_entry(path: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    entries = _entries(path.read_bytes())
    assert any(entry.name.endswith(name) for entry in entries), [entry.name for entry in entries]
    path.write_bytes(_zip([Entry(e.name, change(e.content)) if e.name.endswith(name) else e for e in entries]))


def _change_program(folder: Path, change: Callable[[Any], Any]) -> None:
    def edit(content: bytes) -> bytes:
        program = json.loads(content)
        return json.dumps(change(program) or program).encode()

    _change_entry(folder / "torch/model.pt2", "models/model.json", edit)


RUN = f"__import__('os').system('touch {MARKER}')"


@case("torch", None)
def torch_example_inputs_are_a_command(folder: Path) -> None:
    _change_entry(folder / "torch/model.pt2", "sample_inputs/model.pt", lambda _: pickle.dumps(Evil()))


@case("torch", "constant|entries|unexpected")
def torch_constants_are_a_pickle(folder: Path) -> None:
    path = folder / "torch/model.pt2"
    config = {"config": {"c": {"path_name": "constant_0", "is_param": False, "use_pickle": True, "tensor_meta": None}}}
    _change_entry(path, "model_constants_config.json", lambda _: json.dumps(config).encode())
    path.write_bytes(
        _zip([*_entries(path.read_bytes()), Entry("model/data/constants/constant_0", pickle.dumps(Evil()))])
    )


@case("torch", "pickle|weights")
def torch_weights_are_a_pickle(folder: Path) -> None:
    _change_entry(
        folder / "torch/model.pt2",
        "model_weights_config.json",
        lambda content: content.replace(b'"use_pickle": false', b'"use_pickle": true'),
    )


@case("torch", "program")
def torch_sizes_are_code(folder: Path) -> None:
    _change_entry(
        folder / "torch/model.pt2",
        "models/model.json",
        lambda content: content.replace(b"Symbol('", f"({RUN}, Symbol)[1]('".encode()),
    )


@case("torch", "program")
def torch_guards_are_code(folder: Path) -> None:
    _change_program(folder, lambda program: program.update(guards_code=[f"{RUN} is None"]))


@case("torch", "program")
def torch_a_tree_names_a_class(folder: Path) -> None:
    def change(program: Any) -> None:
        call = program["graph_module"]["module_call_graph"][0]["signature"]
        call["in_spec"] = call["in_spec"].replace("builtins.tuple", "os.system")

    _change_program(folder, change)


@case("torch", "program")
def torch_a_tree_has_a_context(folder: Path) -> None:
    def change(program: Any) -> None:
        call = program["graph_module"]["module_call_graph"][0]["signature"]
        call["in_spec"] = call["in_spec"].replace('"context": "[]"', f'"context": {json.dumps(RUN)}')

    _change_program(folder, change)


@case("torch", "program")
def torch_a_custom_object(folder: Path) -> None:
    _change_program(
        folder,
        lambda program: program["graph_module"]["graph"].update(
            custom_obj_values={"x": {"name": "x", "class_fqn": "os.system"}}
        ),
    )


@case("torch", "program")
def torch_an_operator_of_the_system(folder: Path) -> None:
    def change(program: Any) -> None:
        program["graph_module"]["graph"]["nodes"][1]["target"] = "torch.os.system"

    _change_program(folder, change)


@case("torch", "program")
def torch_a_graph_within_an_argument(folder: Path) -> None:
    def change(program: Any) -> None:
        graph = program["graph_module"]["graph"]
        inner = dict(graph, nodes=[dict(graph["nodes"][1], target="torch.ops.aten.from_file.default")])
        graph["nodes"][2]["inputs"].append({"name": "x", "arg": {"as_graph": {"name": "x", "graph": inner}}, "kind": 1})

    _change_program(folder, change)


@case("torch", "program")
def torch_other_strides(folder: Path) -> None:
    _change_entry(
        folder / "torch/model.pt2",
        "models/model.json",
        lambda content: content.replace(b'"as_ints": [4, 4]', b'"as_ints": [4, 5]'),
    )


@case("torch", "program")
def torch_a_huge_observation(folder: Path) -> None:
    _change_entry(
        folder / "torch/model.pt2",
        "models/model.json",
        lambda content: content.replace(b'"as_int": 84', b'"as_int": 16777216'),
    )


@case("torch", "program")
def torch_a_program_that_is_a_list(folder: Path) -> None:
    _change_program(folder, lambda program: [program])


@case("torch", "state_dict.pt")
def torch_many_views_of_one_storage(folder: Path) -> None:
    base = torch.zeros(2**20)
    views = {f"x{n}": base.as_strided((2**10, 2**10), (1, 2**10)) for n in range(1500)}
    torch.save(views, folder / "torch/state_dict.pt")


@case("torch", "state_dict.pt|program")
def torch_a_state_dict_that_runs(folder: Path) -> None:
    path = folder / "torch/state_dict.pt"
    path.write_bytes(_zip(_evil_pickle(path.read_bytes())))


# Keras


def _change_config(folder: Path, change: Callable[[Any], Any]) -> None:
    def edit(content: bytes) -> bytes:
        config = json.loads(content)
        change(config)
        return json.dumps(config).encode()

    _change_entry(folder / "model.keras", "config.json", edit)


def _layer(config: Any, name: str) -> Any:
    return next(layer for layer in config["config"]["layers"] if layer["config"]["name"] == name)


@case("keras", "units|layers|head")
def keras_units(folder: Path) -> None:
    _change_config(folder, lambda config: _layer(config, "head")["config"].update(units=500_000))


@case("keras", "Lambda|layer")
def keras_a_lambda(folder: Path) -> None:
    def change(config: Any) -> None:
        layer = json.loads(json.dumps(_layer(config, "scale")))
        layer.update(class_name="Lambda", module="keras.layers")
        layer["config"] = {"name": "lambda", "function": {"class_name": "__lambda__", "config": {"code": "4wEAAAA="}}}
        config["config"]["layers"].insert(2, layer)

    _change_config(folder, change)


@case("keras", "config|layer|module")
def keras_a_module_of_the_system(folder: Path) -> None:
    _change_config(folder, lambda config: _layer(config, "conv1").update(module="os"))


@case("keras", "config|layer|registered")
def keras_a_registered_name(folder: Path) -> None:
    _change_config(folder, lambda config: _layer(config, "conv1").update(registered_name="builtins>exec"))


@case("keras", "config|layer|model")
def keras_a_model_of_another_class(folder: Path) -> None:
    _change_config(folder, lambda config: config.update(module="os", class_name="system"))


@case("keras", "config|layer")
def keras_other_connections(folder: Path) -> None:
    def change(config: Any) -> None:
        _layer(config, "conv2")["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] = "scale"

    _change_config(folder, change)


@case("keras", "config|layer|dilation")
def keras_a_dilation(folder: Path) -> None:
    _change_config(folder, lambda config: _layer(config, "conv2")["config"].update(dilation_rate=[3, 3]))


@case("keras", "config|layer")
def keras_an_activation_by_a_module(folder: Path) -> None:
    activation = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
    _change_config(folder, lambda config: _layer(config, "conv1")["config"].update(activation=activation))


@case("keras", "compiled for training")
def keras_a_compiled_optimizer(folder: Path) -> None:
    _change_config(
        folder, lambda config: config.update(compile_config={"optimizer": {"module": "os", "class_name": "x"}})
    )


@case("keras", "nested too deeply")
def keras_a_config_that_is_deep(folder: Path) -> None:
    _change_entry(
        folder / "model.keras",
        "config.json",
        lambda content: content.replace(b'"module": "keras.layers"', b'"module": ' + b"[" * 50_000, 1),
    )


@case("keras", "at most")
def keras_many_layers(folder: Path) -> None:
    def change(config: Any) -> None:
        config["config"]["layers"] += [{"class_name": "x\n" * 99, "config": {"name": "x\n" * 99}}] * 3000

    _change_config(folder, change)


def _change_weights(folder: Path, change: Callable[[h5py.File], None]) -> None:
    def edit(content: bytes) -> bytes:
        buffer = io.BytesIO(content)
        with h5py.File(buffer, "r+") as file:
            change(file)
        return buffer.getvalue()

    _change_entry(folder / "model.keras", "model.weights.h5", edit)


HEAD = "layers/dense_1/vars/1"


@case("keras", "weights")
def keras_groups_of_another_version(folder: Path) -> None:
    """Whose names lie in a heap, which may be compressed."""

    def change(file: h5py.File) -> None:
        values = [file[f"layers/dense_1/vars/{index}"][()] for index in range(2)]
        del file["layers/dense_1"]
        properties = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        properties.set_link_creation_order(h5py.h5p.CRT_ORDER_TRACKED)
        h5py.h5g.create(file["layers"].id, b"dense_1", gcpl=properties)
        for index, value in enumerate(values):
            file[f"layers/dense_1/vars/{index}"] = value

    _change_weights(folder, change)


@case("keras", "Keras|weights")
def keras_a_file_of_the_latest_version(folder: Path) -> None:
    def edit(data: bytes) -> bytes:
        buffer = io.BytesIO()
        with h5py.File(io.BytesIO(data)) as old, h5py.File(buffer, "w", libver="latest") as file:
            for name in old:
                old.copy(name, file)
        return buffer.getvalue()

    _change_entry(folder / "model.keras", "model.weights.h5", edit)


@case("keras", "Keras|weights")
def keras_groups_in_a_circle(folder: Path) -> None:
    def edit(data: bytes) -> bytes:
        place = data.index(b"TREE")
        changed = bytearray(data)
        changed[place + 5] = 1  # a node of nodes, the first of which is itself
        changed[place + 32 : place + 40] = struct.pack("<Q", place)
        return bytes(changed)

    _change_entry(folder / "model.keras", "model.weights.h5", edit)


@case("keras", "Keras|weights")
def keras_an_external_link(folder: Path) -> None:
    def change(file: h5py.File) -> None:
        del file[HEAD]
        file[HEAD] = h5py.ExternalLink("/etc/passwd", "/x")

    _change_weights(folder, change)


@case("keras", "weights")
def keras_an_external_link_to_a_group(folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as file:
        file["vars/0"], file["vars/1"] = np.zeros((512, 3), "f4"), np.zeros(3, "f4")

    def change(file: h5py.File) -> None:
        del file["layers/dense_1"]
        file["layers/dense_1"] = h5py.ExternalLink(str(folder / "other.h5"), "/")

    _change_weights(folder, change)


@case("keras", "weights")
def keras_a_soft_link(folder: Path) -> None:
    def change(file: h5py.File) -> None:
        del file[HEAD]
        file[HEAD] = h5py.SoftLink(f"/{HEAD}")

    _change_weights(folder, change)


@case("keras", "weights")
def keras_a_virtual_dataset(folder: Path) -> None:
    def change(file: h5py.File) -> None:
        del file[HEAD]
        layout = h5py.VirtualLayout((3,), "f4")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3,))
        file.create_virtual_dataset(HEAD, layout)

    _change_weights(folder, change)


@case("keras", "weights")
def keras_values_of_another_file(folder: Path) -> None:
    def change(file: h5py.File) -> None:
        del file[HEAD]
        file.create_dataset(HEAD, (3,), "f4", external=[("/etc/passwd", 0, 12)])

    _change_weights(folder, change)


@case("keras", "weights")
def keras_chunks_with_a_filter(folder: Path) -> None:
    def change(file: h5py.File) -> None:
        del file[HEAD]
        file.create_dataset(HEAD, (3,), "f4", chunks=(3,), compression="gzip")

    _change_weights(folder, change)


@case("keras", "weights")
def keras_a_claimed_shape(folder: Path) -> None:
    def change(file: h5py.File) -> None:
        del file[HEAD]
        file.create_dataset(HEAD, (10**10,), "f4", chunks=(1024,))

    _change_weights(folder, change)


@case("keras", "weights")
def keras_values_that_were_never_written(folder: Path) -> None:
    def change(file: h5py.File) -> None:
        del file[HEAD]
        file.create_dataset(HEAD, (3,), "f4", fillvalue=7.0)

    _change_weights(folder, change)


@case("keras", "weights")
def keras_a_dataset_of_objects(folder: Path) -> None:
    def change(file: h5py.File) -> None:
        del file[HEAD]
        file.create_dataset(HEAD, (3,), h5py.string_dtype())

    _change_weights(folder, change)


@case("keras", "weights")
def keras_a_group_in_itself(folder: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["layers/dense_1/vars"]
        file["layers/dense_1/vars"] = file["layers"]

    _change_weights(folder, change)


@case("keras", None)
def keras_weights_after_a_block_of_the_user(folder: Path) -> None:
    _change_entry(
        folder / "model.keras", "model.weights.h5", lambda content: b"#!/bin/sh\n".ljust(512, b"\0") + content
    )


# ONNX


def _change_onnx(folder: Path, change: Callable[[Any], None]) -> None:
    model = onnx.load(folder / "model.onnx")
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


@case("onnx", "graph")
def onnx_a_dropout(folder: Path) -> None:
    _change_onnx(folder, lambda model: model.graph.node.insert(9, helper.make_node("Dropout", ["features"], ["x"])))


@case("onnx", "convolution 1 is")
def onnx_weights_of_another_file(folder: Path) -> None:
    def change(model: Any) -> None:
        tensor = model.graph.initializer[1]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/passwd")

    _change_onnx(folder, change)


@case("onnx", "graph")
def onnx_a_function(folder: Path) -> None:
    def change(model: Any) -> None:
        node = helper.make_node("Relu", ["x"], ["y"])
        model.functions.append(helper.make_function("x", "Relu", ["x"], ["y"], [node], model.opset_import))

    _change_onnx(folder, change)


@case("onnx", "graph")
def onnx_a_branch(folder: Path) -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "x", [], [])
    _change_onnx(
        folder,
        lambda model: model.graph.node.append(
            helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner)
        ),
    )


@case("onnx", "graph")
def onnx_other_metadata(folder: Path) -> None:
    _change_onnx(folder, lambda model: model.metadata_props.add(key="game", value="Pong\nFAKE: all is well"))


@case("onnx", "graph|actions|Nature")
def onnx_a_huge_padding(folder: Path) -> None:
    def change(model: Any) -> None:
        for attribute in next(node for node in model.graph.node if node.op_type == "Conv").attribute:
            if attribute.name == "pads":
                attribute.ints[:] = [2**20] * 4

    _change_onnx(folder, change)


@case("onnx", "graph|actions|Nature")
def onnx_other_actions(folder: Path) -> None:
    def change(model: Any) -> None:
        for tensor in model.graph.initializer:
            if tensor.name.startswith("head."):
                tensor.dims[0] = 1
                tensor.raw_data = tensor.raw_data[: 2048 if tensor.name.endswith("kernel") else 4]
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1

    _change_onnx(folder, change)


@case("onnx", "ONNX|graph")
def onnx_millions_of_empty_tensors(folder: Path) -> None:
    _write_onnx_graph(folder, b"\x2a\x00" * 3_300_000)  # GraphProto.initializer


@case("onnx", "ONNX|graph")
def onnx_millions_of_empty_nodes(folder: Path) -> None:
    _write_onnx_graph(folder, b"\x0a\x00" * 3_300_000)  # GraphProto.node


@case("onnx", "ONNX|graph")
def onnx_millions_of_unknown_fields(folder: Path) -> None:
    _write_onnx_graph(folder, b"\xa0\x3e\x00" * 2_000_000)


@case("onnx", "ONNX|graph")
def onnx_millions_of_sizes(folder: Path) -> None:
    tensor = b"\x08" * 1 + b"\x01" + b"\x08\x01" * 3_000_000  # TensorProto.dims
    _write_onnx_graph(folder, b"\x2a" + _varint(len(tensor)) + tensor)


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def _write_onnx_graph(folder: Path, graph: bytes) -> None:
    (folder / "model.onnx").write_bytes(b"\x08\x08\x3a" + _varint(len(graph)) + graph)


# SavedModel


def _change_graph(folder: Path, change: Callable[[Any], None]) -> None:
    path = folder / "saved_model/saved_model.pb"
    graph = SavedModel.FromString(path.read_bytes())
    change(graph.meta_graphs[0])
    path.write_bytes(graph.SerializeToString())


@case("tensorflow", "operation ReadFile")
def tensorflow_a_file_is_read(folder: Path) -> None:
    _change_graph(folder, lambda graph: graph.graph_def.node.add(name="x", op="ReadFile"))


@case("tensorflow", "operation WriteFile")
def tensorflow_a_function_writes_a_file(folder: Path) -> None:
    _change_graph(folder, lambda graph: graph.graph_def.library.function[0].node_def.add(name="x", op="WriteFile"))


@case("tensorflow", "operation PyFunc")
def tensorflow_a_function_calls_python(folder: Path) -> None:
    _change_graph(folder, lambda graph: graph.graph_def.library.function[0].node_def.add(name="x", op="PyFunc"))


@case("tensorflow", "its graph")
def tensorflow_an_asset(folder: Path) -> None:
    _change_graph(folder, lambda graph: graph.asset_file_def.add(filename="/etc/passwd"))


@case("tensorflow", "unexpected assets")
def tensorflow_a_file_more(folder: Path) -> None:
    (folder / "saved_model/assets").mkdir()
    (folder / "saved_model/assets/x").write_text("x")


@case("tensorflow", "its graph")
def tensorflow_an_operation_on_two_lines(folder: Path) -> None:
    _change_graph(folder, lambda graph: graph.graph_def.node.add(name="x", op="x\nFAKE" * 99))


@case("tensorflow", "its graph")
def tensorflow_a_version_on_two_lines(folder: Path) -> None:
    def change(graph: Any) -> None:
        graph.meta_info_def.tensorflow_version = "x\nFAKE" * 99
        graph.graph_def.node.add(name="x", op="NoOp")

    _change_graph(folder, change)


@case("tensorflow", "variables")
def tensorflow_variables_of_other_shapes(folder: Path) -> None:
    prefix = str(folder / "saved_model/variables/variables")
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=["x"], shape_and_slices=[""], tensors=[tf.zeros(1_500_000)])


@case("tensorflow", "variables|has .* bytes")
def tensorflow_an_index_with_more(folder: Path) -> None:
    with (folder / "saved_model/variables/variables.index").open("ab") as file:
        file.write(b"x" * 1000)


# LiteRT


def _change_litert(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    path = folder / name
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    change(model)
    builder = flatbuffers.Builder(2**23)
    builder.Finish(model.Pack(builder), b"TFL3")
    data = bytes(builder.Output())
    with contextlib.suppress(ValueError, KeyError):
        # A file that is not as ours are written would be refused for that alone.
        model, builder = litert_files._read_model(data), flatbuffers.Builder(2**23)
        builder.Finish(model.Pack(builder), b"TFL3")
        data = bytes(builder.Output())
    path.write_bytes(data)


def _operator_of(model: Any, name: str) -> Any:
    code = getattr(schema.BuiltinOperator, name)
    numbers = [i for i, c in enumerate(model.operatorCodes) if max(c.builtinCode, c.deprecatedBuiltinCode) == code]
    return next(op for op in model.subgraphs[0].operators if op.opcodeIndex in numbers)


def _litert(change: Callable[[Any], None], message: str | None = "LiteRT", target: str = "litert") -> None:
    def edit(folder: Path) -> None:
        _change_litert(folder, find_target(target).path, change)

    edit.__name__ = change.__name__
    case(target, message)(edit)


def litert_a_custom_operator(model: Any) -> None:
    code = model.operatorCodes[0]
    code.customCode, code.builtinCode, code.deprecatedBuiltinCode = "FlexReadFile", 32, 32


def litert_a_huge_observation(model: Any) -> None:
    model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].shape = [2**30, 84, 84, 4]


def litert_a_huge_batch(model: Any) -> None:
    for tensor in model.subgraphs[0].tensors:
        if tensor.shapeSignature is not None and len(tensor.shapeSignature) and tensor.shapeSignature[0] == -1:
            tensor.shapeSignature = [2**30, *tensor.shapeSignature[1:]]


def litert_two_graphs(model: Any) -> None:
    model.subgraphs.append(model.subgraphs[0])


def litert_an_operator_of_its_own_output(model: Any) -> None:
    operator = _operator_of(model, "CONV_2D")
    operator.outputs = [operator.inputs[0]]


def litert_a_stride_of_zero(model: Any) -> None:
    _operator_of(model, "CONV_2D").builtinOptions.strideH = 0


def litert_a_dilation(model: Any) -> None:
    _operator_of(model, "CONV_2D").builtinOptions.dilationHFactor = 2**31 - 1


def litert_a_negative_stride(model: Any) -> None:
    _operator_of(model, "CONV_2D").builtinOptions.strideW = -4


def litert_another_activation(model: Any) -> None:
    _operator_of(model, "CONV_2D").builtinOptions.fusedActivationFunction = 3


def litert_no_options(model: Any) -> None:
    operator = _operator_of(model, "CONV_2D")
    operator.builtinOptionsType, operator.builtinOptions = 0, None


def _shape_constant(model: Any) -> Any:
    index = _operator_of(model, "RESHAPE").inputs[1]
    return model.buffers[model.subgraphs[0].tensors[index].buffer]


def litert_a_reshape_to_nothing(model: Any) -> None:
    _shape_constant(model).data = np.frombuffer(struct.pack("<ii", -1, 0), np.uint8)


def litert_a_reshape_to_much(model: Any) -> None:
    _shape_constant(model).data = np.frombuffer(struct.pack("<ii", 2**30, 2**30), np.uint8)


def litert_two_free_sizes(model: Any) -> None:
    _shape_constant(model).data = np.frombuffer(struct.pack("<ii", -1, -1), np.uint8)


def litert_a_scalar(model: Any) -> None:
    index = _operator_of(model, "MUL").inputs[1]
    model.subgraphs[0].tensors[index].shape = []


def litert_a_kernel_of_other_axes(model: Any) -> None:
    index = _operator_of(model, "CONV_2D").inputs[1]
    model.subgraphs[0].tensors[index].shape = [64, 8, 8, 2]


def litert_a_kernel_of_integers(model: Any) -> None:
    index = _operator_of(model, "FULLY_CONNECTED").inputs[1]
    model.subgraphs[0].tensors[index].type = schema.TensorType.INT32


def litert_a_shuffled_kernel(model: Any) -> None:
    _operator_of(model, "FULLY_CONNECTED").builtinOptions.weightsFormat = 1


def litert_outputs_as_integers(model: Any) -> None:
    index = _operator_of(model, "CONV_2D").outputs[0]
    model.subgraphs[0].tensors[index].type = schema.TensorType.INT8


def litert_a_long_name(model: Any) -> None:
    model.subgraphs[0].tensors[0].name = "x\n" * 100_000


def litert_no_tensors(model: Any) -> None:
    model.subgraphs[0].tensors = []


def litert_a_variable(model: Any) -> None:
    model.subgraphs[0].tensors[3].isVariable = True


def litert_rounding_in_float32(model: Any) -> None:
    rounding = schema.QuantizationParametersT()
    rounding.scale, rounding.zeroPoint, rounding.quantizedDimension = [0.5], [2**40], 0
    for tensor in model.subgraphs[0].tensors:
        tensor.quantization = rounding


def _add_tensor(model: Any, like: int, kind: int, content: bytes | None = None) -> int:
    """Add a tensor of another's shape, and return its index."""
    graph, buffer = model.subgraphs[0], schema.BufferT()
    buffer.data = content
    model.buffers.append(buffer)
    tensor = copy.copy(graph.tensors[like])
    tensor.name, tensor.type, tensor.buffer, tensor.quantization = b"added", kind, len(model.buffers) - 1, None
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _make_operator(model: Any, name: str, taken: int, given: int) -> Any:
    code, operator = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    model.operatorCodes.append(code)
    operator.opcodeIndex, operator.inputs, operator.outputs = len(model.operatorCodes) - 1, [taken], [given]
    return operator


def litert_pixels_that_are_clipped(model: Any) -> None:
    """Exact for the pixels that a game shows, and wrong for the brightest."""
    graph = model.subgraphs[0]
    pixels = graph.operators[0].outputs[0]
    rounded = _add_tensor(model, pixels, schema.TensorType.INT8)
    clipped = _add_tensor(model, pixels, schema.TensorType.FLOAT32)
    rounding = schema.QuantizationParametersT()
    rounding.scale, rounding.zeroPoint, rounding.quantizedDimension = [1.0], [127 - 240], 0
    graph.tensors[rounded].quantization = rounding
    graph.operators[1].inputs = [clipped, *list(graph.operators[1].inputs)[1:]]
    graph.operators[1:1] = [
        _make_operator(model, "QUANTIZE", pixels, rounded),
        _make_operator(model, "DEQUANTIZE", rounded, clipped),
    ]


def litert_pixels_divided_by_another_number(model: Any) -> None:
    scale = model.subgraphs[0].tensors[_operator_of(model, "MUL").inputs[1]]
    model.buffers[scale.buffer].data = np.float32(2 / 255).tobytes()


def litert_values_that_nothing_uses(model: Any) -> None:
    _add_tensor(model, 3, schema.TensorType.INT8, b"<script>" * 1000)


def litert_weights_in_the_buffer_of_none(model: Any) -> None:
    kernel = model.subgraphs[0].tensors[_operator_of(model, "FULLY_CONNECTED").inputs[1]]
    model.buffers[0].data, kernel.buffer = model.buffers[kernel.buffer].data, 0


def litert_a_buffer_that_is_not_there(model: Any) -> None:
    model.subgraphs[0].tensors[_operator_of(model, "CONV_2D").outputs[0]].buffer = 16711704


def litert_a_signature_without_a_name(model: Any) -> None:
    model.signatureDefs[0].signatureKey = ""


def litert_an_output_that_nothing_writes(model: Any) -> None:
    graph = model.subgraphs[0]
    index = _add_tensor(model, graph.outputs[0], schema.TensorType.FLOAT32)
    graph.outputs = [index]
    model.signatureDefs[0].outputs[0].tensorIndex = index


for _change in [value for name, value in list(globals().items()) if name.startswith("litert_") and callable(value)]:
    _litert(_change, None if _change in (litert_a_scalar, litert_a_variable) else "LiteRT")


def _rounding(value: float, zero: int, axis: int = 0) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            rounding = tensor.quantization
            if rounding is not None and rounding.scale is not None and len(rounding.scale):
                rounding.scale = [value] * len(rounding.scale)
                rounding.zeroPoint = [zero] * len(rounding.scale)
                rounding.quantizedDimension = axis

    change.__name__ = f"litert_int8_rounded_by_{value}_from_{zero}_along_{axis}"
    return change


for _change in (
    *(_rounding(0.0, 0), _rounding(-1.0, 0), _rounding(float("nan"), 0), _rounding(1e-45, 0), _rounding(3e38, 0)),
    *(
        _rounding(0.1, 2**62),
        _rounding(0.1, -(2**63)),
        _rounding(0.1, 300),
        _rounding(0.1, 0, 3),
        _rounding(0.1, 0, -7),
    ),
):
    _litert(_change, "LiteRT", "litert-int8")


@pytest.mark.parametrize("target", ["keras", "nnx", "onnx", "safetensors", "tensorflow", "torch", "litert"])
@pytest.mark.parametrize("value", [-100.0, np.nan, np.inf])
def test_a_support_that_does_not_increase_is_refused(target, value, agents, tmp_path):
    """It is part of these files; the record's is another."""
    folder = _take(agents["c51"], target, tmp_path)
    module, path, agent = import_target(target), folder / find_target(target).path, convert.read_record(folder).agent
    network = module.read(path, agent)
    support = network.arrays["head.support"].copy()
    support[2] = value
    arrays = {**network.arrays, "head.support": support}
    if target != "litert":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        module.write(Network(network.architecture, arrays), agent, path)
    else:
        data = path.read_bytes()
        assert network.arrays["head.support"].tobytes() in data
        path.write_bytes(data.replace(network.arrays["head.support"].tobytes(), support.tobytes()))
    with pytest.raises(UnreadableArtefact, match=re.escape(str(path)) + ".*(does not increase|not a|weights)"):
        module.read(path, agent)


def litert_int8_a_bias_of_other_steps(model: Any) -> None:
    """Which the interpreter passes over: the integers alone count."""
    graph = model.subgraphs[0]
    bias = graph.tensors[_operator_of(model, "CONV_2D").inputs[2]]
    bias.quantization.scale = [each * 1e6 for each in bias.quantization.scale]
    model.buffers[bias.buffer].data = bytes(len(model.buffers[bias.buffer].data))


_litert(litert_int8_a_bias_of_other_steps, "LiteRT", "litert-int8")


@case("litert", "LiteRT")
def litert_a_buffer_that_nothing_uses(folder: Path) -> None:
    path = folder / "model.tflite"
    model, builder = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0), flatbuffers.Builder(2**23)
    buffer = schema.BufferT()
    buffer.data = b"<script>" * 1000
    model.buffers.append(buffer)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


@case("litert", "LiteRT")
def litert_hundreds_of_buffers_in_one_place(folder: Path) -> None:
    builder = flatbuffers.Builder(2**23)
    place = builder.CreateByteVector(bytes(6_000_000))
    buffers = []
    for _ in range(200):
        schema.BufferStart(builder)
        schema.BufferAddData(builder, place)
        buffers.append(schema.BufferEnd(builder))
    graph = schema.SubGraphT().Pack(builder)
    schema.ModelStartBuffersVector(builder, len(buffers))
    for buffer in buffers:
        builder.PrependUOffsetTRelative(buffer)
    vector = builder.EndVector()
    schema.ModelStartSubgraphsVector(builder, 1)
    builder.PrependUOffsetTRelative(graph)
    graphs = builder.EndVector()
    schema.ModelStart(builder)
    schema.ModelAddBuffers(builder, vector)
    schema.ModelAddSubgraphs(builder, graphs)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    (folder / "model.tflite").write_bytes(bytes(builder.Output()))


# Orbax and NNX

BIAS = "params.Dense_0.bias"


def _change_zarray(folder: Path, **changes: Any) -> None:
    path = folder / "orbax" / BIAS / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@case("orbax", "orbax")
def orbax_a_shape(folder: Path) -> None:
    _change_zarray(folder, shape=[10**9], chunks=[10**9])


@case("orbax", "orbax")
def orbax_a_filter(folder: Path) -> None:
    _change_zarray(folder, filters=[{"id": "pickle"}])


@case("orbax", "orbax")
def orbax_a_compressor_of_pickles(folder: Path) -> None:
    _change_zarray(folder, compressor={"id": "pickle"})


@case("orbax", "orbax")
def orbax_a_compressor_that_is_text(folder: Path) -> None:
    _change_zarray(folder, compressor="zstd")


@case("orbax", "orbax")
def orbax_an_array_that_is_a_list(folder: Path) -> None:
    (folder / "orbax" / BIAS / ".zarray").write_text("[]")


@case("orbax", "orbax")
def orbax_a_fill_value(folder: Path) -> None:
    _change_zarray(folder, fill_value=7.0)
    (folder / "orbax" / BIAS / "0").unlink()


@case("orbax", "orbax")
def orbax_a_missing_chunk(folder: Path) -> None:
    (folder / "orbax" / BIAS / "0").unlink()


@case("orbax", "orbax")
def orbax_a_bomb(folder: Path) -> None:
    (folder / "orbax" / BIAS / "0").write_bytes(zstandard.ZstdCompressor().compress(bytes(2**30)))


@case("orbax", "orbax")
def orbax_a_bomb_of_many_frames(folder: Path) -> None:
    frame = zstandard.ZstdCompressor().compress(b"")
    (folder / "orbax" / BIAS / "0").write_bytes(frame * 100_000)


@case("orbax", "orbax")
def orbax_a_huge_window(folder: Path) -> None:
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + b"\x01\x00\x00"
    (folder / "orbax" / BIAS / "0").write_bytes(frame)


@case("orbax", "link")
def orbax_a_link(folder: Path) -> None:
    path = folder / "orbax" / BIAS / "0"
    path.unlink()
    path.symlink_to("/etc/passwd")


@case("orbax", "link")
def orbax_a_linked_folder(folder: Path) -> None:
    path = folder / "orbax" / BIAS
    shutil.move(path, folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")


@case("orbax", "orbax")
def orbax_a_database(folder: Path) -> None:
    (folder / "orbax/manifest.ocdbt").write_bytes(b"x")


@case("orbax", "folders below each other|unexpected")
def orbax_deep_folders(folder: Path) -> None:
    folder.joinpath("orbax", *["x"] * 100).mkdir(parents=True)


@case("orbax", "files")
def orbax_many_files(folder: Path) -> None:
    for number in range(2000):
        (folder / "orbax" / f"{number}\n").touch()


@case("orbax", "_METADATA|orbax")
def orbax_a_handler_of_another_module(folder: Path) -> None:
    path = folder / "orbax/_CHECKPOINT_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"item_handlers": "os.system"}))


@case("orbax", "_METADATA|orbax")
def orbax_a_tree_of_other_names(folder: Path) -> None:
    path = folder / "orbax/_METADATA"
    path.write_text(path.read_text().replace("Dense_0", "Dense_9"))


@case("orbax", "_METADATA|orbax")
def orbax_a_tree_that_is_no_json(folder: Path) -> None:
    (folder / "orbax/_METADATA").write_bytes(b"\xff" * 1000)


@case("nnx", "orbax|nnx")
def nnx_a_shape(folder: Path) -> None:
    path = folder / "nnx/head.bias/.zarray"
    path.write_text(path.read_text().replace("3", "1000000000"))


# msgpack


@case("flax", "Flax")
def flax_deep_maps(folder: Path) -> None:
    (folder / "params.msgpack").write_bytes(b"\x81\xa1x" * 2_000_000)


@case("flax", "Flax|parameters of this agent")
def flax_many_maps(folder: Path) -> None:
    inner = b"\x8f" + b"".join(bytes([0xA1, 97 + n]) + b"\x80" for n in range(15))
    middle = b"\x8f" + b"".join(bytes([0xA1, 97 + n]) + inner for n in range(15))
    outer = b"\x8f" + b"".join(bytes([0xA1, 97 + n]) + middle for n in range(15))
    more = b"\x8f" + b"".join(bytes([0xA1, 97 + n]) + outer for n in range(15))
    (folder / "params.msgpack").write_bytes(b"\x8f" + b"".join(bytes([0xA1, 97 + n]) + more for n in range(15)))


@case("flax", "64 dicts")
def flax_maps_within_the_size_of_a_wide_network(folder: Path) -> None:
    """Write millions of maps within each other, which the file of a network of 4096 hidden units has room for."""
    document = json.loads((folder / "agent.json").read_text())
    document["architecture"]["hidden"] = [4096]
    (folder / "agent.json").write_text(json.dumps(document))
    level = b"".join(b"\xa1" + letter + b"\x80" for letter in (b"a", b"b", b"c"))
    level = b"\x83" + level
    while len(level) < 13_000_000:
        level = b"\x83" + b"".join(b"\xa1" + letter + level for letter in (b"a", b"b", b"c"))
    (folder / "params.msgpack").write_bytes(level)


@case("flax", "Flax")
def flax_a_claimed_map(folder: Path) -> None:
    (folder / "params.msgpack").write_bytes(b"\xdf\xff\xff\xff\xff")


@case("flax", "Flax")
def flax_millions_of_small_maps(folder: Path) -> None:
    (folder / "params.msgpack").write_bytes(b"\x81\xa1x" * 3 + b"\x8f" + b"\xa1y\x81\xa1x\xc0" * 400_000)


@case("flax", "Flax")
def flax_maps_within_maps(folder: Path) -> None:
    level = b"\xa1z\xc0"
    for _ in range(4):
        level = b"\xa1z\xde\x00\x20" + level * 32
    (folder / "params.msgpack").write_bytes(b"\x81" + level)


@case("flax", "Flax")
def flax_a_claimed_array(folder: Path) -> None:
    (folder / "params.msgpack").write_bytes(b"\x81\xa1x\xdd\xff\xff\xff\xff")


@case("flax", "Flax")
def flax_an_array_of_objects(folder: Path) -> None:
    array = b"\x93\x91\x01\xa1O\xc4\x08" + bytes(8)
    (folder / "params.msgpack").write_bytes(b"\x81\xa1x\xc7" + bytes([len(array), 1]) + array)


def _flax_array(shape: tuple[int, ...], content: bytes) -> bytes:
    import msgpack

    array = msgpack.packb((list(shape), "float32", content))
    return b"\xc9" + struct.pack(">Ib", len(array), 1) + array


@case("flax", "Flax|parameters of this agent")
def flax_a_kernel_without_channels(folder: Path) -> None:
    from flax import serialization

    tree = serialization.msgpack_restore((folder / "params.msgpack").read_bytes())
    tree["params"]["Conv_2"]["kernel"] = np.zeros((3, 3, 64, 0), "f4")
    (folder / "params.msgpack").write_bytes(serialization.msgpack_serialize(tree))


@case("flax", "Flax|parameters of this agent")
def flax_a_kernel_of_another_size(folder: Path) -> None:
    from flax import serialization

    tree = serialization.msgpack_restore((folder / "params.msgpack").read_bytes())
    tree["params"]["Conv_0"]["kernel"] = np.zeros((1, 1, 4, 32), "f4")
    (folder / "params.msgpack").write_bytes(serialization.msgpack_serialize(tree))


@case("flax", "Flax|parameters of this agent")
def flax_other_actions(folder: Path) -> None:
    from flax import serialization

    tree = serialization.msgpack_restore((folder / "params.msgpack").read_bytes())
    tree["params"]["Dense_1"] = {"kernel": np.zeros((512, 1), "f4"), "bias": np.zeros(1, "f4")}
    (folder / "params.msgpack").write_bytes(serialization.msgpack_serialize(tree))


@case("flax", "Flax|parameters of this agent")
def flax_a_shape_of_text(folder: Path) -> None:
    array = b"\x93\xa1x\xa7float32\xc4\x04abcd"
    (folder / "params.msgpack").write_bytes(b"\x81\xa1x\xc7" + bytes([len(array), 1]) + array)


@case("flax", "Flax|parameters of this agent")
def flax_keys_on_two_lines(folder: Path) -> None:
    (folder / "params.msgpack").write_bytes(b"\x81\xb4x\nFAKE: all is well..\x81\xa1x\x00")


@case("flax", "bias twice in one dict")
def flax_a_key_twice(folder: Path) -> None:
    """Tell one bias to readers that take the first of two, and another to those that take the last."""
    data = (folder / "params.msgpack").read_bytes()
    parts = data.split(b"\xa6kernel", 1)
    assert len(parts) == 2
    twice = b"\x83\xa4bias" + _flax_array((1,), bytes(4))
    before, changed = parts[0].rpartition(b"\x82\xa4bias")[0], parts[0].rpartition(b"\x82\xa4bias")[2]
    (folder / "params.msgpack").write_bytes(before + twice + b"\xa4bias" + changed + b"\xa6kernel" + parts[1])


# safetensors


def _write_safetensors(folder: Path, header: bytes, size: int | None = None, content: bytes = b"") -> None:
    length = struct.pack("<Q", len(header) if size is None else size)
    (folder / "huggingface/model.safetensors").write_bytes(length + header + content)


def _change_header(folder: Path, change: Callable[[Any], None]) -> None:
    data = (folder / "huggingface/model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    _write_safetensors(folder, json.dumps(header).encode(), content=data[8 + size :])


@case("safetensors", "safetensors")
def safetensors_a_claimed_header(folder: Path) -> None:
    _write_safetensors(folder, b"{}", 2**63)


@case("safetensors", "safetensors")
def safetensors_a_deep_header(folder: Path) -> None:
    _write_safetensors(folder, b'{"a":' * 1_000_000)


@case("safetensors", "safetensors")
def safetensors_overlapping_tensors(folder: Path) -> None:
    def change(header: Any) -> None:
        header["conv1.bias"]["data_offsets"] = header["conv2.bias"]["data_offsets"]

    _change_header(folder, change)


@case("safetensors", "metadata|safetensors")
def safetensors_a_name_said_twice(folder: Path) -> None:
    data = (folder / "huggingface/model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].strip()
    entry = json.dumps(json.loads(header)["head.bias"]).encode()
    _write_safetensors(folder, b'{"head.bias":' + entry + b"," + header[1:], content=data[8 + size :])


@case("safetensors", "safetensors")
def safetensors_a_shape_beyond_all(folder: Path) -> None:
    header = {"x": {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}}
    _write_safetensors(folder, json.dumps(header).encode())


@case("safetensors", "safetensors")
def safetensors_many_axes(folder: Path) -> None:
    header = {"x": {"dtype": "F32", "shape": [0] * 1000, "data_offsets": [0, 0]}}
    _write_safetensors(folder, json.dumps(header).encode())


@case("safetensors", "no conv1.weight")
def safetensors_many_tensors(folder: Path) -> None:
    header = {f"{n}\n": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(100_000)}
    _write_safetensors(folder, json.dumps(header).encode())


@case("safetensors", "safetensors")
def safetensors_another_dtype(folder: Path) -> None:
    header = {"x": {"dtype": "F8_E4M3", "shape": [0], "data_offsets": [0, 0]}}
    _write_safetensors(folder, json.dumps(header).encode())


@case("safetensors", "metadata")
def safetensors_other_metadata(folder: Path) -> None:
    _change_header(folder, lambda header: header["__metadata__"].update(agent="x"))


@case("safetensors", "README|config")
def safetensors_another_config(folder: Path) -> None:
    (folder / "huggingface/config.json").write_text("{}")


@case("safetensors", "README|config")
def safetensors_returns_of_many_digits(folder: Path) -> None:
    path = folder / "huggingface/README.md"
    path.write_text(path.read_text() + "\nMean return 1.00 ± 1.00 over " + "9" * 10_000 + " episodes (")


@case("safetensors", "unexpected")
def safetensors_code_beside_it(folder: Path) -> None:
    (folder / "huggingface/modeling.py").write_text(RUN)


# Dopamine


@case("dopamine", "agent.gin")
def dopamine_gin_that_imports(folder: Path) -> None:
    path = folder / "dopamine/agent.gin"
    path.write_text("import os\n" + path.read_text())


@case("dopamine", "ckpt|unexpected|sentinel")
def dopamine_a_later_checkpoint_with_a_long_number(folder: Path) -> None:
    checkpoints = folder / "dopamine/checkpoints"
    (checkpoints / f"sentinel_checkpoint_complete.{'9' * 200}").touch()
    (checkpoints / f"ckpt.{'9' * 200}").write_bytes(pickle.dumps(Evil()))


@case("dopamine", "checkpoint|float32|Nature|holds")
def dopamine_another_content(folder: Path) -> None:
    path = folder / "dopamine/checkpoints/ckpt.0"
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(content | {"logs": "x\nFAKE: all is well"}))


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_artefact(name, agents, answers, examiner, tmp_path):
    target, head, message, change = CASES[name]
    folder = _take(agents[head], target, tmp_path)
    change(folder)
    finding = examiner.examine(target, folder)
    _check(finding)
    if message is None and finding.error is None:
        assert finding.answer == answers[target]
    else:
        assert re.search(message or ".", finding.message), finding
