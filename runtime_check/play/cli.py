"""The command ``atari-play``: finds its commands, which are loaded late."""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import signal
import sys
from typing import Any

import click

from convert import __version__
from convert.signals import stop_on_signals
from runtime_check.play import commands

_PACKAGES = ("ale_py", "cv2", "matplotlib", "pyarrow")  # of the extra; others say by themselves that they are missing


class _Group(click.Group):
    """A group whose commands are the modules of `runtime_check.play.commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{commands.__name__}.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first word names; suggest one if there is none."""
        if args and args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            meant = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f"did you mean {meant[0]}? " if meant else ""
            ctx.fail(f"no command {args[0]!r}: {hint}There are {', '.join(self.list_commands(ctx))}.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Ctrl-C and SIGTERM end it with 130 and 143, after it has cleared up.

        Raises:
            click.UsageError: a package is not installed.
        """
        try:
            with stop_on_signals():
                return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in _PACKAGES:
                raise
            raise click.UsageError(f"needs {error.name}: pip install 'atari-convert[play]'") from error
        except KeyboardInterrupt as stop:
            number = stop.args[0] if stop.args else signal.SIGINT
            click.echo("interrupted", err=True)
            sys.exit(128 + number)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="atari-play")
def main() -> None:
    """Play with trained agents: see what they do, and how good they are."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded: threads that wait sleep
