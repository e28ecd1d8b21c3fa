"""TensorFlow as ``tf``, imported without the log of its start-up. Whoever needs TensorFlow imports it from here.

TensorFlow logs its start-up to stderr, some of it before it reads ``TF_CPP_MIN_LOG_LEVEL``. Who wants the log sets
that variable to 0.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

LOG_LINE = re.compile(rb"[IWE]\d{4,}.* \d+ [\w.]+:\d+\] |WARNING: All log messages before absl::InitializeLog\(\)")


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


# 1 is what importing jax leaves there.
if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
    import tensorflow as tf
else:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with without_native_logs():
        import tensorflow as tf

__all__ = ["tf", "without_native_logs"]
