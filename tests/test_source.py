"""Reading checkpoints: what the release has, what it may have, and everything that must be refused."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from builders import BREAKOUT, PONG, make_state, save_checkpoint, save_gzip, to_network
from hypothesis import given, settings
from hypothesis import strategies as st

import convert
from convert.agents.network import find_differences
from convert.errors import CheckpointError, UnreadableCheckpoint, UnsupportedArchitecture, WeightMismatch
from convert.formats import atari_agents


@pytest.mark.parametrize(("actions", "atoms"), [(3, None), (6, None), (18, None), (3, 51), (18, 51)])
def test_every_weight_of_a_checkpoint_is_read(tmp_path, actions, atoms):
    state = make_state(actions, atoms)
    network = convert.read_checkpoint(save_checkpoint(tmp_path / "model_1.gz", state))
    assert find_differences(network, to_network(state)) == []
    assert network.head.actions == actions


def test_trained_agents_are_read():
    pong, breakout = convert.read_checkpoint(PONG), convert.read_checkpoint(str(BREAKOUT))
    assert pong.head.kind == "q"
    assert pong.head.actions == 6
    assert breakout.head.kind == "categorical"
    assert (breakout.head.actions, breakout.head.atoms) == (4, 51)


def test_a_file_from_before_torch_1_6_is_read(tmp_path):
    state = make_state()
    path = save_checkpoint(tmp_path / "model_1.gz", state, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(io.BytesIO(gzip.decompress(path.read_bytes())))
    assert find_differences(convert.read_checkpoint(path), to_network(state)) == []


@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_saved_from_a_gpu_is_read(tmp_path, new_format):
    """No GPU is needed to make one: the device is a string in the pickle."""
    state = make_state()
    buffer = io.BytesIO()
    torch.save({"estimator_state": state}, buffer, _use_new_zipfile_serialization=new_format)
    raw = _rewrite_pickle(
        buffer.getvalue(), lambda data: data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    )
    assert raw != buffer.getvalue()
    path = save_gzip(tmp_path / "model_1.gz", raw)
    assert find_differences(convert.read_checkpoint(path), to_network(state)) == []


def _rewrite_pickle(raw: bytes, change) -> bytes:
    if not zipfile.is_zipfile(io.BytesIO(raw)):
        return change(raw)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, change(data) if entry.filename.endswith("data.pkl") else data)
    return out.getvalue()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_converted_where_nothing_is_lost(tmp_path, dtype):
    small = {name: tensor.to(torch.bfloat16).to(torch.float16).float() for name, tensor in make_state().items()}
    small = {name: tensor.to(dtype).float() for name, tensor in small.items()}
    path = save_checkpoint(tmp_path / "m.gz", {name: tensor.to(dtype) for name, tensor in small.items()})
    assert find_differences(convert.read_checkpoint(path), to_network(small)) == []


def test_negative_zero_is_kept(tmp_path):
    state = make_state()
    state["_AtariNet__head.2.bias"][0] = -0.0
    network = convert.read_checkpoint(save_checkpoint(tmp_path / "m.gz", state))
    assert np.signbit(network.arrays["head.bias"][0])


def test_arrays_are_read_only():
    for array in convert.read_checkpoint(PONG).arrays.values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


class _Runs:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


def _changed(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = make_state(4, 51) | {f"_AtariNet__{name.replace('__', '.')}": value for name, value in changes.items()}
    return {name: value for name, value in state.items() if value is not None}


def _zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(300 * 2**20))
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(PONG, "model_328492.gz")
    return buffer.getvalue()


def _save(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


REFUSED = {
    "empty file": (b"", UnreadableCheckpoint, "the file is empty, expected a gzipped checkpoint"),
    "not a gzip": (b"PK\x03\x04", UnreadableCheckpoint, "a zip archive, expected a gzipped checkpoint of this release"),
    "damaged gzip": (b"\x1f\x8b\x08" + b"x" * 99, UnreadableCheckpoint, "damaged gzip"),
    "truncated gzip": (gzip.compress(os.urandom(999))[:500], UnreadableCheckpoint, "truncated after 500 bytes"),
    "more after the end": (gzip.compress(b"x") + b"more", UnreadableCheckpoint, "4 bytes after the end"),
    "not torch": (gzip.compress(b"hello"), UnreadableCheckpoint, "not a PyTorch checkpoint"),
    "nothing": (gzip.compress(b""), UnreadableCheckpoint, "not a PyTorch checkpoint"),
    "a tar": (
        gzip.compress(_tar()),
        UnreadableCheckpoint,
        r"a gzip of a tar archive \(unpack it\): not a PyTorch checkpoint of this release$",
    ),
    "a bare state dict": (
        gzip.compress(_save(make_state(4))),
        UnreadableCheckpoint,
        r"holds a bare state dict, expected it below 'estimator_state': save it with "
        r"torch.save\({'estimator_state': state_dict}, file\), then gzip the file$",
    ),
    "not gzipped": (
        _save({"estimator_state": make_state(4)}),
        UnreadableCheckpoint,
        r": an uncompressed checkpoint of the release \(gzip it\), expected a gzipped checkpoint of this release, ",
    ),
    "zip bomb": (
        gzip.compress(_zip_bomb()),
        UnreadableCheckpoint,
        "is compressed or encrypted, expected it stored",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_damaged_file_is_refused(tmp_path, case):
    content, error, message = REFUSED[case]
    path = tmp_path / "model_1.gz"
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        convert.read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_bomb_is_refused_within_its_bound(tmp_path):
    path = tmp_path / "model_1.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(300):
            file.write(bytes(2**20))
    with pytest.raises(UnreadableCheckpoint, match="inflates to over 128 MiB, expected about 7 MB"):
        convert.read_checkpoint(path)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_wants_to_run_code_is_refused_by_name(tmp_path, new_format):
    buffer = io.BytesIO()
    torch.save({"estimator_state": _Runs()}, buffer, _use_new_zipfile_serialization=new_format)
    path = save_gzip(tmp_path / "model_1.gz", buffer.getvalue())
    with pytest.raises(UnreadableCheckpoint, match=r"refused: its pickle wants to run (posix|os)\.system"):
        convert.read_checkpoint(path)


def test_a_plain_pickle_that_wants_to_run_code_is_refused_by_name(tmp_path):
    path = save_gzip(tmp_path / "model_1.gz", pickle.dumps({"estimator_state": _Runs()}, protocol=2))
    with pytest.raises(UnreadableCheckpoint, match=r"refused: its pickle wants to run posix\.system"):
        convert.read_checkpoint(path)


WRONG = {
    "missing weight": (
        _changed(head__2__bias=None),
        WeightMismatch,
        "no _AtariNet__head.2.bias: not a state dict of this release",
    ),
    "unexpected weight": (_changed(value=torch.ones(1)), WeightMismatch, "unexpected _AtariNet__value"),
    "all at once": (
        _changed(head__2__bias=None, value=torch.ones(1), head__0__weight=torch.ones(512, 2304)),
        WeightMismatch,
        r"no _AtariNet__head.2.bias; unexpected _AtariNet__value; first dense layer is \(512, 2304\)",
    ),
    "wrong shape": (
        _changed(head__0__weight=torch.ones(512, 2304)),
        UnsupportedArchitecture,
        r"first dense layer is \(512, 2304\), expected \(512, 3136\): not a Nature-CNN of this release",
    ),
    "several wrong shapes": (
        _changed(features__0__weight=torch.ones(32, 3, 8, 8), features__2__bias=torch.ones(63)),
        UnsupportedArchitecture,
        r"convolution 1 is \(32, 3, 8, 8\).*; bias of convolution 2 is \(63,\)",
    ),
    "head and bias differ": (_changed(head__2__bias=torch.ones(3)), UnsupportedArchitecture, "bias of the head is"),
    "head without actions": (
        _changed(head__2__weight=torch.ones(0, 512), head__2__bias=torch.ones(0)),
        UnsupportedArchitecture,
        r"head is \(0, 512\)",
    ),
    "not a multiple of the atoms": (
        _changed(head__2__weight=torch.ones(200, 512), head__2__bias=torch.ones(200)),
        UnsupportedArchitecture,
        "head has 200 rows, expected a multiple of the 51 atoms",
    ),
    "support of one atom": (_changed(support=torch.ones(1)), UnsupportedArchitecture, r"support is \(1,\)"),
    "support not increasing": (
        _changed(support=torch.linspace(10, -10, 51)),
        WeightMismatch,
        "support does not increase",
    ),
    "NaN": (
        _changed(head__2__bias=torch.full((204,), float("nan"))),
        WeightMismatch,
        "bias of the head has 204 values that are not finite: the file is damaged",
    ),
    "infinite": (
        _changed(support=torch.tensor([*range(50), float("inf")])),
        WeightMismatch,
        "support has 1 values that are not finite",
    ),
    "lossy float64": (
        _changed(head__2__bias=torch.full((204,), 0.1, dtype=torch.float64)),
        WeightMismatch,
        "_AtariNet__head.2.bias is float64 with values that float32 cannot hold",
    ),
    "integers": (
        _changed(head__2__bias=torch.ones(204, dtype=torch.int64)),
        WeightMismatch,
        "is int64, expected float32",
    ),
    "not a tensor": (_changed(head__2__bias=[1.0]), WeightMismatch, "is a list, expected a dense tensor"),
    "no values": (
        _changed(head__2__bias=torch.ones(204, device="meta")),
        WeightMismatch,
        r"has no values \(device meta\)",
    ),
    "expanded": (
        _changed(head__2__weight=torch.ones(1, 1).expand(2**31, 512), head__2__bias=torch.ones(1).expand(2**31)),
        WeightMismatch,
        "claims 1099511627776 values, more than the file holds",
    ),
    "sparse": (_changed(head__2__bias=torch.ones(204).to_sparse()), CheckpointError, "m.gz: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_network_is_refused(tmp_path, case):
    state, error, message = WRONG[case]
    path = save_checkpoint(tmp_path / "m.gz", state)
    with pytest.raises(error, match=message) as caught:
        convert.read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"model": {}}, "holds 'model', expected 'estimator_state'"),
        ({}, "holds nothing, expected 'estimator_state'"),
        ([1], "holds a list, expected 'estimator_state'"),
        ({"estimator_state": 3}, "estimator_state is a int, expected a state dict"),
    ],
)
def test_another_document_is_refused(tmp_path, document, message):
    buffer = io.BytesIO()
    torch.save(document, buffer)
    path = save_gzip(tmp_path / "m.gz", buffer.getvalue())
    with pytest.raises(UnreadableCheckpoint, match=message):
        convert.read_checkpoint(path)


def test_what_is_no_file_of_a_checkpoint_s_size_is_refused(tmp_path):
    with pytest.raises(UnreadableCheckpoint, match="No such file or directory"):
        convert.read_checkpoint(tmp_path / "model_1.gz")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "endless"):
        with pytest.raises(UnreadableCheckpoint, match="not a regular file"):
            convert.read_checkpoint(path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UnreadableCheckpoint, match="has 1099511627776 bytes, expected at most 134217728"):
        convert.read_checkpoint(tmp_path / "large")


SMALL = gzip.decompress(PONG.read_bytes())[:3000] + gzip.decompress(PONG.read_bytes())[-3000:]


@settings(max_examples=150)
@given(st.randoms(use_true_random=False), st.integers(1, 40))
def test_damaged_bytes_are_read_or_refused_and_nothing_else(rng: random.Random, changes: int):
    raw = bytearray(SMALL)
    for _ in range(changes):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    with pytest.raises(CheckpointError):
        atari_agents.read(gzip.compress(bytes(raw), 1), "damaged")
