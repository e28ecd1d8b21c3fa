"""Ctrl-C and SIGTERM: stop a command once, and never in the middle of what must be completed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_QUIET = 15.0  # seconds for which further signals are ignored: the cleanup takes no longer


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt with the signal's number on Ctrl-C and on SIGTERM, and then ignore both for a while.

    A second Ctrl-C, from an impatient user or from a CI that stops a job, must not interrupt the cleanup.
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
            if signal.getsignal(number) != signal.SIG_IGN:  # as for a shell's background job
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
    """Hold signals back until the end of the block.

    A signal mask would not do: it belongs to one thread, and another thread would receive the signal. Handlers run in
    the main thread only, so other threads have nothing to hold back.
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
