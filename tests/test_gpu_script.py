"""The script that a machine with a GPU runs, tried on the CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("gpu_check.sh")


def test_the_script_fails_where_nothing_can_be_measured(converted, tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    shutil.copytree(converted, tmp_path / "converted")
    settings = {"PYTHON": sys.executable, "BACKENDS": "reference"}
    done = subprocess.run(["sh", SCRIPT, tmp_path], env=os.environ | settings, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"nothing could be measured: see {tmp_path}/summary.txt\n")
    assert "torch sees no GPU" in (tmp_path / "summary.txt").read_text("utf-8")


def test_the_script_checks_each_backend_in_both_precisions(converted, tmp_path):
    # What is there is not converted again, which is what takes time here.
    shutil.copytree(converted, tmp_path / "converted")
    settings = {
        "PYTHON": sys.executable,
        "DEVICE": "cpu",
        "EPISODES": "1",
        "STEPS": "2",
        "BACKENDS": "reference onnxruntime",
    }
    done = subprocess.run(["sh", SCRIPT, tmp_path], env=os.environ | settings, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    summary = (tmp_path / "summary.txt").read_text("utf-8")
    for backend in ("reference", "onnxruntime"):
        for precision in ("float32", "tf32"):
            assert f"## {backend}, {precision}: exit 0" in summary
            assert (tmp_path / f"{backend}-{precision}" / "check.json").is_file()
