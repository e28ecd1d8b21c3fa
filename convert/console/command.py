"""The class of both commands: examples for a call without arguments; standard streams that are closed or full."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click


class Command(click.Command):
    """A command that shows examples if it gets no arguments, and does its work even if its output cannot be written.

    A closed stream is treated as ``/dev/null``. A reader that closes its pipe (``| head``) changes nothing. After any
    other failure, such as a full disk, standard error gets one line at the end, and the exit code is
    ``exit_unwritten`` unless something else has failed. A word may stand for a command of its own, where it is the
    first argument: ``atari-check report``.
    """

    def __init__(
        self,
        *args: Any,
        examples: str,
        exit_unwritten: int,
        words: Mapping[str, Callable[[], click.Command]] | None = None,
        **options: Any,
    ) -> None:
        """Take more than `click.Command` does.

        Args:
            args: as it does.
            examples: the lines to show.
            exit_unwritten: see above.
            words: the commands that a first word stands for.
            options: as it does.
        """
        super().__init__(*args, **options)
        self._examples = examples
        self._exit_unwritten = exit_unwritten
        self._words = words or {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, or show the examples where there are none, with exit code 2."""
        if not args and not ctx.resilient_parsing:
            click.echo(f"{ctx.get_usage()}\n\n{self._examples}", err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command as Click does, or the one that its first word stands for."""
        given = list(args[0] if args and args[0] is not None else options.get("args") or sys.argv[1:])
        if given and given[0] in self._words:
            name = f"{options.get('prog_name') or self.name} {given[0]}"
            return self._words[given[0]]().main(**options | {"args": given[1:], "prog_name": name})
        _open_closed()
        code: Any = 0
        with _guard("stderr"), _guard("stdout") as output:
            try:
                return super().main(*args, **options)
            except SystemExit as end:
                code = end.code
            if output is not None and output.failure is not None and output.failure.errno != errno.EPIPE:
                click.echo(f"failed: standard output cannot be written ({output.failure.strerror})", err=True)
                code = code or self._exit_unwritten
        sys.exit(code)


class _Output(io.FileIO):
    """A stream that accepts everything, and stores the error of the first write that failed."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while self.failure is None and written < len(view):
            try:
                written += super().write(view[written:]) or 0
            except OSError as error:
                self.failure = error
        return len(view)


@contextmanager
def _guard(name: str) -> Iterator[_Output | None]:
    """Put an `_Output` in place of a standard stream. Give None where it is not the process's own, as in tests."""
    stream = getattr(sys, name)
    try:
        raw = _Output(stream.fileno(), "wb", closefd=False)
    except (OSError, ValueError, AttributeError):
        yield None
        return
    stream.flush()
    text = io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=stream.line_buffering
    )
    setattr(sys, name, text)
    try:
        yield raw
    finally:
        text.flush()
        setattr(sys, name, stream)


def _open_closed() -> None:
    """Open the standard streams that are closed, or a file that is opened later would get their number and text."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
