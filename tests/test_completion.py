"""Shell completion, as the shells ask for it: through the environment, of the installed commands."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from convert.agents.games import load_games
from convert.formats.atari_agents import FAMILIES
from convert.targets import list_targets
from runtime_check.backends import list_backends

TARGETS = [target.name for target in list_targets()]
BACKENDS = [backend.name for backend in list_backends()]


def _complete(line: str, shell: str = "bash") -> list[str]:
    """Return what is offered for the last word of a command line."""
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    instruction = {f"_{words[0].upper().replace('-', '_')}_COMPLETE": f"{shell}_complete"}
    asked = {"COMP_WORDS": line, "COMP_CWORD": words[-1] if shell == "fish" else str(len(words) - 1)}
    command = Path(sys.executable).with_name(words[0])
    done = subprocess.run([command], env=os.environ | instruction | asked, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    lines = list(filter(None, done.stdout.splitlines()))
    if shell == "zsh":
        return lines[1::3]
    return [line.removeprefix("plain,") for line in lines]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("atari-convert x.gz --to ", ["all", *TARGETS]),
        ("atari-play re", ["record", "replay"]),
        ("atari-play human Po", ["Pong", "Pooyan"]),
        ("atari-play record x.gz --backend onnx", ["onnxruntime"]),
        ("atari-check converted --protocol cl", ["classic", "cleanrl"]),
        ("atari-convert x.gz --to lite", ["litert", "litert-float16", "litert-int8"]),
        ("atari-convert x.gz --to onnx,T", ["onnx,tensorflow", "onnx,torch"]),
        ("atari-convert x.gz --to onnx,onn", []),
        ("atari-convert x --from ", TARGETS),
        ("atari-convert --game ms", ["MsPacman"]),
        ("atari-convert --game ", list(load_games())),
        ("atari-convert --family ", list(FAMILIES)),
        ("atari-convert --steps f", ["final"]),
        ("atari-convert --over", ["--overwrite"]),
        ("atari-check converted --backend ", BACKENDS),
        ("atari-check converted --backend flax,onnx", ["flax,onnxruntime"]),
        ("atari-check converted --mode s", ["shadow", "solo"]),
    ],
)
def test_names_are_completed(line, offered):
    assert _complete(line) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_completes_and_has_its_script(shell):
    assert _complete("atari-convert --to saf", shell) == ["safetensors"]
    assert _complete("atari-check x --backend saf", shell) == ["safetensors"]
    for command in ("atari-convert", "atari-check"):
        path = Path(sys.executable).with_name(command)
        environment = os.environ | {f"_{command.upper().replace('-', '_')}_COMPLETE": f"{shell}_source"}
        script = subprocess.run([path], env=environment, capture_output=True, text=True, check=True).stdout
        assert command in script


def test_files_are_completed_by_the_shell():
    assert _complete("atari-convert mod") == ["file,mod"]
    assert _complete("atari-check conv") == ["dir,conv"]


@pytest.mark.parametrize("module", ["convert", "runtime_check"])
def test_completing_loads_no_framework(module):
    code = f"""
import os, sys
from {module}.cli import main
try:
    main(prog_name="command")
finally:
    print("loaded", *sys.modules)
"""
    option = "--to" if module == "convert" else "--backend"
    asked = {"_COMMAND_COMPLETE": "bash_complete", "COMP_WORDS": f"command {option} on", "COMP_CWORD": "2"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=False)
    assert "plain,onnx" in done.stdout
    assert not {"torch", "jax", "tensorflow", "onnx", "onnxruntime", "cv2", "ale_py"} & set(done.stdout.split())
