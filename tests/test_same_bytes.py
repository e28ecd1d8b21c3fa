"""The files of the release's agents keep their bytes from one version of this tool to the next.

``data/digests.json`` holds their sha256 by target, and the versions of the packages that wrote them. A change that is
meant is a new ``FORMAT_VERSION`` and new digests. ``agent.json``, ``agent.gin`` and ``origin.json`` are not held: they
name fields and modules of this tool.
"""

from __future__ import annotations

import hashlib
import json

import pytest
from builders import AGENTS, DATA, list_holding

import convert
from convert.targets import list_targets

DIGESTS = json.loads((DATA / "digests.json").read_text("utf-8"))

pytestmark = pytest.mark.slow


def test_every_target_has_digests():
    assert set(DIGESTS) == {target.name for target in list_targets()}


@pytest.mark.parametrize("target", sorted(DIGESTS))
def test_files_keep_their_bytes(target, tmp_path):
    found, versions = {}, {}
    for source in (source for source in sorted(AGENTS.rglob("model_*.gz")) if target in list_holding(source)):
        folder = tmp_path / source.relative_to(AGENTS).with_suffix("")
        artifact = convert.convert_checkpoint(source, folder, [target]).record.artifacts[target]
        versions = {name: version for name, version in artifact.versions.items() if name != "atari-convert"}
        for file in artifact.files:
            path = folder / file.path
            found[path.relative_to(tmp_path).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = DIGESTS[target]
    if versions != expected["versions"]:
        pytest.skip(f"the digests are of files by {expected['versions']}, installed are {versions}")
    assert {name: found.get(name) for name in expected["files"]} == expected["files"]
