"""TensorFlow as ``tf``, imported without the log of its start-up. Whoever needs TensorFlow imports it from here.

TensorFlow logs its start-up to stderr, some of it before it reads ``TF_CPP_MIN_LOG_LEVEL``. Who wants the log sets
that variable to 0.
"""

from __future__ import annotations

import os

from convert.frameworks.native_logs import without_native_logs

# 1 is what importing jax leaves there.
if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
    import tensorflow as tf
else:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with without_native_logs():
        import tensorflow as tf

__all__ = ["tf"]
