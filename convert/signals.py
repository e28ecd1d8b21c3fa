"""Signals that wait, for what must not be cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hold_signals(*numbers: signal.Signals) -> Iterator[None]:
    """Let signals wait until the end of the block, and then come.

    Not by a mask, which is one thread's own: another thread would take the signal, and its handler run all the same.
    Handlers run in the main thread alone, so that elsewhere there is nothing to hold.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: held.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for caught in held:
            signal.raise_signal(caught)
