"""The targets beyond the first three: read back bit for bit, judged by the oracle, damaged files refused."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import BREAKOUT, PONG, make_architecture, make_observations, make_state, save_checkpoint, to_network
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import convert
from convert.agents import layout
from convert.agents.architecture import list_shapes
from convert.agents.identity import Identity
from convert.agents.network import SUPPORT, find_differences, from_arrays
from convert.artefacts import open_screened
from convert.errors import ArtefactMissing, RecordError, TargetError, UnreadableArtefact, UnsupportedArchitecture
from convert.files import numpy_pickles
from convert.formats import litert_weights as litert
from convert.formats.model_cards import Returns, read_returns, to_model_card
from convert.pipeline import describe_agent
from convert.sources import identify
from convert.store.folders import describe_bytes
from convert.targets import dopamine, find_target, import_target, list_targets
from convert.targets.litert_int8 import read_calibration
from runtime_check.oracle import compute_q_values
from runtime_check.originals import read_oracle
from runtime_check.protocols import PROTOCOLS

pytestmark = pytest.mark.slow

FURTHER = [target for target in list_targets() if target.name not in ("flax", "onnx", "tensorflow")]
IN_ALL = [target.name for target in FURTHER if target.in_all]
EXACT = [target.name for target in FURTHER if not target.is_quantized]
QUANTIZED = [target.name for target in FURTHER if target.is_quantized]
Q_ONLY = ("sb3",)  # which hold no C51
ON_EACH_AGENT = pytest.mark.parametrize(
    ("source", "target"),
    [
        pytest.param(source, target, id=f"{source.parts[-3]}-{target}")
        for source in (PONG, BREAKOUT)
        for target in EXACT
        if source == PONG or target not in Q_ONLY
    ],
)
DOCS = (Path(__file__).parents[1] / "docs/targets.md").read_text("utf-8")


@pytest.fixture
def written(further):
    """The folder of each trained agent, by its checkpoint. Not to be changed."""
    return {source: further.joinpath(*source.parts[-4:]).with_suffix("") for source in (PONG, BREAKOUT)}


def _ask(agent, obs_nchw):
    return agent.run(obs_nchw if agent.axes[1] == "frame" else layout.nhwc_from_nchw(obs_nchw))


def _describe(network, identity=None):
    return describe_agent(network, identity or Identity(), describe_bytes(b"x", "m.gz"))


@ON_EACH_AGENT
def test_a_trained_agent_answers_as_the_oracle_in_batches(written, source, target):
    agent, oracle = convert.load_agent(written[source], target), read_oracle(source)
    for size in (1, 2, 7):
        observations = make_observations(size, seed=size)
        expected = compute_q_values(oracle, observations)
        outputs = _ask(agent, observations)
        assert outputs.keys() == ({"q_values"} if source == PONG else {"q_values", "logits"})
        assert outputs["q_values"].dtype == np.float32
        assert outputs["q_values"].shape == expected.shape
        assert np.abs(outputs["q_values"] - expected).max() < 5e-6 * np.abs(expected).max()
        if source == BREAKOUT:
            assert outputs["logits"].shape == (size, 4, 51)


@ON_EACH_AGENT
def test_an_artefact_reads_back_bit_for_bit(written, source, target):
    assert find_differences(convert.read_agent(written[source], target), convert.read_checkpoint(source)) == []


SPECIAL = np.array([-0.0, 1e-45, -1.1754942e-38, 3.4028235e38, np.pi], np.float32)


def _network(actions, atoms, seed):
    """Return a network of random bits of all magnitudes, with the values that are easily lost among them."""
    rng = np.random.default_rng(seed)

    def array(*shape):
        values = (rng.standard_normal(shape, np.float32) * np.float32(10.0) ** rng.integers(-30, 30, shape)).astype(
            "f4"
        )
        if values.size > len(SPECIAL):
            values.reshape(-1)[: len(SPECIAL)] = SPECIAL
        return values

    architecture = make_architecture(actions, atoms)
    values = {name: array(*shape) for name, shape in list_shapes(architecture).items() if name != SUPPORT}
    return from_arrays(values if atoms is None else values | {SUPPORT: _support(rng, atoms)}, architecture)


def _support(rng, atoms):
    """Even, as Dopamine wants it, and yet with last bits that no formula gives."""
    support = np.linspace(-10, 10, atoms, dtype=np.float32)
    return np.where(rng.random(atoms) < 0.5, np.nextafter(support, np.float32(np.inf)), support)


ALL_EXACT = [target.name for target in list_targets() if not target.is_quantized]


@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("target", ALL_EXACT)
@given(actions=st.integers(1, 18), atoms=st.sampled_from([None, 2, 51]), seed=st.integers(0, 2**32 - 1))
def test_any_network_comes_back_as_it_was(tmp_path, target, actions, atoms, seed):
    atoms = None if target in Q_ONLY else atoms
    network, module = _network(actions, atoms, seed), import_target(target)
    agent, path = _describe(network), tmp_path / f"{actions}-{atoms}-{seed}" / find_target(target).path
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    module.write(network, agent, path)
    assert find_differences(module.read(path, agent), network) == []
    shutil.rmtree(path.parent)


def test_artefacts_are_the_same_bytes_in_another_process(written, tmp_path):
    names = [*EXACT, *QUANTIZED]
    command = [sys.executable, "-m", "convert", str(PONG), "-q", "-o", str(tmp_path)]
    subprocess.run([*command, *(word for name in names for word in ("--to", name))], check=True, timeout=300)
    other = convert.read_record(tmp_path / "DQN_modern/Pong/0/model_328492")
    assert {name: other.artifacts[name] for name in names} == convert.read_record(written[PONG]).artifacts


FILES = [
    ("dopamine", "dopamine/checkpoints/ckpt.0"),
    ("keras", "model.keras"),
    ("litert", "model.tflite"),
    ("nnx", "nnx/conv2.kernel/0.0.0.0"),
    ("orbax", "orbax/params.Dense_0.kernel/0.0"),
    ("safetensors", "huggingface/model.safetensors"),
    ("torch", "torch/state_dict.pt"),
    ("torch", "torch/model.pt2"),
]
# Whoever trains the state dict on removes the program.
DAMAGES = sorted({*itertools.product(FILES, ["truncated", "emptied", "foreign", "gone"])} - {(FILES[-1], "gone")})


@pytest.mark.parametrize(("place", "damage"), DAMAGES)
def test_a_damaged_artefact_is_refused(written, tmp_path, place, damage):
    target, file = place
    folder = tmp_path / "agent"
    path = folder / find_target(target).path
    source = written[PONG] / find_target(target).path
    folder.mkdir()
    shutil.copytree(source, path) if source.is_dir() else shutil.copy(source, path)
    shutil.copy(written[PONG] / "agent.json", folder)
    content = (folder / file).read_bytes()
    if damage == "gone":
        (folder / file).unlink()
    else:
        cut = {"truncated": content[: len(content) // 2], "emptied": b"", "foreign": b"nothing of ours" * 100}
        (folder / file).write_bytes(cut[damage])
    with pytest.raises((UnreadableArtefact, ArtefactMissing), match=re.escape(str(path))):
        convert.read_agent(folder, target)


@pytest.mark.parametrize(("atoms", "told"), [(None, "q"), (51, "categorical")])
def test_a_keras_file_of_another_network_is_refused(tmp_path, atoms, told):
    module = import_target("keras")
    network = to_network(make_state(6, atoms))
    agent = _describe(network)
    assert agent.head.kind == told
    module.write(network, agent, tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    changes = {
        "strides": ('"strides": [4, 4]', '"strides": [2, 2]'),
        "padding": ('"padding": "valid"', '"padding": "same"'),
        "activation": ('"activation": "relu"', '"activation": "tanh"'),
        "pixels": ('"scale": 0.00392156862745098', '"scale": 1.0'),
    }
    for old, new in changes.values():
        changed = files["config.json"].replace(old.encode(), new.encode())
        assert changed != files["config.json"]
        with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
            for name, content in {**files, "config.json": changed}.items():
                archive.writestr(name, content)
        with pytest.raises(
            UnreadableArtefact,
            match=r"other.keras: not a Keras model of such an agent \(has .* as config\.config\.layers",
        ):
            module.read(tmp_path / "other.keras", agent)


def test_a_keras_model_of_somebody_else_is_refused(tmp_path):
    import keras

    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    other.save(tmp_path / "model.keras")
    agent = _describe(to_network(make_state()))
    with pytest.raises(
        UnreadableArtefact,
        match=r"model.keras: not a Keras model of such an agent \(has the class Sequential in config",
    ):
        import_target("keras").read(tmp_path / "model.keras", agent)


def test_a_litert_model_of_somebody_else_is_refused(tmp_path):
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32)])
    def double(values):
        return values * 2.0

    model = tf.lite.TFLiteConverter.from_concrete_functions([double.get_concrete_function()], tf.Module()).convert()
    (tmp_path / "model.tflite").write_bytes(model)
    with pytest.raises(
        UnreadableArtefact, match=r"not a LiteRT model of such an agent \(has the inputs .*, expected observation"
    ):
        litert.read_network(tmp_path / "model.tflite", make_architecture(6), "float32")


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def _rewrite_checkpoint(base, change):
    checkpoint = base / "checkpoints/ckpt.0"
    document = pickle.loads(checkpoint.read_bytes())
    change(document)
    checkpoint.write_bytes(pickle.dumps(document))


@pytest.fixture
def base(written, tmp_path):
    """A copy of the Pong agent's Dopamine folder, to be changed."""
    return shutil.copytree(written[PONG] / "dopamine", tmp_path / "base")


def test_a_dopamine_pickle_that_wants_to_run_code_is_refused_by_name(base, tmp_path):
    marker = tmp_path / "it-ran"
    _rewrite_checkpoint(base, lambda document: document.update(logs=Evil(marker)))
    with pytest.raises(UnreadableArtefact, match=r"ckpt.0: wants to run pathlib.Path.touch, expected plain Python"):
        convert.read_agent(base)
    assert not marker.exists()


@pytest.mark.parametrize(
    "stream",
    [
        b"cnumpy\nndarray\n(I99999999999\ntR.",
        b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",
        b"cnumpy._core.multiarray\nscalar\n(I1\nS'x'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"\x80\x04]\x94h\x00a.",
        b"\x80\x04K",
    ],
)
def test_a_hostile_pickle_is_refused(stream):
    with pytest.raises(ValueError, match=r"wants|damaged|instruction"):
        numpy_pickles.loads(stream)


def test_a_list_that_is_held_very_often_is_read_once():
    value: list[object] = []
    for _ in range(60):
        value = [value, value]
    found = numpy_pickles.loads(pickle.dumps(value))
    assert found[0] is found[1]


def test_pickles_of_every_protocol_hold_the_same_arrays():
    values = {
        "kernel": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
        "mask": np.array([True, False]),
        "mean": np.float64(1.5),
        "list": [1, (2, "three"), None],
    }
    for protocol in range(3, pickle.HIGHEST_PROTOCOL + 1):
        found = numpy_pickles.loads(pickle.dumps({name: values[name] for name in values}, protocol))
        assert found["kernel"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert found["mask"].tolist() == [True, False]
        assert found["mean"] == 1.5
        assert found["list"] == [1, [2, "three"], None]


def test_a_padded_network_of_dopamine_is_refused(base):
    def pad(document):
        kernel = np.zeros((7744, 512), np.float32)
        document["online_params"]["params"]["Dense_0"]["kernel"] = kernel

    _rewrite_checkpoint(base, pad)
    with pytest.raises(
        UnreadableArtefact, match=r"ckpt.0: params/Dense_0/kernel is \(7744, 512\), expected \(3136, 512\)"
    ):
        convert.read_agent(base)


def test_a_foreign_dopamine_folder_is_refused(base, tmp_path):
    (base / "origin.json").rename(tmp_path / "origin.json")
    with pytest.raises(UnsupportedArchitecture, match=r"not padded, .* name the base folder .* with its origin.json"):
        convert.read_agent(base)
    (base / "origin.json").write_text("{}")
    with pytest.raises(RecordError, match=r"origin.json: format_version is None"):
        convert.read_agent(base)
    shutil.copy(tmp_path / "origin.json", base)
    _rewrite_checkpoint(base, lambda document: document.pop("online_params"))
    with pytest.raises(UnreadableArtefact, match=r"ckpt.0: no online_params and training_steps"):
        convert.read_agent(base)
    (base / "checkpoints/sentinel_checkpoint_complete.0").unlink()
    with pytest.raises(ArtefactMissing, match=r"base: no checkpoints/ckpt.N with its sentinel_checkpoint_complete.N"):
        convert.read_agent(base)


def test_a_program_that_wants_to_run_code_is_refused(written, tmp_path):
    shutil.copytree(written[PONG] / "torch", tmp_path / "torch")
    marker = tmp_path / "it-ran"
    with zipfile.ZipFile(written[PONG] / "torch/model.pt2") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = next(name for name in files if name.endswith("model_weights_config.json"))
    sample = next(name for name in files if name.endswith("sample_inputs/model.pt"))
    graph = next(name for name in files if name.endswith("models/model.json"))
    run = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    size = "Symbol('s18', positive=True, integer=True)"
    assert size.encode() in files[graph]
    evil = io.BytesIO()
    torch.save(Evil(marker), evil)
    for changed in (
        {config: files[config].replace(b'"use_pickle": false', b'"use_pickle": true', 1)},
        {sample: evil.getvalue()},
        {graph: files[graph].replace(size.encode(), f"({run}, {size})[1]".encode())},
        {graph: json.dumps(json.loads(files[graph]) | {"guards_code": [f"{run} is None"]}).encode()},
        {graph: files[graph].replace(b"torch.ops.aten.relu.default", b"torch.os.system.default")},
    ):
        with zipfile.ZipFile(tmp_path / "torch/model.pt2", "w") as archive:
            for name, content in {**files, **changed}.items():
                archive.writestr(name, content)
        with (
            pytest.raises(UnreadableArtefact, match=r"model.pt2: not a torch.export program of this agent"),
            open_screened("torch", tmp_path / "torch", convert.read_record(written[PONG]).agent),
        ):
            pass
    assert not marker.exists()


def test_a_program_with_other_weights_than_its_state_dict_is_refused(written, tmp_path):
    shutil.copytree(written[PONG] / "torch", tmp_path / "torch")
    module, network = import_target("torch"), to_network(make_state())
    module.write(network, _describe(network), tmp_path / "other")
    shutil.copy(tmp_path / "other/model.pt2", tmp_path / "torch/model.pt2")
    with pytest.raises(
        UnreadableArtefact, match=r"model.pt2: .*other weights than those of the agent.*remove model.pt2"
    ):
        module.read(tmp_path / "torch", convert.read_record(written[PONG]).agent)


@pytest.mark.parametrize("source", [PONG, BREAKOUT], ids=["pong", "breakout"])
@pytest.mark.parametrize("target", QUANTIZED)
def test_rounded_weights_are_close_and_cannot_be_read_back(written, source, target):
    folder = written[source]
    find_losses = import_target(target).find_losses
    assert find_losses(folder / find_target(target).path, convert.read_checkpoint(source)) == []
    with pytest.raises(UnreadableArtefact, match=f"{target} has rounded weights: choose a float32 artefact"):
        convert.read_agent(folder, target)
    other = to_network(make_state(6 if source == PONG else 4, None if source == PONG else 51))
    assert "hidden.kernel is off by" in " ".join(find_losses(folder / find_target(target).path, other))
    architecture, precision = convert.read_record(folder).agent.architecture, target.removeprefix("litert-")
    network = litert.read_network(folder / find_target(target).path, architecture, precision)[0]
    head = convert.read_checkpoint(source).arrays["head.kernel"]
    assert np.array_equal(network.arrays["head.kernel"], head) == (target == "litert-int8")


def test_all_means_the_float32_targets():
    assert {target.name for target in list_targets() if target.in_all} == {"onnx", "flax", "tensorflow", *IN_ALL}
    assert {target.name for target in list_targets() if target.is_quantized} == set(QUANTIZED)


def test_calibration_takes_the_agents_own_game_or_all():
    assert read_calibration("Pong").shape == (8, 84, 84, 4)
    assert read_calibration(None).shape == (60, 84, 84, 4)
    assert not read_calibration("Pong")[0, :, :, :3].any()


RUNS_ALONE = {
    "keras on jax": (
        ["tensorflow", "convert"],
        {"KERAS_BACKEND": "jax"},
        "import keras; assert keras.backend.backend() == 'jax'\n"
        "q_values = keras.models.load_model(f'{folder}/model.keras')(nhwc)['q_values']",
    ),
    "litert": (
        ["tensorflow", "convert", "jax"],
        {},
        "from ai_edge_litert.interpreter import Interpreter\n"
        "q_values = Interpreter(f'{folder}/model.tflite').get_signature_runner()(observation=nhwc)['q_values']",
    ),
    "torch.export": (
        ["convert", "tensorflow", "jax"],
        {},
        "import torch\n"
        "model = torch.export.load(f'{folder}/torch/model.pt2').module()\n"
        "q_values = model(torch.from_numpy(nchw))['q_values'].detach()",
    ),
    "pickle": (
        ["convert", "jax", "torch"],
        {},
        "import pickle\n"
        "tree = pickle.load(open(f'{folder}/dopamine/checkpoints/ckpt.0', 'rb'))\n"
        "assert 'optimizer_state' not in tree and tree['training_steps'] == 328492 and tree['current_iteration'] == 0\n"
        "assert tree['state'].shape == (84, 84, 4) and tree['target_params'] is tree['online_params']\n"
        "q_values = None",
    ),
    "orbax": (
        ["convert", "torch"],
        {},
        "import orbax.checkpoint\n"
        "tree = orbax.checkpoint.StandardCheckpointer().restore(f'{folder}/orbax')\n"
        "assert tree['params']['Dense_0']['kernel'].shape == (3136, 512)\n"
        "q_values = None",
    ),
    "safetensors": (
        ["convert"],
        {},
        "import safetensors.torch, safetensors.flax, safetensors.numpy\n"
        "path = f'{folder}/huggingface/model.safetensors'\n"
        "expected = safetensors.numpy.load_file(path)\n"
        "for module in (safetensors.torch, safetensors.flax):\n"
        "    found = module.load_file(path)\n"
        "    assert all(np.array_equal(expected[name], np.asarray(found[name])) for name in expected)\n"
        "q_values = None",
    ),
}


# A package that is hidden may be looked for, as torch looks for some, and fails when it is imported.
HIDE = """
import importlib.machinery

class Hide:
    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.packages:
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)

    def exec_module(self, module):
        pass
"""


@pytest.mark.parametrize("case", RUNS_ALONE)
def test_a_runtime_needs_neither_this_package_nor_another_framework(written, case, tmp_path, monkeypatch):
    absent, variables, code = RUNS_ALONE[case]
    np.save(tmp_path / "obs.npy", make_observations(3))
    script = (
        f"import sys\n{HIDE}\nsys.meta_path.insert(0, Hide({absent!r}))\nimport numpy as np\n"
        f"folder, nchw = {str(written[PONG])!r}, np.load('obs.npy')\n"
        "nhwc = np.ascontiguousarray(nchw.transpose(0, 2, 3, 1))\n"
        f"{code}\nif q_values is not None: np.save('q.npy', np.asarray(q_values))\n"
    )
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, check=True, timeout=120)
    if (tmp_path / "q.npy").exists():
        expected = compute_q_values(read_oracle(PONG), make_observations(3))
        np.testing.assert_allclose(np.load(tmp_path / "q.npy"), expected, rtol=0, atol=5e-6 * np.abs(expected).max())


def test_every_loader_in_the_documents_gives_q_values(written, tmp_path):
    codes = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    assert len(codes) == 10
    script = [f"folder = {str(written[PONG])!r}"]
    script += [f"{code}\nimport numpy; assert numpy.asarray(q_values).shape == (1, 6); del q_values" for code in codes]
    subprocess.run([sys.executable, "-W", "ignore", "-c", "\n".join(script)], cwd=tmp_path, check=True, timeout=200)
    for target in (*IN_ALL, *QUANTIZED, "checkpoint"):
        assert f"| `{target}` | `{find_target(target).path}" in DOCS


FAMILIES = {
    "DQN_modern/Pong/0/50000000": ("jax_dqn", "modern", True, 199),
    "MDQN_modern/Pong/2/250000": ("jax_dqn", "modern", True, 0),
    "DQN_classic_adam/Pong/1/499999": ("jax_dqn", "classic", False, 0),
    "C51_classic/Pong/0/750000": ("jax_rainbow", "classic", False, 2),
}


@pytest.mark.parametrize("path", FAMILIES)
def test_the_gin_file_binds_what_the_agent_needs(tmp_path, path):
    name, protocol, sticky, iteration = FAMILIES[path]
    *folder, step = path.split("/")
    source = save_checkpoint(
        tmp_path.joinpath(*folder, f"model_{step}.gz"), make_state(6, 51 if "C51" in path else None)
    )
    convert.convert_checkpoint(source, tmp_path / "out", ["dopamine"])
    gin = (tmp_path / "out/dopamine/agent.gin").read_text("utf-8")
    assert {path.name for path in (tmp_path / "out/dopamine/checkpoints").iterdir()} == {
        f"ckpt.{iteration}",
        f"sentinel_checkpoint_complete.{iteration}",
    }
    for line in (
        f"create_agent.agent_name = '{name}'",
        f"Runner.num_iterations = {iteration + 2}",
        "dopamine_env.create_environment.game = 'Pong'",
        f"dopamine_env.create_environment.protocol = '{protocol}'",
        f"atari_lib.create_atari_environment.sticky_actions = {sticky}",
        "ReplayBuffer.batch_size = 32",
    ):
        assert f"\n{line}\n" in gin
    assert ("Munchausen" in gin) == path.startswith("MDQN")
    assert ("JaxRainbowAgent.num_atoms = 51" in gin) == ("C51" in path)
    assert (tmp_path / f"out/dopamine/checkpoints/sentinel_checkpoint_complete.{iteration}").read_text() == "done"


def test_what_is_not_known_stays_open_in_the_gin_file_and_names_cannot_add_to_it():
    network = to_network(make_state())
    agent = describe_agent(network, Identity(), describe_bytes(b"x", "m.gz"))
    agent = replace(agent, source=replace(agent.source, path="evil\nimport os\n.gz"))
    gin = dopamine.to_gin(agent)
    assert "game = %gin.REQUIRED" in gin
    assert "sticky_actions = %gin.REQUIRED" in gin
    assert not re.search(r"^import os", gin, re.MULTILINE)


def test_a_support_that_dopamine_cannot_hold_is_refused(tmp_path):
    state = make_state(3, 51)
    state["_AtariNet__support"] = torch.linspace(0, 10, 51)
    network = to_network(state)
    with pytest.raises(TargetError, match=r"a support from 0.0 to 10.0 that is not evenly spaced, or begins at 0"):
        import_target("dopamine").write(network, _describe(network), tmp_path / "dopamine")


def test_a_protocol_that_dopamine_cannot_play_is_refused(tmp_path):
    """Its sticky actions are not known, and a guess would train the agent on in another game."""
    network = to_network(make_state())
    agent = describe_agent(network, Identity(protocol="modern"), describe_bytes(b"x", "m.gz"))
    other = replace(agent, identity=replace(agent.identity, protocol="toybox"))
    message = r"m\.gz: protocol 'toybox' cannot be bound in agent\.gin, expected one of modern, classic, dopamine"
    path = tmp_path / "dopamine"
    with pytest.raises(TargetError, match=message):
        dopamine.write(network, other, path)
    assert not path.exists()
    dopamine.write(network, agent, path)
    with open_screened("dopamine", path, agent):
        pass
    with pytest.raises(UnreadableArtefact, match=message), open_screened("dopamine", path, other):
        pass


def test_the_dopamine_target_knows_the_sticky_actions_of_the_protocols_that_it_binds():
    network = to_network(make_state())
    for name in ("modern", "classic", "dopamine"):  # of others, Dopamine's environment would show other pixels
        protocol = PROTOCOLS[name]
        agent = describe_agent(network, Identity(protocol=name), describe_bytes(b"x", "m.gz"))
        assert f"sticky_actions = {protocol.repeat_action_probability > 0}\n" in dopamine.to_gin(agent)


@pytest.mark.parametrize("seed", range(4))
def test_rounding_to_int8_explains_what_is_lost_of_any_agent(tmp_path, seed):
    """A bias has many steps: what float32 makes of it is more than half a step, and no fault."""
    path = save_checkpoint(tmp_path / "model_1.gz", make_state(18, 51 if seed % 2 else None, seed=seed))
    assert convert.convert_checkpoint(path, tmp_path / "agent", ["litert-int8"]).written == ("litert-int8",)


def test_a_model_card_says_who_the_agent_is_and_what_was_measured():
    identity = identify("x/C51_classic/Breakout/0/model_187420.gz")
    agent = describe_agent(convert.read_checkpoint(BREAKOUT), identity, describe_bytes(b"x", "m.gz"))
    card = to_model_card(agent)
    assert card.startswith("---\nlibrary_name: atari-convert\ntags:\n- reinforcement-learning\n")
    assert "- c51\n- breakout\n" in card
    assert "model-index" not in card
    measured = to_model_card(agent, Returns(25.3, 7.5, 3, 0.001))
    assert 'value: "25.30 +/- 7.50"' in measured
    assert "Mean return 25.30 ± 7.50 over 3 episodes" in measured
    assert read_returns(measured) == Returns(25.3, 7.5, 3, 0.001)
    assert "without a change to any weight" in card
    trained = to_model_card(replace(agent, derived_from=agent.source))
    assert "without a change" not in trained
    assert "Trained on by others, from a checkpoint in the format of the release" in trained


def test_safetensors_carry_their_identity(written):
    from safetensors import safe_open

    with safe_open(written[BREAKOUT] / "huggingface/model.safetensors", "numpy") as file:
        config = json.loads(file.metadata()["agent"])
    assert config == json.loads((written[BREAKOUT] / "huggingface/config.json").read_text("utf-8"))
    assert (config["game"], config["num_atoms"], config["step"]) == ("Breakout", 51, 187420)


def test_a_checkpoint_that_cannot_be_read_back_is_named(written, tmp_path):
    agent = convert.read_record(written[PONG]).agent
    with pytest.raises(UnreadableArtefact, match=r"missing or empty"):
        import_target("checkpoint").read(tmp_path, agent)
    unknown = replace(agent, identity=Identity())
    import_target("checkpoint").write(convert.read_checkpoint(PONG), unknown, tmp_path / "checkpoint")
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["model_unknown.gz"]


@pytest.mark.parametrize("target", QUANTIZED)
def test_the_converter_of_rounded_weights_logs_nothing(target, tmp_path):
    command = [sys.executable, "-m", "convert", PONG, "--to", target, "-o", tmp_path, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert (done.stdout, done.stderr) == ("", "")
