"""The check must be able to fail: faults planted in good artefacts of each target, each caught for its reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import AGENTS, make_state, to_network
from flax import serialization
from onnx import TensorProto, helper, numpy_helper

from convert.agents.agent import RECORD_NAME, Record
from convert.agents.architecture import make_head, nature_cnn, with_support
from convert.agents.network import SUPPORT, Network, from_arrays
from convert.agents.record import read_record, to_json
from convert.errors import CheckError, RecordError
from convert.runtimes import Runtime, import_runtime
from convert.store.local import describe_files
from convert.targets import find_target, import_target
from runtime_check.backends import find_backend
from runtime_check.check.options import Options
from runtime_check.check.pipeline import check_agent
from runtime_check.check.results import AgentResult

pytestmark = pytest.mark.slow

PONG, BREAKOUT = "DQN_modern/Pong/0/model_328492", "C51_classic/Breakout/0/model_187420"
BACKENDS = ("onnxruntime", "flax", "tensorflow")

WRONG = r"\d+ wrong actions?"
ERROR = r"error above the allowed on \d+ of 20 steps, up to [\d.e+]+ times it"


def _change(network: Network, **changed: np.ndarray) -> Network:
    """Return the network with some arrays replaced: conv0, conv1, conv2, hidden, head (kernels), bias, support."""
    names = {f"conv{index}": f"convs.{index}.kernel" for index in range(3)}
    names |= {"hidden": "hidden.kernel", "head": "head.kernel", "bias": "head.bias", "support": SUPPORT}
    arrays = dict(network.arrays) | {names[name]: array for name, array in changed.items()}
    return from_arrays({name: array.copy() for name, array in arrays.items()}, network.architecture)


def _mistake_flatten_order(network: Network) -> Network:
    columns = network.arrays["hidden.kernel"].reshape(512, 7, 7, 64).transpose(0, 3, 1, 2).reshape(512, 3136)
    return _change(network, hidden=columns)


def _swap_actions(network: Network) -> Network:
    rows = np.r_[1, 0, 2 : network.head.actions]
    return _change(network, head=network.arrays["head.kernel"][rows], bias=network.arrays["head.bias"][rows])


def _shift_bias(network: Network) -> Network:
    """By 1 % of the range of the agent's Q-values, which is 2.7 on Pong."""
    bias = network.arrays["head.bias"].copy()
    bias[2] += 0.027
    return _change(network, bias=bias)


def _spoil_weight(network: Network) -> Network:
    kernel = network.arrays["head.kernel"].copy()
    kernel[0, 0] = np.nan
    return _change(network, head=kernel)


def _round_to_bfloat16(network: Network) -> Network:
    def rounded(array: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(array).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)

    convs = {f"conv{index}": rounded(network.arrays[f"convs.{index}.kernel"]) for index in range(3)}
    return _change(
        network, **convs, hidden=rounded(network.arrays["hidden.kernel"]), head=rounded(network.arrays["head.kernel"])
    )


FAULTS: dict[str, tuple[Callable[[Network], Network], str]] = {
    "flatten order": (_mistake_flatten_order, ERROR),
    "kernel transposed": (lambda net: _change(net, conv1=net.arrays["convs.1.kernel"].transpose(0, 1, 3, 2)), ERROR),
    "kernel flipped": (lambda net: _change(net, conv2=net.arrays["convs.2.kernel"][:, :, ::-1, ::-1]), ERROR),
    "actions swapped": (_swap_actions, WRONG),
    "no division by 255": (lambda net: _change(net, conv0=net.arrays["convs.0.kernel"] * 255), ERROR),
    "stack reversed": (lambda net: _change(net, conv0=net.arrays["convs.0.kernel"][:, ::-1]), ERROR),
    "bias shifted": (_shift_bias, ERROR),
    "bfloat16 weights": (_round_to_bfloat16, ERROR),
    "NaN in a weight": (
        _spoil_weight,
        r"20 of 20 answers hold NaN or infinity|does not load: .* values that are not finite",
    ),
    "another agent": (lambda _: to_network(make_state(6, seed=9)), ERROR),
    "another number of actions": (
        lambda _: to_network(make_state(9)),
        r"does not load: .*(its graph .* is not the one|graph or metadata differ|is .(9, 512|512, 9)|head of 9 actions)"
        r"|output 'q_values' is float32\[1, 9\], expected float32\[1, 6\]",
    ),
}


def _copy(converted: Path, agent: str, target: str, to: Path) -> Path:
    """Copy an agent's record with one of its artefacts."""
    folder, (name, record) = to / agent, (find_target(target).path, read_record(converted / agent))
    for path in (path for path in (converted / agent / name, *(converted / agent / name).rglob("*")) if path.is_file()):
        copy = folder / path.relative_to(converted / agent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    _write_record(folder, replace(record, artifacts={target: record.artifacts[target]}))
    return folder


def _write_record(folder: Path, record: Record) -> None:
    """Write the record with the checksums of what is there."""
    artifacts = {
        name: replace(artifact, files=describe_files(folder, find_target(name).path))
        for name, artifact in record.artifacts.items()
    }
    (folder / "agent.json").write_text(to_json(replace(record, artifacts=artifacts)), "utf-8")


def _replant(folder: Path, target: str, change: Callable[[Network], Network]) -> None:
    record, module = read_record(folder), import_target(target)
    path = folder / find_target(target).path
    network = change(module.read(path, record.agent))
    for file in sorted(path.rglob("*"), reverse=True) if path.is_dir() else []:
        file.unlink() if file.is_file() else file.rmdir()
    path.rmdir() if path.is_dir() else path.unlink()
    agent = record.agent
    if network.head.actions != agent.head.actions:  # or its own target would refuse to write it
        agent = replace(agent, architecture=network.architecture)
    module.write(network, agent, path)
    _write_record(folder, record)


def _check(folder: Path, backend: str, **options: int) -> AgentResult:
    return check_agent(folder, AGENTS, Options((backend,), **({"max_steps": 20} | options)))


def _assert_caught(result: AgentResult, backend: str, reason: str) -> None:
    assert not result.agrees
    assert result.backends["reference"].reasons == []
    assert re.search(reason, "; ".join([*result.faults, *result.backends[backend].reasons]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault, backend, converted, tmp_path):
    change, reason = FAULTS[fault]
    target = find_backend(backend).target
    folder = _copy(converted, PONG, target, tmp_path)
    _replant(folder, target, change)
    _assert_caught(_check(folder, backend), backend, reason)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_untouched_artefact_passes(backend, converted, tmp_path):
    """The faults above are caught for what was planted, not for how."""
    target = find_backend(backend).target
    folder = _copy(converted, PONG, target, tmp_path)
    _replant(folder, target, lambda network: network)
    assert _check(folder, backend).agrees


@pytest.mark.parametrize(
    ("backend", "reason"), [("onnxruntime", ERROR), ("tensorflow", ERROR), ("flax", "the support is not")]
)
def test_a_scaled_support_is_caught(backend, reason, converted, tmp_path):
    target = find_backend(backend).target
    folder = _copy(converted, BREAKOUT, target, tmp_path)
    if target == "flax":  # whose support stands in the record
        record = read_record(folder)
        support = tuple(float(np.float32(atom * 1.01)) for atom in record.agent.head.support)
        agent = replace(record.agent, architecture=with_support(record.agent.architecture, support))
        _write_record(folder, replace(record, agent=agent))
        assert reason in "; ".join(_check(folder, backend).faults)
    else:
        _replant(folder, target, lambda network: _change(network, support=network.arrays[SUPPORT] * np.float32(1.01)))
        _assert_caught(_check(folder, backend), backend, reason)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_changed_byte_is_caught_by_its_checksum(backend, converted, tmp_path):
    target = find_backend(backend).target
    folder = _copy(converted, PONG, target, tmp_path)
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = _check(folder, backend)
    _assert_caught(result, backend, rf"checksum: {path.relative_to(folder).as_posix()} has sha256 [0-9a-f]{{64}}")
    assert result.backends[backend].description is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_artefact_that_does_not_load_is_caught(backend, converted, tmp_path):
    target = find_backend(backend).target
    folder = _copy(converted, PONG, target, tmp_path)
    for path in (path for path in folder.rglob("*") if path.is_file() and path.name != "agent.json"):
        path.write_bytes(path.read_bytes()[:100])
    _write_record(folder, read_record(folder))
    _assert_caught(_check(folder, backend), backend, "does not load|does not run")


def test_a_file_that_is_not_recorded_is_caught(converted, tmp_path):
    folder = _copy(converted, PONG, "tensorflow", tmp_path)
    (folder / "saved_model/saved_model.pbtxt").write_text("")
    _assert_caught(_check(folder, "tensorflow"), "tensorflow", "saved_model/saved_model.pbtxt is not in agent.json")


def _infer_in_float16(model: onnx.ModelProto) -> None:
    """Let the graph compute in half precision between the division by 255 and its output."""
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
            model.graph.initializer[index].CopyFrom(half)
    for node in model.graph.node:
        if node.op_type == "Cast":
            node.attribute[0].i = TensorProto.FLOAT16
        node.output[:] = ["half" if name == "q_values" else name for name in node.output]
    model.graph.node.append(helper.make_node("Cast", ["half"], ["q_values"], to=TensorProto.FLOAT))


def test_another_precision_in_an_onnx_graph_is_caught(converted, tmp_path):
    folder = _copy(converted, PONG, "onnx", tmp_path)
    model = onnx.load(folder / "model.onnx")
    _infer_in_float16(model)
    onnx.save(model, folder / "model.onnx")
    _write_record(folder, read_record(folder))
    _assert_caught(_check(folder, "onnxruntime"), "onnxruntime", "does not load: .* its graph or metadata differ")


def test_float16_parameters_in_flax_are_caught(converted, tmp_path):
    folder = _copy(converted, PONG, "flax", tmp_path)
    path = folder / "params.msgpack"
    params = serialization.msgpack_restore(path.read_bytes())
    halves = {
        layer: {name: array.astype(np.float16) for name, array in arrays.items()}
        for layer, arrays in params["params"].items()
    }
    path.write_bytes(serialization.msgpack_serialize({"params": halves}))
    _write_record(folder, read_record(folder))
    _assert_caught(_check(folder, "flax"), "flax", r"does not load: .*params/Conv_0/bias is float16\(32,\)")


def test_another_graph_in_a_saved_model_is_caught(converted, tmp_path):
    tf = pytest.importorskip("tensorflow")
    folder = _copy(converted, PONG, "tensorflow", tmp_path)
    network = import_target("tensorflow").read(folder / "saved_model", read_record(folder).agent)

    def constant(name):
        return tf.constant(network.arrays[name], tf.float16)

    class Half(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 84, 84, 4], tf.uint8, name="observation")])
        def __call__(self, observation):
            x = tf.cast(observation, tf.float16) / 255
            for index, conv in enumerate(network.architecture.convs):
                kernel, bias = (constant(f"convs.{index}.{part}") for part in ("kernel", "bias"))
                x = tf.nn.conv2d(x, tf.transpose(kernel, (2, 3, 1, 0)), conv.stride, "VALID")
                x = tf.nn.relu(x + bias)
            x = tf.reshape(tf.transpose(x, [0, 3, 1, 2]), [-1, 3136])
            x = tf.nn.relu(x @ tf.transpose(constant("hidden.kernel")) + constant("hidden.bias"))
            x = x @ tf.transpose(constant("head.kernel")) + constant("head.bias")
            return {"q_values": tf.cast(x, tf.float32)}

    module = Half()
    tf.saved_model.save(module, str(folder / "saved_model"), signatures={"serving_default": module.__call__})
    (folder / "saved_model/fingerprint.pb").unlink()
    (folder / "saved_model/assets").rmdir()
    _write_record(folder, read_record(folder))
    _assert_caught(
        _check(folder, "tensorflow"), "tensorflow", "does not load: .*(its graph .* is not the one|expected at most)"
    )


def _halve(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return answers as of a runtime that computes in half precision."""
    return {name: value.astype(np.float16).astype(np.float32) for name, value in outputs.items()}


def _depend_on_the_batch(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return answers that are right for one observation at a time, which is how one episode is played."""
    return {name: value / len(value) for name, value in outputs.items()}


RUNTIME_FAULTS = {
    "half precision": (_halve, ERROR),
    "no output": (lambda outputs: {"other": outputs["q_values"]}, "no output 'q_values'; unexpected output 'other'"),
    "extra output": (lambda outputs: outputs | {"other": outputs["q_values"]}, "unexpected output 'other'"),
    "another shape": (
        lambda outputs: {"q_values": outputs["q_values"][:, :5]},
        r"output 'q_values' is float32\[1, 5\], expected float32\[1, 6\]",
    ),
    "float64": (
        lambda outputs: {"q_values": outputs["q_values"].astype(float)},
        r"output 'q_values' is float64\[1, 6\], expected float32\[1, 6\]",
    ),
    "one size of batch": (
        _depend_on_the_batch,
        "answers to 3 observations at once are not those to each alone: off by up to",
    ),
}


@pytest.mark.parametrize("fault", RUNTIME_FAULTS)
def test_a_fault_of_a_runtime_is_caught(fault, converted, tmp_path, monkeypatch):
    """The file is right, and what answers is not: planted between ONNX Runtime and the check."""
    change, reason = RUNTIME_FAULTS[fault]
    module = import_runtime("onnxruntime")
    run = module.run

    def run_faulty(*arguments: object) -> Runtime:
        runtime = run(*arguments)
        return Runtime(lambda observations: change(runtime.answer(observations)), runtime.description)

    monkeypatch.setattr(module, "run", run_faulty)
    folder = _copy(converted, PONG, "onnx", tmp_path)
    _assert_caught(_check(folder, "onnxruntime"), "onnxruntime", reason)


@pytest.mark.parametrize(
    ("head", "meanings", "fault"),
    [
        (make_head(9), None, "Q head of 9 actions, the checkpoint's convolutions"),
        (None, ("FIRE", "NOOP", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"), "action_meanings are ('FIRE', 'NOOP'"),
    ],
)
def test_a_record_that_contradicts_the_checkpoint_is_caught(head, meanings, fault, converted, tmp_path):
    folder = _copy(converted, PONG, "onnx", tmp_path)
    record = read_record(folder)
    agent = replace(record.agent, architecture=nature_cnn(head or record.agent.head), action_meanings=meanings)
    _write_record(folder, replace(record, agent=agent))
    result = _check(folder, "onnxruntime")
    assert not result.agrees
    assert fault in "; ".join(result.faults)


def test_a_wrong_action_in_solo_play_is_judged_where_the_episodes_part(converted, tmp_path):
    folder = _copy(converted, PONG, "onnx", tmp_path)
    _replant(folder, "onnx", _swap_actions)
    result = _check(folder, "onnxruntime", episodes=2, shadow=False, solo=True)
    outcome = result.backends["onnxruntime"]
    assert (outcome.solo.episodes, outcome.solo.identical, outcome.tally.disagreements.wrong) == (2, 0, 2)
    weights, *before, after = outcome.reasons
    assert weights == "other weights than the checkpoint's: head, bias of the head"
    assert before[0] == "before solo play: 2 wrong actions"
    assert before[1].startswith("before solo play: error above the allowed on 3 of 3 steps, up to ")
    assert (len(before), after) == (2, "2 wrong actions")
    for listed in outcome.tally.disagreements.listed:
        assert (listed.mode, listed.kind) == ("solo", "wrong")
        assert listed.margin > 2 * listed.allowed
    exhibit = result.exhibits[0]
    assert exhibit.q_values.keys() == {"oracle", "reference", "onnxruntime"}
    assert np.argmax(exhibit.q_values["oracle"]) == np.argmax(exhibit.q_values["reference"])
    assert (
        np.argmax(exhibit.q_values["onnxruntime"])
        == result.backends["onnxruntime"].tally.disagreements.listed[0].action
    )


def test_a_damaged_record_is_caught_too(converted, tmp_path):
    """A record whose JSON is sound and whose artefact is of another target."""
    folder = _copy(converted, PONG, "onnx", tmp_path)
    document = json.loads((folder / "agent.json").read_text("utf-8"))
    document["artifacts"]["flax"] = document["artifacts"].pop("onnx")
    (folder / "agent.json").write_text(json.dumps(document), "utf-8")
    result = _check(folder, "flax")
    assert not result.agrees
    assert "model.onnx is not in agent.json: remove it, or convert the agent to onnx again" in result.faults


def test_a_record_that_contradicts_itself_is_caught_and_nobody_is_said_to_agree(converted, tmp_path):
    folder = _copy(converted, PONG, "onnx", tmp_path)
    document = json.loads((folder / "agent.json").read_text("utf-8"))
    document["protocol"] = "classic"
    (folder / "agent.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(
        RecordError,
        match=r"agent\.json: claims to be DQN_classic_adam/Pong/0/328492, but the path of its source",
    ):
        _check(folder, "onnxruntime")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"format_version": 7},
            r"format_version of onnx is 7, this version writes \d+: convert the agent again, or check",
        ),
        ({"versions": {"atari-convert": "0.0.1"}}, r"onnx was written by atari-convert 0\.0\.1, this is .* or check"),
        ({"versions": {}}, "onnx was written by atari-convert None, this is"),
    ],
)
def test_what_another_version_wrote_is_not_said_to_agree(change, reason, converted, tmp_path):
    folder = _copy(converted, PONG, "onnx", tmp_path)
    record = read_record(folder)
    _write_record(folder, replace(record, artifacts={"onnx": replace(record.artifacts["onnx"], **change)}))
    _assert_caught(_check(folder, "onnxruntime"), "onnxruntime", reason)


def test_a_wrong_size_is_told_as_one(converted, tmp_path):
    folder = _copy(converted, PONG, "onnx", tmp_path)
    text = (folder / RECORD_NAME).read_text("utf-8")
    size = (folder / "model.onnx").stat().st_size
    (folder / RECORD_NAME).write_text(text.replace(f'"size": {size}', f'"size": {size + 1}'), "utf-8")
    reason = f"size: model.onnx has {size} bytes, agent.json says {size + 1} bytes"
    _assert_caught(_check(folder, "onnxruntime"), "onnxruntime", reason)


@pytest.mark.parametrize(
    ("key", "place", "value"),
    [("inputs", "axes", ["batch", "height", "width", "frame"]), ("outputs", "name", "values")],
)
def test_a_record_that_misleads_about_inputs_and_outputs_is_caught(key, place, value, converted, tmp_path):
    folder = _copy(converted, PONG, "onnx", tmp_path)
    document = json.loads((folder / "agent.json").read_text("utf-8"))
    document["artifacts"]["onnx"][key][0][place] = value
    (folder / "agent.json").write_text(json.dumps(document), "utf-8")
    reason = rf"agent\.json: {key} of onnx are .*{value[-1]}.*, expected .*: convert the agent again"
    _assert_caught(_check(folder, "onnxruntime"), "onnxruntime", reason)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("bfloat16 weights", r"before solo play: error above the allowed on \d of 3 steps, up to [\d.e+]+ times it"),
        ("NaN in a weight", "before solo play: 3 of 3 answers hold NaN or infinity"),
    ],
)
def test_solo_play_alone_measures_errors_before_it(fault, reason, backend, converted, tmp_path):
    """Rounding changes few actions, so that an episode may well be the same."""
    folder = _copy(converted, PONG, find_backend(backend).target, tmp_path)
    _replant(folder, find_backend(backend).target, FAULTS[fault][0])
    _assert_caught(_check(folder, backend, shadow=False, solo=True), backend, reason)


def test_weights_outside_of_the_checked_file_are_refused(converted, tmp_path):
    folder = _copy(converted, PONG, "onnx", tmp_path)
    model = onnx.load(folder / "model.onnx")
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin")
    _write_record(folder, read_record(folder))
    _assert_caught(_check(folder, "onnxruntime"), "onnxruntime", r"model\.onnx does not load")


def test_exploration_hides_nothing_in_solo_play(converted, tmp_path):
    """With an epsilon of 1 both play the same random actions, whatever the networks choose."""
    folder = _copy(converted, PONG, "onnx", tmp_path)
    _replant(folder, "onnx", FAULTS["actions swapped"][0])
    options = Options(("onnxruntime",), max_steps=20, epsilon=1.0, shadow=False, solo=True)
    result = check_agent(folder, AGENTS, options)
    assert "wrong action" in " ".join(result.backends["onnxruntime"].reasons)


def test_an_artefact_of_an_unknown_target_is_not_passed_over(converted, tmp_path):
    folder = _copy(converted, PONG, "onnx", tmp_path)
    record = read_record(folder)
    artifact = record.artifacts["onnx"]
    other = replace(artifact, files=(replace(artifact.files[0], path="model_v2.onnx"),))
    (folder / RECORD_NAME).write_text(to_json(replace(record, artifacts={**record.artifacts, "onnx-v2": other})))
    with pytest.raises(CheckError, match="lists onnx-v2, which no backend of this version opens: name"):
        check_agent(folder, AGENTS, Options(max_steps=5))
