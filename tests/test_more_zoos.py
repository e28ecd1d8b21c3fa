"""Agents of PFRL and of Kaixhin/Rainbow: what is read, what is refused, and the judge's own view of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import make_observations, save_sample
from torch.nn.functional import conv2d, linear, pad

import convert
from convert.agents.identity import Identity
from convert.bulk.selection import find_jobs
from convert.errors import CheckpointError, UnreadableCheckpoint, UnsupportedArchitecture, WeightMismatch
from convert.formats.state_dicts import space_atoms
from runtime_check import Options, check_agent
from runtime_check.oracle import compute_outputs
from runtime_check.originals import find_original, read_oracle

PFRL, KAIXHIN = "pfrl_dqn_model.pt", "kaixhin_data_efficient_model.pth"
RAINBOW = "pfrl_rainbow_model.pt"


def _make_rainbow(path: Path, names: tuple[str, str, str]) -> Path:
    """Write a canonical Rainbow, with its convolutions named as a release of its program names them."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * (2 / np.prod(shape[1:] or (100,))) ** 0.5

    state = {}
    for name, shape in zip(names, ((32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)), strict=True):
        state |= {f"{name}.weight": draw(*shape), f"{name}.bias": draw(shape[0])}
    for name, shape in (
        *(("fc_h_v", (512, 3136)), ("fc_h_a", (512, 3136))),
        *(("fc_z_v", (51, 512)), ("fc_z_a", (4 * 51, 512))),
    ):
        for part in ("mu", "sigma", "epsilon"):
            state |= {f"{name}.weight_{part}": draw(*shape), f"{name}.bias_{part}": draw(shape[0])}
    torch.save(state, path)
    return path


CANONICAL, BEFORE_1_4 = ("convs.0", "convs.2", "convs.4"), ("conv1", "conv2", "conv3")
MODELS = {
    "pfrl": lambda folder: save_sample(PFRL, folder),
    "pfrl rainbow": lambda folder: save_sample(RAINBOW, folder),
    "data-efficient": lambda folder: save_sample(KAIXHIN, folder),
    "canonical": lambda folder: _make_rainbow(folder / "model.pth", CANONICAL),
    "before 1.4": lambda folder: _make_rainbow(folder / "model.pth", BEFORE_1_4),
}


@pytest.mark.parametrize("model", MODELS)
def test_the_judge_reads_the_same_network_by_itself(model, tmp_path):
    path, observations = MODELS[model](tmp_path), make_observations(3)
    oracle = compute_outputs(read_oracle(path), observations)
    eager = find_original(path).read_eager(path)(torch.from_numpy(observations))
    convert.convert_checkpoint(path, tmp_path / "out", ["onnx"])
    onnx = convert.load_agent(tmp_path / "out", "onnx").run(observations)
    assert oracle.keys() == eager.keys() == onnx.keys()
    for output, values in oracle.items():
        assert values.std() > 1e-4
        np.testing.assert_allclose(eager[output].detach(), values, atol=1e-4)
        np.testing.assert_allclose(onnx[output], values, atol=1e-4)


def test_models_tell_their_algorithm_and_the_rest_is_said(tmp_path):
    for name, identity, algorithm in (
        (PFRL, "pfrl/Pong", "DQN"),
        (RAINBOW, "pfrl/Pong/2", "Rainbow"),
        (KAIXHIN, "kaixhin/Pong/1", "Rainbow"),
    ):
        path = save_sample(name, tmp_path)
        agent = convert.convert_checkpoint(path, tmp_path / identity, ["safetensors"], identity=identity).record.agent
        zoo, _, seed = identity.partition("/Pong")
        assert agent.identity == Identity(zoo, algorithm, "Pong", zoo, int(seed.strip("/")) if seed else None)
        with pytest.raises(CheckpointError, match="has 6 actions, expected 4 or all 18 for Breakout"):
            convert.convert_checkpoint(path, tmp_path / "other", ["safetensors"], identity=f"{zoo}/Breakout")


@pytest.mark.parametrize(("names", "padding"), [(CANONICAL, 0), (BEFORE_1_4, 1)])
def test_the_names_of_a_rainbow_tell_the_padding_that_no_shape_tells(names, padding, tmp_path):
    """The formula, by itself: padding, means of noisy layers, dueling streams."""
    path, observations = _make_rainbow(tmp_path / "model.pth", names), make_observations(2)
    state = torch.load(path)
    x = pad(torch.from_numpy(observations) / 255, (padding,) * 4)
    for name, stride in zip(names, (4, 2, 1), strict=True):
        x = conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride).relu()

    def answer(stream: str) -> torch.Tensor:
        h = linear(x.flatten(1), state[f"fc_h_{stream}.weight_mu"], state[f"fc_h_{stream}.bias_mu"]).relu()
        return linear(h, state[f"fc_z_{stream}.weight_mu"], state[f"fc_z_{stream}.bias_mu"]).view(2, -1, 51)

    advantages = answer("a")
    logits = answer("v") + advantages - advantages.mean(1, keepdim=True)
    expected = (logits.softmax(2) * torch.linspace(-10, 10, 51)).sum(2)
    np.testing.assert_allclose(compute_outputs(read_oracle(path), observations)["q_values"], expected, atol=1e-4)
    convert.convert_checkpoint(path, tmp_path / "out", ["torch"])
    np.testing.assert_allclose(convert.load_agent(tmp_path / "out", "torch")(observations), expected, atol=1e-4)


@pytest.mark.parametrize("model", ["pfrl", "pfrl rainbow", "canonical"])
def test_a_model_of_the_format_before_torch_1_6_is_read_by_both(model, tmp_path):
    path = MODELS[model](tmp_path)
    expected = convert.read_checkpoint(path)
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    assert convert.agents.network.find_differences(convert.read_checkpoint(path), expected) == []
    assert read_oracle(path).actions == expected.head.actions


def test_a_rainbow_of_pfrl_is_its_formula_over_mean_weights(tmp_path):
    path, observations = MODELS["pfrl rainbow"](tmp_path), make_observations(2)
    state = torch.load(path)
    x = torch.from_numpy(observations) / 255
    for index, stride in enumerate((4, 2, 1)):
        x = conv2d(x, state[f"conv_layers.{index}.weight"], state[f"conv_layers.{index}.bias"], stride).relu()

    def answer(layer: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, state[f"{layer}.mu.weight"], state[f"{layer}.mu.bias"])

    hidden = answer("main_stream", x.flatten(1)).relu()
    advantages = answer("a_stream", hidden[:, :512]).view(2, 6, 51)
    logits = answer("v_stream", hidden[:, 512:]).view(2, 1, 51) + advantages - advantages.mean(1, keepdim=True)
    expected = (logits.softmax(2) * torch.linspace(-10, 10, 51)).sum(2)
    np.testing.assert_allclose(compute_outputs(read_oracle(path), observations)["q_values"], expected, atol=1e-4)


def test_other_agents_of_pfrl_are_refused_by_name(tmp_path):
    for key, algorithm in (("a_stream.hidden_layers.0.weight", "DuelingDQN"), ("psi.0.weight", "IQN")):
        path = tmp_path / "model.pt"
        torch.save({key: torch.zeros(1)}, path)
        with pytest.raises(
            UnreadableCheckpoint, match=rf"model\.pt: a PFRL agent of {algorithm}; supported: DQN, Rainbow"
        ):
            convert.read_checkpoint(path)
        with pytest.raises(ValueError, match=r"model\.pt"):
            read_oracle(path)


@pytest.mark.parametrize(
    ("model", "change", "error", "message"),
    [
        ("pfrl", lambda state: state.pop("1.bias"), WeightMismatch, r"no 1\.bias"),
        ("pfrl", lambda state: state.update({"2.bias": torch.zeros(1)}), WeightMismatch, r"unexpected 2\.bias"),
        ("pfrl", lambda state: state["1.bias"].fill_(torch.inf), WeightMismatch, "not finite"),
        ("pfrl rainbow", lambda state: state.pop("v_stream.mu.bias"), WeightMismatch, r"no v_stream\.mu\.bias"),
        (
            "pfrl rainbow",
            lambda state: state.update({"x.sigma": torch.zeros(1)}),
            WeightMismatch,
            r"unexpected x\.sigma",
        ),
        (
            "pfrl rainbow",
            lambda state: state.update({"v_stream.mu.weight": torch.zeros(1, 512), "v_stream.mu.bias": torch.zeros(1)}),
            UnsupportedArchitecture,
            "1 atoms, expected 2",
        ),
        ("canonical", lambda state: state.pop("fc_h_a.bias_mu"), WeightMismatch, r"no fc_h_a\.bias_mu"),
        (
            "canonical",
            lambda state: state.update({"fc_z_v.weight_mu": torch.zeros(50, 512), "fc_z_v.bias_mu": torch.zeros(50)}),
            UnsupportedArchitecture,
            "advantage stream is",
        ),
        (
            "canonical",
            lambda state: state.update({"fc_h_v.weight_mu": torch.zeros(9, 3136), "fc_h_v.bias_mu": torch.zeros(9)}),
            UnsupportedArchitecture,
            "hidden",
        ),
    ],
)
def test_a_damaged_model_is_refused_by_both(model, change, error, message, tmp_path):
    path = MODELS[model](tmp_path)
    state = torch.load(path)
    change(state)
    torch.save(state, path)
    with pytest.raises(error, match=message):
        convert.read_checkpoint(path)
    with pytest.raises(ValueError, match=path.name):
        read_oracle(path)


def test_a_search_picks_up_models_alone(tmp_path):
    for name in (PFRL, KAIXHIN):
        save_sample(name, tmp_path / "zoo")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "zoo/other.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "zoo/other.pth")
    jobs = find_jobs([tmp_path / "zoo"], tmp_path / "out")
    assert [Path(job.source).name for job in jobs] == [KAIXHIN, PFRL]


@pytest.mark.parametrize("model", ["pfrl", "pfrl rainbow", "data-efficient"])
def test_an_agent_plays_as_its_zoo_does_in_every_backend(model, tmp_path):
    path = MODELS[model](tmp_path)
    zoo = "kaixhin" if model == "data-efficient" else "pfrl"
    convert.convert_checkpoint(path, tmp_path / "out", ["onnx", "flax"], identity=f"{zoo}/Pong")
    result = check_agent(tmp_path / "out", path, Options(max_steps=200))
    assert result.agrees, [backend.reasons for backend in result.backends.values()]
    assert result.plan.protocol.name == zoo


@pytest.mark.parametrize("atoms", [2, 3, 20, 51, 201])
def test_the_support_of_a_rainbow_is_torchs(atoms):
    assert space_atoms(-10, 10, atoms).tolist() == torch.linspace(-10, 10, atoms).tolist()
