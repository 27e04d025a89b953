"""One session at a time, and an orderly end: who may write to a run, and signals that wait for a whole step."""

import errno
import fcntl
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinystories_lab.copies import read_json, write_json

# How long another machine's silence is waited for, and how often it is looked at.
_STALE_SECONDS, _POLL_SECONDS = 180, 5
_ENDINGS = (signal.SIGTERM, signal.SIGHUP)  # what a scheduler and a closed terminal send


@contextmanager
def one_writer(run_dir: str | Path) -> Iterator[None]:
    """Hold the run's folder for this session alone; the kernel lets go of it when the process dies, however it dies.

    Raises BlockingIOError while another session holds it, in this process or another.
    """
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    folder = os.open(run_dir, os.O_RDONLY)  # the folder itself: no lock file is left behind
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"another session is training in {run_dir}: stop it first (a notebook's other tab, or a loop over "
                "`train` that was never closed), or take another run name"
            ) from error
        except OSError as error:
            warnings.warn(
                f"{run_dir} cannot be locked ({error}): see to it that nobody else trains there", stacklevel=3
            )
        yield
    finally:
        os.close(folder)


class Claim:
    """The right to write to a folder on a shared disk, where a kernel's lock does not reach: a sign of life in a file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.taken = False
        self._writer = {"host": socket.gethostname(), "pid": os.getpid(), "session": os.urandom(4).hex()}

    def take(self, stop: threading.Event) -> None:
        """Take the claim, or renew it, which must happen more often than every _STALE_SECONDS.

        Waits, watching, for another writer's last sign of life to grow stale. Raises BlockingIOError when the other one
        lives, or took over; OSError when the disk fails, or `stop` is set while waiting.
        """
        there = read_json(self.path)
        if not self.taken:
            self._wait_for_silence(there, stop)
        elif there.get("session", self._writer["session"]) != self._writer["session"]:
            raise BlockingIOError(
                f"{there.get('host')} took over {self.path.parent}: this machine writes there no more"
            )
        write_json(self.path, self._writer | {"time": time.time()})
        self.taken = True

    def release(self) -> None:
        """Let the next writer in at once."""
        write_json(self.path, self._writer | {"time": 0.0})
        self.taken = False

    def _wait_for_silence(self, there: dict[str, Any], stop: threading.Event) -> None:
        wait = _seconds_until_stale(there)
        give_up = time.monotonic() + wait  # whatever the other's clock says
        if wait > 0 and there["host"] == self._writer["host"]:
            raise BlockingIOError(f"process {there['pid']} of this machine writes to {self.path.parent}: stop it first")
        if wait > 0:
            print(f"{there['host']} wrote to {self.path.parent} lately: waiting up to {wait:.0f} s for its silence")
        while (wait := min(give_up - time.monotonic(), _seconds_until_stale(there))) > 0:
            if stop.wait(min(wait, _POLL_SECONDS)):
                raise OSError(errno.EBUSY, "another machine may still be writing there", str(self.path.parent))
            before, there = there, read_json(self.path) or there  # empty: read while it was being written
            if there != before and _seconds_until_stale(there) > 0:
                raise BlockingIOError(
                    f"{there.get('host')} is training this run and writes to {self.path.parent}: stop it there first, or "
                    "take another run name"
                )


def _seconds_until_stale(writer: dict[str, Any]) -> float:
    """How long a writer's silence must still be waited for; 0 when it ended well or its process is known to be gone."""
    if not isinstance(writer.get("time"), int | float) or not isinstance(writer.get("pid"), int):
        return 0.0
    if writer.get("host") == socket.gethostname() and (writer["pid"] == os.getpid() or not _is_alive(writer["pid"])):
        return 0.0
    return min(_STALE_SECONDS, _STALE_SECONDS - (time.time() - writer["time"]))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


@contextmanager
def endings_raise() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise SystemExit, so that `finally` runs; what was ignored stays ignored."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield
        return

    def leave(signal_number: int, frame: object) -> None:
        raise SystemExit(128 + signal_number)

    previous = _handlers(*_ENDINGS)
    try:
        for number in previous:
            signal.signal(number, leave)
        yield
    finally:
        # A generator may be closed by another thread, which can set no handlers; `leave` then stays, and does no harm.
        if threading.current_thread() is threading.main_thread():
            for number, handler in previous.items():
                if signal.getsignal(number) is leave:
                    signal.signal(number, handler)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Hold Ctrl-C (a notebook's Stop) and the endings back until the block is done; a second one breaks in."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending, previous = [], _handlers(signal.SIGINT, *_ENDINGS)

    def hold(signal_number: int, frame: object) -> None:
        pending.append(signal_number)
        if len(pending) > 1:
            restore()
            signal.raise_signal(signal_number)

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    try:
        for number in previous:
            signal.signal(number, hold)
        yield
    finally:
        restore()
    if pending:
        signal.raise_signal(pending[0])


def _handlers(*numbers: int) -> dict[int, Any]:
    """What answers each of these signals; those that are ignored, or answered outside of Python, are left alone."""
    handlers = {number: signal.getsignal(number) for number in numbers}
    return {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
