from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from builders import AGENTS, BREAKOUT, PONG, list_holding, make_state, save_checkpoint
from bulk_release import COUNT, hashes

import convert
from convert.bulk import run as bulk
from convert.bulk.selection import find_jobs

# A slow machine is not a failure.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# Commands that tests start find the packages and the tests' own modules, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parent)))


@pytest.fixture(scope="session", autouse=True)
def _heed_ctrl_c() -> None:
    """Let the commands that tests start be interrupted, also where the tests run as a shell's background job."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
    outcomes = list(bulk.run(find_jobs([AGENTS], out), bulk.Work(("onnx", "flax", "tensorflow"))))
    assert [outcome.status for outcome in outcomes] == ["converted", "converted"]
    return out


@pytest.fixture(scope="session")
def further(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained agents in the targets beyond those of the first release. Not to be changed."""
    out = tmp_path_factory.mktemp("further")
    for source in (PONG, BREAKOUT):
        targets = [name for name in list_holding(source) if name not in ("onnx", "flax", "tensorflow")]
        convert.convert_checkpoint(source, out.joinpath(*source.parts[-4:]).with_suffix(""), targets)
    return out


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve agents of two families and three games; files are links to four. Not to be changed: link it first."""
    root = tmp_path_factory.mktemp("release")
    files: list[Path] = []
    for index in range(COUNT):
        family, atoms = (("DQN_modern", None), ("C51_classic", 51))[index % 2]
        path = root / family / ("Pong", "Breakout", "Asterix")[index % 3] / "0" / f"model_{index + 1}000000.gz"
        if len(files) < 4:
            files.append(save_checkpoint(path, make_state(18, atoms, seed=index)))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(files[index % 4], path)
    return root


@pytest.fixture(scope="session")
def expected(release: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of one run over the release, in one process, to ONNX."""
    out = tmp_path_factory.mktemp("expected")
    outcomes = bulk.run(find_jobs([release], out), bulk.Work(("onnx",)))
    assert [outcome.status for outcome in outcomes] == ["converted"] * COUNT
    return hashes(out)
