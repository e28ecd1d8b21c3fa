"""The HTML report in a real browser: headless Chromium from PATH. Run by itself: ``pytest tests/browser_report.py``."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from builders import AGENTS, make_state, plant_weights, to_network
from click.testing import CliRunner
from test_report import _make_result as make_result

from convert.pipeline import convert_checkpoint
from runtime_check.check.options import Options
from runtime_check.cli import main
from runtime_check.protocols import PROTOCOLS, Episode
from runtime_check.replay import from_json_line
from runtime_check.report.documents import to_document
from runtime_check.report.page import illustrate
from runtime_check.report.writer import ReportWriter

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium in PATH: apt-get install chromium")

# The banner's grounds, as in the page's style, in the order blue, green, red.
GOOD, BAD = (0xEC, 0xF4, 0xE5), (0xE7, 0xE9, 0xFB)


def _open_page(page: Path, to: Path, *more: str) -> tuple[str, list[str], list[str], np.ndarray]:
    """Return the page's DOM, what its console said, what was fetched, and a picture."""
    to.mkdir()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-pings"]
    options += [f"--user-data-dir={to / 'profile'}", "--enable-logging=stderr", "--window-size=1280,1600", *more]
    url = page.as_uri()
    dom = subprocess.run([CHROMIUM, *options, "--dump-dom", url], capture_output=True, text=True, timeout=120)
    picture, log = to / "page.png", to / "net.json"
    extra = [f"--screenshot={picture}", f"--log-net-log={log}", "--hide-scrollbars"]
    shot = subprocess.run([CHROMIUM, *options, *extra, url], capture_output=True, text=True, timeout=120)
    said = [line for line in (dom.stderr + shot.stderr).splitlines() if "CONSOLE" in line]
    return dom.stdout, said, _fetched(log), cv2.imread(str(picture))


def _fetched(log: Path) -> list[str]:
    """Return the URLs that the page asked the network for. What Chromium asks for itself has no origin."""
    text = log.read_text("utf-8")
    try:
        events = json.loads(text)["events"]
    except ValueError:  # Chromium was gone before it closed the list
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    requests = [event.get("params", {}) for event in events]
    return [params["url"] for params in requests if params.get("initiator", "not an origin") != "not an origin"]


def _check(folder: Path, report: Path, expected: int) -> Path:
    arguments = [folder, "--source", folder.parent / "source", "--max-steps", 30, "--mode", "both", "--report", report]
    done = CliRunner().invoke(main, [*map(str, arguments), "--backend", "onnxruntime"])
    assert done.exit_code == expected
    return report / "check.html"


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A report in which all agree, and one in which a wrong action is shown."""
    root = tmp_path_factory.mktemp("browser")
    good, bad = root / "good", root / "bad"
    source = good / "source/DQN_modern/Pong/0/model_328492.gz"
    source.parent.mkdir(parents=True)
    shutil.copy(AGENTS / "DQN_modern/Pong/0/model_328492.gz", source)
    convert_checkpoint(source, good / "agent", ["onnx"])
    shutil.copytree(good, bad)
    plant_weights(bad / "agent", "onnx", to_network(make_state(6)))
    return {"agree": _check(good / "agent", root / "agree", 0), "disagree": _check(bad / "agent", root / "disagree", 1)}


@pytest.mark.parametrize(("verdict", "text", "ground"), [("agree", "agree", GOOD), ("disagree", "disagree", BAD)])
def test_the_report_opens(verdict, text, ground, pages, tmp_path):
    dom, said, fetched, picture = _open_page(pages[verdict], tmp_path / "chromium")
    assert said == []
    assert fetched == []
    assert f'<div class="banner {verdict}" id="verdict">' in dom
    assert text in dom
    # The banner is what one sees first: a wide band of its ground in the upper part of the page.
    band = (np.abs(picture[:400].astype(int) - ground).max(axis=2) <= 2).mean(axis=1)
    assert (band > 0.5).sum() > 40
    assert dom.count("<svg") == 3
    assert ("data:image/png" in dom) == (verdict == "disagree")


def test_a_console_error_and_a_fetch_would_be_noticed(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("broken")</script>')
    _, said, fetched, _ = _open_page(page, tmp_path / "chromium")
    assert any("broken" in line for line in said)
    assert any(url.startswith("http://127.0.0.1:9/x.png") for url in fetched)


def test_a_report_of_a_release_opens_and_finds_an_agent(tmp_path):
    """25,000 agents, three of which disagree: what is typed into the filter unfolds what fits."""
    good, bad = (make_result(error=error, bounds={"flax": None}) for error in (1e-6, 1.0))
    documents = {True: to_document(bad), False: to_document(good)}
    with ReportWriter(tmp_path / "report", Options(), 25_000) as writer:
        for number in range(25_000):
            is_bad = number in (7, 777, 7777)
            game = f"Game{number // 500}"
            document = documents[is_bad] | {"folder": f"out/{number}", "game": game, "step": number}
            writer.add_agent(document, illustrate(bad) if is_bad else {}, "")
        for _ in writer.finish():
            pass
    page = tmp_path / "report/check.html"
    assert page.stat().st_size < 30e6
    text = page.read_text("utf-8")
    typed = """<script>filter.value = "DQN_modern/0/12345"; filter.dispatchEvent(new Event("input"));</script></body>"""
    page.write_text(text.replace("</body>", typed), "utf-8")
    dom, said, fetched, _ = _open_page(page, tmp_path / "chromium")
    assert (said, fetched) == ([], [])
    assert "✗ 3 disagree, 24,997 agree" in dom
    assert dom.count('<details open=""') == 1
    shown = re.findall(r"<tr><td>(?:<a [^>]*>)?(\S+ \S+?)[<\s]", dom)
    assert shown == ["Game24 DQN_modern/0/12345"]


def test_the_player_shows_the_emulators_screens_step_by_step(pages, tmp_path):
    """The pixels of the canvas, after jumps back and forth, are those of a replay; keys and buttons work."""
    root = pages["disagree"].parent.parent
    arguments = [root / "bad/agent", "--source", root / "bad/source", "--max-steps", 150, "--frames", 150, "--again"]
    done = CliRunner().invoke(main, [*map(str, arguments), "--report", str(tmp_path / "report")])
    assert done.exit_code == 1, done.output
    page = tmp_path / "report/check.html"
    asked = [0, 149, 3, 99, 100, 101, 42]
    script = f"""<script>addEventListener("load", async () => {{
      const root = document.querySelector(".film"), canvas = root.querySelector(".picture"), seen = [];
      const see = async () => {{
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", pixels.filter((_, place) => place % 4 < 3)));
        seen.push(root.dataset.step + " " + Array.from(hash, byte => byte.toString(16).padStart(2, "0")).join(""));
      }};
      while (!root.show) await new Promise(done => setTimeout(done, 20));
      for (const step of {asked}) {{ await root.show(step); await see(); }}
      root.dispatchEvent(new KeyboardEvent("keydown", {{key: "ArrowRight"}}));
      await new Promise(done => setTimeout(done, 200)); await see();
      await root.show(0); root.querySelector("[data-do=event]").click();
      await new Promise(done => setTimeout(done, 200)); await see();
      document.body.dataset.wide = document.documentElement.scrollWidth - innerWidth;
      document.body.dataset.seen = JSON.stringify(seen);
      document.body.dataset.now = root.querySelector(".now").textContent;
    }});</script></body>"""
    page.write_text(page.read_text("utf-8").replace("</body>", script), "utf-8")
    dom, said, fetched, _ = _open_page(
        page, tmp_path / "chromium", "--virtual-time-budget=20000", "--window-size=500,900"
    )
    said = [line for line in said if "willReadFrequently" not in line]  # which the script here is told, not the page
    assert (said, fetched) == ([], [])
    log = from_json_line((tmp_path / "report/episodes.jsonl").read_text("utf-8").splitlines()[0])
    episode, hashes = Episode(log.game, PROTOCOLS[log.protocol], log.seed, log.head_actions), []
    for action in log.actions:
        hashes.append(hashlib.sha256(episode.read_screen().tobytes()).hexdigest())
        episode.step(action)
    seen = json.loads(html.unescape(re.search(r'data-seen="(.*?)"', dom)[1]))
    *steps, on, event = [entry.split() for entry in seen]
    assert [int(step) for step, _ in steps] == asked
    assert int(on[0]) == 43
    assert all(digest == hashes[int(step)] for step, digest in (*steps, on, event))
    assert "wrong" in re.search(r'data-now="(.*?)"', dom)[1]
    assert int(re.search(r'data-wide="(.*?)"', dom)[1]) <= 0
