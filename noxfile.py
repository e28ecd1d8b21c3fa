"""The project's chores. All sessions but `dopamine` share the environment that nox runs in: it is 4 GB large."""

import sys
import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests", "demo"]
nox.options.default_venv_backend = "none"

AGENTS = "tests/data/agents"


def python(session: nox.Session, *arguments: str) -> None:
    session.run(sys.executable, *arguments)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the fast tests."""
    python(session, "-m", "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    python(session, "-m", "ruff", "check", ".")
    python(session, "-m", "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    python(session, "-m", "mypy")


@nox.session
def demo(session: nox.Session) -> None:
    """Convert the trained agents to every target, twice: the second run finds all current."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "converted")
        for _ in range(2):
            python(session, "-m", "convert", AGENTS, "--to", "all", "--out", out)
