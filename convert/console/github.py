"""GitHub Actions, which obeys commands in what a step prints, such as ``::error::text``."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click


def is_here() -> bool:
    """Return whether this process is part of a GitHub workflow."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


@contextmanager
def obey_nothing() -> Iterator[None]:
    """Print within the block what strangers named: GitHub obeys no command in it, at the start of no line.

    The block ends with a random word, as GitHub's documentation of ``stop-commands`` has it.
    """
    if not is_here():
        yield
        return
    word = secrets.token_hex(16)
    click.echo(f"::stop-commands::{word}", err=True)
    try:
        yield
    finally:
        sys.stdout.flush()
        click.echo(f"::{word}::", err=True)
