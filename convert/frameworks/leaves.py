"""Packages whose modules each need a framework: listed and described from their source, imported late.

A module of such a package begins with literal constants, and is found by its file name. Dashes in its name are
underscores in the file's.
"""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from convert.errors import MissingExtra


def list_names(path: Iterable[str]) -> list[str]:
    """Return the names of the modules in a package's ``__path__``, sorted."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(path))


def name_module(package: str, name: str) -> str:
    """Return the full name of a module."""
    return f"{package}.{name.replace('-', '_')}"


def read_constants(package: str, name: str, wanted: Collection[str]) -> tuple[str, dict[str, Any]]:
    """Read a module's source without running it.

    Returns:
        The first line of its docstring, and the literal constants that are wanted, those that it has.
    """
    spec = cast(ModuleSpec, find_spec(name_module(package, name)))
    tree = ast.parse(Path(cast(str, spec.origin)).read_text("utf-8"))
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


def missing_extra(what: str, packages: Collection[str], extra: str) -> MissingExtra:
    """Return the error that says how to install the packages that something needs."""
    missing = ", ".join(find_missing(packages) or packages)
    return MissingExtra(f"{what} needs {missing}: pip install 'atari-convert[{extra}]'")


@contextmanager
def explain_missing(what: str, packages: Collection[str], extra: str) -> Iterator[None]:
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
