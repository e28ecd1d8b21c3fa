"""What is said of a file that is no checkpoint of the release, from lookalikes that the real libraries write."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile

import flax.serialization
import numpy as np
import pytest
import torch
from builders import PONG, make_state
from hypothesis import given
from hypothesis import strategies as st

from convert.files.recognition import HEAD_SIZE, describe_content


def _save_torch(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _zip(*entries: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def _npy(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays) if arrays else np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model_1.gz"))
    return buffer.getvalue()


WEIGHTS = _save_torch({"q_net.weight": torch.zeros(9)})
SB3_DATA = json.dumps({"policy_class": {":type:": "<class 'abc.ABCMeta'>"}, "n": "0" * 2 * HEAD_SIZE}).encode()
PARAMS = {"params": {"Conv_0": {"kernel": np.zeros((8, 8, 4, 32), np.float32)}}}
SAMPLES = [
    (
        "dqn.zip",
        _zip(("data", SB3_DATA), ("pytorch_variables.pth", b"x"), ("policy.pth", WEIGHTS)),
        "Stable-Baselines3",
    ),
    ("x", _zip(("data", b"{}"), ("policy.pth", WEIGHTS), compression=zipfile.ZIP_DEFLATED), "Stable-Baselines3"),
    ("dqn_atari.cleanrl_model", _save_torch({"network.0.weight": torch.zeros(9)}), "CleanRL model (PyTorch)"),
    ("x", _save_torch({"model_weights": {}, "args": {}}), "CleanRL model (PyTorch)"),
    ("dqn_atari_jax.cleanrl_model", flax.serialization.to_bytes(PARAMS), "CleanRL model (JAX)"),
    ("x", flax.serialization.to_bytes({"model_weights": PARAMS, "args": {}}), "CleanRL model (JAX)"),
    ("params.msgpack", flax.serialization.to_bytes(PARAMS), "Flax parameters (msgpack)"),
    ("model.pth", WEIGHTS, "a PyTorch checkpoint (zip)"),
    (
        "model.pth",
        _save_torch({}, _use_new_zipfile_serialization=False),
        "a PyTorch checkpoint of the format before 1.6",
    ),
    ("model_1", _save_torch({"estimator_state": make_state(2)}), "an uncompressed checkpoint of the release (gzip it)"),
    ("ckpt.199", pickle.dumps({"online_params": {}}, 4), "a Dopamine checkpoint (pickle)"),
    ("model.pkl", pickle.dumps([1], 2), "a pickle"),
    ("x.onnx", b"\x08\x08\x12\x07pytorch\x1a\x062.13.0", "an ONNX model"),
    ("saved_model.pb", b"\x08\x01\x12\x80\x10", "a TensorFlow graph"),
    ("x", b"\x1c\x00\x00\x00TFL3\x14\x00\x20\x00", "LiteRT"),
    ("x", (2).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}', "a safetensors file"),
    ("model.keras", _zip(("metadata.json", b"{}"), ("config.json", b"{}")), "a Keras model"),
    ("x.npz", _npy(a=np.zeros(3)), "a NumPy archive (npz)"),
    ("x.npy", _npy(), "a NumPy array"),
    ("x.zip", _zip(("notes.txt", b"hello")), "a zip archive with notes.txt"),
    ("x.zip", _zip(), "an empty zip archive"),
    ("x.tar", _tar(), "a tar archive (unpack it)"),
    ("x.h5", b"\x89HDF\r\n\x1a\n\x00", "an HDF5 file"),
    (
        "list.txt",
        "modèle_1.gz\nmodel_2.gz\n".encode(),
        "a text file (to convert the paths listed in it, use --files-from)",
    ),
    ("config.yml", b"env: Pong\n", "a text file"),
    ("x.gz", b"<!DOCTYPE html><html>404", "a web page or XML"),
    ("x.json", b'{"a": 1}', "a JSON text"),
    ("model_1.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    ("x.bin", b"\x00\xff\x00\xfe" * 3, "unknown format (it begins with 00 ff 00 fe 00 ff 00 fe)"),
    ("model_1.gz", b"", "an empty file"),
    ("model_1.gz", PONG.read_bytes(), "a gzip file"),
    ("model_1.gz", gzip.compress(b""), "a gzip file"),
]


@pytest.mark.parametrize(("name", "content", "expected"), SAMPLES, ids=[expected for *_, expected in SAMPLES])
def test_a_file_is_told_from_its_first_bytes(name, content, expected):
    assert expected in describe_content(content[:HEAD_SIZE], name)
    assert describe_content(content, f"https://host/a/{name}?sig=1") == describe_content(content[:HEAD_SIZE], name)


@given(st.binary(max_size=200), st.sampled_from([content[:300] for _, content, _ in SAMPLES]), st.text())
def test_whatever_a_file_holds_its_description_is_one_line(noise, start, name):
    for content in (noise, start + noise, start[:7] + noise, noise + start):
        description = describe_content(content, name)
        assert description
        assert description.isprintable()


def test_a_text_cut_within_a_character_is_a_text():
    assert describe_content(("a" * (HEAD_SIZE - 1) + "é").encode()[:HEAD_SIZE], "notes.md") == "a text file"
