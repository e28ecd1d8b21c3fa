"""Every target: read back bit for bit, and judged by the oracle on real frames of the trained agents."""

from __future__ import annotations

import gzip
import io
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from builders import BREAKOUT, PONG, make_observations, make_state, save_checkpoint, to_network
from flax import serialization

import convert
from convert import targets
from convert.agents import layout
from convert.agents.agent import name_actions
from convert.agents.network import SUPPORT, find_differences
from convert.errors import MissingExtra, RoundTripError, UnknownTarget, UnreadableArtefact
from convert.formats.atari_agents import make_identity
from convert.pipeline import describe_agent
from convert.store.folders import describe_bytes
from runtime_check.oracle import compute_q_values
from runtime_check.originals import read_oracle
from runtime_check.protocols import PROTOCOLS
from runtime_check.replay import Plan, Replay

FIRST = ("flax", "onnx", "tensorflow")
# Every target of float32 weights, as it is found. The heavier ones are tried by the slow tests.
TARGETS = [
    pytest.param(target.name, marks=() if target.name in FIRST else pytest.mark.slow)
    for target in targets.list_targets()
    if not target.is_quantized
]
RELATIVE_ERROR = 1e-6  # of a correct float32 port on a trained agent
RANDOM_ERROR = 5e-6  # of one on a random network and on noise, whose sums cancel more


@pytest.fixture(scope="module")
def frames():
    """Observations that each trained agent meets when it plays greedily, by the file of its checkpoint."""
    return {
        PONG: _play(PONG, Plan("Pong", PROTOCOLS["modern"], 6, max_steps=40)),
        BREAKOUT: _play(BREAKOUT, Plan("Breakout", PROTOCOLS["classic"], 4, max_steps=40)),
    }


def _play(checkpoint: Path, plan: Plan) -> np.ndarray:
    oracle, replay, seen = read_oracle(checkpoint), Replay(plan, 1), []
    while batch := replay.observe():
        seen.append(batch.obs_nchw)
        replay.act(compute_q_values(oracle, batch.obs_nchw).argmax(1))
    return np.concatenate(seen)


def _combine(cases: dict[str, tuple]) -> list:
    """Return each case, by its name, with each target that holds it: Stable-Baselines3 has no C51."""
    return [
        pytest.param(*case, *target.values, marks=target.marks, id=f"{name}-{target.values[0]}")
        for name, case in cases.items()
        for target in TARGETS
        if not ("C51" in name and target.values[0] == "sb3")
    ]


def _ask(agent: convert.LoadedAgent, obs_nchw: np.ndarray) -> np.ndarray:
    return agent(obs_nchw if agent.axes[1] == "frame" else layout.nhwc_from_nchw(obs_nchw))


def _relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


@pytest.mark.parametrize(("checkpoint", "target"), _combine({"DQN": (PONG,), "C51": (BREAKOUT,)}))
def test_a_converted_agent_acts_as_the_oracle_on_its_own_game(request, frames, checkpoint, target):
    converted = request.getfixturevalue("converted" if target in FIRST else "further")
    family, game, seed, name = checkpoint.parts[-4:]
    agent = convert.load_agent(converted / family / game / seed / name.removesuffix(".gz"), target)
    expected = compute_q_values(read_oracle(checkpoint), frames[checkpoint])
    actual = _ask(agent, frames[checkpoint])
    assert _relative_error(actual, expected) < RELATIVE_ERROR
    assert np.array_equal(actual.argmax(1), expected.argmax(1))
    assert agent.agent.identity.game == game
    assert agent.target == target


@pytest.mark.parametrize(
    ("actions", "atoms", "target"),
    _combine(
        {
            f"{name}-{actions}": (actions, atoms)
            for name, atoms in (("DQN", None), ("C51", 51))
            for actions in (3, 6, 18)
        }
    ),
)
def test_a_random_network_answers_as_the_oracle_in_batches(tmp_path, target, actions, atoms):
    path = save_checkpoint(tmp_path / "m.gz", make_state(actions, atoms, seed=actions))
    convert.convert_checkpoint(path, tmp_path / "agent", [target])
    agent = convert.load_agent(tmp_path / "agent", target)
    oracle = read_oracle(path)
    for size in (1, 2, 7):
        observations = make_observations(size, seed=size)
        expected = compute_q_values(oracle, observations)
        actual = _ask(agent, observations)
        assert _relative_error(actual, expected) < RANDOM_ERROR
        assert np.array_equal(actual.argmax(1), expected.argmax(1))
        outputs = agent.run(observations if agent.axes[1] == "frame" else layout.nhwc_from_nchw(observations))
        assert outputs.keys() == ({"q_values", "logits"} if atoms else {"q_values"})
        if atoms:
            assert outputs["logits"].shape == (size, actions, atoms)


PERMUTATIONS = {
    "kernel transposed": ("hwio_from_oihw", "oihw_from_hwio", lambda k: k.transpose(3, 2, 1, 0)),
    "kernel flipped": ("hwio_from_oihw", "oihw_from_hwio", lambda k: k.transpose(2, 3, 1, 0)[::-1]),
    "flatten order": ("hwc_o_from_o_chw", "o_chw_from_hwc_o", lambda k, _: k.T),
    "dense rows reversed": ("io_from_oi", "oi_from_io", lambda k: k[::-1].T),
}


@pytest.mark.parametrize("fault", PERMUTATIONS)
@pytest.mark.parametrize("target", ["flax", "tensorflow"])
def test_a_wrong_permutation_is_caught(tmp_path, monkeypatch, target, fault):
    there, back, wrong = PERMUTATIONS[fault]
    path = save_checkpoint(tmp_path / "m.gz", make_state())
    monkeypatch.setattr(layout, there, lambda *arguments: np.ascontiguousarray(wrong(*arguments)))
    with pytest.raises(RoundTripError, match=f"{target} does not read back as it was written.*it was not published"):
        convert.convert_checkpoint(path, tmp_path / "agent", [target])
    assert not (tmp_path / "agent").exists()

    # A fault in both directions reads back as if all were well: the oracle has to see it.
    originals = itertools.cycle(_kernels_for(there, convert.read_checkpoint(path)))
    monkeypatch.setattr(layout, back, lambda *_: next(originals))
    convert.convert_checkpoint(path, tmp_path / "agent", [target])
    observations = make_observations(3)
    expected = compute_q_values(read_oracle(path), observations)
    assert _relative_error(_ask(convert.load_agent(tmp_path / "agent", target), observations), expected) > 1e-2


def _kernels_for(permutation: str, network: convert.Network) -> list[np.ndarray]:
    return {
        "hwio_from_oihw": [network.arrays[f"convs.{index}.kernel"] for index in range(3)],
        "hwc_o_from_o_chw": [network.arrays["hidden.kernel"]],
        "io_from_oi": [network.arrays["head.kernel"]],
    }[permutation]


def _agent_of(state, game="Pong"):
    network = to_network(state)
    return network, describe_agent(
        network, replace(make_identity("DQN_modern", "Pong"), game=game), describe_bytes(b"x", "m.gz")
    )


def test_onnx_is_one_valid_file_that_says_who_it_is(converted):
    path = converted / "C51_classic/Breakout/0/model_187420/model.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert model.ir_version == onnx.helper.find_min_ir_version_for(model.opset_import)
    metadata = {item.key: item.value for item in model.metadata_props}
    assert metadata["game"] == "Breakout"
    assert metadata["algorithm"] == "C51"
    assert metadata["step"] == "187420"
    assert metadata["action_meanings"] == "NOOP,FIRE,RIGHT,LEFT"
    session = onnxruntime.InferenceSession(path)
    assert [(item.name, item.type, item.shape) for item in session.get_inputs()] == [
        ("observation", "tensor(uint8)", ["batch", 4, 84, 84])
    ]
    assert [(item.name, item.shape) for item in session.get_outputs()] == [
        ("q_values", ["batch", 4]),
        ("logits", ["batch", 4, 51]),
    ]


def test_flax_params_are_the_tree_of_dopamine_and_cleanrl(converted):
    params = serialization.msgpack_restore((converted / "DQN_modern/Pong/0/model_328492/params.msgpack").read_bytes())
    shapes = {
        f"{layer}/{name}": (leaf.shape, leaf.dtype)
        for layer, leaves in params["params"].items()
        for name, leaf in leaves.items()
    }
    assert params.keys() == {"params"}
    assert shapes == {
        "Conv_0/kernel": ((8, 8, 4, 32), np.float32),
        "Conv_0/bias": ((32,), np.float32),
        "Conv_1/kernel": ((4, 4, 32, 64), np.float32),
        "Conv_1/bias": ((64,), np.float32),
        "Conv_2/kernel": ((3, 3, 64, 64), np.float32),
        "Conv_2/bias": ((64,), np.float32),
        "Dense_0/kernel": ((3136, 512), np.float32),
        "Dense_0/bias": ((512,), np.float32),
        "Dense_1/kernel": ((512, 6), np.float32),
        "Dense_1/bias": ((6,), np.float32),
    }


@pytest.mark.parametrize(("actions", "atoms"), [(6, None), (4, 51)])
def test_linen_modules_take_one_observation_a_batch_jit_and_vmap(actions, atoms):
    import jax

    from convert.formats.parameter_trees import to_params
    from convert.networks.linen import NatureC51, NatureDQN

    network = to_network(make_state(actions, atoms))
    params = to_params(network)
    module = NatureC51(actions, atoms) if atoms else NatureDQN(num_actions=actions)
    support = (network.arrays[SUPPORT],) if atoms else ()
    batch = layout.nhwc_from_nchw(make_observations(3))
    batched = module.apply(params, batch, *support).q_values
    assert batched.shape == (3, actions)
    one = [module.apply(params, observation, *support).q_values for observation in batch]
    mapped = jax.vmap(lambda observation: module.apply(params, observation, *support).q_values)(batch)
    jitted = jax.jit(module.apply)(params, batch, *support).q_values
    for other in (np.stack(one), mapped, jitted):
        np.testing.assert_allclose(other, batched, rtol=1e-5, atol=1e-5)
    preprocessed = module.clone(inputs_preprocessed=True).apply(params, batch.astype(np.float32) / 255, *support)
    np.testing.assert_allclose(preprocessed.q_values, batched, rtol=1e-5, atol=1e-5)
    fresh = module.init(jax.random.key(0), batch[0], *support)
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, params)


@pytest.mark.parametrize("target", ["flax", "onnx"])
@pytest.mark.parametrize("content", [b"", b"nothing", None], ids=["empty", "foreign", "truncated"])
def test_a_damaged_artefact_is_refused(tmp_path, target, content):
    network, agent = _agent_of(make_state())
    module, path = targets.import_target(target), tmp_path / "artefact"
    module.write(network, agent, path)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(UnreadableArtefact, match="artefact: "):
        module.read(path, agent)


def test_an_onnx_file_with_another_graph_is_refused(tmp_path):
    network, agent = _agent_of(make_state())
    path = tmp_path / "model.onnx"
    targets.import_target("onnx").write(network, agent, path)
    for change in (_drop_the_division, _change_a_stride, _swap_relu):
        model = onnx.load(path)
        change(model.graph)
        changed = tmp_path / "changed.onnx"
        changed.write_bytes(model.SerializeToString())
        with pytest.raises(
            UnreadableArtefact,
            match=r"its graph or metadata (differ|hold the operation Sigmoid, which no such agent needs)",
        ):
            targets.import_target("onnx").read(changed, agent)


def _drop_the_division(graph):
    constant = next(item for item in graph.initializer if item.name == "pixels.max")
    constant.raw_data = np.float32(1).tobytes()


def _change_a_stride(graph):
    node = next(node for node in graph.node if node.op_type == "Conv")
    next(item for item in node.attribute if item.name == "strides").ints[:] = [4, 3]


def _swap_relu(graph):
    next(node for node in graph.node if node.op_type == "Relu").op_type = "Sigmoid"


@pytest.mark.parametrize("target", TARGETS)
def test_an_artefact_is_the_same_bytes_in_another_process(request, tmp_path, target):
    converted = request.getfixturevalue("converted" if target in FIRST else "further")
    command = [sys.executable, "-m", "convert", str(PONG), "--to", target, "-q", "-o", str(tmp_path)]
    subprocess.run(command, check=True, timeout=120)
    folder = "DQN_modern/Pong/0/model_328492"
    first, second = (convert.read_record(root / folder).artifacts[target] for root in (converted, tmp_path))
    assert first == second


def test_every_target_describes_itself_without_its_framework():
    known = {target.name: target for target in targets.list_targets()}
    assert known.keys() >= set(FIRST)
    assert known["onnx"].path == "model.onnx"
    assert known["flax"].path == "params.msgpack"
    assert known["tensorflow"].path == "saved_model"
    assert all(target.summary and target.extra and target.format_version >= 1 for target in known.values())


def test_inputs_and_outputs_of_every_target_are_known_without_any_framework():
    code = """
import sys
from convert import targets
from convert.agents.architecture import make_head, nature_cnn
for target in targets.list_targets():
    (observation,), outputs = targets.describe_tensors(target, nature_cnn(make_head(4, 2)))
    sizes = dict(batch=None, frame=4, height=84, width=84)
    assert observation.shape == tuple(sizes[axis] for axis in observation.axes), target
    assert observation.axes[1] == ("frame" if target.axes == "NCHW" else "height"), target
    assert [(output.name, output.shape) for output in outputs] == [("q_values", (None, 4)), ("logits", (None, 4, 2))]
    (q_values,) = targets.describe_tensors(target, nature_cnn(make_head(6)))[1]
    assert q_values.shape == (None, 6), target
frameworks = {"torch", "tensorflow", "jax", "flax", "onnx", "keras", "safetensors", "orbax", "ai_edge_litert"}
print(frameworks & sys.modules.keys())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_an_unknown_target_lists_the_known_ones_closest_first():
    with pytest.raises(UnknownTarget, match=r"no target 'onx'; did you mean onnx\? Known: checkpoint, "):
        targets.find_target("onx")


def test_a_missing_extra_names_its_install_line():
    code = """
import sys
sys.modules["onnx"] = None
from convert import targets
from convert.errors import MissingExtra
try:
    targets.import_target("onnx")
except MissingExtra as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "target 'onnx' needs onnx: pip install 'atari-convert[onnx]'\n"
    assert issubclass(MissingExtra, convert.errors.TargetError)


def test_a_broken_import_is_not_taken_for_a_missing_extra():
    code = (
        "import sys; sys.modules['convert.networks.linen'] = None\n"
        "from convert import targets; targets.import_target('flax')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: import of convert.networks.linen halted" in result.stderr
    assert "pip install" not in result.stderr


def test_differences_are_found_and_named():
    state = make_state()
    network, other = to_network(state), to_network({name: tensor.clone() for name, tensor in state.items()})
    assert find_differences(network, other) == []
    changed = {name: tensor.clone() for name, tensor in state.items()}
    changed["_AtariNet__head.2.bias"][0] = -0.0
    changed["_AtariNet__head.0.weight"][0, :2] += 1
    assert find_differences(to_network(changed), network) == [
        "hidden.kernel differs in 2 of 1605632 values",
        "head.bias differs in 1 of 6 values",
    ]
    assert find_differences(to_network(make_state(6, 51)), network)[0].startswith("is a network of convolutions")
    assert set(network.arrays) == set(other.arrays)


def test_a_checkpoint_written_by_plain_torch_gives_the_same_q_values_as_its_artefacts(converted, frames):
    """A fourth opinion, with torch's own layers and strict loading, as the release's ``play.py`` does."""
    document = torch.load(io.BytesIO(gzip.decompress(PONG.read_bytes())), weights_only=True)
    state = {name.removeprefix("_AtariNet__"): value for name, value in document["estimator_state"].items()}
    features = [torch.nn.Conv2d(4, 32, 8, 4), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 4, 2), torch.nn.ReLU()]
    features += [torch.nn.Conv2d(64, 64, 3, 1), torch.nn.ReLU()]
    head = [torch.nn.Linear(3136, 512), torch.nn.ReLU(), torch.nn.Linear(512, 6)]
    model = torch.nn.ModuleDict({"features": torch.nn.Sequential(*features), "head": torch.nn.Sequential(*head)})
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        scaled = torch.from_numpy(frames[PONG]).float() / 255
        expected = model["head"](model["features"](scaled).flatten(1)).numpy()
    actual = convert.load_agent(converted / "DQN_modern/Pong/0/model_328492", "onnx")(frames[PONG])
    assert _relative_error(actual, expected) < 2 * RELATIVE_ERROR


def test_meanings_of_an_agents_actions_stand_in_the_order_of_its_head(converted):
    agent = convert.load_agent(converted / "DQN_modern/Pong/0/model_328492", "onnx").agent
    assert agent.action_meanings == name_actions("Pong", agent.head.actions)
