"""What users read is run: the README's loaders, in order, beside freshly converted agents; and its commands."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import convert
import convert.cli
import runtime_check.cli
import runtime_check.play.cli
from convert.targets import list_targets

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
PROGRAMS = {
    "atari-convert": convert.cli.main,
    "atari-check": runtime_check.cli.main,
    "atari-play": runtime_check.play.cli.main,
}
COMMANDS = [line.split("#")[0].strip() for language, text in BLOCKS if language == "sh" for line in text.splitlines()]


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: " ".join(re.findall(r"import (\w+)", code)))
def test_a_loader_in_the_readme_runs_and_gives_q_values(converted, tmp_path, code):
    (tmp_path / "converted").symlink_to(converted)
    actions = 4 if "Breakout" in code else 6
    check = f"{code}\nimport numpy\nassert numpy.asarray(q_values).shape == (1, {actions}), q_values\n"
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True, timeout=120)


def test_ci_runs_the_readmes_own_test_command():
    test_command = next(command for command in COMMANDS if command.endswith("nox"))
    assert test_command in (ROOT / ".ci/run").read_text("utf-8")
    assert test_command in (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def test_the_first_command_converts_the_agents_that_come_with_the_repository():
    first = next(command for command in COMMANDS if command)
    assert first.endswith(".venv/bin/atari-convert tests/data/agents --to all")
    assert (ROOT / "tests/data/agents").is_dir()


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("atari-")])
def test_every_option_in_the_readme_exists(command):
    name, *words = shlex.split(command)
    program = PROGRAMS[name]
    if isinstance(program, click.Group):
        program = program.get_command(click.Context(program), words[0])
    known = {option for parameter in program.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


def test_the_readme_lists_every_function_of_the_api():
    functions = [name for name in convert.__all__ if inspect.isfunction(getattr(convert, name))]
    assert [name for name in functions if f"`{name}`" not in README] == []
    assert "read_agent" in functions


def test_the_readmes_line_turns_bashs_completion_on():
    (line,) = re.findall(r"`(eval .*bash_source atari-convert\)\")`", README)
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": os.pathsep.join([scripts, os.environ["PATH"]])}
    for setup in (line, line.replace("CONVERT", "CHECK").replace("convert", "check")):
        command = ["bash", "--norc", "-c", f"{setup}; complete"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert re.search(r"^complete .*atari-(convert|check)$", done.stdout, re.MULTILINE)
    for shell in ("zsh", "fish"):
        assert f"_ATARI_CONVERT_COMPLETE={shell}_source atari-convert" in README


def test_only_one_prefix_of_the_release_is_in_commands():
    text = (ROOT / "docs/bulk.md").read_text("utf-8")
    code = "".join(re.findall(r"```.*?```", text, re.DOTALL))
    assert "bitdefender" not in code
    assert code.count("PREFIX=") == 1
    for known in ("gs://bitdefender_ml_artifacts/atari", "gs://bitdefender_ml_artifacts/reinforcement_learning"):
        assert known in text


def test_every_link_of_the_documents_leads_somewhere():
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text = document.read_text("utf-8")
        for path, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", text):
            linked = (document.parent / path) if path else document
            assert linked.exists(), (document, path)
            headings = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.MULTILINE) if anchor else []
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert not anchor or anchor in slugs, (document, path, anchor)


def test_every_target_has_a_row_and_its_loader():
    for target in list_targets():
        if target.in_all:
            row = next(line for line in README.splitlines() if line.startswith(f"| [`{target.name}`]("))
            assert f"| `{target.path}" in row
