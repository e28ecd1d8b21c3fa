from __future__ import annotations

import json
from importlib.resources import files

from runtime_check.games import describe_games


def test_the_table_is_what_ale_py_says_of_all_60_games():
    table = json.loads(files("convert.agents").joinpath("games.json").read_text("utf-8"))
    assert len(table) == 60
    assert table == describe_games()
