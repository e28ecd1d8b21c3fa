"""What commands let people choose by name: backends and protocols. Loads no framework."""

from __future__ import annotations

import click

from convert.console.options import complete_from


def list_backend_names() -> list[str]:
    """Return every backend's name."""
    from runtime_check.backends import list_backends

    return [backend.name for backend in list_backends()]


def list_protocol_names() -> list[str]:
    """Return every protocol's name."""
    from runtime_check.protocols import PROTOCOLS

    return list(PROTOCOLS)


add_protocol = click.option(
    "--protocol",
    metavar="NAME",
    shell_complete=complete_from(list_protocol_names),
    help="Play under this protocol: modern, classic, sb3, ...  [default: each agent's own]",
)
