"""Find, describe and import late the modules that each need a framework: sources, targets, runtimes; plugins too.

A module of such a package begins with literal constants, and is found by its file name. Dashes in its name are
underscores in the file's.
"""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from convert.errors import BrokenPlugin, MissingExtra


def list_names(path: Iterable[str]) -> list[str]:
    """Return the names of the modules in a package's ``__path__``, sorted."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(path))


def name_module(package: str, name: str) -> str:
    """Return the full name of a module."""
    return f"{package}.{name.replace('-', '_')}"


def find_modules(package: str, path: Iterable[str], group: str) -> dict[str, str]:
    """Return modules by name: those that other packages register as entry points, then those of a package.

    A name that the package has itself is not given to another package.

    Args:
        package: the package's name.
        path: its ``__path__``.
        group: the group of entry points.
    """
    own = {name: name_module(package, name) for name in list_names(path)}
    registered = {entry.name: entry.module for entry in sorted(entry_points(group=group)) if entry.name not in own}
    return registered | own


def read_constants(module: str, wanted: Collection[str]) -> tuple[str, dict[str, Any]]:
    """Read a module's source without running it; of a module in a package, the package is imported.

    Returns:
        The first line of its docstring, and the literal constants that are wanted, those that it has.

    Raises:
        BrokenPlugin: there is no such module, or it is not Python source with literal constants.
    """
    try:
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"No module named {module!r}")
        return _take_constants(ast.parse(Path(spec.origin).read_text("utf-8")), wanted)
    except (ImportError, OSError, ValueError, SyntaxError) as error:
        raise BrokenPlugin(
            f"{module}: cannot be used ({error}): update or uninstall the package that brings it"
        ) from error


def _take_constants(tree: ast.Module, wanted: Collection[str]) -> tuple[str, dict[str, Any]]:
    constants = {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and statement.targets[0].id in wanted
    }
    return (ast.get_docstring(tree) or "").partition("\n")[0], constants


def find_missing(packages: Iterable[str]) -> tuple[str, ...]:
    """Return the packages that are not installed. None is imported."""
    return tuple(package for package in packages if not _is_importable(package))


def missing_extra(what: str, packages: Collection[str], extra: str | None) -> MissingExtra:
    """Return the error that says how to install the packages that something needs: by an extra, or by themselves."""
    missing = find_missing(packages) or packages
    how = f"'atari-convert[{extra}]'" if extra else " ".join(missing)
    return MissingExtra(f"{what} needs {', '.join(missing)}: pip install {how}")


@contextmanager
def explain_missing(what: str, packages: Collection[str], extra: str | None) -> Iterator[None]:
    """Turn a failed import of one of these packages into the error that says how to install it.

    Any other missing module is a bug, and must look like one.

    Raises:
        MissingExtra: one of the packages is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {package.split(".")[0] for package in packages}:
            raise
        raise missing_extra(what, packages, extra) from error


def _is_importable(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the parent of a dotted name is missing
        return False
