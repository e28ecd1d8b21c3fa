"""What users read is run: the README's loaders, in order, beside freshly converted agents; and its commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from convert.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [line.split("#")[0].strip() for language, text in BLOCKS if language == "sh" for line in text.splitlines()]


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: re.search(r"import (\w+)", code)[1])
def test_a_loader_in_the_readme_runs_and_gives_q_values(converted, tmp_path, code):
    (tmp_path / "converted").symlink_to(converted)
    check = f"{code}\nimport numpy\nassert numpy.asarray(q_values).shape == (1, 6), q_values\n"
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True, timeout=120)


def test_ci_runs_the_readmes_own_test_command():
    test_command = next(command for command in COMMANDS if command.endswith("nox"))
    assert test_command in (ROOT / ".ci/run").read_text("utf-8")
    assert test_command in (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def test_the_first_command_converts_the_agents_that_come_with_the_repository():
    first = next(command for command in COMMANDS if command)
    assert first.endswith(".venv/bin/atari-convert tests/data/agents --to all")
    assert (ROOT / "tests/data/agents").is_dir()


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("atari-convert")])
def test_every_option_in_the_readme_exists(command):
    options = [word for word in shlex.split(command)[1:] if word.startswith("-")]
    known = {name for parameter in main.params for name in parameter.opts}
    assert set(options) <= known
    assert CliRunner().invoke(main, ["--help"]).exit_code == 0


def test_every_file_that_the_readme_names_exists():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
