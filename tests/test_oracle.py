"""The oracle against definitions that share none of its arithmetic: plain loops, torch's own layers."""

from __future__ import annotations

import ast
import gzip
import io
import pickle
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from runtime_check import compare, originals, tally
from runtime_check import oracle as oracle_module
from runtime_check.oracle import Conv, Dense, Head, Observation, Oracle, _convolve, compute_outputs, compute_q_values
from runtime_check.originals import atari_agents as original
from runtime_check.originals import read_oracle
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


def _layer(*shape: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
    return kernel, rng.normal(size=shape[0]) * 0.1


NATURE = ((32, 8, 4, (0, 0)), (64, 4, 2, (0, 0)), (64, 3, 1, (0, 0)))
SAME = ((32, 8, 4, (2, 2)), (64, 4, 2, (1, 2)), (64, 3, 1, (1, 1)))
ATOMS = np.linspace(-10, 10, 51)
ARCHITECTURES = {
    "nature": {},
    "SAME padding": {"convs": SAME},
    "1024 hidden units": {"hidden": (1024,)},
    "hidden 256": {"hidden": (256,)},
    "two hidden layers": {"hidden": (64, 32)},
    "no hidden layer": {"hidden": ()},
    "two convolutions": {"convs": ((32, 5, 5, (0, 0)), (64, 5, 5, (1, 1))), "hidden": (256,)},
    "input scale 1": {"scale": 1},
    "categorical": {"kind": "categorical", "size": 51},
    "200 quantiles": {"kind": "quantile", "size": 200},
    "dueling q": {"streams": "shared"},
    "dueling categorical, shared": {"kind": "categorical", "size": 51, "streams": "shared"},
    "dueling categorical, split": {"kind": "categorical", "size": 51, "streams": "split", "hidden": (1024,)},
    "dueling quantile, SAME padding": {"kind": "quantile", "size": 9, "streams": "split", "convs": SAME},
    "other frames": {"frames": 1, "side": 80},
}


def make_oracle(
    kind: str = "q",
    size: int = 1,
    streams: str = "single",
    convs: tuple = NATURE,
    hidden: tuple[int, ...] = (512,),
    scale: int = 255,
    frames: int = 4,
    side: int = 84,
    actions: int = 6,
) -> Oracle:
    """Return a random network; the sizes between its layers are computed by torch."""
    seeds, channels, shape = iter(range(99)), frames, torch.zeros(1, frames, side, side)
    layers = []
    for features, kernel, stride, padding in convs:
        layers.append(Conv(*_layer(features, channels, kernel, kernel, seed=next(seeds)), stride, padding))
        shape = F.conv2d(F.pad(shape, padding * 2), torch.zeros(features, channels, kernel, kernel), stride=stride)
        channels = features
    width, dense = shape.numel(), []
    for units in hidden:
        dense.append(Dense(*_layer(units, width, seed=next(seeds))))
        width = units
    width = width // 2 if streams == "split" else width
    value = None if streams == "single" else Dense(*_layer(size, width, seed=next(seeds)))
    advantage = Dense(*_layer(actions * size, width, seed=next(seeds)))
    head = Head(kind, actions, advantage, value, streams, ATOMS if kind == "categorical" else None)
    return Oracle(Observation(frames, side, scale), tuple(layers), tuple(dense), head)


def run_in_torch(oracle: Oracle, obs_nchw: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the network with torch's own layers, in float64."""

    def linear(x: torch.Tensor, dense: Dense) -> torch.Tensor:
        return F.linear(x, torch.from_numpy(dense.kernel), torch.from_numpy(dense.bias))

    x, head = torch.from_numpy(obs_nchw).double() / oracle.observation.scale, oracle.head
    for conv in oracle.convs:
        before, after = conv.padding
        padded = F.pad(x, (before, after, before, after))
        x = F.relu(F.conv2d(padded, torch.from_numpy(conv.kernel), torch.from_numpy(conv.bias), conv.stride))
    x = x.flatten(1)
    for dense in oracle.hidden:
        x = F.relu(linear(x, dense))
    own, other = x.chunk(2, dim=1) if head.streams == "split" else (x, x)
    outputs = linear(own, head.dense).unflatten(1, (head.actions, -1))
    if head.value is not None:
        outputs = linear(other, head.value).unsqueeze(1) + outputs - outputs.mean(1, keepdim=True)
    if head.kind == "q":
        return {"q_values": outputs.squeeze(2).numpy()}
    if head.kind == "quantile":
        return {"q_values": outputs.mean(2).numpy(), "quantiles": outputs.numpy()}
    support = torch.from_numpy(head.support)
    return {"q_values": (outputs.softmax(2) * support).sum(2).numpy(), "logits": outputs.numpy()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_architecture_agrees_with_torch_in_float64(architecture):
    oracle = make_oracle(**ARCHITECTURES[architecture])
    seen = oracle.observation
    obs_nchw = np.random.default_rng(1).integers(0, 256, (3, seen.frames, seen.size, seen.size), dtype=np.uint8)
    expected, outputs = run_in_torch(oracle, obs_nchw), compute_outputs(oracle, obs_nchw)
    assert {name: (3, *shape) for name, shape in oracle.shapes.items()} == {
        name: array.shape for name, array in outputs.items()
    }
    assert outputs.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(outputs[name], array, rtol=1e-11, atol=1e-11 * np.abs(array).max())
    assert {name: array.shape for name, array in compute_outputs(oracle, obs_nchw[:0]).items()} == {
        name: (0, *shape) for name, shape in oracle.shapes.items()
    }


def test_the_two_streams_of_a_split_head_are_not_exchanged():
    """The advantage sees the first half: without it, all actions are alike."""
    oracle = make_oracle(streams="split", hidden=(8,))
    (hidden,) = oracle.hidden
    for place, is_alike in ((slice(0, 4), True), (slice(4, 8), False)):
        kernel, bias = hidden.kernel.copy(), hidden.bias.copy()
        kernel[place], bias[place] = 0, 0
        head = replace(oracle.head, dense=Dense(oracle.head.dense.kernel, np.zeros(6)))
        changed = replace(oracle, hidden=(Dense(kernel, bias),), head=head)
        spread = np.ptp(compute_q_values(changed, _observations(2)), axis=1)
        assert (spread < 1e-12).all() == is_alike


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: replace(o, convs=o.convs[1:]), r"convolution 1 is \(64, 32, 4, 4\) .*, expected \(n, 4, k, k\)"),
        (lambda o: replace(o, observation=Observation(4, 20)), "convolution 3 has a kernel of 3, larger than"),
        (lambda o: replace(o, hidden=(o.head.dense,)), r"hidden layer 1 is \(6, 512\) .*, expected \(n, 3136\)"),
        (lambda o: replace(o, hidden=()), r"the head is \(6, 512\) with a bias \(6,\), expected \(n, 3136\)"),
        (lambda o: replace(o, head=replace(o.head, actions=4)), "the head has 6 rows for 4 actions"),
        (lambda o: replace(o, head=replace(o.head, actions=3)), "a q head has 2 rows for an action, expected 1"),
        (lambda o: replace(o, head=replace(o.head, kind="iqn")), "the head is 'iqn' with streams 'single'"),
        (lambda o: replace(o, head=replace(o.head, support=ATOMS)), "a q head of 1 rows for an action has a support"),
        (lambda o: replace(o, head=replace(o.head, streams="shared")), "with streams 'shared' and no value stream"),
        (lambda o: replace(o, head=replace(o.head, value=o.head.dense)), "with streams 'single' and a value stream"),
    ],
)
def test_layers_that_do_not_fit_each_other_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        change(make_oracle())


def test_the_source_is_judged_by_what_recognises_it(tmp_path, monkeypatch):
    """An original is one file, dropped in."""
    (tmp_path / "sb4.py").write_text(
        "from runtime_check.originals import atari_agents\n"
        "def recognise(head, name): return head == b'SB4'\n"
        "def read(path): return path.name\n"
    )
    (tmp_path / "agent.sb4").write_bytes(b"SB4")
    monkeypatch.setattr(originals, "__path__", [*originals.__path__, str(tmp_path)])
    assert {"atari_agents", "sb4"} <= {*originals.list_originals()}
    assert read_oracle(tmp_path / "agent.sb4") == "agent.sb4"
    assert read_oracle(PONG).actions == 6
    (tmp_path / "agent.sb4").write_bytes(b"SB5")
    with pytest.raises(ValueError, match=r"begins with b'SB5', expected a file of atari_agents or .*sb4"):
        read_oracle(tmp_path / "agent.sb4")


def test_takes_no_observation_too():
    assert compute_q_values(read_oracle(PONG), _observations(0)).shape == (0, 6)


def test_the_judge_imports_little():
    judges = [Path(module.__file__) for module in (compare, oracle_module, tally)]
    judges += Path(originals.__file__).parent.glob("*.py")
    for path in judges:
        tree = ast.parse(path.read_text("utf-8"))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        own = {name for name in imported if name.split(".")[0] == "runtime_check"}
        shared = ("compare", "oracle", "originals", "torch_files")
        assert all(name.split(".")[1] in shared for name in own), path
        others = {name.split(".")[0] for name in imported - own}
        assert others - sys.stdlib_module_names <= {"msgpack", "numpy", "threadpoolctl", "torch"}, path


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
    with pytest.raises(ValueError, match="begins with b'not gzip', expected a file of atari_agents"):
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
