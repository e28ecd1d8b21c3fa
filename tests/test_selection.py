"""Which checkpoints a run is about: discovery, filters, shards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.agents.identity import Identity
from convert.bulk.selection import FINAL_STEP, Filter, Job, filter_jobs, find_jobs, parse_shard, take_shard
from convert.errors import SelectionError
from convert.formats.atari_agents import find_family, locate, make_identity


def _make(root: Path, *paths: str, size: int = 10) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x" * size)
    return root


def _job(family: str, game: str, seed: int, step: int, size: int = 1) -> Job:
    identity = make_identity(family, game, seed, step)
    return Job(f"root/{locate(identity)}", str(locate(identity)), "out", identity, size)


RELEASE = [
    _job(family, game, seed, step)
    for family in ("C51_classic", "DQN_modern")
    for game in ("Pong", "SpaceInvaders")
    for seed in (0, 1)
    for step in (250_000, 40_000_000, FINAL_STEP - seed)
]


def _kept(**wanted: tuple[str, ...]) -> set[tuple]:
    return {
        (find_family(job.identity), job.identity.game, job.identity.seed, job.identity.step)
        for job in filter_jobs(RELEASE, Filter(**wanted))
    }


def test_folders_files_patterns_and_lists_are_searched_in_the_order_of_folders(tmp_path, monkeypatch):
    root = _make(tmp_path / "r", "DQN_modern/Pong/0/model_2.gz", "DQN_modern/Pong/0/model_1.gz", "DQN_modern/x.gz")
    _make(root, "C51_classic/Pong/1/model_7.gz", "model_readme.txt")
    jobs = find_jobs([root], tmp_path / "out")
    assert [Path(job.folder).relative_to(tmp_path / "out").as_posix() for job in jobs] == [
        "C51_classic/Pong/1/model_7",
        "DQN_modern/Pong/0/model_1",
        "DQN_modern/Pong/0/model_2",
    ]
    assert {job.size for job in jobs} == {10}
    assert find_jobs([f"{root}/**/model_*.gz"], tmp_path / "out") == jobs
    assert find_jobs([f"file://{root}"], f"file://{tmp_path}/out") == jobs
    listed = [f"{root}/DQN_modern/Pong/0\n", "\n", f"{root}/C51_classic/Pong/1/model_7.gz\n"]
    assert find_jobs([], tmp_path / "out", listed=listed) == jobs
    (missing,) = find_jobs([], tmp_path / "out", listed=["nowhere/model_1.gz"])
    assert missing.source == "nowhere/model_1.gz"
    monkeypatch.chdir(root)
    assert find_jobs(["."], "out")[0].source == "C51_classic/Pong/1/model_7.gz"
    with pytest.raises(SelectionError, match=r"'gone\*' does not exist"):
        find_jobs(["gone*"], "out")


def test_what_matches_a_pattern_keeps_its_folders(tmp_path):
    _make(tmp_path / "zoo", "a/model_1.gz", "b/model_1.gz", "b/pong.gz", "b/README.md")
    for pattern, expected in (
        ("zoo/*/model_1.gz", ["a/model_1.gz", "b/model_1.gz"]),
        ("zoo/**", ["a/model_1.gz", "b/model_1.gz", "b/pong.gz"]),
        ("zoo/*", ["a/model_1.gz", "b/model_1.gz"]),
        ("z*/b/*", ["zoo/b/model_1.gz", "zoo/b/pong.gz"]),
    ):
        assert [job.path for job in find_jobs([tmp_path / pattern], "out")] == expected
        at_url = [f"local://{tmp_path}/{pattern}"]
        expected = [path for path in expected if pattern != "zoo/*"]  # there, a pattern is of files alone
        assert [job.path for job in find_jobs([], "out", listed=at_url)] == expected or pattern == "zoo/*"


def test_links_are_followed_and_every_folder_is_searched_once(tmp_path):
    _make(tmp_path / "store", "DQN_modern/Pong/0/model_1.gz")
    root = tmp_path / "root"
    root.mkdir()
    (root / "agents").symlink_to(tmp_path / "store")
    (root / "zz").symlink_to(tmp_path / "store/DQN_modern")
    (tmp_path / "store/DQN_modern/loop").symlink_to(tmp_path / "store")
    (job,) = find_jobs([root], "out")
    assert job.source == str(root / "agents/DQN_modern/Pong/0/model_1.gz")
    (tmp_path / "link.gz").symlink_to(tmp_path / "store/DQN_modern/Pong/0/model_1.gz")
    assert len(find_jobs([root, tmp_path / "root/agents"], "out")) == 1


def test_a_signature_in_a_url_is_no_part_of_the_name():
    url = "https://host/zoo/DQN_modern/Space%49nvaders/0/model_1.gz?sig=a%2Fb"
    jobs = find_jobs([], "out", listed=[url, "https://host/my%20agents/model_2.gz?sig=*"])
    assert [(job.source, job.path) for job in jobs] == [
        (url, "DQN_modern/SpaceInvaders/0/model_1.gz"),
        ("https://host/my%20agents/model_2.gz?sig=*", "model_2.gz"),
    ]


def test_an_output_that_nothing_can_write_to_is_refused_before_the_work(tmp_path):
    _make(tmp_path, "model_1.gz")
    with pytest.raises(SelectionError, match=r"s4://bucket: .*expected a path, gs://, s3:// or https://"):
        find_jobs([tmp_path], "s4://bucket/out")
    assert find_jobs([tmp_path], "memory://")[0].folder == "memory:///model_1"


def test_filters_are_patterns():
    assert len(_kept(families=("C51*",))) == 12
    assert _kept(games=("Space*",), seeds=("1",), families=("DQN_modern",)) == {
        ("DQN_modern", "SpaceInvaders", 1, step) for step in (250_000, 40_000_000, FINAL_STEP - 1)
    }
    assert len(_kept(seeds=("0", "1"))) == len(RELEASE)


def test_steps_are_latest_final_a_range_a_number_or_a_pattern():
    assert {row[3] for row in _kept(steps=("latest",))} == {FINAL_STEP, FINAL_STEP - 1}
    assert len(_kept(steps=("latest",))) == 8
    assert {row[2:] for row in _kept(steps=("final",))} == {(0, FINAL_STEP)}
    assert {row[3] for row in _kept(steps=("300000:40000000",))} == {40_000_000}
    assert {row[3] for row in _kept(steps=(":250000",))} == {250_000}
    assert {row[3] for row in _kept(steps=("40000001:",))} == {FINAL_STEP, FINAL_STEP - 1}
    assert {row[3] for row in _kept(steps=("250000", "4*"))} == {250_000, 40_000_000, FINAL_STEP - 1}


def test_what_was_converted_is_no_source(tmp_path):
    release = _make(tmp_path, "DQN_modern/Pong/0/model_1.gz")
    agent = _make(tmp_path / "converted/DQN_modern/Pong/0/model_1", "checkpoint/DQN_modern/Pong/0/model_1.gz")
    (agent / "agent.json").write_text("{}")
    (agent.parent / "model_2/.atari-convert-new/checkpoint").mkdir(parents=True)  # a run was killed
    _make(agent.parent / "model_2/.atari-convert-new/checkpoint", "DQN_modern/Pong/0/model_1.gz")
    at_url = find_jobs([f"local://{release}"], "out")
    assert [job.source for job in at_url] == [f"file://{release}/DQN_modern/Pong/0/model_1.gz"]
    assert [job.source for job in find_jobs([release], "out")] == [str(release / "DQN_modern/Pong/0/model_1.gz")]
    named = find_jobs([agent], "out")
    assert [job.source for job in named] == [str(agent / "checkpoint/DQN_modern/Pong/0/model_1.gz")]


def test_names_and_folders_that_are_spelt_oddly(tmp_path):
    _make(tmp_path / "x", "model_1.gz")
    (job,) = find_jobs([f"{tmp_path}/x/../x"], "out")
    assert job.path == "model_1.gz"
    Path(os.fsdecode(os.fsencode(tmp_path / "x") + b"/model_\xff.gz")).write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(tmp_path / "x") + b"/\xfe")).mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "x") + b"/\xfe/model_2.gz")).write_bytes(b"x")
    assert [job.path for job in find_jobs([tmp_path / "x"], "out")] == [
        "\\xfe/model_2.gz",
        "model_1.gz",
        "model_\\xff.gz",
    ]
    assert [job.path for job in find_jobs([os.fsdecode(os.fsencode(tmp_path / "x") + b"/\xfe")], "out")] == [
        "model_2.gz"
    ]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"games": ("Pnog",)}, "no game 'Pnog' in the release; did you mean Pong"),
        ({"families": ("DQN",)}, "no family 'DQN'"),
        ({"steps": ("last",)}, "--steps 'last' is not latest, final, A:B, a step or a pattern"),
        ({"steps": ("7",)}, "found fits --steps 7: they are of the steps "),
        ({"seeds": ("9",)}, "found fits --seed 9: they are "),
        ({"steps": ("9:7",)}, "--steps 9:7 is empty: A:B means from A to B"),
    ],
)
def test_what_fits_nothing_is_explained(wanted, message):
    with pytest.raises(SelectionError, match=message):
        filter_jobs(RELEASE, Filter(**wanted))


def test_what_is_not_known_of_an_agent_matches_no_filter():
    unknown = Job("a/model_1.gz", "model_1.gz", "out", Identity())
    assert filter_jobs([*RELEASE, unknown], Filter()) == [*RELEASE, unknown]
    for wanted in (Filter(games=("*",)), Filter(seeds=("*",)), Filter(steps=("0:",))):
        assert filter_jobs([*RELEASE, unknown], wanted) == RELEASE


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=60), st.integers(1, 12))
def test_shards_are_disjoint_complete_and_near_equal(sizes, count):
    jobs = [_job("DQN_modern", "Pong", 0, step, size) for step, size in enumerate(sizes)]
    shards = [take_shard(jobs, (number, count)) for number in range(1, count + 1)]
    assert [job for shard in shards for job in shard] == jobs
    totals = [sum(job.size or 1 for job in shard) for shard in shards]
    assert max(totals) - min(totals) <= 2 * max(max(sizes), 1)


def test_what_is_not_told_of_its_size_weighs_as_the_rest_in_shards():
    jobs = [_job("DQN_modern", "Pong", 0, step, size) for step, size in enumerate([0, 0, 0, 6, 6, 6])]
    assert take_shard(jobs, (1, 2)) == jobs[:3]


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", "1/2/3", "-1/2"])
def test_a_shard_that_is_none_is_refused(text):
    assert parse_shard("3/3") == (3, 3)
    with pytest.raises(ValueError, match="is not K/N with K from 1 to N"):
        parse_shard(text)


def test_a_hundred_thousand_checkpoints_fit_in_little_memory():
    """In a process of its own, where nothing else allocates meanwhile."""
    code = """
import gc, tracemalloc
from convert.bulk.selection import find_jobs

def measure(count):
    listed = (f"/r/DQN_modern/Pong/{seed}/model_{step}.gz" for seed in range(10) for step in range(count // 10))
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    jobs = find_jobs([], "out", listed=listed)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    assert len(jobs) == count
    return after - before

tracemalloc.start()
measure(10)
few, many = measure(1000), measure(10_000)
print((many - few) / 9000)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert float(result.stdout) < 800  # bytes: 80 MB for 100,000
