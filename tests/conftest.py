from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from builders import AGENTS, BREAKOUT, PONG

import convert
from convert.bulk import run
from convert.selection import find_jobs
from convert.targets import list_targets

# A slow machine is not a failure.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# Commands that tests start find the packages and the tests' own modules, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parent)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the journals of tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained agents, converted once to the three targets of the first release. Not to be changed."""
    out = tmp_path_factory.mktemp("converted")
    outcomes = list(run(find_jobs([AGENTS], out), ["onnx", "flax", "tensorflow"]))
    assert [outcome.status for outcome in outcomes] == ["converted", "converted"]
    return out


@pytest.fixture(scope="session")
def further(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained agents in the targets beyond those of the first release. Not to be changed."""
    out = tmp_path_factory.mktemp("further")
    targets = [target.name for target in list_targets() if target.name not in ("onnx", "flax", "tensorflow")]
    for source in (PONG, BREAKOUT):
        convert.convert_checkpoint(source, out.joinpath(*source.parts[-4:]).with_suffix(""), targets)
    return out
