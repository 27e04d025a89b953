"""A signal during a step raises after the step; between two steps it raises at once."""

import os
import signal
import threading
import time

import pytest

from tinystories_lab.durability.shutdown import graceful_shutdown

HANDLED = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit, signal.SIGHUP: SystemExit}


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0)  # Python runs its handler here


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_during_a_step_is_a_request_and_raises_at_the_end_of_the_block(number):
    handler, done = signal.getsignal(number), []
    with pytest.raises(RAISED[number]) as raised, graceful_shutdown() as shutdown:
        with shutdown.deferred():
            assert not shutdown.requested()
            send(number)
            done.append("the rest of the step")
        assert shutdown.requested()
        done.append("saved")
    assert done == ["the rest of the step", "saved"]
    assert signal.getsignal(number) is handler
    assert number == signal.SIGINT or raised.value.code == 128 + number


def test_a_second_ctrl_c_during_a_step_raises_at_once():
    handler, done = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), graceful_shutdown() as shutdown, shutdown.deferred():
        send(signal.SIGINT)
        done.append("after one")
        send(signal.SIGINT)
        done.append("after two")
    assert done == ["after one"] and signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_between_two_steps_raises_at_once_so_that_finally_blocks_run(number):
    done = []
    with pytest.raises(RAISED[number]), graceful_shutdown():
        try:
            send(number)
            time.sleep(5)
            done.append("not reached")
        finally:
            done.append("finally")
    assert done == ["finally"]


def test_without_a_signal_the_block_ends_normally_and_the_handlers_are_restored():
    handlers = [signal.getsignal(number) for number in HANDLED]
    with graceful_shutdown() as shutdown, shutdown.deferred():
        pass
    with pytest.raises(ZeroDivisionError), graceful_shutdown() as shutdown, shutdown.deferred():
        _ = 1 / 0
    assert [signal.getsignal(number) for number in HANDLED] == handlers


def test_an_ignored_signal_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with graceful_shutdown():
            send(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_a_thread_the_signal_handlers_do_not_change():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with graceful_shutdown() as shutdown, shutdown.deferred():
            seen.append((signal.getsignal(signal.SIGTERM), shutdown.requested()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
