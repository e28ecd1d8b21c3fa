"""Imports run downwards: the floors of `convert`, and who may not know whom."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The ground first. Each module or folder of `convert` stands on one floor, and imports from its own floor and below.
FLOORS = (
    ("errors", "names", "signals"),
    ("files",),
    ("agents",),
    ("frameworks",),
    ("formats", "networks"),
    ("targets", "runtimes"),
    ("artefacts",),
    ("store",),
    ("sources",),
    ("pipeline", "loading", "proofs"),
    ("bulk",),
    ("console",),
    ("printing",),
    ("cli",),
    ("__init__", "__main__"),
)
HEIGHTS = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
GROUND = "convert.__version__"  # which stands in `convert/__init__.py`

# The judge shares no code with the judged.
JUDGE = ("oracle.py", "compare.py", "tally.py", "torch_files.py", "originals")


def find_imports(path: Path) -> set[str]:
    """Return the modules and names that a file imports, those within functions and for type checkers too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import, expected an absolute one"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def find_files(place: str) -> list[Path]:
    path = ROOT / place
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def find_room(module: str) -> str:
    """Return the module or folder of `convert` that a dotted name stands in; the package itself where it names none."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in HEIGHTS else "__init__"


# The same of `runtime_check`.
CHECK_FLOORS = (
    ("backends", "compare", "oracle", "protocols"),
    ("choices",),
    ("calibration", "dopamine_env", "environment", "games", "replay", "tally", "torch_files"),
    ("originals",),
    ("check",),
    ("players", "report"),
    ("proof", "scores"),
    ("bulk",),
    ("progress",),
    ("card", "cli", "play"),
    ("__init__", "__main__"),
)


def test_imports_of_the_check_run_downwards():
    heights = {room: height for height, rooms in enumerate(CHECK_FLOORS) for room in rooms}
    for path in find_files("runtime_check"):
        room = path.relative_to(ROOT / "runtime_check").parts[0].removesuffix(".py")
        for name in find_imports(path):
            package, _, rest = name.partition(".")
            if package == "runtime_check":
                assert heights[rest.partition(".")[0]] <= heights[room], f"{path}: {name}"


@pytest.mark.parametrize("room", [room for rooms in CHECK_FLOORS[:-1] for room in rooms])
def test_contributing_says_what_belongs_in_every_room_of_the_check(room):
    is_folder = (ROOT / "runtime_check" / room).is_dir()
    name = f"{room}/" if is_folder else f"{room}.py"
    assert f"`{name}`" in (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("| in `runtime_check/` |")[2]
    path = ROOT / "runtime_check" / (f"{room}/__init__.py" if is_folder else name)
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


def test_every_room_has_a_floor():
    entries = (ROOT / "convert").iterdir()
    rooms = {path.stem for path in entries if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert not rooms - HEIGHTS.keys()


def test_imports_of_convert_run_downwards():
    upward = set()
    for path in find_files("convert"):
        room = path.relative_to(ROOT / "convert").parts[0].removesuffix(".py")
        for name in find_imports(path) - {GROUND}:
            if name.split(".")[0] == "convert" and HEIGHTS[find_room(name)] > HEIGHTS[room]:
                upward.add((path.relative_to(ROOT).as_posix(), name))
    assert upward == set()


def test_convert_knows_nothing_of_its_check():
    for path in find_files("convert"):
        assert not [name for name in find_imports(path) if name.split(".")[0] == "runtime_check"], path


@pytest.mark.parametrize("place", JUDGE)
def test_the_judge_shares_no_code_with_the_judged(place):
    files = find_files(f"runtime_check/{place}")
    assert files
    for path in files:
        assert not [name for name in find_imports(path) if name.split(".")[0] == "convert"], path


@pytest.mark.parametrize("room", sorted(HEIGHTS.keys() - {"__init__", "__main__"}))
def test_contributing_says_what_belongs_in_every_room(room):
    name = f"{room}/" if (ROOT / "convert" / room).is_dir() else f"{room}.py"
    assert f"`{name}`" in (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("### Where things are")[2]
    assert importlib.import_module(f"convert.{room}").__doc__
