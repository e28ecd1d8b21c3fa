"""One loader: what ``atari-check`` proves is what ``convert.load_agent`` runs."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import AGENTS, BREAKOUT, PONG, list_holding, make_observations, make_state, save_checkpoint

import convert
from convert.agents import layout
from convert.errors import ArtefactMissing, InvalidArgument, RecordError, RuntimeUnavailable, UnknownTarget
from convert.runtimes import Settings, list_runtimes
from convert.targets import find_target, import_target, list_targets
from runtime_check.backends import list_backends
from runtime_check.check.opening import open_backend

FIRST = ("onnx", "flax", "tensorflow")
ENVIRONMENT = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}


def _folder(root: Path, source: Path) -> Path:
    return root.joinpath(*source.parts[-4:]).with_suffix("")


def _python(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def _assert_same_answers(folder: Path, target: str) -> None:
    agent = convert.load_agent(folder, target, "cpu")
    (backend,) = (backend for backend in list_backends() if backend.target == target)
    judged = open_backend(backend, folder / find_target(target).path, agent.agent, Settings("cpu"))[0]
    obs_nchw = make_observations(3)
    expected = judged.answer(obs_nchw)
    actual = agent.run(obs_nchw if agent.axes[1] == "frame" else layout.nhwc_from_nchw(obs_nchw))
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[name], expected[name]) for name in expected)
    assert "cpu" in agent.device.lower()
    assert agent.device == judged.description.device


def test_every_runtime_runs_a_target_and_every_target_has_a_runtime():
    assert set(list_runtimes()) == {target.runtime for target in list_targets()}


@pytest.mark.parametrize("target", FIRST)
def test_users_get_the_answers_that_are_judged(converted, target):
    _assert_same_answers(_folder(converted, BREAKOUT), target)


@pytest.mark.slow
@pytest.mark.parametrize("target", [target.name for target in list_targets() if target.name not in FIRST])
def test_users_get_the_answers_that_are_judged_of_every_target(further, target):
    holding = BREAKOUT if target in list_holding(BREAKOUT) else PONG
    _assert_same_answers(_folder(further, holding), target)


@pytest.fixture(scope="module")
def litert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("litert") / "agent"
    convert.convert_checkpoint(PONG, folder, ["litert", "litert-float16", "litert-int8"])
    return folder


@pytest.mark.parametrize("target", ["litert", "litert-float16", "litert-int8"])
def test_loading_litert_imports_no_tensorflow(litert, target):
    code = f"""
import sys, numpy, convert
agent = convert.load_agent({str(litert)!r}, {target!r})
print(agent(numpy.zeros((2, 84, 84, 4), numpy.uint8)).shape, agent.device, "tensorflow" in sys.modules)
"""
    assert _python(code) == "(2, 6) cpu False\n"


def test_checking_litert_imports_no_tensorflow(litert):
    arguments = [str(litert), "--source", str(AGENTS), "--max-steps", "5"]
    code = f"""
import sys
from runtime_check.cli import main
try:
    main({arguments!r})
finally:
    print("tensorflow" in sys.modules)
"""
    *table, loaded = _python(code).splitlines()
    assert sum("litert" in line and " agree " in line for line in table) == 3
    assert loaded == "False"


def test_a_litert_file_is_read_back_where_tensorflow_is_not_installed(litert):
    code = f"""
import sys, convert
sys.modules["tensorflow"] = None
print(convert.read_agent({str(litert)!r}, "litert"))
try:
    convert.convert_checkpoint({str(PONG)!r}, {str(litert.parent / "other")!r}, ["litert"])
except convert.errors.MissingExtra as error:
    print(error)
"""
    network, message = _python(code).splitlines()
    assert network == "Network(convolutions 32 8×8/4, 64 4×4/2, 64 3×3/1, hidden 512, Q head of 6 actions)"
    assert message == "target 'litert' needs tensorflow: pip install 'atari-convert[litert]'"


def test_agents_of_one_architecture_share_a_compilation(tmp_path):
    from convert.runtimes import jax as runtime

    folders = []
    for seed, (actions, atoms) in enumerate([(6, None), (6, None), (6, 51), (6, 51), (4, None)]):
        state = make_state(actions, atoms, seed)
        if atoms:
            state["_AtariNet__support"] *= seed
        folders.append(tmp_path / str(seed))
        source = save_checkpoint(tmp_path / f"{seed}.gz", state)
        convert.convert_checkpoint(source, folders[-1], ["flax", "dopamine", "nnx"])
    observations = layout.nhwc_from_nchw(make_observations(5))
    runtime._apply.clear_cache()
    counts, answers = [], []
    for folder in folders:
        for target in ("flax", "dopamine"):
            answers.append(convert.load_agent(folder, target, "cpu")(observations))
            counts.append(runtime._apply._cache_size())
    assert counts == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    for one, other in zip(answers[::2], answers[1::2], strict=True):
        assert np.array_equal(one, other)
    assert not np.allclose(answers[0], answers[2])
    assert not np.allclose(answers[4], answers[6])
    for folder in folders:
        convert.load_agent(folder, "nnx", "cpu")(observations)
    assert runtime._apply._cache_size() == 6


@pytest.mark.parametrize("target", FIRST)
def test_a_gpu_that_is_not_there_is_an_error(converted, target):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeUnavailable, match=r"sees no GPU: install .* or choose the device 'cpu' or 'auto'"):
        convert.load_agent(_folder(converted, PONG), target, device="gpu")


def test_a_device_that_nobody_knows_is_refused(converted):
    with pytest.raises(InvalidArgument, match="device is 'cuda', expected 'auto', 'cpu', 'gpu'"):
        convert.load_agent(_folder(converted, PONG), "onnx", device="cuda")


NHWC = np.zeros((2, 84, 84, 4), np.uint8)
EXPECTED = r"expected uint8\[N, 84, 84, 4\] \(batch, height, width, frame\)"
# What people pass by mistake, and the end of what they are told.
MISTAKES = {
    "no batch axis": (NHWC[0], rf"uint8\[84, 84, 4\], {EXPECTED}: use observation\[None\]$"),
    "frames first": (NHWC.transpose(0, 3, 1, 2), r": use observation\.transpose\(0, 2, 3, 1\)$"),
    "one, frames first": (NHWC[0].transpose(2, 0, 1), r": use observation\[None\]\.transpose\(0, 2, 3, 1\)$"),
    "another size": (np.zeros((1, 210, 160, 3), np.uint8), rf"uint8\[1, 210, 160, 3\], {EXPECTED}$"),
    "two batch axes": (NHWC[None], rf"uint8\[1, 2, 84, 84, 4\], {EXPECTED}$"),
    "no axes": (np.array(3, np.uint8), rf"uint8\[\], {EXPECTED}$"),
    "nothing": (NHWC[:0], r"N at least 1"),
    "scaled": (NHWC / 255.0, r"observation is float64\[2, 84, 84, 4\], .* as they are, 0–255, not scaled"),
    "float32": (NHWC.astype(np.float32), "observation is float32"),
    "int64": (NHWC.astype(np.int64), "observation is int64"),
    "bool": (NHWC > 3, "observation is bool"),
    "objects": (NHWC.astype(object), "observation is object"),
    "a list": (NHWC.tolist(), "observation is of type list, .* use numpy.asarray"),
    "None": (None, "observation is of type NoneType"),
}


def _assert_refusals(folder: Path, target: str) -> None:
    agent = convert.load_agent(folder, target, "cpu")
    is_nchw = agent.axes[1] == "frame"
    for name, (observation, expected) in MISTAKES.items():
        if is_nchw and name == "frames first":
            continue
        for call in (agent, agent.run):
            with pytest.raises(ValueError, match=r"^observation is .*, expected uint8\[N, ") as caught:
                call(observation)
            assert isinstance(caught.value, convert.AtariConvertError), name
            if not is_nchw:
                assert re.search(expected, str(caught.value)), name


@pytest.mark.parametrize("target", FIRST)
def test_every_target_refuses_the_same_observations(converted, target):
    _assert_refusals(_folder(converted, PONG), target)


@pytest.mark.slow
@pytest.mark.parametrize("target", [target.name for target in list_targets() if target.name not in FIRST])
def test_every_further_target_refuses_the_same_observations(further, target):
    _assert_refusals(_folder(further, PONG), target)


def test_hints_for_frames_first(converted):
    agent = convert.load_agent(_folder(converted, PONG), "onnx")
    for observation, hint in ((NHWC, ".transpose(0, 3, 1, 2)"), (NHWC[0], "[None].transpose(0, 3, 1, 2)")):
        with pytest.raises(InvalidArgument) as caught:
            agent(observation)
        assert str(caught.value).endswith(f"(batch, frame, height, width): use observation{hint}")
        fitting = eval(f"observation{hint}")  # noqa: S307 - as a user pastes it
        assert agent(fitting).shape == (len(fitting), 6)


@pytest.mark.parametrize("target", FIRST)
@pytest.mark.filterwarnings("error")
def test_observations_need_not_be_contiguous_or_writable(converted, target):
    agent = convert.load_agent(_folder(converted, PONG), target, "cpu")
    observations = make_observations(4)
    observations = observations if agent.axes[1] == "frame" else layout.nhwc_from_nchw(observations)
    expected = agent(observations[::2])
    observations.flags.writeable = False
    mirrored = np.ascontiguousarray(observations[:, :, ::-1])[:, :, ::-1]
    assert np.array_equal(agent(observations)[::2], agent(mirrored)[::2])
    assert np.allclose(agent(observations)[::2], expected, atol=1e-5)


def test_an_agent_tells_who_it_is_on_one_line(converted):
    agent = convert.load_agent(_folder(converted, BREAKOUT), "onnx", "cpu")
    source = "C51_classic/Breakout/0/model_187420.gz"
    assert repr(agent) == f"LoadedAgent({source}, onnx, batch×frame×height×width, CPUExecutionProvider)"
    assert (agent.identity.game, agent.action_meanings[1]) == ("Breakout", "FIRE")
    assert agent.run(make_observations(2))["logits"].shape == (2, 4, 51)


def test_a_folder_that_is_no_agents_is_explained(converted, tmp_path):
    for load in (lambda folder: convert.load_agent(folder, "onnx"), convert.read_agent, convert.read_record):
        with pytest.raises(RecordError, match=r"nowhere: does not exist, expected the folder of a converted agent$"):
            load(tmp_path / "nowhere")
        with pytest.raises(RecordError, match=r"\.gz: is no folder, expected the folder of a converted agent$"):
            load(PONG)
        with pytest.raises(RecordError, match=r": no agent\.json: not a folder that atari-convert wrote$"):
            load(tmp_path)
        with pytest.raises(RecordError) as caught:
            load(converted)
        agents = ", ".join(str(_folder(converted, source)) for source in (BREAKOUT, PONG))
        assert str(caught.value) == f"{converted}: no agent.json, but below it are agents: choose one of {agents}"


def test_a_target_that_is_missing_comes_with_the_command_that_writes_it(converted, tmp_path, monkeypatch):
    out = tmp_path / "the agents"
    shutil.copytree(converted, out)
    monkeypatch.chdir(tmp_path)
    for folder in (_folder(out, PONG), _folder(Path("the agents"), PONG)):
        with pytest.raises(
            ArtefactMissing, match="holds flax, onnx, tensorflow, not litert-int8: to write it, run"
        ) as e:
            convert.load_agent(folder, "litert-int8")
        command = str(e.value).partition("run ")[2].partition(", where RELEASE is the folder of the checkpoints")[0]
        name, source, *options = shlex.split(command)
        assert (name, AGENTS / source.removeprefix("RELEASE/")) == ("atari-convert", PONG)
        assert (options[:3], Path(options[3]).resolve()) == (["--to", "litert-int8", "-o"], out)
    convert.convert_checkpoint(PONG, tmp_path / "pong", ["onnx"])
    with pytest.raises(ArtefactMissing) as caught:
        convert.load_agent("pong", "flax")
    how = "convert.convert_checkpoint(CHECKPOINT, 'pong', ['flax']), where CHECKPOINT is the path of "
    assert str(caught.value) == f"pong: holds onnx, not flax: to write it, run {how}{PONG.relative_to(AGENTS)}"


@pytest.mark.parametrize("target", ["all", "TF", None, ["onnx"], 3])
def test_a_target_that_nobody_knows_is_refused_before_the_folder_is_read(target):
    with pytest.raises(UnknownTarget, match=r"^no target .*Known: checkpoint, .*; the option --to also takes all$"):
        convert.load_agent("nowhere", target)


def test_an_agent_is_loaded_where_tensorflow_runs_already(converted):
    code = f"""
import numpy, convert
from convert.frameworks.quiet_tensorflow import tf
tf.constant(1)
agent = convert.load_agent({str(_folder(converted, PONG))!r}, "tensorflow")
print(agent(numpy.zeros((1, 84, 84, 4), numpy.uint8)).shape)
"""
    assert _python(code) == "(1, 6)\n"


@pytest.mark.slow
def test_a_backend_of_keras_that_is_not_supported_is_named(further, monkeypatch):
    import keras

    monkeypatch.setattr(keras.backend, "backend", lambda: "numpy")
    with pytest.raises(RuntimeUnavailable, match="KERAS_BACKEND is 'numpy', expected tensorflow, jax, torch"):
        convert.load_agent(_folder(further, PONG), "keras")


def test_every_target_names_a_runtime_and_none_loads_itself():
    runtimes = {path.stem for path in (Path(convert.__file__).parent / "runtimes").glob("[!_]*.py")}
    assert {target.runtime for target in list_targets()} == runtimes
    assert not [target.name for target in list_targets() if hasattr(import_target(target.name), "load")]


def test_the_converter_imports_nothing_of_the_judge():
    for path in Path(convert.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "runtime_check"], path
