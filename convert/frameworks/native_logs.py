"""What runtimes' native code logs to stderr, held back: it is not for users, and there is no switch for some of it."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

LOG_LINE = re.compile(
    rb"[IWE]\d{4,}.* \d+ [\w.]+:\d+\] |WARNING: All log messages before absl::InitializeLog\(\)"
    rb"|INFO: Created TensorFlow Lite |fully_quantize: |ALSA lib |error: XDG_RUNTIME_DIR "
)


@contextmanager
def without_native_logs() -> Iterator[None]:
    """Hold back what native code logs to stderr; everything else that was written there follows afterwards."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            os.write(2, b"".join(line for line in held if not LOG_LINE.match(line)))
