"""What the tests of runs over many agents share."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

COUNT = 12


def run(*arguments: object, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "convert", *map(str, arguments)]
    result = subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=240,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file, hidden ones too, by its relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def link(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, copy_function=os.link)
    return target
