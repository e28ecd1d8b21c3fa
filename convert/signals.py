"""Signals that wait, for what must not be cut in two."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_QUIET = 15.0  # seconds after a signal in which further ones are ignored: cleaning up takes no longer


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt with the signal's number on Ctrl-C and on SIGTERM, and only once while that is heeded.

    A second Ctrl-C, from a person in a hurry or from a CI that stops a job, must not disturb the cleaning up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopped = float("-inf")

    def stop(number: int, _: object) -> None:
        nonlocal stopped
        if time.monotonic() - stopped > _QUIET:
            stopped = time.monotonic()
            raise KeyboardInterrupt(number)

    handlers = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # a shell's job in the background is not for Ctrl-C
                handlers[number] = signal.signal(number, stop)
        yield
    except KeyboardInterrupt:
        for number in handlers:  # until the process has ended
            signal.signal(number, signal.SIG_IGN)
        handlers.clear()
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


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
