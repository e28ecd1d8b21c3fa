"""The check as a function: what `runtime_check` offers, and the example of docs/verdict.md."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import AGENTS, PONG, make_state, plant_weights, run_python, to_network

import convert
import runtime_check
from runtime_check import Listeners, Options

DOCUMENT = (Path(__file__).parents[1] / "docs/verdict.md").read_text("utf-8")
FOLDER = "DQN_modern/Pong/0/model_328492"


def test_help_and_dir_show_the_api_and_load_nothing():
    shown = run_python("import runtime_check; help(runtime_check)")
    listed = run_python("import runtime_check; print(*dir(runtime_check))").split()
    assert set(runtime_check.__all__) <= set(listed)
    assert not {"importlib", "Any", "_MODULES", "annotations"} & set(listed)
    assert "    check_agent(" in shown
    for name in ("Options", "AgentResult"):
        assert f"    class {name}(" in shown
    assert run_python("import sys, runtime_check; dir(runtime_check); print('numpy' in sys.modules)") == "False\n"
    with pytest.raises(AttributeError, match="module 'runtime_check' has no attribute 'prove'"):
        runtime_check.prove  # noqa: B018 - the access is the test


def test_the_example_runs_as_printed(converted, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "converted").symlink_to(converted)
    (tmp_path / "tests").symlink_to(Path(__file__).parent)
    first, *rows = run_python(code, cwd=tmp_path).splitlines()
    assert first == "True ()"
    assert [row.split()[:2] for row in rows][1] == ["onnxruntime", "[]"]
    assert len(rows) == 2


def test_a_disagreement_is_a_result_and_the_check_can_be_followed(converted, tmp_path):
    shutil.copytree(converted / FOLDER, tmp_path / "agent")
    plant_weights(tmp_path / "agent", "onnx", to_network(make_state(6)))
    heard: dict[str, list] = {"start": [], "steps": [], "episode": []}
    listeners = Listeners(
        heard["start"].append, heard["steps"].append, lambda *episode: heard["episode"].append(episode[:2])
    )
    options = Options(("onnxruntime",), max_steps=10, solo=True)
    result = runtime_check.check_agent(str(tmp_path / "agent"), str(PONG), options, listeners)
    assert not result.agrees
    assert any("other weights than the checkpoint's" in reason for reason in result.backends["onnxruntime"].reasons)
    names = list(result.backends)
    assert heard["start"] == [3]
    assert np.sum(heard["steps"]) == 30
    assert sorted(heard["episode"]) == sorted([(names[0], "shadow"), *((name, "solo") for name in names)])


def test_what_was_found_cannot_be_changed(converted):
    result = runtime_check.check_agent(converted / FOLDER, AGENTS, Options(("onnxruntime",), max_steps=2))
    for value, name in ((result, "faults"), (result.backends["onnxruntime"], "tally")):
        with pytest.raises(AttributeError):
            setattr(value, name, ())


def test_what_cannot_be_checked_is_an_error(converted, tmp_path):
    with pytest.raises(convert.AtariConvertError, match="no checkpoint of"):
        runtime_check.check_agent(converted / FOLDER, tmp_path)
    with pytest.raises(convert.AtariConvertError, match=r"agent\.json"):
        runtime_check.check_agent(tmp_path, AGENTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backends": "onnxruntime"}, "backends is 'onnxruntime', expected a tuple of names"),
        ({"episodes": 0}, "episodes is 0, expected at least 1"),
        ({"max_steps": 0}, "max_steps is 0, expected at least 1, or None"),
        ({"seed": 2**31 - 1, "episodes": 2}, "seed is 2147483647, expected 0 or more, and every seed below"),
        ({"epsilon": 1.5}, "epsilon is 1.5, expected from 0 to 1"),
        ({"shadow": False}, "shadow is False, expected shadow or solo, or both"),
        ({"device": "cuda"}, "device is 'cuda', expected 'auto', 'cpu', 'gpu'"),
        ({"atol": float("nan")}, "atol is nan, expected a finite number, 0 or more"),
        ({"rtol": float("inf")}, "rtol is inf, expected a finite number, 0 or more"),
    ],
)
def test_options_that_would_check_something_else_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)
