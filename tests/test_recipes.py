"""The recipes of CONTRIBUTING.md, run as printed: a target, a runtime, a source with its judge, an architecture.

Then the same source, judge and target as a package of somebody else, which pip installs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from builders import AGENTS, PONG, make_observations

import convert
import runtime_check
from convert import runtimes, sources, targets
from convert.agents.architecture import Architecture, list_shapes
from convert.agents.identity import Identity
from convert.agents.network import find_differences
from convert.bulk.run import Work, run
from convert.bulk.selection import find_jobs
from convert.errors import UnreadableCheckpoint, WeightMismatch
from runtime_check import Options, originals
from runtime_check.oracle import compute_q_values
from runtime_check.originals import read_oracle

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL)
SIZES = {"torso.0": (32, 4, 8, 8), "torso.1": (64, 32, 4, 4), "torso.2": (64, 64, 3, 3), "mix": (512, 7744)}
SIZES |= {"adv": (6 * 20, 256), "val": (20, 256)}
ABOUT = {"zoo": "toybox", "game": "Pong", "protocol": "modern", "seed": "3", "step": "1000"}


def _find_examples(*starts: str) -> str:
    """Return the printed code that begins with each of these texts, one after the other."""
    found = []
    for start in starts:
        (example,) = (example for example in EXAMPLES if example.startswith(start))
        found.append(example)
    return "\n".join(found)


TARGET = _find_examples('"""NumPy: every array', "import numpy as np\n\nfrom convert.agents.network")
RUNTIME = _find_examples('"""NumPy, for Nature-CNNs', "import numpy as np\n\nfrom convert.runtimes")
SOURCE, JUDGE = _find_examples('"""Toybox, a made-up zoo'), _find_examples('"""Toybox, read for the judge')
ARCHITECTURE = _find_examples("from convert.agents.architecture import")


def _clear_caches() -> None:
    for package in (sources, targets):
        for function in vars(package).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Return a function that puts a file into a package, as a developer would."""

    def add_one(package, name: str, code: str) -> None:
        folder = tmp_path / package.__name__
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(code)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        _clear_caches()

    yield add_one
    _clear_caches()
    for name in ("targets.npz", "runtimes.numpy", "sources.toybox"):
        sys.modules.pop(f"convert.{name}", None)
    sys.modules.pop("runtime_check.originals.toybox", None)


def _save_toy(path: Path, **about: str) -> Path:
    """Write an agent of the made-up zoo, as its authors would."""
    rng, weights = np.random.default_rng(0), {}
    for name, shape in SIZES.items():
        weights[f"{name}.w"] = (rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
        weights[f"{name}.b"] = (rng.standard_normal(shape[0]) * 0.1).astype(np.float32)
    path.write_bytes(safetensors.numpy.save(weights, ABOUT | about))
    return path


def test_a_target_is_one_file_and_so_is_a_runtime(add, tmp_path):
    add(targets, "npz", TARGET)
    add(runtimes, "numpy", RUNTIME)
    assert targets.find_target("npz").summary == "NumPy: every array of the network in one npz file."
    conversion = convert.convert_checkpoint(PONG, tmp_path / "agent", ["npz"])
    assert [file.path for file in conversion.record.artifacts["npz"].files] == ["network.npz"]
    agent = convert.load_agent(tmp_path / "agent", "npz")
    assert agent.device == "cpu"
    observations = make_observations(2)
    np.testing.assert_allclose(agent(observations), compute_q_values(read_oracle(PONG), observations), atol=1e-5)
    network = targets.import_target("npz").read(tmp_path / "agent/network.npz", agent.agent)
    assert find_differences(network, convert.read_checkpoint(PONG)) == []
    result = runtime_check.check_agent(tmp_path / "agent", AGENTS, Options(("npz",), max_steps=20))
    assert result.agrees
    assert result.backends["npz"].description.library == "numpy"


@pytest.mark.slow
def test_a_source_is_one_file_on_each_side_and_goes_to_every_target_that_can_hold_it(add, tmp_path):
    add(sources, "toybox", SOURCE)
    add(originals, "toybox", JUDGE)
    toy = _save_toy(tmp_path / "agent.toy")
    unheld = ("checkpoint", "cleanrl", "cleanrl-jax", "dopamine", "litert-int8", "sb3")
    held = [target.name for target in targets.list_targets() if target.name not in unheld]
    (outcome,) = run(find_jobs([tmp_path], tmp_path / "out"), Work(tuple(held)))
    assert outcome.error is None
    assert outcome.written == tuple(held)
    agent = outcome.record.agent
    assert agent.identity == Identity("toybox", "QR-DQN", "Pong", "modern", 3, 1000)
    assert (agent.head.kind, agent.head.quantiles, agent.head.streams) == ("quantile", 20, "split")
    result = runtime_check.check_agent(Path(outcome.job.folder), toy, Options(max_steps=30, solo=True))
    assert result.faults == ()
    assert {name: backend.reasons for name, backend in result.backends.items() if backend.reasons} == {}
    assert len(result.backends) == 1 + len(held)


def test_a_damaged_file_of_a_new_source_is_refused_by_both_sides(add, tmp_path):
    add(sources, "toybox", SOURCE)
    add(originals, "toybox", JUDGE)
    toy = _save_toy(tmp_path / "agent.toy")
    data = toy.read_bytes()
    for damage, error, message in (
        (data[:-300], UnreadableCheckpoint, "agent.toy: not a Toybox agent"),
        (data.replace(b'"mix.w"', b'"max.w"'), WeightMismatch, "agent.toy: no first dense layer; unexpected max"),
    ):
        toy.write_bytes(damage)
        with pytest.raises(error, match=message):
            convert.convert_checkpoint(toy, tmp_path / "out", ["onnx"])
    toy.write_bytes(data[:-300])
    with pytest.raises(ValueError, match=r"agent\.toy: not a Toybox agent"):
        read_oracle(toy)


def test_an_architecture_says_what_it_is(capsys):
    names: dict[str, object] = {}
    exec(ARCHITECTURE, names)
    printed = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition(ARCHITECTURE)[2].split("```")[2]
    assert capsys.readouterr().out == printed.removeprefix("\n")
    assert isinstance(names["small"], Architecture)
    assert list_shapes(names["small"])["hidden.kernel"] == (256, 576)


PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "toybox-agents"
version = "1.0"

[project.entry-points."atari_convert.sources"]
toybox = "toybox_agents.source"

[project.entry-points."atari_convert.targets"]
toybox-npz = "toybox_agents.target"

[project.entry-points."atari_check.originals"]
toybox = "toybox_agents.judge"

[tool.setuptools]
packages = ["toybox_agents"]
"""
# A target of a package has a runtime of ours: here torch, with the network as a module.
PREPARE = """
def prepare(path, agent):
    import torch

    from convert.formats.flat_names import to_named
    from convert.networks.torch import load_module

    weights = to_named(read(path, agent))
    return load_module(agent.architecture, {name: torch.from_numpy(array.copy()) for name, array in weights.items()})
"""


@pytest.mark.slow
def test_another_package_brings_a_source_a_judge_and_a_target(tmp_path):
    package = tmp_path / "project/toybox_agents"
    package.mkdir(parents=True)
    (package.parent / "pyproject.toml").write_text(PROJECT)
    (package / "__init__.py").write_text("")
    (package / "source.py").write_text(SOURCE)
    (package / "judge.py").write_text(JUDGE)
    target = TARGET.replace('RUNTIME = "numpy"', 'RUNTIME = "torch"').replace(
        "\nprepare = read", "\n" + PREPARE + "\n#"
    )
    (package / "target.py").write_text(target)
    site = tmp_path / "site"
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", site]
    _python(*install, package.parent)
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}
    toy = _save_toy(tmp_path / "agent.toy")
    assert "toybox-npz" in _python("-m", "convert", toy, "--to", "nothing", **environment, code=2)
    out = tmp_path / "out"
    _python("-m", "convert", toy, "--to", "toybox-npz,onnx", "-o", out, **environment)
    told = _python("-m", "runtime_check", out, "--source", toy, "--max-steps", "20", **environment)
    assert "agree" in told
    assert "toybox-npz" in told
    # Without the package, its files say what they are not.
    assert "expected a gzipped checkpoint of this release" in _python(
        "-m", "convert", toy, "--to", "onnx", "-o", tmp_path / "other", PYTHONPATH=str(ROOT), code=1
    )


def _python(*arguments: object, code: int = 0, **environment: str) -> str:
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr
