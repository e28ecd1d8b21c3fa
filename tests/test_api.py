"""The package as someone meets it in an interpreter, and beside a ``convert.py`` of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from builders import AGENTS, PONG, make_state, run_python, to_network

import convert

EXPECTED = {"convert_checkpoint", "load_agent", "read_agent", "read_checkpoint", "stack_params"}


def test_help_and_dir_show_the_api():
    shown = run_python("import convert; help(convert)")
    listed = run_python("import convert; print(*dir(convert))").split()
    assert set(convert.__all__) <= set(listed)
    assert not {"importlib", "Any", "_MODULES", "annotations"} & set(listed)
    for name in EXPECTED:
        assert f"    {name}(" in shown
    for name in ("Network", "LoadedAgent", "AtariConvertError"):
        assert f"    class {name}(" in shown
    assert "Convert the pretrained Atari agents of 2022" in shown


def test_every_name_of_the_api_is_there_and_documented():
    assert set(convert.__all__) >= EXPECTED
    for name in convert.__all__:
        assert getattr(convert, name).__doc__, name
    with pytest.raises(AttributeError, match="module 'convert' has no attribute 'load'"):
        convert.load  # noqa: B018 - the access is the test


def test_listing_the_api_loads_nothing():
    code = "import sys, convert; dir(convert); print(*({'numpy', 'torch'} & set(sys.modules)))"
    assert run_python(code).strip() == ""


def test_a_network_prints_as_one_line():
    q_head, categorical = (to_network(make_state(4, atoms)) for atoms in (None, 51))
    layers = "convolutions 32 8×8/4, 64 4×4/2, 64 3×3/1, hidden 512"
    assert repr(q_head) == f"Network({layers}, Q head of 4 actions)"
    assert repr(categorical) == f"Network({layers}, categorical head of 4 actions × 51 atoms)"
    assert f"{convert.read_checkpoint(PONG)}" == f"Network({layers}, Q head of 6 actions)"


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_command_is_not_misled_by_a_convert_py_of_the_users(jobs, tmp_path):
    for name in ("convert.py", "runtime_check.py", "onnx.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module')\n")
    command = [Path(sys.executable).with_name("atari-convert"), AGENTS, "--to", "onnx", "--jobs", str(jobs)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    check = [Path(sys.executable).with_name("atari-check"), "converted", "--source", AGENTS, "--max-steps", "2"]
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
