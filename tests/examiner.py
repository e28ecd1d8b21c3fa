"""A process that opens files which may be hostile, one after another, and says what became of each.

Reads requests from standard input and answers on standard output, a line of JSON each. Whoever asks watches the
process's memory, time and death: see `Examiner`.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST_MEMORY = 1500  # MiB resident
LARGEST_BEGIN = 1250  # above it, the frameworks that it has imported for others would leave a file too little


@dataclass(frozen=True)
class Finding:
    """What became of a file. error: the class that refused it, None where it was taken. memory: MiB, at the most."""

    error: str | None
    message: str
    is_ours: bool
    memory: float
    seconds: float
    answer: list[float] | None


class Examiner:
    """The process, started when it is first needed, and again after a death or where it has grown."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def examine(self, reader: str, path: Path, timeout: float = 20) -> Finding:
        """Return what became of a file, and fail where the process died, hung or grew too large."""
        if self._process is not None and _resident(self._process.pid) > LARGEST_BEGIN:
            self.close()
        if self._process is None:
            command = [sys.executable, "-W", "ignore", __file__]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tempfile.gettempdir()
            )
        process, begin, peak = self._process, time.monotonic(), 0.0
        # What it has imported so far for others is not this file's.
        largest = max(LARGEST_MEMORY, _resident(process.pid) + 400)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([reader, str(path)]) + "\n")
        process.stdin.flush()
        while not select.select([process.stdout], [], [], 0.01)[0]:
            peak = max(peak, _resident(process.pid))
            seconds = time.monotonic() - begin
            if peak > largest or seconds > timeout:
                self.close()
                raise AssertionError(f"{reader} {path}: {peak:.0f} MiB after {seconds:.1f} seconds")
        line = process.stdout.readline()
        if not line:
            self.close()
            code = process.returncode
            raise AssertionError(f"{reader} {path}: the process died with exit code {code}")
        answer = json.loads(line)
        peak = max(peak, answer.pop("peak"))
        assert peak < largest, f"{reader} {path}: {peak:.0f} MiB"
        return Finding(**answer, memory=peak, seconds=time.monotonic() - begin)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _resident(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def _open(reader: str, path: Path) -> Any:
    import numpy as np

    import convert

    if reader == "source":
        convert.read_checkpoint(path)
    elif reader == "oracle":
        from runtime_check.originals import read_oracle

        read_oracle(path)
    elif reader == "pickle":
        from convert.files import numpy_pickles

        numpy_pickles.loads(path.read_bytes())
    elif reader == "record":
        convert.read_record(path)
    else:
        agent = convert.load_agent(path, reader)
        shape = (1, 4, 84, 84) if agent.axes[1] == "frame" else (1, 84, 84, 4)
        return np.asarray(agent(np.full(shape, 100, np.uint8)))[0].tolist()
    return None


def _examine(reader: str, path: Path) -> dict[str, Any]:
    from convert.errors import AtariConvertError
    from convert.files.pickles import PickleRefused

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    try:
        answer = _open(reader, path)
        found: dict[str, Any] = {"error": None, "message": "", "is_ours": True, "answer": answer}
    except Exception as error:  # noqa: BLE001 - to be judged by who asked
        is_ours = isinstance(error, AtariConvertError) or (
            reader in ("pickle", "oracle") and type(error) in (ValueError, PickleRefused)
        )
        found = {"error": type(error).__name__, "message": str(error), "is_ours": is_ours, "answer": None}
    status = Path("/proc/self/status").read_text()
    return found | {"peak": int(status.partition("VmHWM:")[2].split()[0]) / 1024}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what frameworks print is no answer
    for request in sys.stdin:
        asked, place = json.loads(request)
        answers.write(json.dumps(_examine(asked, Path(place))) + "\n")
        answers.flush()
