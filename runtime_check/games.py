"""Generate ``convert/agents/games.json`` from ale-py: ``python -m runtime_check.games > convert/agents/games.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from ale_py import ALEInterface, LoggerMode, roms

from convert.agents.games import load_games


def describe_games() -> dict[str, dict[str, object]]:
    """Return ROM id and minimal action set, as the installed ale-py has them, for each game of the release."""
    ALEInterface.setLoggerMode(LoggerMode.Error)
    rom_ids = {rom_id.title().replace("_", ""): rom_id for rom_id in roms.get_all_rom_ids()}
    return {name: {"rom_id": rom_ids[name], "actions": _minimal_actions(rom_ids[name])} for name in load_games()}


def _minimal_actions(rom_id: str) -> list[str]:
    ale = ALEInterface()
    ale.loadROM(cast(Path, roms.get_rom_path(rom_id)))
    return [action.name for action in ale.getMinimalActionSet()]


def _format(games: dict[str, dict[str, object]]) -> str:
    rows = (f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in games.items())
    return "{\n" + ",\n".join(rows) + "\n}"


if __name__ == "__main__":
    print(_format(describe_games()))
