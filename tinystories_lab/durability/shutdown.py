"""Ctrl-C and termination signals as a request that training answers at the end of its step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

# Ctrl-C or a notebook's Stop button; what a scheduler sends; what closing a terminal sends.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class Shutdown:
    """A stop that was requested by a signal: `requested()` is what `train` asks once per step."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._deferring = False

    def requested(self) -> bool:
        """Whether a signal has arrived while signals were deferred."""
        return bool(self._received)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block the first signal only sets the flag. A second one raises at once, like any signal outside."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _handle(self, number: int, frame: Any) -> None:
        if self._deferring and not self._received:
            self._received.append(number)
        else:
            _raise(number)


def _raise(number: int) -> NoReturn:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def graceful_shutdown() -> Iterator[Shutdown]:
    """Handle SIGINT, SIGTERM and SIGHUP inside the block; they raise exceptions, so that `finally` blocks run.

    A signal that was deferred raises at the end of the block: KeyboardInterrupt or SystemExit. Signals that were ignored,
    or that are handled outside of Python, stay as they are. In a thread other than the main one, which receives no
    signals, nothing changes.
    """
    shutdown = Shutdown()
    handle = shutdown._handle
    previous: dict[int, Any] = {}
    if _in_main_thread():
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        previous = {number: old for number, old in handlers.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in previous:
            signal.signal(number, handle)
        yield shutdown
    finally:
        # Another thread may close a generator, but it cannot set handlers. Ours then stay, and still raise exceptions.
        if _in_main_thread():
            for number, old in previous.items():
                if signal.getsignal(number) == handle:
                    signal.signal(number, old)
        if shutdown.requested():
            _raise(shutdown._received[0])


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
