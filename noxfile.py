"""The project's chores. All but `dopamine`, `zoos` and `rliable` share the environment that nox runs in: it is 4 GB."""

import sys
import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests", "slow", "demo", "browser", "fuzz", "dopamine"]
nox.options.default_venv_backend = "none"

AGENTS = "tests/data/agents"


def python(session: nox.Session, *arguments: str) -> None:
    # Several runtimes take turns in a test: threads of one that waits should not spin on the others' cores.
    session.run(sys.executable, *arguments, env={"OMP_WAIT_POLICY": "PASSIVE"})


@nox.session
def tests(session: nox.Session) -> None:
    """Run the fast tests."""
    python(session, "-m", "pytest", "-m", "not slow", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow tests: kills, servers, planted faults, the heavier targets."""
    python(session, "-m", "pytest", "-m", "slow", *session.posargs)


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
    """Convert the trained agents to every target, then find all current, then prove that they act alike."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "converted")
        for _ in range(2):
            python(session, "-m", "convert", AGENTS, "--to", "all", "--out", out)
        python(session, "-m", "runtime_check", out, "--source", AGENTS, "--max-steps", "300", "--mode", "both")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz every reader of files of strangers, for two minutes in all or `nox -s fuzz -- --seconds 3600`."""
    python(session, "tests/fuzz.py", "all", "--seconds", "120", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """Open a report in headless Chromium."""
    python(session, "-m", "pytest", "tests/browser_report.py", *session.posargs)


@nox.session(venv_backend="venv")
def dopamine(session: nox.Session) -> None:
    """Resume, evaluate and train converted agents with Dopamine itself, in an environment of its own."""
    constraints = "tests/dopamine-constraints.txt"
    session.install("-q", "-c", constraints, ".[flax,check]", "dopamine-rl", "tensorboard", "pytest")
    session.install("-q", "--no-deps", "-c", constraints, "baselines")
    # Dopamine's opencv-python needs a display library; the headless build puts its files in the same place.
    session.install("-q", "--no-deps", "--force-reinstall", "-c", constraints, "opencv-python-headless")
    # Dopamine and what it imports warn a lot, and the tests' own fixtures need more than is installed here.
    session.run("pytest", "--noconftest", "-W", "ignore", "tests/dopamine_session.py", *session.posargs)


# What each zoo's wrappers are tested with. CleanRL's are those of gymnasium 0.29; later ones make another grey.
ZOOS = {
    "sb3": ["stable-baselines3==2.9.2", "sb3-contrib==2.9.2", "gymnasium==1.4.0"],
    "cleanrl": ["stable-baselines3==2.9.2", "gymnasium==0.29.1"],
}
ZOO_TESTS = ["tests/zoos_session.py", "tests/zoo_agents_session.py"]


@nox.session(venv_backend="venv")
@nox.parametrize("zoo", list(ZOOS))
def zoos(session: nox.Session, zoo: str) -> None:
    """Hold each protocol and each reader against the libraries of its zoo, in an environment of their own."""
    session.install("-q", ".[check]", "pytest", "-c", "constraints.txt")
    session.install("-q", "--no-deps", *ZOOS[zoo], "cloudpickle", "farama-notifications")
    session.run("pytest", "--noconftest", "-W", "ignore", *ZOO_TESTS, "-k", zoo, *session.posargs)


@nox.session(venv_backend="venv")
def rliable(session: nox.Session) -> None:
    """Hold the statistics of scores against rliable's, in an environment of its own."""
    # rliable 1.2.0 asks for arch < 8, which cannot be imported beside pandas 3.
    session.install("-q", "-c", "constraints.txt", "rliable==1.2.0", "pandas<3", "pytest")
    session.run("pytest", "--noconftest", "-W", "ignore", "tests/rliable_session.py", *session.posargs)


@nox.session
def survive(session: nox.Session) -> None:
    """Kill a bulk conversion at 50 random instants."""
    session.env["SURVIVE_KILLS"] = "50"
    python(session, "-m", "pytest", "tests/test_survive.py", "-k", "random_instant", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure: `nox -s bench -- bulk`, `check`, `check-bulk`, `play`, `score` or `stack`, with options of its own."""
    name, *arguments = session.posargs or ["bulk"]
    python(session, f"tests/bench_{name.replace('-', '_')}.py", *arguments)
