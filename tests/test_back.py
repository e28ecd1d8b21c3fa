"""The way back: networks from artefacts, trained agents as agents of their own, many agents stacked."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import shutil
from pathlib import Path

import jax
import jsonschema
import numpy as np
import pytest
import torch
from builders import AGENTS, BREAKOUT, PONG, make_observations, make_state, save_checkpoint, to_network
from click.testing import CliRunner

import convert
from convert.agents import layout
from convert.agents.agent import name_actions
from convert.agents.network import find_differences
from convert.bulk import run as bulk
from convert.bulk.selection import find_jobs
from convert.cli import main
from convert.errors import (
    ArtefactMissing,
    InvalidArgument,
    OutputExists,
    RecordError,
    SelectionError,
    UnreadableArtefact,
    UnsupportedArchitecture,
    WeightMismatch,
)
from convert.formats.atari_agents import locate
from convert.networks.linen import NatureC51, NatureDQN
from runtime_check.oracle import compute_q_values
from runtime_check.originals import read_oracle

pytestmark = pytest.mark.slow

TRAINED = 5_000  # agent steps


@pytest.fixture(scope="module")
def agents(tmp_path_factory):
    """The trained agents in a few formats, by checkpoint. Not to be changed."""
    out = tmp_path_factory.mktemp("agents")
    for source in (PONG, BREAKOUT):
        convert.convert_checkpoint(source, out / source.stem, ["dopamine", "flax", "safetensors", "torch"])
    return {source: out / source.stem for source in (PONG, BREAKOUT)}


@pytest.fixture(params=[PONG, BREAKOUT], ids=["pong", "breakout"])
def trained(request, agents, tmp_path):
    """A copy of a Dopamine base folder in which training has gone on: its checkpoint, the folder, its new bias."""
    base = shutil.copytree(agents[request.param] / "dopamine", tmp_path / "base")
    document = pickle.loads((base / "checkpoints/ckpt.0").read_bytes())
    bias = document["online_params"]["params"]["Dense_1"]["bias"] + np.float32(0.125)
    document["online_params"]["params"]["Dense_1"]["bias"] = bias
    document["training_steps"] += TRAINED
    (base / "checkpoints/ckpt.1").write_bytes(pickle.dumps(document))
    (base / "checkpoints/sentinel_checkpoint_complete.1").write_text("done")
    # Dopamine was stopped while it wrote this one.
    (base / "checkpoints/ckpt.2").write_bytes(b"half")
    return request.param, base, bias


def _run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_trained_agent_returns_to_the_releases_format_as_one_of_its_own(trained, tmp_path):
    source, base, bias = trained
    result = _run(base, "--to", "checkpoint", "--to", "flax", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    family, game, seed, _ = source.parts[-4:]
    step = int(source.stem.removeprefix("model_")) + TRAINED
    folder = tmp_path / "out" / family / game / seed / f"model_{step}"
    checkpoint = folder / "checkpoint" / family / game / seed / f"model_{step}.gz"
    found, before = convert.read_checkpoint(checkpoint), convert.read_checkpoint(source)
    assert find_differences(found, before) == [f"head.bias differs in {bias.size} of {bias.size} values"]
    assert np.array_equal(found.arrays["head.bias"], bias)
    assert find_differences(convert.read_agent(folder, "flax"), found) == []

    agent = convert.read_record(folder).agent
    assert agent.identity.step == step
    assert agent.derived_from.path == source.relative_to(AGENTS).as_posix()
    assert (agent.source.size, agent.source.path) == (
        checkpoint.stat().st_size,
        f"{family}/{game}/{seed}/model_{step}.gz",
    )
    schema = json.loads((AGENTS.parents[2] / "convert/agents/agent.schema.json").read_text("utf-8"))
    jsonschema.validate(json.loads((folder / "agent.json").read_text("utf-8")), schema)
    # The oracle opens what was written, as it does a checkpoint of the release.
    observations = make_observations(2)
    expected = compute_q_values(read_oracle(checkpoint), observations)
    actual = convert.load_agent(folder, "checkpoint")(observations)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-6 * np.abs(expected).max())

    again = _run(base, "--to", "checkpoint", "-o", tmp_path / "out")
    assert "0 converted, 1 current, 0 failed" in again.output


def test_an_agent_that_was_not_trained_stays_who_it_is(agents, tmp_path):
    base = shutil.copytree(agents[PONG] / "dopamine", tmp_path / "base")
    # An evaluation by Dopamine's Runner writes a further checkpoint of the same weights.
    shutil.copy(base / "checkpoints/ckpt.0", base / "checkpoints/ckpt.1")
    (base / "checkpoints/sentinel_checkpoint_complete.1").write_text("done")
    conversion = convert.convert_checkpoint(base, tmp_path / "out", ["checkpoint"])
    original = convert.read_record(agents[PONG]).agent
    assert conversion.record.agent == original
    assert original.derived_from is None
    written = conversion.folder / "checkpoint" / str(locate(original.identity))
    assert find_differences(convert.read_checkpoint(written), convert.read_checkpoint(PONG)) == []


def test_a_changed_artefact_is_taken_and_its_step_asked_for(agents, tmp_path):
    folder = shutil.copytree(agents[PONG], tmp_path / "agent")
    from convert.targets import safetensors

    network = to_network(make_state(6, seed=3))
    record = convert.read_record(folder)
    shutil.rmtree(folder / "huggingface")
    safetensors.write(network, record.agent, folder / "huggingface")
    assert find_differences(convert.read_agent(folder), network) == []
    result = _run(folder, "--to", "checkpoint", "-o", tmp_path / "out")
    assert "of a step that is not known: --identity tells it" in result.output
    agent = convert.read_record(tmp_path / "out/agent").agent
    assert (agent.identity.step, agent.derived_from) == (None, record.agent.source)

    identity = ("--identity", "DQN_modern/Pong/0/400000")
    result = _run(folder, "--from", "safetensors", "--to", "checkpoint", *identity, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    path = "DQN_modern/Pong/0/model_400000"
    assert (tmp_path / "out" / path / "checkpoint" / f"{path}.gz").is_file()

    shutil.copy(folder / "params.msgpack", tmp_path / "flax")
    (folder / "params.msgpack").write_bytes((folder / "params.msgpack").read_bytes() + b"x")
    with pytest.raises(ArtefactMissing, match="flax, safetensors differ from their record: say with --from which one"):
        convert.read_agent(folder)


def test_a_trained_state_dict_comes_back_once_its_program_is_gone(agents, tmp_path):
    folder = shutil.copytree(agents[PONG], tmp_path / "agent")
    state = torch.load(folder / "torch/state_dict.pt", weights_only=True)
    torch.save({name: 2 * value for name, value in state.items()}, folder / "torch/state_dict.pt")
    with pytest.raises(UnreadableArtefact, match=r"if the weights in state_dict.pt were trained on, remove model.pt2"):
        convert.read_agent(folder)
    (folder / "torch/model.pt2").unlink()
    assert np.array_equal(convert.read_agent(folder).arrays["hidden.bias"], 2 * state["hidden.bias"].numpy())


def test_trained_weights_that_are_not_finite_are_refused(trained, tmp_path):
    _, base, _ = trained
    document = pickle.loads((base / "checkpoints/ckpt.1").read_bytes())
    document["online_params"]["params"]["Dense_0"]["bias"] = np.full(512, np.nan, np.float32)
    (base / "checkpoints/ckpt.1").write_bytes(pickle.dumps(document))
    with pytest.raises(WeightMismatch, match="512 values that are not finite"):
        convert.read_agent(base)
    result = _run(base, "--to", "checkpoint", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "failed: " in result.output
    assert not (tmp_path / "out").exists()


def test_an_artefact_of_another_agent_is_refused(agents, tmp_path):
    folder = shutil.copytree(agents[PONG], tmp_path / "agent")
    other = save_checkpoint(tmp_path / "other.gz", make_state(9))
    convert.convert_checkpoint(other, tmp_path / "other", ["flax"])
    shutil.copy(tmp_path / "other/params.msgpack", folder)
    with pytest.raises(
        UnreadableArtefact, match=r"params.msgpack: .*is \(9,\), expected \(6,\).*: not the parameters of"
    ):
        convert.read_agent(folder)


@pytest.mark.parametrize("way", ["beside", "spelling", "link", "inside", "around", "python", "dry run"])
def test_the_folder_that_is_read_is_never_written(way, agents, tmp_path, monkeypatch):
    folder = tmp_path / "agents/DQN_modern/Pong/0/model_328492"
    shutil.copytree(agents[PONG], folder)
    (tmp_path / "link").symlink_to("agents")
    monkeypatch.chdir(folder)
    read, out, options = folder, tmp_path / "agents", ()
    if way == "spelling":
        read, out = ".", "../../../../../agents"
    elif way == "link":
        out = tmp_path / "link"
    elif way == "inside":
        out = folder / "more"
    elif way == "around":
        read = folder / "dopamine"
    elif way == "dry run":
        options = ("--dry-run",)
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}
    if way == "python":
        with pytest.raises(OutputExists, match=r"overlaps .*, which is read: .*choose an --out outside it"):
            convert.convert_checkpoint(
                read, Path(out, "DQN_modern/Pong/0/model_328492"), ["checkpoint"], overwrite=True
            )
    else:
        command = (read, "--to", "checkpoint", "--to", "dopamine")
        result = _run(*command, "-o", out, *options)
        assert result.exit_code == 1
        assert "which is read" in result.output
        assert "nothing was touched; choose an --out outside it, such as /" in result.output
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))} == before
    if way != "python":
        (other,) = re.findall(r"such as (/\S+)", result.output)
        assert _run(*command, "-o", other, *options).exit_code == 0


def test_another_identity_brings_its_own_path_and_action_meanings(agents, tmp_path):
    identity = ("--identity", "MDQN_modern/Bowling/1/7")
    result = _run(agents[PONG], "--from", "flax", "--to", "flax", *identity, "-o", tmp_path)
    assert result.exit_code == 0, result.output
    agent = convert.read_record(tmp_path / "MDQN_modern/Bowling/1/model_7").agent
    assert agent.source.path == "MDQN_modern/Bowling/1/model_7.gz"
    assert agent.source.sha256 == convert.read_record(agents[PONG]).agent.source.sha256
    assert agent.action_meanings == name_actions("Bowling", 6)
    partial = ("--identity", "DQN_modern/Pong")
    assert _run(agents[PONG], "--to", "flax", *partial, "-o", tmp_path).exit_code == 0
    assert convert.read_record(tmp_path / agents[PONG].name).agent.source.path == "model_328492.gz"
    result = _run(agents[PONG], "--to", "flax", "--identity", "C51_classic/Pong/1/7", "-o", tmp_path)
    assert result.exit_code == 1
    assert "has a q head, expected that of C51_classic" in result.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            [PONG, "--from", "flax"],
            f"--from names the artefact to read in the folder of a converted agent, but {PONG}",
        ),
        ([PONG, "--from", "flux"], "no target 'flux'; did you mean flax?"),
        (["nowhere"], "'nowhere' does not exist"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments, told):
    result = _run(*arguments, "--to", "checkpoint")
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())


def test_a_folder_without_a_record_or_an_artefact_is_named(agents, trained, tmp_path):
    with pytest.raises(RecordError, match=r"no agent.json: not a folder that atari-convert wrote"):
        convert.read_agent(tmp_path)
    with pytest.raises(ArtefactMissing, match="holds dopamine, flax, safetensors, torch, not keras"):
        convert.read_agent(agents[PONG], "keras")
    with pytest.raises(SelectionError, match=r"is no folder, and so holds no artefact 'flax': leave it out"):
        convert.convert_checkpoint(PONG, tmp_path / "out", ["flax"], artefact="flax")
    _, base, _ = trained
    with pytest.raises(ArtefactMissing, match="is a base folder of Dopamine: it holds dopamine, not flax"):
        convert.read_agent(base, "flax")
    (base / "origin.json").unlink()
    with pytest.raises(UnsupportedArchitecture, match=r"not padded, .* name the base folder .* with its origin.json"):
        convert.read_agent(base)


@pytest.fixture
def tree(agents, tmp_path):
    """A folder of two agents' folders, as a run leaves it."""
    for source, folder in agents.items():
        place = tmp_path / "agents" / source.relative_to(AGENTS).with_suffix("")
        shutil.copytree(folder, place)
    return tmp_path / "agents"


@pytest.mark.parametrize("options", [(), ("-j", "2")])
def test_a_folder_of_agents_is_converted_with_the_options_of_any_run(tree, tmp_path, options):
    command = (tree, "--to", "checkpoint", "-o", tmp_path / "back", *options)
    planned = json.loads(_run(*command, "--dry-run", "--json").output)
    assert [row["would_write"] for row in planned["agents"]] == [["checkpoint"], ["checkpoint"]]
    result = _run(*command, "--summary", tmp_path / "summary.json")
    assert result.exit_code == 0, result.output
    assert "2 converted, 0 current, 0 failed" in result.output
    assert json.loads((tmp_path / "summary.json").read_text())["converted"] == 2
    for source in (PONG, BREAKOUT):
        path = source.relative_to(AGENTS)
        written = tmp_path / "back" / path.with_suffix("") / "checkpoint" / path
        assert find_differences(convert.read_checkpoint(written), convert.read_checkpoint(source)) == []
    assert "0 converted, 2 current, 0 failed" in _run(*command).output
    assert "0 converted, 1 current" in _run(*command, "--family", "DQN*").output
    assert "0 converted, 1 current" in _run(*command, "--game", "Breakout", "--shard", "1/1").output


def test_a_run_over_agents_names_what_it_reads(tree, tmp_path):
    pong, breakout = (str(tree / source.relative_to(AGENTS).with_suffix("")) for source in (PONG, BREAKOUT))

    def find(*sources, **options):
        return [job.source for job in find_jobs(sources, tmp_path / "out", **options)]

    assert find(tree) == find(breakout, pong) == find(f"{tree}/*/*/0/*") == [breakout, pong]
    assert find(listed=[pong, breakout]) == [breakout, pong]
    # What lies in an agent's folder belongs to it, whatever a pattern matches.
    assert find(f"{tree}/**") == [breakout, pong]
    # A search for checkpoints finds checkpoints, and no agent that was made of one.
    mine = save_checkpoint(tree / "mine/model_1.gz", make_state())
    assert find(tree) == find(f"{tree}/**") == [str(mine)]
    assert find(tree, pong) == [pong, str(mine)]


def test_one_agent_that_cannot_be_read_does_not_stop_the_rest(tree, tmp_path):
    damaged = tree / PONG.relative_to(AGENTS).with_suffix("") / "agent.json"
    damaged.write_text("{")
    result = _run(tree, "--to", "checkpoint", "-o", tmp_path / "back")
    assert result.exit_code == 1
    assert "1 converted, 0 current, 1 failed" in result.output
    assert f"failed: {damaged}: not JSON" in result.output


def test_no_agent_is_written_where_another_is_read(tree):
    result = _run(tree, "--to", "checkpoint", "-o", tree)
    assert (result.exit_code, result.output.count("which is read: nothing was touched")) == (1, 2)
    # The first would be written into the folder of the second, which is read as well.
    pong, breakout = (tree / source.relative_to(AGENTS).with_suffix("") for source in (PONG, BREAKOUT))
    for out in (breakout, f"local://{breakout}"):
        result = _run(pong, breakout, "--to", "checkpoint", "-o", out)
        assert result.exit_code == 2
        assert f"but {breakout} is read: choose another --out" in " ".join(result.output.split())
    assert sorted(path.name for path in tree.rglob("checkpoint")) == []


def test_two_copies_that_reached_the_same_step_are_not_written_to_one_folder(trained, tmp_path):
    _, base, _ = trained
    shutil.copytree(base, tmp_path / "other")
    result = _run(base, tmp_path / "other", "--to", "checkpoint", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "would share the output folder" in " ".join(result.output.split())


def test_an_agent_that_is_trained_on_during_the_run_is_not_given_another_step(trained, tmp_path):
    _, base, _ = trained
    (job,) = find_jobs([base], tmp_path / "out")
    (base / "checkpoints/sentinel_checkpoint_complete.1").unlink()
    (outcome,) = bulk.run([job], bulk.Work(("checkpoint",)))
    assert "changed since the run began: convert it when its training has ended" in str(outcome.error)
    assert not (tmp_path / "out").exists()


def test_an_agent_is_written_to_a_url(tree, tmp_path):
    pong = tree / PONG.relative_to(AGENTS).with_suffix("")
    command = (pong, "--to", "checkpoint", "-o", f"local://{tmp_path}/back")
    assert "1 to convert" in _run(*command, "--dry-run").output
    assert "1 converted, 0 current" in _run(*command).output
    assert "0 converted, 1 current" in _run(*command).output
    path = PONG.relative_to(AGENTS)
    written = tmp_path / "back" / path.with_suffix("") / "checkpoint" / path
    assert find_differences(convert.read_checkpoint(written), convert.read_checkpoint(PONG)) == []


def test_a_folder_that_cannot_be_listed_is_named(monkeypatch, tmp_path):
    """As root, nothing is forbidden."""

    def refuse(_path):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr("os.listdir", refuse)
    result = _run(tmp_path, "--to", "flax", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{tmp_path}: cannot be searched (Permission denied)" in " ".join(result.output.split())


def test_a_dry_run_says_what_it_would_write(trained, tmp_path):
    _, base, _ = trained
    result = _run(base, "--to", "checkpoint", "--dry-run", "-o", tmp_path / "out")
    assert "would write checkpoint" in result.output
    assert not (tmp_path / "out").exists()


def test_the_documents_name_the_path_that_the_way_back_writes(further, tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs/targets.md").read_text("utf-8").partition("## And back")[2]
    command, written = re.search(r"```sh\natari-convert (.*?)\n```.*?```\n(.*?)\n```", text, re.DOTALL).groups()
    shutil.copytree(further, tmp_path / "converted", ignore=shutil.ignore_patterns("checkpoint"))
    monkeypatch.chdir(tmp_path)
    result = _run(*shlex.split(command))
    assert result.exit_code == 0, result.output
    assert find_differences(convert.read_checkpoint(written), convert.read_checkpoint(PONG)) == []


@pytest.mark.parametrize("atoms", [None, 51])
def test_stacked_agents_give_each_ones_own_q_values(atoms, tmp_path):
    sources = [save_checkpoint(tmp_path / f"{seed}.gz", make_state(4, atoms, seed=seed)) for seed in range(3)]
    networks = [convert.read_checkpoint(source) for source in sources]
    stacked = convert.stack_params(networks)
    assert stacked["params"]["Dense_0"]["kernel"].shape == (3, 3136, 512)
    module = NatureC51(4, atoms) if atoms else NatureDQN(4)
    support = (networks[0].arrays["head.support"],) if atoms else ()
    observations = make_observations(2)
    obs_nhwc = layout.nhwc_from_nchw(observations)
    q_values = jax.vmap(lambda params: module.apply(params, obs_nhwc, *support).q_values)(stacked)
    for source, found in zip(sources, q_values, strict=True):
        expected = compute_q_values(read_oracle(source), observations)
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


def test_agents_with_other_heads_are_not_stacked():
    with pytest.raises(InvalidArgument, match=r"^no networks to stack, expected at least one$"):
        convert.stack_params([])
    with pytest.raises(InvalidArgument, match=r"^agent 0 is of type PosixPath, expected a network of convert\.read_"):
        convert.stack_params([PONG])
    one = to_network(make_state(6))
    with pytest.raises(ValueError, match=r"agent 1 has another .* than agent 0: .*Q head of 9 actions, expected .* 6"):
        convert.stack_params([one, to_network(make_state(9))])
    with pytest.raises(ValueError, match=r"agent 1 .*: .*categorical head of 6 actions.*51.*, expected .*Q head of 6"):
        convert.stack_params([one, to_network(make_state(6, 51))])
