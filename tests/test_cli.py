"""The command as users meet it: output, messages, exit codes, files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
import zipfile
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import torch
from builders import AGENTS, BREAKOUT, PONG, make_observations, make_state, save_checkpoint
from click.testing import CliRunner

from convert.agents.record import read_record, to_json
from convert.cli import main
from convert.sources import list_sources
from convert.targets import list_targets

SCHEMA = json.loads(files("convert.agents").joinpath("agent.schema.json").read_text("utf-8"))
PONG_FOLDER = "DQN_modern/Pong/0/model_328492"


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="atari-convert")
    assert result.exit_code == code, result.output
    return result


def _tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def release(tmp_path) -> Path:
    """A small release of links to the trained agents."""
    root = tmp_path / "release"
    shutil.copytree(AGENTS, root, copy_function=os.link)
    return root


def test_a_folder_is_converted_and_a_second_run_does_nothing(release, tmp_path):
    out = tmp_path / "out"
    first = run(release, "--to", "onnx", "--to", "flax", "-o", out)
    assert f"{out}/{PONG_FOLDER}: wrote onnx, flax" in first.stdout
    assert "2 converted, 0 current, 0 failed" in first.stdout
    hint = first.stdout.partition("Load one:\n")[2]
    assert f"convert.load_agent({f'{out}/C51_classic/Breakout/0/model_187420'!r}, 'onnx')" in hint
    assert "[N, 4, 84, 84] for onnx\n" in hint
    assert "[N, 84, 84, 4] for flax\n" in hint
    names = {"observations": make_observations(2)}
    exec(textwrap.dedent(hint), names)  # as a user pastes it
    assert names["q_values"].shape == (2, 4)
    assert first.stderr == ""
    assert _tree(out) == [
        f"{folder}/{name}"
        for folder in ("C51_classic/Breakout/0/model_187420", PONG_FOLDER)
        for name in ("agent.json", "model.onnx", "params.msgpack")
    ]
    second = run(release, "--to", "onnx", "--to", "flax", "-o", out)
    assert second.stdout == "0 converted, 2 current, 0 failed\n"


def test_the_record_says_everything_and_fits_its_schema(converted):
    folder = converted / PONG_FOLDER
    text = (folder / "agent.json").read_text("utf-8")
    document = json.loads(text)
    jsonschema.validate(document, SCHEMA)
    jsonschema.validate(json.loads((converted / "C51_classic/Breakout/0/model_187420/agent.json").read_text()), SCHEMA)
    told = {key: document[key] for key in ("zoo", "algorithm", "protocol", "game", "rom_id", "seed", "step")}
    assert told == {
        "zoo": "atari-agents",
        "algorithm": "DQN",
        "protocol": "modern",
        "game": "Pong",
        "rom_id": "pong",
        "seed": 0,
        "step": 328492,
    }
    assert document["architecture"]["head"] == {
        "kind": "q",
        "actions": 6,
        "atoms": None,
        "support": None,
        "quantiles": None,
        "streams": "single",
    }
    assert document["action_meanings"] == ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]
    data = PONG.read_bytes()
    assert document["source"] == {
        "file": "model_328492.gz",
        "path": f"{PONG_FOLDER}.gz",
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    for artifact in document["artifacts"].values():
        for file in artifact["files"]:
            assert hashlib.sha256((folder / file["path"]).read_bytes()).hexdigest() == file["sha256"]
    assert document["artifacts"]["tensorflow"]["inputs"][0]["axes"] == ["batch", "height", "width", "frame"]
    assert to_json(read_record(folder)) == text


def test_without_a_source_the_current_folder_is_searched(release, monkeypatch, tmp_path):
    monkeypatch.chdir(release)
    assert "2 converted" in run("--to", "flax").stdout
    assert (release / "converted" / PONG_FOLDER / "params.msgpack").exists()
    monkeypatch.chdir(release / "DQN_modern/Pong")
    assert "1 converted" in run("--to", "flax", "-o", tmp_path / "out").stdout
    assert (tmp_path / "out" / PONG_FOLDER / "agent.json").exists()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "no checkpoint found" in run("--to", "flax", code=2).stderr


def test_a_search_that_finds_nothing_says_where_and_what_it_saw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def complain(*arguments: object) -> str:
        message = " ".join(run(*arguments, "--to", "flax", code=2).stderr.split())
        return message.partition("no checkpoint found: ")[2]

    (tmp_path / "runs/a/b/c").mkdir(parents=True)
    following = (
        "name a checkpoint (model_STEP.gz), or a folder with some; atari-convert sources lists what else is read"
    )
    assert complain("runs") == f"searched runs and 3 folders below it, no files: {following}"
    for name in ("a/1.zip", "a/b/2.zip"):
        with zipfile.ZipFile(tmp_path / "runs" / name, "w") as archive:
            archive.writestr("notes.txt", "none")
    (tmp_path / "runs/a/args.yml").write_text("env: Pong\n")
    (tmp_path / "runs/LICENCE").touch()
    counted = "4 files (2 .zip, 1 without a suffix, 1 .yml)"
    sample = "runs/a/1.zip is a zip archive with notes.txt"
    assert complain("runs") == f"searched runs and 3 folders below it, {counted}; {sample}: {following}"
    assert complain(f"local://{tmp_path}/runs") == f"searched local://{tmp_path}/runs, {counted}: {following}"
    assert (
        complain("runs/a/*.yml")
        == f"searched runs/a/*.yml, 1 file (1 .yml); runs/a/args.yml is a text file: {following}"
    )
    assert complain().startswith(f"searched the current folder {tmp_path} and 4 folders below it, 4 files")
    (tmp_path / "runs/pong.gz").write_bytes(b"")
    assert "1 .gz, 1 .yml), none named model_*.gz: name other .gz files one by one" in complain("runs")


def test_what_is_no_source_any_more_is_named_with_the_way_to_read_it(converted, tmp_path):
    folder = converted / PONG_FOLDER
    message = run(f"local://{folder}", "--to", "flax", "-o", tmp_path / "out", code=2).stderr
    assert "converted already: name the checkpoint that was converted, or a local copy of it" in message
    run(PONG, "--to", "dopamine", "-o", tmp_path)
    base = shutil.copytree(tmp_path / PONG_FOLDER / "dopamine", tmp_path / "base")
    (base / "origin.json").unlink()
    message = run(base, "--to", "flax", "-o", tmp_path / "out", code=1).stderr
    assert "not padded, so it is none of Dopamine's own agents: name the base folder that atari-convert" in message
    damaged = tmp_path / PONG_FOLDER / "agent.json"
    damaged.write_text("{")
    message = run(damaged.parent, "--to", "flax", "-o", tmp_path / "out", code=2).stderr
    assert "converted already, but without a readable agent.json: convert the checkpoint again" in message


def test_files_outside_the_layout_keep_their_relative_place(tmp_path):
    root = tmp_path / "mine"
    save_checkpoint(root / "a/model_1.gz", make_state(seed=1))
    save_checkpoint(root / "b/c/model_1.gz", make_state(seed=2))
    save_checkpoint(root / "b/other.gz", make_state(seed=3))
    result = run(root, "--to", "flax", "-o", tmp_path / "out")
    assert _tree(tmp_path / "out") == [
        f"{folder}/{name}" for folder in ("a/model_1", "b/c/model_1") for name in ("agent.json", "params.msgpack")
    ]
    assert result.stderr.count("warning") == 1
    assert "a/model_1.gz and 1 more: not in the release's layout" in result.stderr
    run(root / "b/other.gz", "--to", "flax", "-o", tmp_path / "lone")
    assert _tree(tmp_path / "lone") == ["other/agent.json", "other/params.msgpack"]


def test_an_identity_tells_what_the_path_does_not(tmp_path):
    path = save_checkpoint(tmp_path / "mine.gz", make_state(18))
    result = run(path, "--to", "onnx", "--identity", "MDQN_modern/Pong", "-o", tmp_path / "out")
    assert "18 actions on Pong, which needs 6: taken as the full set" in result.stderr
    document = json.loads((tmp_path / "out/mine/agent.json").read_text())
    assert (document["algorithm"], document["game"], document["seed"]) == ("M-DQN", "Pong", None)
    assert len(document["action_meanings"]) == 18
    run(path, "--to", "onnx", "--identity", "MDQN_modern/Pong/2/7", "-o", tmp_path / "out")
    assert (tmp_path / "out/MDQN_modern/Pong/2/model_7/model.onnx").exists()


def test_a_head_that_fits_no_action_set_has_no_meanings(tmp_path):
    path = save_checkpoint(tmp_path / "DQN_modern/Pong/0/model_1.gz", make_state(5))
    result = run(path, "--to", "onnx", "-o", tmp_path / "out")
    assert "5 actions fit neither Pong's 6 nor all 18: meanings stay null" in result.stderr
    assert json.loads((tmp_path / "out/DQN_modern/Pong/0/model_1/agent.json").read_text())["action_meanings"] is None


def test_a_bad_file_does_not_stop_the_rest(release, tmp_path):
    bad = release / "DQN_modern/Pong/1/model_5.gz"
    bad.parent.mkdir()
    bad.write_bytes(PONG.read_bytes()[:1000])
    result = run(release, "--to", "onnx", "-o", tmp_path / "out", code=1)
    assert "2 converted, 0 current, 1 failed" in result.stdout
    assert result.stderr == f"failed: {bad}: truncated after 1000 bytes: take another copy\n"
    assert not (tmp_path / "out/DQN_modern/Pong/1").exists()


def test_a_target_that_fails_is_told_and_tried_again(release, tmp_path):
    uneven = make_state(4, 51)
    uneven["_AtariNet__support"] = torch.linspace(0, 20, 51)  # which Dopamine cannot hold
    save_checkpoint(release / "C51_classic/Breakout/0/model_9.gz", uneven)
    arguments = (release, "--to", "flax", "--to", "dopamine", "-o", tmp_path / "out")
    result = run(*arguments, "--summary", tmp_path / "summary.json", code=1)
    assert "2 converted, 0 current, 1 failed" in result.stdout
    assert f"{tmp_path}/out/C51_classic/Breakout/0/model_9: wrote flax\n" in result.stdout
    (failure,) = (line for line in result.stderr.splitlines() if line.startswith("failed: "))
    assert "model_9.gz: could not write dopamine, but published flax: dopamine: " in failure
    assert "has no place in Dopamine's JaxRainbowAgent" in failure
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["failed"], [row["kind"] for row in summary["failures"]]) == (1, ["TargetsFailed"])
    folders = list((tmp_path / "out").rglob("agent.json"))
    written = sum(file["size"] for path in folders for file in _files_of(json.loads(path.read_text())))
    assert summary["bytes_written"] == written
    again = run(*arguments, "--json", code=1)
    rows = {Path(row["source"]).name: row for row in json.loads(again.stdout)["agents"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "model_9.gz": "failed",
        "model_187420.gz": "current",
        "model_328492.gz": "current",
    }
    assert rows["model_9.gz"]["written"] == []
    assert "could not write dopamine, published nothing" in rows["model_9.gz"]["error"]["message"]
    assert run(release, "--to", "flax", "-o", tmp_path / "out").stdout.startswith("0 converted, 3 current, 0 failed")


def _files_of(document):
    return [file for artifact in document["artifacts"].values() for file in artifact["files"]]


LIES = {
    "inputs": (("artifacts", "flax", "inputs", 0, "shape"), [None, 4, 84, 84]),
    "actions": (("architecture", "head", "actions"), 18),
    "meanings": (("action_meanings",), ["FIRE", "NOOP", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]),
    "protocol": (("protocol",), "classic"),
    "zoo": (("zoo",), None),
    "algorithm": (("algorithm",), "M-DQN"),
    "path": (("source", "path"), "DQN_modern/Pong/1/model_328492.gz"),
    "version": (("artifacts", "flax", "versions", "atari-convert"), "0.0.1"),
    "format": (("artifacts", "flax", "format_version"), 7),
    "more": (("notes",), "mine"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("options", [(), ("--check-hashes",)])
def test_a_record_that_lies_is_written_again(lie, options, tmp_path):
    run(PONG, "--to", "flax", "-o", tmp_path)
    path = tmp_path / PONG_FOLDER / "agent.json"
    before = path.read_text()
    document = json.loads(before)
    (*keys, last), value = LIES[lie]
    inner = document
    for key in keys:
        inner = inner[key]
    inner[last] = value
    path.write_text(json.dumps(document, indent=2) + "\n")
    dry = run(PONG, "--to", "flax", "-o", tmp_path, *options, "--dry-run").stdout
    assert "1 to convert, 0 current" in dry
    assert "1 converted, 0 current" in run(PONG, "--to", "flax", "-o", tmp_path, *options).stdout
    assert path.read_text() == before
    assert "0 converted, 1 current" in run(PONG, "--to", "flax", "-o", tmp_path, *options).stdout


@pytest.mark.parametrize(
    ("identity", "told"),
    [
        ("MDQN_modern/Pong", "--identity says algorithm M-DQN, but the path says DQN"),
        ("DQN_modern/Breakout", "--identity says game Breakout, but the path says Pong"),
        ("DQN_modern/Pong/0/328493", "--identity says step 328493, but the path says 328492"),
    ],
)
def test_an_identity_that_contradicts_the_path_is_refused(identity, told, tmp_path):
    message = " ".join(run(PONG, "--to", "flax", "--identity", identity, "-o", tmp_path, code=2).stderr.split())
    assert f"{PONG}: {told}: leave --identity out" in message
    assert not list(tmp_path.iterdir())


def test_part_of_an_identity_leaves_the_rest_to_the_path(tmp_path):
    run(PONG, "--to", "flax", "--identity", "DQN_modern/Pong", "-o", tmp_path)
    assert _tree(tmp_path) == [f"{PONG_FOLDER}/agent.json", f"{PONG_FOLDER}/params.msgpack"]


def test_json_is_one_document(release, tmp_path):
    (release / "DQN_modern/Pong/0/model_7.gz").write_bytes(b"")
    result = run(release, "--to", "flax", "-o", tmp_path / "out", "--json", code=1)
    document = json.loads(result.stdout)
    assert {key: document[key] for key in ("dry_run", "converted", "current", "failed")} == {
        "dry_run": False,
        "converted": 2,
        "current": 0,
        "failed": 1,
    }
    rows = {Path(row["source"]).name: row for row in document["agents"]}
    assert rows["model_328492.gz"]["status"] == "converted"
    assert rows["model_328492.gz"]["written"] == ["flax"]
    assert rows["model_7.gz"]["error"]["kind"] == "UnreadableCheckpoint"
    assert "the file is empty" in rows["model_7.gz"]["error"]["message"]


def test_a_dry_run_says_what_would_be_done_and_does_nothing(release, tmp_path):
    out = tmp_path / "out"
    result = run(release, "--to", "flax", "-o", out, "--dry-run")
    assert f"{out}/{PONG_FOLDER}: would write flax" in result.stdout
    assert "2 to convert, 0 current, 0 failed" in result.stdout
    assert not out.exists()
    run(PONG, "--to", "flax", "-o", out)
    assert "1 to convert, 1 current, 0 failed" in run(release, "--to", "flax", "-o", out, "--dry-run").stdout
    assert "2 to convert" in run(release, "--to", "flax", "-o", out, "--dry-run", "--overwrite").stdout


def test_quiet_and_verbose(tmp_path):
    assert run(PONG, "--to", "flax", "-o", tmp_path, "-q").output == ""
    verbose = run(PONG, "--to", "flax", "-o", tmp_path, "-v").stdout
    digest = hashlib.sha256((tmp_path / PONG_FOLDER / "params.msgpack").read_bytes()).hexdigest()
    assert f"{PONG_FOLDER}: current" in verbose
    assert digest in verbose


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([PONG], "no target given: add --to with one or more of checkpoint, cleanrl, "),
        ([PONG, "--to", " , "], "' , ' names nothing: leave the option out, or give it a name"),
        ([PONG, "--to", "onnx", "--game", ""], "Invalid value for '--game': '' names nothing"),
        ([PONG, "--to", "jax"], "no target 'jax'; did you mean flax (or nnx, orbax)? Known: "),
        ([PONG, "--to", "onnx,TF"], "no target 'tf'; did you mean tensorflow? Known: "),
        (
            [PONG, "--to", "onnx", "flax"],
            "'flax' does not exist, but looks like a target: name several targets with commas, such as --to …,flax",
        ),
        (
            [PONG, "--to", "onnx,", "tf"],
            "'tf' does not exist, but looks like a target: name several targets with commas, such as --to …,tensorflow",
        ),
        ([PONG, "--to", "onx"], "no target 'onx'; did you mean onnx? Known: "),
        (["nowhere", "--to", "onnx"], "'nowhere' does not exist"),
        ([AGENTS, "--to", "onnx", "--identity", "DQN_modern/Pong"], "--identity is for one agent, found 2"),
        ([PONG, "--to", "onnx", "--identity", "DQN_modern/Pnog"], "no game 'Pnog' in the release; did you mean Pong?"),
        ([PONG, "--to", "onnx", "--out", PONG], "is a file"),
    ],
)
def test_a_wrong_command_line_is_explained(arguments, message):
    result = run(*arguments, code=2)
    assert message in " ".join(result.stderr.split())


def test_two_sources_for_one_folder_are_both_named(release, tmp_path):
    shutil.copytree(release, tmp_path / "copy")
    result = run(release, tmp_path / "copy", "--to", "onnx", "-o", tmp_path / "out", code=2)
    assert f"{tmp_path}/copy/C51_classic" in result.stderr
    assert f"{release}/C51_classic" in result.stderr
    assert "would share the output folder" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()
    assert "1 converted" in run(PONG, PONG.parent, "--to", "onnx", "-o", tmp_path / "out").stdout


@pytest.mark.parametrize("name", ["...gz", "..gz", ".gz"])
def test_a_name_never_leaves_the_output(tmp_path, name):
    path = save_checkpoint(tmp_path / "in" / name, make_state())
    result = run(path, "--to", "flax", "-o", tmp_path / "out", code=2)
    assert "its name without .gz is no name for a folder: rename it" in " ".join(result.stderr.split())
    assert _tree(tmp_path) == [f"in/{name}"]


def test_an_unreadable_file_is_a_failure(tmp_path):
    path = tmp_path / "model_1.gz"
    path.symlink_to(tmp_path / "gone")
    result = run(tmp_path, "--to", "onnx", "-o", tmp_path / "out", code=1)
    assert f"failed: {path}: cannot be read (No such file or directory)" in result.stderr


def test_all_names_what_it_skips(tmp_path):
    code = "import sys; sys.modules['tensorflow'] = None; from convert.cli import main; main()"
    command = [sys.executable, "-c", code, PONG, "-o", tmp_path, "--to"]
    every = subprocess.run([*command, "all"], capture_output=True, text=True, check=True, timeout=120)
    assert "skipped tensorflow: it needs tensorflow: pip install 'atari-convert[tensorflow]'\n" in every.stderr
    assert not (tmp_path / PONG_FOLDER / "saved_model").exists()
    assert (tmp_path / PONG_FOLDER / "model.onnx").exists()
    named = subprocess.run([*command, "tensorflow"], capture_output=True, text=True, check=False, timeout=120)
    assert named.returncode == 2
    assert "pip install 'atari-convert[tensorflow]'" in named.stderr


def _modules_after(*arguments: object) -> set[str]:
    code = """
import sys
from convert.cli import main
try:
    main()
finally:
    print("\\n", *sys.modules, file=sys.stderr)
"""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stderr.split())


FRAMEWORKS = {"torch", "jax", "flax", "tensorflow", "onnx", "onnxruntime", "ale_py"}


def test_only_the_frameworks_that_are_needed_are_loaded(tmp_path):
    assert not _modules_after("--help") & {*FRAMEWORKS, "numpy"}
    assert _modules_after(PONG, "--to", "onnx", "-o", tmp_path) & FRAMEWORKS == {"onnx"}
    assert _modules_after(PONG, "--to", "flax", "-o", tmp_path) & FRAMEWORKS == {"jax", "flax"}
    assert _modules_after(PONG, "--to", "all", "--dry-run", "-o", tmp_path) & FRAMEWORKS == set()


def test_help_answers_at_once():
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "convert", "--help"], capture_output=True, check=True)
    assert time.perf_counter() - started < 5  # on any machine; it takes 0.1 s, frameworks would take 10


def test_help_names_the_version_and_every_exit_code():
    text = " ".join(run("--help").stdout.split())
    assert "Exit codes: 0 all targets that were not skipped are converted or up to date; 1 something failed, " in text
    assert run("--version").stdout.startswith("atari-convert, version ")


def test_sources_are_listed_with_an_example_of_each():
    text = run("sources").stdout
    for source in list_sources():
        assert f"\n{source.name} " in f"\n{text}"
        assert source.summary in text
        assert source.example is None or f"atari-convert {source.example}" in text
    assert "atari-convert dqn-PongNoFrameskip-v4.zip --to onnx" in text
    assert "List what atari-convert reads" in run("sources", "--help").stdout


def test_help_names_every_target():
    text = "".join(run("--help").stdout.split())
    assert all(target.name in text for target in list_targets())


@pytest.mark.parametrize("to", [["onnx,flax"], ["onnx, flax"], ["ONNX flax"], [" Onnx,", "--to", "FLAX,onnx"]])
def test_targets_are_named_with_commas_or_one_by_one_in_any_letter_case(to, tmp_path):
    result = run(PONG, "--to", *to, "-o", tmp_path, "--dry-run")
    assert f"{PONG_FOLDER}: would write onnx, flax\n" in result.stdout


def test_filters_take_several_names_with_commas(release, tmp_path):
    both = run(release, "--to", "flax", "-o", tmp_path, "--game", "Pong, Breakout", "--dry-run").stdout
    assert "2 to convert" in both
    assert "1 to convert" in run(release, "--to", "flax", "-o", tmp_path, "--game", "Br*,Asterix", "--dry-run").stdout


def test_a_bare_call_shows_an_example():
    result = run(code=2)
    assert result.stdout == ""
    assert "atari-convert model_50000000.gz --to onnx " in result.stderr
    assert "atari-convert --help " in result.stderr
    assert len(result.stderr.splitlines()) < 12


def test_progress_is_shown_on_a_terminal_only(tmp_path):
    """Under ``script`` the command has a terminal; in every other test it has none and stays silent."""
    root = tmp_path / "many"
    state = make_state()
    first = save_checkpoint(root / "DQN_modern/Pong/0/model_0.gz", state)
    for step in range(1, 60):  # enough for a second of work
        os.link(first, first.with_name(f"model_{step}.gz"))
    command = f"{sys.executable} -m convert {root} --to onnx -o {tmp_path / 'out'}"
    shown = subprocess.run(["script", "-qec", command, "/dev/null"], capture_output=True, text=True, check=True).stdout
    assert "/60 agents, about " in shown
    assert "60 converted" in shown
    assert BREAKOUT.exists()
