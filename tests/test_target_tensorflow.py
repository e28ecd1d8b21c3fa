"""The SavedModel: read back bit for bit, the oracle's Q-values, the same bytes always, and nothing foreign taken."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from builders import make_architecture

from convert.agents import layout
from convert.agents.agent import Agent, File
from convert.agents.architecture import Architecture, Conv, Head, Observation, list_shapes
from convert.agents.identity import Identity
from convert.agents.network import SUPPORT, Network, find_differences, from_arrays
from convert.errors import UnreadableArtefact, UnwritableOutput
from convert.frameworks.native_logs import without_native_logs
from convert.runtimes import Settings
from convert.runtimes import tensorflow as runtime
from convert.targets import describe_tensors, find_target
from convert.targets import tensorflow as target
from runtime_check import oracle as judge
from runtime_check.oracle import Oracle, compute_q_values

HEADS = [(3, None), (6, None), (18, None), (3, 51), (6, 51), (18, 51)]
AGENT = None  # writing has no use for it


def _agent(network: Network) -> Agent:
    return Agent(Identity(), network.architecture, File("model_1.gz", 1, "0" * 64))


def _random_network(actions: int, atoms: int | None, seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:], initial=1))).astype(np.float32)

    architecture = make_architecture(actions, atoms)
    values = {name: weights(*shape) for name, shape in list_shapes(architecture).items()}
    support = {} if atoms is None else {SUPPORT: np.linspace(-10, 10, atoms, dtype="f4")}
    return from_arrays(values | support, architecture)


def _oracle(network: Network) -> Oracle:
    arrays = {name: array.astype(np.float64) for name, array in network.arrays.items()}
    convs = tuple(
        judge.Conv(arrays[f"convs.{index}.kernel"], arrays[f"convs.{index}.bias"], conv.stride)
        for index, conv in enumerate(network.architecture.convs)
    )
    hidden, dense = (judge.Dense(arrays[f"{layer}.kernel"], arrays[f"{layer}.bias"]) for layer in ("hidden", "head"))
    head = judge.Head(network.head.kind, network.head.actions, dense, support=arrays.get(SUPPORT))
    return Oracle(judge.Observation(), convs, (hidden,), head)


def _observations(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 4, 84, 84), dtype=np.uint8)


def _relative_error(q_values: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(q_values - expected)) / np.max(np.abs(expected)))


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A SavedModel of a random C51 network of 6 actions; tests copy it before they change it."""
    network = _random_network(6, 51)
    path = tmp_path_factory.mktemp("saved") / "saved_model"
    target.write(network, AGENT, path)
    return network, path


@pytest.mark.parametrize(("actions", "atoms"), HEADS)
def test_reads_back_bit_for_bit_and_answers_as_the_oracle(actions, atoms, tmp_path):
    network = _random_network(actions, atoms, seed=actions)
    target.write(network, AGENT, tmp_path / "saved_model")
    assert find_differences(target.read(tmp_path / "saved_model", _agent(network)), network) == []

    answer = _load(tmp_path / "saved_model")
    for count in (1, 2, 7):
        obs_nchw = _observations(count)
        outputs = answer(layout.nhwc_from_nchw(obs_nchw))
        expected = compute_q_values(_oracle(network), obs_nchw)
        assert outputs["q_values"].shape == (count, actions)
        assert _relative_error(outputs["q_values"], expected) < 2e-6
        np.testing.assert_array_equal(outputs["q_values"].argmax(1), expected.argmax(1))
        assert set(outputs) == ({"q_values"} if atoms is None else {"q_values", "logits"})
        if atoms is not None:
            logits = outputs["logits"].astype(np.float64)
            probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
            np.testing.assert_allclose(probabilities @ network.arrays[SUPPORT], outputs["q_values"], atol=1e-5)


def test_strides_and_padding_come_from_the_network(tmp_path):
    rng = np.random.default_rng(0)
    convs = (Conv(8, 6, 3, (1, 1)), Conv(16, 5, 2, (2, 2)))
    architecture = Architecture(Observation(), convs, (32,), Head("q", 5))
    shapes = list_shapes(architecture)
    assert shapes["hidden.kernel"] == (32, 16 * (((84 + 2 - 6) // 3 + 1 + 4 - 5) // 2 + 1) ** 2)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    network = from_arrays(arrays, architecture)
    target.write(network, AGENT, tmp_path / "saved_model")
    outputs = _load(tmp_path / "saved_model")(np.zeros((2, 84, 84, 4), np.uint8))
    assert outputs["q_values"].shape == (2, 5)


@pytest.mark.parametrize(("actions", "atoms"), [(6, None), (6, 51)])
def test_describes_the_signature(actions, atoms, tmp_path):
    network = _random_network(actions, atoms)
    target.write(network, AGENT, tmp_path / "saved_model")
    signature = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"]
    (observation,), outputs = describe_tensors(find_target("tensorflow"), network.architecture)
    (spec,) = signature.structured_input_signature[1].values()
    assert (observation.name, observation.dtype, observation.shape) == (spec.name, spec.dtype.name, tuple(spec.shape))
    found = {name: (spec.dtype.name, tuple(spec.shape)) for name, spec in signature.structured_outputs.items()}
    assert {output.name: (output.dtype, output.shape) for output in outputs} == found
    assert all(len(tensor.axes) == len(tensor.shape) for tensor in (observation, *outputs))


_WRITE_ALL = """
import sys
from pathlib import Path
from convert.frameworks.native_logs import without_native_logs
from convert.runtimes import Settings
from convert.runtimes import tensorflow as runtime
from convert.targets import describe_tensors, find_target
from convert.targets import tensorflow as target
from test_target_tensorflow import write_some
write_some(Path(sys.argv[1]), reverse=True)
"""


def write_some(folder, *, reverse):
    for actions, atoms in HEADS[4:1:-1] if reverse else HEADS[2:5]:
        target.write(_random_network(actions, atoms), AGENT, folder / f"{actions}-{atoms}")


def test_the_same_bytes_in_another_process_and_order_and_not_a_word_on_stderr(tmp_path):
    write_some(tmp_path / "here", reverse=False)
    command = [sys.executable, "-c", _WRITE_ALL, str(tmp_path / "there")]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    hashes = _hashes(tmp_path / "here")
    assert hashes == _hashes(tmp_path / "there")
    files = {"saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"}
    assert {key.split("/", 1)[1] for key in hashes} == files


_LOAD = """
import sys, warnings, logging
warnings.simplefilter("error")
import tensorflow as tf, numpy as np
records = []
tf.get_logger().addHandler(type("Keep", (logging.Handler,), {"emit": lambda self, record: records.append(record)})())
model = tf.saved_model.load(sys.argv[1])
q_values = model.signatures["serving_default"](observation=tf.zeros([2, 84, 84, 4], tf.uint8))["q_values"]
assert not records, records
np.save(sys.argv[2], q_values.numpy())
print(sorted(variable.name for variable in model.signatures["serving_default"].variables))
"""


def test_tensorflow_alone_loads_it_in_a_fresh_process(saved, tmp_path):
    network, path = saved
    command = [sys.executable, "-c", _LOAD, str(path), str(tmp_path / "q.npy")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "WARNING:tensorflow" not in result.stderr
    assert "fingerprint" not in result.stderr
    assert "'convs/0/kernel:0'" in result.stdout
    expected = compute_q_values(_oracle(network), np.zeros((2, 4, 84, 84), np.uint8))
    assert _relative_error(np.load(tmp_path / "q.npy"), expected) < 2e-6


def test_who_asks_for_logs_gets_them():
    command = [sys.executable, "-c", "import convert.targets.tensorflow"]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "oneDNN" in result.stderr


def test_what_else_is_written_while_tensorflow_starts_is_kept(capfd):
    with without_native_logs():
        sys.stderr.write("a progress bar\n")
        subprocess.run(["sh", "-c", "echo 'I0000 00:00:1795330433.85 5692 port.cc:153] oneDNN' >&2"], check=True)
    assert capfd.readouterr().err == "a progress bar\n"


def test_every_permutation_matters(tmp_path, monkeypatch):
    """A port that forgets a permutation has the right shapes and other Q-values: the oracle has to see it."""
    network, obs_nchw = _random_network(6, None), _observations(2)
    expected = compute_q_values(_oracle(network), obs_nchw)

    def hidden_in_chw_order(kernel, channels):  # noqa: ARG001
        return np.ascontiguousarray(kernel.T)

    def spatially_transposed(kernel):
        return np.ascontiguousarray(kernel.transpose(3, 2, 1, 0))

    faults = {
        "hwc_o_from_o_chw": hidden_in_chw_order,
        "hwio_from_oihw": spatially_transposed,
        "io_from_oi": lambda kernel: np.ascontiguousarray(kernel[::-1].T),
    }
    for name, fault in faults.items():
        with monkeypatch.context() as patch:
            patch.setattr(layout, name, fault)
            target.write(network, AGENT, tmp_path / name)
        assert find_differences(target.read(tmp_path / name, _agent(network)), network) != []
        q_values = _load(tmp_path / name)(layout.nhwc_from_nchw(obs_nchw))["q_values"]
        assert _relative_error(q_values, expected) > 1e-2


def _load(path):
    """Return what TensorFlow answers, of networks that are no agents too, which the loader would refuse."""
    settings = Settings("cpu")
    return runtime.run(path, runtime.choose_device(settings), settings).answer


def _copy(saved, tmp_path):
    return Path(shutil.copytree(saved[1], tmp_path / "saved_model"))


def _edit_graph(path, edit):
    graph = target.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    edit(graph)
    (path / "saved_model.pb").write_bytes(graph.SerializeToString(deterministic=True))


def _nodes(graph, op):
    functions = graph.meta_graphs[0].graph_def.library.function
    return [node for function in functions for node in function.node_def if node.op == op]


def _change_stride(graph):
    _nodes(graph, "Conv2D")[1].attr["strides"].list.i[:] = [1, 1, 1, 1]


def _change_scale(graph):
    (scale,) = [node for node in _nodes(graph, "Const") if 255.0 in node.attr["value"].tensor.float_val]
    scale.attr["value"].tensor.float_val[:] = [256.0]


def _swap_biases(graph):
    bound = next(iter(graph.meta_graphs[0].object_graph_def.concrete_functions.values())).bound_inputs
    bound[3], bound[5] = bound[5], bound[3]


def _drop_relu(graph):
    _nodes(graph, "Relu")[0].op = "Identity"


@pytest.mark.parametrize("edit", [_change_stride, _change_scale, _swap_biases, _drop_relu])
def test_refuses_a_changed_graph(edit, saved, tmp_path):
    path = _copy(saved, tmp_path)
    _edit_graph(path, edit)
    with pytest.raises(UnreadableArtefact, match=r"saved_model: its graph .* is not the one"):
        target.read(path, _agent(saved[0]))


def test_reads_the_same_graph_from_another_version_of_tensorflow(saved, tmp_path):
    def rename_version(graph):
        graph.meta_graphs[0].meta_info_def.tensorflow_version = "2.99.0"
        graph.meta_graphs[0].graph_def.versions.producer += 100

    path = _copy(saved, tmp_path)
    _edit_graph(path, rename_version)
    assert find_differences(target.read(path, _agent(saved[0])), saved[0]) == []


def test_refuses_a_foreign_saved_model(tmp_path):
    class Doubler(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 84, 84, 4], tf.uint8, name="observation")])
        def serve(self, observation):
            return {"q_values": 2 * tf.cast(observation, tf.float32)}

    model = Doubler()
    tf.saved_model.save(model, str(tmp_path / "foreign"), signatures={"serving_default": model.serve})
    with pytest.raises(UnreadableArtefact, match=r"foreign: unexpected .*fingerprint\.pb"):
        target.read(tmp_path / "foreign", _agent(_random_network(6, None)))
    (tmp_path / "foreign/fingerprint.pb").unlink()
    (tmp_path / "foreign/assets").rmdir()
    with pytest.raises(UnreadableArtefact, match=r"foreign: its graph .* is not the one"):
        target.read(tmp_path / "foreign", _agent(_random_network(6, None)))


def test_refuses_variables_of_another_network(saved, tmp_path):
    path = _copy(saved, tmp_path)
    target.write(_random_network(6, None), AGENT, tmp_path / "other")
    shutil.rmtree(path / "variables")
    shutil.copytree(tmp_path / "other" / "variables", path / "variables")
    with pytest.raises(UnreadableArtefact, match=r"variables\.\*: not as TensorFlow writes"):
        target.read(path, _agent(saved[0]))
    prefix = str(path / "variables" / "variables")
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=["x"], shape_and_slices=[""], tensors=[tf.zeros([2])])
    with pytest.raises(UnreadableArtefact, match=r"variables\.\*: not as TensorFlow writes"):
        target.read(path, _agent(saved[0]))
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=["x"], shape_and_slices=[""], tensors=[tf.zeros([2], tf.int32)])
    with pytest.raises(UnreadableArtefact, match=r"variables\.\*: not as TensorFlow writes"):
        target.read(path, _agent(saved[0]))


def test_refuses_a_damaged_saved_model(saved, tmp_path):
    path = _copy(saved, tmp_path)
    data = path / "variables" / "variables.data-00000-of-00001"
    good = data.read_bytes()
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 1
    for content in (bytes(damaged), good[: len(good) // 2], b""):
        data.write_bytes(content)
        with pytest.raises(UnreadableArtefact, match=r"variables\.\*: not as TensorFlow writes"):
            target.read(path, _agent(saved[0]))
    data.write_bytes(good)
    data.rename(tmp_path / "data")
    with pytest.raises(UnreadableArtefact, match="convert the agent again"):
        target.read(path, _agent(saved[0]))
    (tmp_path / "data").rename(data)
    for content in (b"no graph", b"", (path / "saved_model.pb").read_bytes()[:1000]):
        (path / "saved_model.pb").write_bytes(content)
        with pytest.raises(
            UnreadableArtefact, match=r"saved_model: (cannot be read as a SavedModel|its graph .* is not the one)"
        ):
            target.read(path, _agent(saved[0]))
    (path / "saved_model.pb").unlink()
    with pytest.raises(UnreadableArtefact, match=r"saved_model: no saved_model\.pb"):
        target.read(path, _agent(saved[0]))


def test_what_tensorflow_cannot_write_is_a_clear_error(tmp_path):
    network = _random_network(3, None)
    target.write(network, AGENT, tmp_path / "good")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the graph fits, the variables do not
    try:
        with pytest.raises(UnwritableOutput, match=r"limited: TensorFlow cannot write the variables: .*too large"):
            target.write(network, AGENT, tmp_path / "limited")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
