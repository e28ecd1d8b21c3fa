"""``atari-play score``: whole episodes, resumed, in shards; their statistics, tables and plots."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from builders import AGENTS, PONG
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from convert.agents.games import load_games
from convert.errors import CheckError
from runtime_check.play.cli import main
from runtime_check.scores import rows as files
from runtime_check.scores.plots import read_baseline
from runtime_check.scores.references import find_reference
from runtime_check.scores.rows import CUT, GAME_OVER, TIME_LIMIT, Row
from runtime_check.scores.statistics import compute_iqm, compute_profile, estimate_iqm
from runtime_check.scores.summary import aggregate, find_best_and_last, format_table, score_agents

ROW = Row(
    zoo="atari-agents",
    family="DQN_modern",
    game="Pong",
    seed=0,
    step=250_000,
    source="DQN_modern/Pong/0/model_250000.gz",
    sha256="0" * 64,
    backend="reference",
    protocol="modern",
    epsilon=0.001,
    max_steps=None,
    ale="0.12.1",
    episode=0,
    score=-20.7,
    steps=800,
    ending=GAME_OVER,
)


def _run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["score", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def _make_rows(games: int = 2, seeds: int = 3, steps: int = 4, episodes: int = 2) -> list[Row]:
    """Return rows of runs that get better, one of which is best before its end."""
    rows = []
    for game in ("Pong", "Breakout", "Pooyan")[:games]:
        for seed in range(seeds):
            for step in range(1, steps + 1):
                for episode in range(episodes):
                    score = 5.0 * step + seed - (20 if step == steps and seed == 0 else 0) + episode
                    source = f"DQN_modern/{game}/{seed}/model_{step}.gz"
                    rows.append(
                        replace(ROW, game=game, seed=seed, step=step, source=source, score=score, episode=episode)
                    )
    return rows


@pytest.mark.slow
def test_a_trained_agent_scores_what_a_check_of_it_returns(tmp_path):
    """Breakout is over when its lives are: the command plays whole episodes, and they are the check's."""
    from convert.pipeline import convert_checkpoint
    from runtime_check import Options, check_agent

    source = AGENTS / "C51_classic/Breakout/0/model_187420.gz"
    _run(AGENTS, "--game", "Breakout", "--episodes", 2, "--epsilon", 0.1, "-o", tmp_path / "scores.csv")
    rows = files.read(tmp_path / "scores.csv")
    assert [row.ending for row in rows] == [GAME_OVER, GAME_OVER]
    convert_checkpoint(source, tmp_path / "agent", ["onnx"], identity="C51_classic/Breakout/0/187420")
    result = check_agent(tmp_path / "agent", source, Options(("onnxruntime",), episodes=2, epsilon=0.1))
    assert [row.score for row in rows] == result.backends["reference"].shadow_returns.first


def test_an_artefact_plays_as_its_checkpoint(converted, tmp_path):
    options = ("--episodes", 2, "--max-steps", 30)
    _run(converted / "DQN_modern/Pong/0/model_328492", *options, "--backend", "onnxruntime", "-o", tmp_path / "a.csv")
    _run(PONG, *options, "-o", tmp_path / "b.csv")
    one, other = (files.read(tmp_path / name) for name in ("a.csv", "b.csv"))
    assert [replace(row, backend="reference") for row in one] == other
    done = _run(PONG, *options, "--backend", "flax", code=1)
    assert "not the folder of a converted agent, and holds no flax" in done.stderr


@pytest.mark.slow
def test_a_score_goes_into_the_model_card(tmp_path):
    import convert
    from convert.pipeline import convert_checkpoint
    from runtime_check import Options, check_agent

    source, folder = AGENTS / "C51_classic/Breakout/0/model_187420.gz", tmp_path / "agent"
    convert_checkpoint(source, folder, ["safetensors"])
    _run(folder, "--episodes", 2, "--epsilon", 0.01, "-o", tmp_path / "scores.csv", "--card")
    scores = [row.score for row in files.read(tmp_path / "scores.csv")]
    card = (folder / "huggingface/README.md").read_text("utf-8")
    assert f'value: "{np.mean(scores):.2f} +/- {np.std(scores):.2f}"' in card
    assert "over 2 episodes (ε = 0.01, protocol `classic`, unclipped rewards)" in card
    assert convert_checkpoint(source, folder, ["safetensors"]).written == ()
    assert check_agent(folder, source, Options(("safetensors",), max_steps=10)).agrees
    assert convert.read_record(folder).agent.identity.game == "Breakout"
    # A rerun plays nothing, and writes the card again.
    (known,) = [row.score for row in files.read(tmp_path / "scores.csv")][:1]
    _run(folder, "--episodes", 1, "--epsilon", 0.01, "-o", tmp_path / "scores.csv", "--card")
    assert f'value: "{known:.2f} +/- 0.00"' in (folder / "huggingface/README.md").read_text("utf-8")


def test_what_is_no_score_goes_into_no_card():
    assert "cuts are no scores" in _run(PONG, "--max-steps", 5, "--card", code=2).stderr
    assert "plays by chance: a card takes at most 0.01" in _run(PONG, "--epsilon", 0.5, "--card", code=2).stderr


def test_cut_episodes_are_no_scores(tmp_path):
    done = _run(AGENTS, "--episodes", 2, "--max-steps", 5, "-o", tmp_path / "scores.parquet", "--json")
    assert {row.ending for row in files.read(tmp_path / "scores.parquet")} == {CUT}
    agents = json.loads(done.stdout)["agents"]
    assert [(agent["mean"], agent["n"], agent["cut"]) for agent in agents] == [(None, 0, 2)] * 2
    done = _run(AGENTS, "--episodes", 2, "--max-steps", 5)
    assert "no whole episode" in done.stdout
    assert "4 episodes were cut by --max-steps: they do not count as scores" in done.stdout


def test_what_was_played_is_not_played_again(tmp_path):
    out = tmp_path / "scores.csv"
    options = (AGENTS, "--episodes", 2, "--max-steps", 5, "-o", out)
    assert len(_run(*options).stderr.splitlines()) == 2
    first = out.read_bytes()
    assert _run(*options).stderr == ""
    assert out.read_bytes() == first
    assert len(_run(*options, "--first-seed", 2).stderr.splitlines()) == 2
    assert [row.episode for row in files.read(out)] == [0, 1, 2, 3] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"scores.csv"}


def test_shards_and_processes_make_what_one_run_makes(tmp_path):
    options = (AGENTS, "--episodes", 2, "--max-steps", 5)
    _run(*options, "-o", tmp_path / "whole.csv", "-j", 2)
    for number in (1, 2):
        _run(*options, "--shard", f"{number}/2", "-o", tmp_path / f"{number}.csv")
    both = [*files.read(tmp_path / "1.csv"), *files.read(tmp_path / "2.csv")]
    assert sorted(both, key=lambda row: row.key) == sorted(files.read(tmp_path / "whole.csv"), key=lambda row: row.key)
    tables = {
        _run("--rows", tmp_path / "whole.csv").stdout,
        _run("--rows", tmp_path / "1.csv", "--rows", tmp_path / "2.csv").stdout,
    }
    assert len(tables) == 1


def test_a_killed_run_is_resumed(tmp_path):
    out = tmp_path / "scores.csv"
    options = [str(AGENTS), "--episodes", "1", "--max-steps", "40", "-o", str(out)]
    command = [sys.executable, "-c", "from runtime_check.play.cli import main; main()", "score", *options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        part = tmp_path / "scores.csv.part"
        while process.poll() is None and not (part.exists() and part.read_text("utf-8").count("\n") > 1):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    with part.open("a", encoding="utf-8") as file:
        file.write("atari-agents,DQN_mod")  # as a kill within a write leaves it
    assert len(_run(*options).stderr.splitlines()) == 1
    assert len(files.read(out)) == 2
    assert not part.exists()


def test_one_bad_file_stops_nothing(tmp_path):
    bad = tmp_path / "DQN_modern/Pong/0/model_1.gz"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"\x1f\x8bno")
    done = _run(AGENTS, bad, "--episodes", 1, "--max-steps", 3, code=1)
    assert [line for line in done.stderr.splitlines() if line.startswith("failed")] != []
    assert "DQN_modern/Pong/0/328492" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Usage:"),
        (("nowhere",), "nowhere"),
        ((PONG, "-o", "scores.txt"), "a name that ends in .csv or .parquet"),
        ((PONG, "--backend", "onyx"), "no backend 'onyx'"),
        (("--rows", PONG), "cannot be read"),
    ],
)
def test_mistakes_are_told_in_one_message(arguments, message):
    done = _run(*arguments, code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


_TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)


@given(
    rows=st.lists(
        st.builds(
            Row,
            *(_TEXTS, _TEXTS, _TEXTS, st.none() | st.integers(0, 2**40), st.none() | st.integers(0, 2**40), _TEXTS),
            *(_TEXTS, _TEXTS, _TEXTS, st.floats(0, 1), st.none() | st.integers(1, 2**40), _TEXTS),
            *(st.integers(0, 2**31), st.floats(-1e9, 1e9), st.integers(0, 2**40)),
            st.sampled_from([GAME_OVER, TIME_LIMIT, CUT]),
        )
    )
)
def test_rows_come_back_as_they_were(rows, tmp_path_factory):
    assert files.from_csv(files.to_csv(rows), "rows") == rows
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    files.write(path, rows)
    assert files.read(path) == rows


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n", "utf-8")
    with pytest.raises(CheckError, match="line 1 has other columns"):
        files.read(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text(files.to_csv([ROW]).replace("800", "many"), "utf-8")
    with pytest.raises(CheckError, match="line 2 is no row of scores"):
        files.read(tmp_path / "b.csv")


def test_references_are_those_of_fifty_five_games():
    missing = [game for game in load_games() if find_reference(game) is None]
    assert missing == ["AirRaid", "Carnival", "ElevatorAction", "JourneyEscape", "Pooyan"]
    pong = find_reference("Pong")
    assert pong is not None
    assert (pong.normalise(-20.7), pong.normalise(14.6)) == (0.0, 1.0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 60, 181])
def test_the_interquartile_mean_is_scipys(count):
    stats = pytest.importorskip("scipy.stats")
    scores = np.random.default_rng(count).normal(size=count)
    assert compute_iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25), abs=1e-15)


def test_the_bootstrap_keeps_games_and_covers_the_truth():
    """Of 200 samples of 20 games with 5 runs each, about 95 % have the true interquartile mean in their interval."""
    rng = np.random.default_rng(0)
    truth = compute_iqm(np.concatenate([np.random.default_rng(1).normal(game, 1, 20_000) for game in range(20)]))
    covered = 0
    for trial in range(200):
        found = estimate_iqm([rng.normal(game, 1, 5) for game in range(20)], 500, trial)
        covered += found.low <= truth <= found.high
    assert 0.86 <= covered / 200 <= 1
    same = estimate_iqm([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert (same.value, same.low, same.high, same.games, same.runs) == (1.5, 1.5, 1.5, 4, 8)


def test_a_profile_falls_from_one_to_none():
    profile = compute_profile([[0.1, 0.5], [2.0]], [0, 0.3, 1, 3])
    assert profile.tolist() == [1, 2 / 3, 1 / 3, 0]


def test_the_table_tells_best_and_last_and_all_games():
    scores = score_agents(_make_rows())
    pairs = {last.run: (best.step, last.step) for best, last in find_best_and_last(scores)}
    assert pairs["atari-agents", "DQN_modern", "Pong", 0] == (3, 4)
    assert pairs["atari-agents", "DQN_modern", "Pong", 1] == (4, 4)
    (interval,) = aggregate(scores).values()
    assert (interval.games, interval.runs) == (2, 6)
    text = format_table(scores)
    assert "n = 6 runs of 2 games" in text
    assert all(len(line) <= 120 for line in text.splitlines())
    (first, *_) = score_agents(_make_rows(games=1, seeds=1, steps=1))
    assert (first.mean, first.std, first.median, first.n) == (-14.5, 0.5, -14.5, 2)
    assert score_agents([replace(ROW, game="Pooyan")])[0].normalised is None


def test_episodes_at_the_protocols_limit_are_scores_and_are_counted():
    (score,) = score_agents([ROW, replace(ROW, episode=1, ending=TIME_LIMIT), replace(ROW, episode=2, ending=CUT)])
    assert (score.n, score.limited, score.cut) == (2, 1, 1)


def test_plots_are_drawn_with_a_baseline(tmp_path):
    pytest.importorskip("matplotlib")
    files.write(tmp_path / "scores.csv", _make_rows(3))
    points = [
        {"Agent": agent, "Game": "Pong", "Iteration": iteration, "Value": value}
        for agent in ("DQN (Adam + MSE in JAX)", "Rainbow")
        for iteration in range(3)
        for value in (1.0, 2.0)
    ]
    (tmp_path / "Pong.json").write_text(json.dumps(points), "utf-8")
    curve = read_baseline(tmp_path / "Pong.json")
    assert (curve["steps"].tolist(), curve["mean"].tolist()) == ([250_000, 500_000, 750_000], [1.5] * 3)
    _run("--rows", tmp_path / "scores.csv", "--plots", tmp_path / "plots", "--baseline", tmp_path / "Pong.json")
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    stems = ("curve-Breakout", "curve-Pong", "curve-Pooyan", "iqm", "profile")
    assert names == [f"{stem}{suffix}" for stem in stems for suffix in (".png", ".svg")]
    assert "training returns" in (tmp_path / "plots/curve-Pong.svg").read_text("utf-8")
    (tmp_path / "Pong.json").write_text("[]", "utf-8")
    with pytest.raises(CheckError, match="no curve of"):
        read_baseline(tmp_path / "Pong.json")


def test_help_loads_no_framework():
    code = (
        "import sys; from runtime_check.play.cli import main\ntry: main(['score', '--help'])\nexcept SystemExit: pass\n"
    )
    code += "print([name for name in ('torch', 'numpy', 'ale_py', 'matplotlib', 'pyarrow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--first-seed" in done.stdout
