"""The table of docs/sources.md: what each source reads, in every target, answers as the judge's own reading of it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from builders import BREAKOUT, PONG, make_observations, save_sample

import convert
from convert.agents import layout
from convert.errors import TargetError
from convert.pipeline import write_artifact
from convert.sources import list_sources
from convert.targets import find_obstacle, find_target, list_targets
from runtime_check.backends import find_backend, list_backends
from runtime_check.oracle import compute_outputs
from runtime_check.originals import read_oracle

DOCUMENT = (Path(__file__).parents[1] / "docs/sources.md").read_text("utf-8")
# What a row of the table begins with, and the file that it is tried with.
AGENTS = {
    "`atari-agents`, DQN": lambda _: PONG,
    "`atari-agents`, C51": lambda _: BREAKOUT,
    "`sb3`, DQN": lambda folder: save_sample("sb3_dqn_v2.9.2.zip", folder),
    "`sb3`, QR-DQN": lambda folder: save_sample("sb3_qrdqn_v2.9.2.zip", folder),
    "`cleanrl`, C51": lambda folder: save_sample("cleanrl_c51_atari.cleanrl_model", folder),
    "`cleanrl-jax`, C51": lambda folder: save_sample("cleanrl_c51_atari_jax.cleanrl_model", folder),
    "`pfrl`, DQN": lambda folder: save_sample("pfrl_dqn_model.pt", folder),
    "`pfrl`, Rainbow": lambda folder: save_sample("pfrl_rainbow_model.pt", folder),
    "`kaixhin`, data-efficient Rainbow": lambda folder: save_sample("kaixhin_data_efficient_model.pth", folder),
    "`dopamine`, DQN": lambda folder: save_sample("dopamine_dqn_ckpt.0", folder),
    "`dopamine`, full Rainbow": lambda folder: save_sample("dopamine_full_rainbow_ckpt.0", folder),
}


def _read_table() -> dict[str, dict[str, str]]:
    """Return the cells of the table by row and target."""
    lines = [line[1:-1] for line in DOCUMENT.splitlines() if line.count("|") > 10]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    names = [name.strip("`") for name in rows[0][1:]]
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows[2:]}


def test_the_table_has_every_target_and_its_runtime():
    table = _read_table()
    runtimes = table.pop("runtime")
    assert runtimes == {target.name: target.runtime for target in list_targets()}
    assert table.keys() == AGENTS.keys()


def test_every_source_is_described():
    for source in list_sources():
        assert f"`{source.name}`" in DOCUMENT
        assert source.example is None or source.example in DOCUMENT
    patterns = {pattern for source in list_sources() for pattern in (*source.patterns, *source.candidates)}
    assert set(re.findall(r"`(\w*\*\.\w+|\w+\.\*)`", DOCUMENT)) == patterns


@pytest.mark.slow
@pytest.mark.parametrize("row", AGENTS)
def test_every_cell_of_the_table_holds(row, tmp_path):
    source, observations = AGENTS[row](tmp_path), make_observations(2)
    expected = compute_outputs(read_oracle(source), observations)
    network, cells = convert.read_checkpoint(source), _read_table()[row]
    record = convert.convert_checkpoint(source, tmp_path / "out", ["safetensors"]).record
    bounds = {backend.target: backend.bound for backend in list_backends()}
    for target, cell in cells.items():
        if cell == "–":
            with pytest.raises(TargetError):
                write_artifact(target, network, record.agent, tmp_path)
            continue
        assert cell == "yes"
        assert find_obstacle(target, network.architecture) is None
        convert.convert_checkpoint(source, tmp_path / "out", [target])
        agent = convert.load_agent(tmp_path / "out", target)
        seen = observations if find_target(target).axes == "NCHW" else layout.nhwc_from_nchw(observations)
        bound, largest = bounds[target], np.abs(expected["q_values"]).max()
        allowed = 1e-4 if bound is None else bound.atol + bound.rtol * largest
        np.testing.assert_allclose(agent.run(seen)["q_values"], expected["q_values"], atol=allowed, rtol=0)
    assert find_backend("reference").target is None
