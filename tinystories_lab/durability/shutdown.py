"""Ctrl-C and termination signals become a request that training answers at the end of its step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

# Sent by Ctrl-C or a notebook's Stop button; by a scheduler; by a terminal that is closed.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class Shutdown:
    """A stop that a signal may request. `train` calls `requested` once per step."""

    def __init__(self) -> None:
        self._received, self._deferring = 0, False  # the number of the first deferred signal; whether to defer

    def requested(self) -> bool:
        """Return whether a signal has arrived while signals were deferred."""
        return self._received != 0

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer the first signal in the block: it only sets the flag. A second one raises at once, as outside of it."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _handle(self, number: int, frame: Any) -> None:
        if self._deferring and not self._received:
            self._received = number
        else:
            _raise(number)


def _raise(number: int) -> NoReturn:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def graceful_shutdown() -> Iterator[Shutdown]:
    """Handle SIGINT, SIGTERM and SIGHUP inside the block. They raise exceptions, so that `finally` blocks run.

    A deferred signal raises KeyboardInterrupt or SystemExit at the end of the block. Signals that were ignored, or that
    are handled outside of Python, do not change. Only the main thread gets signals, so nothing changes in others.
    """
    shutdown = Shutdown()
    handlers = {number: signal.getsignal(number) for number in (_SIGNALS if _in_main_thread() else ())}
    previous = {number: old for number, old in handlers.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in previous:
            signal.signal(number, shutdown._handle)
        yield shutdown
    finally:
        # Another thread may close a generator, but it cannot set handlers. Then ours stay, and still raise exceptions.
        for number, old in previous.items():
            if _in_main_thread() and signal.getsignal(number) == shutdown._handle:
                signal.signal(number, old)
        if shutdown.requested():
            _raise(shutdown._received)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
