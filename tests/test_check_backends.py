"""Each backend against the oracle, on what is on disk; and what it says when it cannot run."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from builders import AGENTS, make_observations, make_state, save_checkpoint

from convert import runtimes
from convert.agents.record import read_record
from convert.errors import RuntimeUnavailable, UnknownBackend
from convert.loading import open_artefact
from convert.pipeline import convert_checkpoint
from convert.runtimes import Runtime, Settings, choose_gpu
from convert.targets import list_targets
from runtime_check.backends import find_backend, list_backends
from runtime_check.check.opening import open_backend
from runtime_check.check.verification import find_artefact
from runtime_check.compare import DEFAULT_ATOL, DEFAULT_RTOL, Tolerance, compare_outputs, find_faults
from runtime_check.oracle import compute_outputs
from runtime_check.originals import read_oracle
from runtime_check.tally import Tally, judge

NAMES = ("reference", "flax", "onnxruntime", "tensorflow")
TARGETS = ("onnx", "flax", "tensorflow")


@pytest.fixture(scope="module")
def agents(converted, tmp_path_factory):
    """Folders and checkpoints of all four families: the trained agents, and random networks of other sizes."""
    out = tmp_path_factory.mktemp("families")
    found = {path.parent: AGENTS / f"{path.parent.relative_to(converted)}.gz" for path in converted.rglob("agent.json")}
    for place, actions, atoms in (
        ("MDQN_modern/SpaceInvaders/1/model_1000000", 6, None),
        ("DQN_classic_adam/Seaquest/0/model_250000", 18, None),
        ("C51_classic/Freeway/2/model_750000", 3, 51),
        ("C51_classic/Pong/0/model_750000", 18, 11),
    ):
        source = save_checkpoint(out / "release" / f"{place}.gz", make_state(actions, atoms, seed=actions))
        convert_checkpoint(source, out / place, TARGETS)
        found[out / place] = source
    return found


def _open(name: str, folder, source, **settings) -> Runtime:
    record, backend = read_record(folder), find_backend(name)
    path = source if backend.target is None else find_artefact(folder, backend.target)
    return open_backend(backend, path, record.agent, Settings(**settings))[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_backend_answers_as_the_oracle_whatever_the_batch(name, agents):
    assert len(agents) == 6
    for folder, source in agents.items():
        oracle, runtime = read_oracle(source), _open(name, folder, source)
        for count in (1, 2, 7):
            obs_nchw = make_observations(count, seed=count)
            expected = compute_outputs(oracle, obs_nchw)
            answer = runtime.answer(obs_nchw)
            assert find_faults(answer, {key: array.shape for key, array in expected.items()}) == []
            tally = Tally()
            tally.add(
                compare_outputs(answer, expected, Tolerance(DEFAULT_ATOL, DEFAULT_RTOL)),
                np.arange(count),
                np.arange(count),
            )
            assert judge(tally) == []
            assert tally.disagreements.wrong == tally.disagreements.ties == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_backend_describes_what_it_ran_on(name, agents):
    folder, source = next(iter(agents.items()))
    description = _open(name, folder, source, device="cpu", batch=4).description
    assert description.version.split()[-1][0].isdigit()
    assert "cpu" in description.device.lower()
    assert description.precision
    assert description.graph
    assert description.batch == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_gpu_is_an_error_and_not_the_cpu(name, agents):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    folder, source = next(iter(agents.items()))
    with pytest.raises(RuntimeUnavailable, match=r"sees no GPU: install .* or choose the device 'cpu' or 'auto'"):
        _open(name, folder, source, device="gpu")


@pytest.mark.parametrize(
    "backend",
    [backend for backend in list_backends() if "litert" not in backend.name],
    ids=lambda backend: backend.name,
)
def test_the_device_is_chosen_before_anything_is_opened(backend, agents, tmp_path):
    """Opening may start a runtime, which reads its settings but once; and so may screening, which writes."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    agent = read_record(next(iter(agents))).agent
    with pytest.raises(RuntimeUnavailable, match="sees no GPU"):
        open_backend(backend, tmp_path / "nowhere", agent, Settings("gpu"))


@pytest.mark.parametrize("target", ["keras", "tensorflow"])
def test_tensorflow_is_not_started_before_its_memory_is_set_up(target):
    """In a process of its own. What may be set before the start only is refused after it."""
    code = (
        "from pathlib import Path\n"
        "from convert.errors import RuntimeUnavailable\n"
        "from convert.loading import open_artefact\n"
        "from convert.runtimes import Settings\n"
        "from convert.runtimes.tensorflow import tf\n"
        "try:\n"
        f"    open_artefact({target!r}, Path(), None, Settings('gpu'))\n"
        "except RuntimeUnavailable:\n"
        "    (cpu,) = tf.config.list_physical_devices('CPU')\n"
        "    two = [tf.config.LogicalDeviceConfiguration()] * 2\n"
        "    tf.config.set_logical_device_configuration(cpu, two)\n"
        "    assert len(tf.config.list_logical_devices('CPU')) == 2\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_gpu_build_of_onnx_runtime_whose_cuda_does_not_load_is_recorded_as_the_cpu(agents, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has the GPU build")
    # What the GPU build says, whether or not its CUDA loads.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    folder, source = next(iter(agents.items()))
    description = _open("onnxruntime", folder, source, device="auto").description
    assert (description.device, description.precision) == ("CPUExecutionProvider", "float32, deterministic")
    with pytest.raises(RuntimeUnavailable, match="fell back to CPUExecutionProvider"):
        _open("onnxruntime", folder, source, device="gpu")


@pytest.mark.parametrize(
    ("device", "has_gpu", "expected"), [("auto", True, True), ("auto", False, False), ("cpu", True, False)]
)
def test_the_device_is_chosen_by_what_there_is(device, has_gpu, expected):
    assert choose_gpu(Settings(device), "x", has_gpu=has_gpu) is expected


def test_tf32_is_off_unless_it_is_asked_for(agents):
    torch = pytest.importorskip("torch")
    folder, source = next(iter(agents.items()))
    for tf32 in (True, False):
        precision = _open("reference", folder, source, tf32=tf32).description.precision
        assert f"cudnn.allow_tf32={tf32}, cuda.matmul.allow_tf32={tf32}" in precision
        assert torch.backends.cudnn.allow_tf32 is tf32
        assert (
            f"tensor_float_32_execution={tf32}" in _open("tensorflow", folder, source, tf32=tf32).description.precision
        )
        wanted = "tensorfloat32" if tf32 else "highest"
        assert wanted in _open("flax", folder, source, tf32=tf32).description.precision


def test_backends_are_found_by_name_without_their_frameworks():
    code = (
        "import sys; from runtime_check.backends import list_backends; list_backends();"
        "assert not {'torch', 'jax', 'tensorflow', 'onnxruntime', 'flax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {backend.target for backend in list_backends()} == {None, *(target.name for target in list_targets())}
    assert find_backend("onnxruntime").target == "onnx"
    assert find_backend("checkpoint").target == "checkpoint"
    assert find_backend("reference").target is None


def test_an_unknown_backend_is_refused():
    with pytest.raises(UnknownBackend, match=r"no backend 'tensorrt'; Known: .*onnxruntime"):
        find_backend("tensorrt")
    for name, meant in (("onnx", "onnxruntime"), ("release", "checkpoint")):
        with pytest.raises(UnknownBackend, match=rf"no backend '{name}'; did you mean {meant}\? Known"):
            find_backend(name)


@pytest.mark.parametrize(
    ("target", "package", "message"),
    [
        ("flax", "jax", "target 'flax' needs jax: pip install 'atari-convert[flax]'"),
        ("dopamine", "jax", "runtime 'jax' needs jax: pip install 'atari-convert[flax]'"),
        ("orbax", "flax", "runtime 'jax' needs flax: pip install 'atari-convert[flax]'"),
        ("onnx", "onnxruntime", "runtime 'onnxruntime' needs onnxruntime: pip install 'atari-convert[onnx]'"),
        ("litert", "ai_edge_litert", "target 'litert' needs ai_edge_litert: pip install 'atari-convert[litert]'"),
    ],
)
def test_a_missing_runtime_names_its_install_line(target, package, message):
    """In a process of its own, where the package cannot be imported."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        f"sys.modules[{package!r}] = None\n"
        "from convert.errors import MissingExtra\n"
        "from convert.loading import open_artefact\n"
        "from convert.runtimes import Settings\n"
        "try:\n"
        f"    open_artefact({target!r}, Path(), None, Settings())\n"
        "except MissingExtra as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == f"{message}\n"


def test_another_missing_module_is_a_bug_and_looks_like_one(monkeypatch, tmp_path, agents):
    (tmp_path / "onnxruntime.py").write_text('EXTRA = "onnx"\nPACKAGES = ("numpy",)\nimport no_such_module\n')
    monkeypatch.setattr(runtimes, "__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "convert.runtimes.onnxruntime", raising=False)
    folder = next(iter(agents))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        open_artefact("onnx", folder / "model.onnx", read_record(folder).agent, Settings())
