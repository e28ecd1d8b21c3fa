"""The oracle against definitions that share none of its arithmetic: plain loops, torch's own layers."""

from __future__ import annotations

import ast
import gzip
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime_check import oracle as oracle_module
from runtime_check.oracle import _convolve, compute_outputs, compute_q_values, read_oracle
from runtime_check.originals import atari_agents as original
from runtime_check.originals.atari_agents import read_state_dict

AGENTS = Path(__file__).parent / "data" / "agents"
PONG = AGENTS / "DQN_modern/Pong/0/model_328492.gz"
BREAKOUT = AGENTS / "C51_classic/Breakout/0/model_187420.gz"


def _observations(count: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, 4, 84, 84), dtype=np.uint8)


def _save(path: Path, document: object) -> Path:
    buffer = io.BytesIO()
    torch.save(document, buffer)
    path.write_bytes(gzip.compress(buffer.getvalue(), 1))
    return path


def _torch_q_values(path: Path, obs_nchw: np.ndarray) -> np.ndarray:
    state = {name.removeprefix("_AtariNet__"): value.double() for name, value in read_state_dict(path).items()}
    support = state.pop("support", None)
    features = torch.nn.Sequential(
        *(torch.nn.Conv2d(4, 32, 8, 4), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 4, 2), torch.nn.ReLU()),
        *(torch.nn.Conv2d(64, 64, 3, 1), torch.nn.ReLU()),
    )
    head = torch.nn.Sequential(
        torch.nn.Linear(3136, 512), torch.nn.ReLU(), torch.nn.Linear(512, len(state["head.2.bias"]))
    )
    model = torch.nn.ModuleDict({"features": features, "head": head}).double()
    model.load_state_dict(state)
    with torch.no_grad():
        outputs = head(features(torch.from_numpy(obs_nchw).double() / 255).flatten(1))
        if support is not None:
            outputs = outputs.unflatten(1, (-1, len(support))).softmax(-1) @ support
    return outputs.numpy()


def test_convolution_is_its_definition():
    rng = np.random.default_rng(3)
    features, kernel = rng.normal(size=(2, 9, 11)), rng.normal(size=(5, 2, 3, 3))
    expected = np.zeros((5, 4, 5))
    for out in range(5):
        for row in range(4):
            for column in range(5):
                patch = features[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
                expected[out, row, column] = sum(
                    patch[c, i, j] * kernel[out, c, i, j] for c in range(2) for i in range(3) for j in range(3)
                )
    np.testing.assert_allclose(_convolve(features[None], kernel, 2)[0], expected, rtol=1e-13)


@pytest.mark.parametrize(("path", "actions"), [(PONG, 6), (BREAKOUT, 4)], ids=["q", "categorical"])
def test_agrees_with_torch_in_float64(path, actions):
    obs_nchw = _observations(3)
    q_values = compute_q_values(read_oracle(path), obs_nchw)
    assert q_values.shape == (3, actions)
    assert q_values.dtype == np.float64
    np.testing.assert_allclose(q_values, _torch_q_values(path, obs_nchw), rtol=1e-12, atol=1e-12)


def test_depends_on_the_batch_by_rounding_alone():
    oracle, obs_nchw = read_oracle(BREAKOUT), _observations(9)
    alone = np.concatenate([compute_q_values(oracle, obs_nchw[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(compute_q_values(oracle, obs_nchw), alone, rtol=1e-13)
    np.testing.assert_allclose(compute_q_values(oracle, obs_nchw[::-1])[::-1], alone, rtol=1e-13)


def test_answers_with_the_logits_of_a_categorical_head():
    outputs = compute_outputs(read_oracle(BREAKOUT), _observations(2))
    assert outputs["logits"].shape == (2, 4, 51)
    weights = np.exp(outputs["logits"])
    expected = (weights * np.linspace(-10, 10, 51)).sum(-1) / weights.sum(-1)
    np.testing.assert_allclose(outputs["q_values"], expected, rtol=1e-6)
    assert compute_outputs(read_oracle(PONG), _observations(2)).keys() == {"q_values"}


def test_takes_no_observation_too():
    assert compute_q_values(read_oracle(PONG), _observations(0)).shape == (0, 6)


def test_shares_no_code_with_convert():
    imported = set()
    for module in (oracle_module, original):
        tree = ast.parse(Path(module.__file__).read_text("utf-8"))
        imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "runtime_check.originals.atari_agents" in imported
    assert {name.split(".")[0] for name in imported - {"runtime_check.originals.atari_agents"}} == {
        *(
            "__future__",
            "concurrent",
            "dataclasses",
            "functools",
            "gzip",
            "io",
            "os",
            "pathlib",
            "pickletools",
            "typing",
        ),
        *("zipfile", "zlib", "numpy", "threadpoolctl", "torch"),
    }


def test_refuses_a_checkpoint_of_another_network_naming_every_weight(tmp_path):
    state = read_state_dict(PONG)
    state["_AtariNet__head.0.weight"] = torch.zeros(512, 7744)
    state["_AtariNet__features.0.bias"][3] = torch.nan
    state["extra"] = state.pop("_AtariNet__features.4.bias")
    with pytest.raises(ValueError, match="is missing") as caught:
        read_oracle(_save(tmp_path / "model_1.gz", {"estimator_state": state}))
    for part in (
        "_AtariNet__features.4.bias is missing",
        "extra is unexpected",
        "_AtariNet__head.0.weight is (512, 7744), expected (512, 3136)",
        "_AtariNet__features.0.bias is not finite",
    ):
        assert part in str(caught.value)


def test_refuses_a_head_that_its_atoms_do_not_divide(tmp_path):
    state = read_state_dict(BREAKOUT)
    state["_AtariNet__support"] = torch.linspace(-10, 10, 50)
    with pytest.raises(ValueError, match=r"support is \(50,\), the head has 204 rows"):
        read_oracle(_save(tmp_path / "model_1.gz", {"estimator_state": state}))


class _Evil:
    def __reduce__(self):
        return (print, ("ran",))


def test_refuses_what_is_no_checkpoint(tmp_path, capsys):
    path = tmp_path / "model_1.gz"
    path.write_bytes(b"not gzip")
    with pytest.raises(ValueError, match="not a complete gzip file"):
        read_oracle(path)
    path.write_bytes(PONG.read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a complete gzip file"):
        read_oracle(path)
    path.write_bytes(gzip.compress(b"not torch"))
    with pytest.raises(ValueError, match="not a checkpoint that torch can read safely"):
        read_oracle(path)
    with pytest.raises(ValueError, match="read safely"):
        read_oracle(_save(path, {"estimator_state": _Evil()}))
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="no 'estimator_state'"):
        read_oracle(_save(path, [1, 2]))


def test_refuses_keys_whose_hash_takes_for_ever(tmp_path):
    key = (1,)
    for _ in range(60):
        key = (key, key)
    pickled = pickle.dumps([key], 2).replace(b"]q\x00", b"}q\x00").replace(b"a.", b"Ns.")
    path = tmp_path / "model_1.gz"
    path.write_bytes(gzip.compress(pickled))
    with pytest.raises(ValueError, match="more than 16 tuples within each other"):
        read_oracle(path)


def test_refuses_tensors_that_are_more_than_they_seem(tmp_path):
    for tensor in (
        torch.zeros(1).expand(4 * 10**8),
        torch.zeros(3, device="meta"),
        torch.zeros(3).to_sparse(),
    ):
        path = _save(tmp_path / "model_1.gz", {"estimator_state": {"weight": tensor}})
        with pytest.raises(ValueError, match=r"to plain tensors|read safely"):
            read_oracle(path)
    trained = {name: torch.nn.Parameter(value) for name, value in read_state_dict(PONG).items()}
    assert read_oracle(_save(tmp_path / "model_1.gz", {"estimator_state": trained})).actions == 6


def test_refuses_an_archive_that_inflates_without_end(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**20 + 1))
    path = tmp_path / "model_1.gz"
    path.write_bytes(gzip.compress(buffer.getvalue()))
    with pytest.raises(ValueError, match="its archive is compressed, which torch never does"):
        read_oracle(path)


def test_refuses_a_file_that_inflates_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(original, "LARGEST_CHECKPOINT", 2**20)
    path = tmp_path / "model_1.gz"
    path.write_bytes(gzip.compress(bytes(2**20 + 1)))
    with pytest.raises(ValueError, match="inflates to more than 1 MiB"):
        read_oracle(path)
