"""What lies beside an agent's artefacts: what programs would load is a fault, the rest is told and not judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from builders import AGENTS, run_python
from click.testing import CliRunner

from convert.errors import CheckError
from runtime_check.check import surroundings
from runtime_check.check.options import Options
from runtime_check.check.pipeline import check_agent
from runtime_check.check.surroundings import find_surroundings
from runtime_check.cli import main

FOLDER = "DQN_modern/Pong/0/model_328492"


@pytest.fixture
def folder(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted / FOLDER, tmp_path / "agent"))


def _add(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("print('ran')\n")


def _run(folder: Path, *options: str) -> tuple[int, str]:
    arguments = [str(folder), "--source", str(AGENTS), "--backend", "onnxruntime", "--max-steps", "2", *options]
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.output


def test_an_agents_own_files_are_not_told(folder):
    found = find_surroundings(folder)
    assert (found.faults, found.others) == ((), ())


def test_other_files_are_told_and_change_no_verdict(folder, tmp_path):
    _add(folder, "README.md", ".gitattributes", ".git/hooks/x.py", "videos/replay.mp4", "weights.pkl")
    names = [".git/", ".gitattributes", "README.md", "videos/", "weights.pkl"]
    code, output = _run(folder, "--report", str(tmp_path / "report"))
    assert code == 0, output
    assert f"  not judged: {', '.join(names)}\n" in output
    (agent,) = json.loads((tmp_path / "report/check.json").read_text())["agents"]
    assert agent["not_judged"] == names
    assert ", ".join(names) in (tmp_path / "report/check.html").read_text("utf-8")


def test_a_name_of_another_forges_no_line_and_many_are_counted(folder):
    _add(folder, "0\nagrees\x1b[2J", *(f"{number:02}.txt" for number in range(30)))
    others = find_surroundings(folder).others
    assert others[0] == r"'0\nagrees\x1b[2J'"
    assert others[1:] == (*(f"{number:02}.txt" for number in range(9)), "and 21 more")


@pytest.mark.parametrize(
    "path",
    [
        *("numpy.py", "NUMPY.PY", "numpy.pyc", "numpy.cpython-311-x86_64-linux-gnu.so", "numpy.pyd", "x.pth"),
        *("numpy/__init__.py", "google/protobuf/__init__.py", "jax_plugins/plugin.py", "torch/nn/__init__.py"),
        *("__pycache__/numpy.cpython-311.pyc", "x.dist-info/entry_points.txt"),
    ],
)
def test_code_that_python_would_load_is_a_fault(path, folder):
    _add(folder, path)
    (fault,) = find_surroundings(folder).faults
    told = path if ".dist-info" not in path else "x.dist-info"
    assert fault == (
        f"{told}: a Python that is started in this folder would load it, and no agent has such a file: remove it"
    )
    assert find_surroundings(folder).others == ()


def test_code_in_the_folder_of_an_artefact_that_is_not_checked_is_a_fault(folder):
    _add(folder, "saved_model/__init__.py")
    code, output = _run(folder)
    assert code == 1
    assert "saved_model/__init__.py: a Python that is started in this folder would load it" in " ".join(output.split())


def test_a_linked_package_is_a_fault_and_is_not_looked_into(folder, tmp_path):
    _add(tmp_path, "outside/__init__.py")
    (folder / "numpy").symlink_to(tmp_path / "outside")
    (fault,) = find_surroundings(folder).faults
    assert fault.startswith("numpy: a Python that is started in this folder would load it")


@pytest.mark.parametrize("name", ["model.onnx.data", "model.onnx_data", "other.onnx_data"])
def test_a_file_that_looks_like_the_weights_of_an_onnx_model_is_a_fault(name, folder):
    _add(folder, name)
    assert find_surroundings(folder).faults == (
        f"{name}: has the name of an ONNX model's weights, and no agent has such a file: remove it",
    )


def test_what_is_told_is_what_python_loads(tmp_path):
    """Each of these runs in a Python that is started in its folder, so that the faults are not of names alone."""
    _add(tmp_path, "module.py", "package/__init__.py", "joined/below/__init__.py")
    code = "import module, package, joined.below"
    assert run_python(code, cwd=tmp_path) == "ran\n" * 3
    assert len(find_surroundings(tmp_path).faults) == 3


def test_what_a_stranger_named_is_one_printable_line_of_a_verdict(folder):
    _add(folder, "saved_model/\x1b[2J\u202e\nall agree", *(f"saved_model/{number}" for number in range(500)))
    result = check_agent(folder, AGENTS, Options(("tensorflow",), max_steps=1))
    (reason,) = result.backends["tensorflow"].reasons
    assert reason.isprintable()
    assert len(reason) <= 600
    assert reason.startswith("saved_model/\\x1b[2J\\u202e\\nall agree is not in agent.json; saved_model/0 is not in")
    assert reason.endswith("and 491 more")


def test_a_folder_with_too_many_folders_cannot_be_checked(folder, monkeypatch):
    monkeypatch.setattr(surroundings, "_MOST_FOLDERS", 5)
    _add(folder, *(f"runs{number}/log" for number in range(9)))
    with pytest.raises(CheckError, match="more than 5 folders in it: move away what is not the agent's"):
        find_surroundings(folder)
