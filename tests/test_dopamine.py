"""Checkpoints of Dopamine's own JAX agents: what is read in each spelling, what is refused, and the judge's view."""

from __future__ import annotations

import pickle
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from builders import make_observations, save_sample

import convert
from convert.agents import layout
from convert.agents.identity import Identity
from convert.agents.network import find_differences
from convert.bulk.selection import find_jobs
from convert.errors import AtariConvertError, UnreadableCheckpoint, UnsupportedArchitecture, WeightMismatch
from convert.sources import is_file_name
from runtime_check import Options, check_agent
from runtime_check.oracle import compute_outputs
from runtime_check.originals import find_original, read_oracle

ATOMS, QUANTILES = 51, 200


def make_params(kind="dqn", actions=6, units=512, features=7744, seed=0):
    """Return Linen's tree of a network of Dopamine, He-scaled."""
    generator = np.random.default_rng(seed)

    def draw(*shape):
        return (generator.standard_normal(shape) * (2 / np.prod(shape[:-1])) ** 0.5).astype(np.float32)

    def layer(*shape):
        return {"kernel": draw(*shape), "bias": draw(shape[-1]) * 0.1}

    def noisy(*shape):
        parts = {"kernel_mu": shape, "kernel_sigma": shape, "bias_mu": shape[-1:], "bias_sigma": shape[-1:]}
        return {name: draw(*size) for name, size in parts.items()}

    layers = {"Conv_0": layer(8, 8, 4, 32), "Conv_1": layer(4, 4, 32, 64), "Conv_2": layer(3, 3, 64, 64)}
    width = {"dqn": 1, "quantile": QUANTILES, "dueling dqn": 1}.get(kind, ATOMS)
    dense = [(features, units), (units, actions * width)]
    if kind == "iqn":
        dense = [(64, features), (features, units), (units, actions)]
    elif kind in ("full rainbow", "dueling", "dueling dqn"):
        dense.append((units, width))
    name, make = ("NoisyNetwork", noisy) if kind in ("full rainbow", "noisy") else ("Dense", layer)
    return {"params": layers | {f"{name}_{index}": make(*shape) for index, shape in enumerate(dense)}}


def save(path: Path, params, steps=50_000_000, protocol=4) -> Path:
    content = {
        "state": np.zeros((1, 84, 84, 4)),
        "training_steps": steps,
        "online_params": params,
        "target_params": params,
        "current_iteration": 199,
        "logs": {"iteration_199": {"train_episode_returns": [1.0, np.float64(2)]}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
    return path


KINDS = ("dqn", "c51", "quantile", "full rainbow", "noisy", "dueling", "dueling dqn")
SAMPLES = ("dopamine_dqn_ckpt.0", "dopamine_full_rainbow_ckpt.0")  # which Dopamine wrote


@pytest.mark.parametrize("kind", [*KINDS, *SAMPLES])
def test_the_judge_reads_the_same_network_by_itself(kind, tmp_path):
    is_sample = kind in SAMPLES
    path = save_sample(kind, tmp_path) if is_sample else save(tmp_path / "ckpt.199", make_params(kind, units=64))
    observations = make_observations(2)
    oracle = compute_outputs(read_oracle(path), observations)
    eager = find_original(path).read_eager(path)(torch.from_numpy(observations))
    convert.convert_checkpoint(path, tmp_path / "out", ["safetensors"])
    answers = convert.load_agent(tmp_path / "out", "safetensors").run(observations)
    assert oracle.keys() == eager.keys() == answers.keys()
    for output, values in oracle.items():
        assert values.std() > 1e-4
        np.testing.assert_allclose(eager[output].detach(), values, atol=1e-4)
        np.testing.assert_allclose(answers[output], values, atol=1e-4)


@pytest.mark.parametrize("kind", ["quantile", "full rainbow"])
def test_the_network_is_dopamines(kind, tmp_path):
    """The formula, by itself, in Linen: SAME padding, quantiles beside each other, means of noisy layers, streams."""
    params, observations = make_params(kind, units=32)["params"], make_observations(2)
    path = save(tmp_path / "ckpt.199", {"params": params})
    x = jnp.asarray(layout.nhwc_from_nchw(observations), jnp.float32) / 255
    for index, stride in enumerate((4, 2, 1)):
        layer = params[f"Conv_{index}"]
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (stride, stride), "SAME", dimension_numbers=dimensions, precision="highest"
        )
        x = jax.nn.relu(x + layer["bias"])

    def multiply(layer, x):
        suffix = "_mu" if layer.startswith("Noisy") else ""
        return jnp.dot(x, params[layer][f"kernel{suffix}"], precision="highest") + params[layer][f"bias{suffix}"]

    name = "NoisyNetwork" if kind == "full rainbow" else "Dense"
    x = jax.nn.relu(multiply(f"{name}_0", x.reshape(2, -1)))
    rows = multiply(f"{name}_1", x)
    if kind == "quantile":
        expected = rows.reshape(2, 6, QUANTILES).mean(2)
    else:
        advantages = rows.reshape(2, 6, ATOMS)
        logits = multiply("NoisyNetwork_2", x)[:, None] + advantages - advantages.mean(1, keepdims=True)
        expected = (jax.nn.softmax(logits) * jnp.linspace(-10, 10, ATOMS)).sum(2)
    np.testing.assert_allclose(compute_outputs(read_oracle(path), observations)["q_values"], expected, atol=1e-4)
    convert.convert_checkpoint(path, tmp_path / "out", ["safetensors"])
    np.testing.assert_allclose(convert.load_agent(tmp_path / "out", "safetensors")(observations), expected, atol=1e-4)


class OldArray:
    """An array as JAX pickled it before 0.4."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        return sys.modules["jax._src.device_array"].reconstruct_device_array, (*self.array.__reduce__(), {})


def _spell(params, spelling, monkeypatch):
    """Return parameters as one version or another of Dopamine and its libraries pickled them."""
    layers = params["params"]
    if spelling == "flax.nn":
        return {f"{name.split('_')[0]}_{index}": layer for index, (name, layer) in enumerate(layers.items())}
    if spelling == "FrozenDict":
        return flax.core.freeze(params)
    if spelling == "jax":
        return jax.tree.map(jnp.asarray, params)
    module = ModuleType("jax._src.device_array")
    exec("def reconstruct_device_array(): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return jax.tree.map(OldArray, params)


@pytest.mark.parametrize("kind", ["dqn", "full rainbow"])
@pytest.mark.parametrize("spelling", ["flax.nn", "FrozenDict", "jax", "device_array"])
def test_every_spelling_is_read_as_the_same_network(kind, spelling, tmp_path, monkeypatch):
    params = make_params(kind, units=16)
    plain = save(tmp_path / "ckpt.0", params)
    spelled = save(tmp_path / "ckpt.1", _spell(params, spelling, monkeypatch), protocol=3)
    assert spelling == "flax.nn" or spelling.encode() in spelled.read_bytes()
    assert find_differences(convert.read_checkpoint(spelled), convert.read_checkpoint(plain)) == []
    observations = make_observations(1)
    expected = compute_outputs(read_oracle(plain), observations)["q_values"]
    np.testing.assert_array_equal(compute_outputs(read_oracle(spelled), observations)["q_values"], expected)


def test_the_support_of_both_readers_is_the_nearest_to_the_true_one(tmp_path):
    path = save(tmp_path / "ckpt.0", make_params("c51", units=8))
    expected = [float(np.float32(-10 + Fraction(20 * atom, ATOMS - 1))) for atom in range(ATOMS)]
    assert list(convert.read_checkpoint(path).head.support) == expected
    assert read_oracle(path).support.tolist() == expected


@pytest.mark.parametrize(
    ("path", "kind", "algorithm"),
    [
        ("jax/dqn/Pong/1", "dqn", "DQN"),
        ("DQN_400/Pong/1", "dqn", "DQN"),
        ("jax/c51/Pong/2", "c51", "C51"),
        ("jax/rainbow/Pong/2", "c51", "Rainbow"),
        ("jax/quantile/Pong/5", "quantile", "QR-DQN"),
        ("mine", "c51", None),
        ("mine", "full rainbow", "Rainbow"),
        ("mine", "dueling", "Rainbow"),
    ],
)
def test_path_and_content_tell_who_an_agent_is(path, kind, algorithm, tmp_path):
    source = save(tmp_path / path / "ckpt.199", make_params(kind, units=8))
    record = convert.convert_checkpoint(source, tmp_path / "out", ["safetensors"]).record
    game, seed = (None, None) if path == "mine" else ("Pong", int(path[-1]))
    assert record.agent.identity == Identity("dopamine", algorithm, game, "dopamine", seed, 50_000_000)


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        # As one that was published in place of a DQN.
        ("jax/dqn/SpaceInvaders/1", "quantile", "holds an agent of algorithm QR-DQN, expected DQN"),
        ("jax/quantile/Pong/1", "c51", "has a categorical head, expected that of QR-DQN"),
        ("jax/c51/Pong/1", "full rainbow", "holds an agent of algorithm Rainbow, expected C51"),
        ("jax/dqn/Breakout/1", "dqn", "has 6 actions, expected 4 or all 18 for Breakout"),
    ],
)
def test_an_agent_that_is_not_what_its_path_says_is_refused(path, kind, message, tmp_path):
    source = save(tmp_path / path / "ckpt.199", make_params(kind, units=8))
    with pytest.raises(AtariConvertError, match=rf"ckpt\.199: {message}"):
        convert.convert_checkpoint(source, tmp_path / "out", ["safetensors"])
    assert not (tmp_path / "out").exists()


def _drop(layer, part=None):
    def drop(content):
        layers = content["online_params"]["params"]
        (layers[layer] if part else layers).pop(part or layer)

    return drop


def _set(layer, part, array):
    return lambda content: content["online_params"]["params"][layer].update({part: array})


@pytest.mark.parametrize(
    ("kind", "change", "error", "message"),
    [
        (
            "dqn",
            lambda content: content.pop("online_params"),
            UnreadableCheckpoint,
            "no online_params and training_steps",
        ),
        ("dqn", lambda content: content.update(online_params=3), UnreadableCheckpoint, "online_params are a int"),
        ("dqn", _drop("Conv_1"), UnsupportedArchitecture, "has the layers Conv_0, Conv_2, Dense_0, Dense_1, expected"),
        ("dqn", _drop("Dense_1", "bias"), UnsupportedArchitecture, "a dense layer has no bias of one axis"),
        ("dqn", _drop("Conv_1", "kernel"), UnsupportedArchitecture, "no params/Conv_1/kernel"),
        ("dqn", _set("Conv_0", "bias", np.zeros(32)), UnsupportedArchitecture, "is float64"),
        ("dqn", _set("Dense_1", "kernel", np.full((16, 6), np.inf, np.float32)), WeightMismatch, "not finite"),
        ("dqn", _set("Dense_1", "bias", np.zeros(300, np.float32)), UnsupportedArchitecture, "actions is 300"),
        ("full rainbow", _drop("NoisyNetwork_1", "bias_mu"), UnsupportedArchitecture, "NoisyNetwork_1 has kernel_mu"),
        (
            "full rainbow",
            _set("NoisyNetwork_2", "bias_mu", np.zeros(50, np.float32)),
            UnsupportedArchitecture,
            "306 rows",
        ),
        (
            "iqn",
            lambda _: None,
            UnreadableCheckpoint,
            r"a Dopamine agent of implicit quantiles \(IQN\), .* supported: DQN",
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_both(kind, change, error, message, tmp_path):
    path = save(tmp_path / "ckpt.199", make_params(kind, units=16))
    content = pickle.loads(path.read_bytes())
    change(content)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(error, match=rf"ckpt\.199: .*{message}") as refused:
        convert.read_checkpoint(path)
    assert str(refused.value).isprintable()
    with pytest.raises(ValueError, match=r"ckpt\.199: "):
        read_oracle(path)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_pickle_that_wants_to_run_code_is_refused_by_both(protocol, tmp_path):
    path = save(tmp_path / "ckpt.199", Evil(tmp_path / "it-ran"), protocol=protocol)
    with pytest.raises(UnreadableCheckpoint, match=r"ckpt\.199: wants to run (pathlib|builtins)\."):
        convert.read_checkpoint(path)
    with pytest.raises(ValueError, match=r"ckpt\.199: wants to run (pathlib|builtins)\."):
        read_oracle(path)
    assert not (tmp_path / "it-ran").exists()


def test_an_agent_without_padding_is_sent_to_its_base_folder(tmp_path):
    path = save(tmp_path / "ckpt.199", make_params(features=3136, units=16))
    with pytest.raises(UnsupportedArchitecture, match=r"not padded, .* name the base folder .* with its origin\.json"):
        convert.read_checkpoint(path)


def test_a_search_picks_up_checkpoints_of_dopamine_alone(tmp_path):
    save(tmp_path / "zoo/jax/dqn/Pong/1/ckpt.199", make_params(units=4))
    (tmp_path / "zoo/ckpt.index").write_bytes(b"\0" * 100)
    (tmp_path / "zoo/ckpt.3").write_bytes(pickle.dumps({"logs": {}, "current_iteration": 3}))
    (job,) = find_jobs([tmp_path / "zoo"], tmp_path / "out")
    assert job.path == "jax/dqn/Pong/1/ckpt.199"
    assert job.identity == Identity("dopamine", "DQN", "Pong", "dopamine", 1)
    for name, is_file in (("gs://bucket/jax/dqn/Pong/1/ckpt.199", True), ("gs://bucket/jax/dqn/Pong/1", False)):
        assert is_file_name(name) == is_file


def test_a_base_folder_of_dopamines_own_is_read_at_its_latest_checkpoint(tmp_path):
    base = tmp_path / "base"
    for iteration in (8, 9, 10):
        save(base / f"checkpoints/ckpt.{iteration}", make_params(units=4, seed=iteration), steps=iteration)
        if iteration < 10:
            (base / f"checkpoints/sentinel_checkpoint_complete.{iteration}").write_text("done")
    newest = convert.read_checkpoint(base / "checkpoints/ckpt.9")
    assert find_differences(convert.read_agent(base), newest) == []
    agent = convert.convert_checkpoint(base, tmp_path / "out", ["safetensors"]).record.agent
    assert agent.identity == Identity("dopamine", "DQN", None, "dopamine", None, 9)
    assert agent.source.path == "base/checkpoints/ckpt.9"
    convert.convert_checkpoint(base, tmp_path / "out", ["safetensors"], identity="dopamine/Pong/3")
    result = check_agent(tmp_path / "out", base, Options(max_steps=20))
    assert result.agrees, [backend.reasons for backend in result.backends.values()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dqn", "full rainbow"])
def test_an_agent_plays_as_dopamine_does_in_every_backend(kind, tmp_path):
    path = save(
        tmp_path / "jax/full_rainbow/Pong/1/ckpt.199" if kind != "dqn" else tmp_path / "ckpt.0",
        make_params(kind, units=64),
    )
    convert.convert_checkpoint(path, tmp_path / "out", ["onnx", "flax"], identity="dopamine/Pong/1")
    result = check_agent(tmp_path / "out", path, Options(max_steps=100))
    assert result.agrees, [backend.reasons for backend in result.backends.values()]
    assert result.plan.protocol.name == "dopamine"
