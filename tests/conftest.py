from __future__ import annotations

from pathlib import Path

import pytest
from builders import AGENTS

from convert.bulk import find_jobs, run


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained agents, converted once to the three targets of the first release. Not to be changed."""
    out = tmp_path_factory.mktemp("converted")
    outcomes = list(run(find_jobs([AGENTS], out), ["onnx", "flax", "tensorflow"]))
    assert [outcome.status for outcome in outcomes] == ["converted", "converted"]
    return out
