"""Measured returns in a model card."""

from __future__ import annotations

import json

from builders import BREAKOUT
from click.testing import CliRunner

import convert
from convert.store.local import is_intact
from convert.targets import find_target
from runtime_check.card import main


def _report(path, folder, max_steps=None, epsilon=0.001, verdict="agree", protocol="classic"):
    returns = {"mean": 25.3, "std": 7.54, "n": 3, "first": [20.0, 36.0, 20.0]}
    agent = {
        "folder": str(folder),
        "verdict": verdict,
        "protocol": {"name": protocol},
        "own_protocol": "classic",
        "episodes": {"first_seed": 0, "count": 3, "max_steps": max_steps},
        "backends": {"reference": {"returns": {"shadow": returns, "solo": None}}},
    }
    path.write_text(json.dumps({"options": {"epsilon": epsilon}, "agents": [agent]}), "utf-8")
    return str(path)


def test_a_measured_return_goes_into_the_card_and_the_record_stays_true(tmp_path):
    folder = tmp_path / "agent"
    convert.convert_checkpoint(BREAKOUT, folder, ["safetensors"])
    result = CliRunner().invoke(main, [_report(tmp_path / "check.json", folder)])
    assert result.exit_code == 0, result.output
    assert "25.30 ± 7.54 over 3 episodes" in result.output
    card = (folder / "huggingface/README.md").read_text("utf-8")
    assert 'value: "25.30 +/- 7.54"' in card
    assert "Mean return 25.30 ± 7.54 over 3 episodes (ε = 0.001, protocol `classic`" in card
    assert is_intact(folder, find_target("safetensors"), convert.read_record(folder).artifacts["safetensors"])
    # The card is current: converting again leaves it alone.
    assert convert.convert_checkpoint(BREAKOUT, folder, ["safetensors"]).written == ()


def test_a_changed_folder_gets_no_card(tmp_path):
    folder = tmp_path / "agent"
    convert.convert_checkpoint(BREAKOUT, folder, ["safetensors"])
    (folder / "huggingface/more.bin").write_bytes(b"")
    result = CliRunner().invoke(main, [_report(tmp_path / "check.json", folder)])
    assert result.exit_code == 1
    assert "huggingface/more.bin is not in agent.json" in result.output


def test_returns_that_are_not_the_agents_own_are_refused(tmp_path):
    result = CliRunner().invoke(main, [_report(tmp_path / "check.json", tmp_path, max_steps=100)])
    assert result.exit_code == 1
    assert "were cut short: check without --max-steps" in result.output
    result = CliRunner().invoke(main, [_report(tmp_path / "check.json", tmp_path, epsilon=1)])
    assert "--epsilon 1 plays by chance" in result.output
    result = CliRunner().invoke(main, [_report(tmp_path / "check.json", tmp_path, verdict="disagree")])
    assert "does not agree with its checkpoint" in result.output
    result = CliRunner().invoke(main, [_report(tmp_path / "check.json", tmp_path, protocol="modern")])
    assert "played another protocol: check without --protocol" in result.output
    (tmp_path / "check.json").write_text("[]", "utf-8")
    assert "expected the check.json of" in CliRunner().invoke(main, [str(tmp_path / "check.json")]).output
