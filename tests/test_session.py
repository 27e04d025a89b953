"""One session at a time, and an orderly end."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tinystories_lab import session
from tinystories_lab.copies import read_json, write_json
from tinystories_lab.session import Claim, endings_raise, one_writer, signals_wait

NEVER = threading.Event()


# --- the lock on a folder


def test_a_second_writer_is_refused_and_a_later_one_is_not(tmp_path):
    with one_writer(tmp_path / "run"):
        with (
            pytest.raises(BlockingIOError, match=r"another session is training in .*run: stop it first"),
            one_writer(tmp_path / "run"),
        ):
            pass
        with one_writer(tmp_path / "other"):
            pass
    with one_writer(tmp_path / "run"):
        pass
    assert not list((tmp_path / "run").iterdir()), "the lock left a file behind"


HOLD = """
import sys, time
from tinystories_lab.session import one_writer
with one_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_writer_in_another_process_is_refused_until_that_process_dies(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="another session"), one_writer(tmp_path):
            pass
        process.kill()
    with one_writer(tmp_path):
        pass


def test_a_disk_without_locks_warns_and_works(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(session.fcntl, "flock", no_locks)
    with (
        pytest.warns(UserWarning, match=r"cannot be locked .*see to it that nobody else trains there"),
        one_writer(tmp_path),
    ):
        pass


def test_the_lock_goes_when_the_block_raises(tmp_path):
    with pytest.raises(ZeroDivisionError), one_writer(tmp_path):
        _ = 1 / 0
    with one_writer(tmp_path):
        pass


# --- the claim on a shared disk


def another(tmp_path, seconds_ago, host="elsewhere", pid=1):
    """The sign of life of another writer."""
    write_json(tmp_path / "writer.json", {"host": host, "pid": pid, "session": "x", "time": time.time() - seconds_ago})
    return tmp_path / "writer.json"


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(session, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(session, "_STALE_SECONDS", 2)


def test_a_claim_is_taken_renewed_and_released(tmp_path):
    claim, path = Claim(tmp_path / "writer.json"), tmp_path / "writer.json"
    claim.take(NEVER)
    first = read_json(path)
    claim.take(NEVER)
    assert read_json(path)["time"] > first["time"] and read_json(path)["session"] == first["session"]
    claim.release()
    assert read_json(path)["time"] == 0.0
    Claim(path).take(NEVER)


def test_a_writer_that_lives_is_refused(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(session, "_STALE_SECONDS", 60)
    path = another(tmp_path, 0)
    threading.Timer(0.1, another, (tmp_path, 0)).start()
    before = time.monotonic()
    with pytest.raises(BlockingIOError, match="elsewhere is training this run and writes to"):
        Claim(path).take(NEVER)
    assert time.monotonic() - before >= 0.1


def test_a_writer_that_falls_silent_is_waited_for_and_then_followed(tmp_path, quick, capsys):
    claim = Claim(another(tmp_path, 0.1))
    claim.take(NEVER)
    assert claim.taken and read_json(claim.path)["session"] != "x"
    assert "elsewhere wrote to" in capsys.readouterr().out


@pytest.mark.parametrize("seconds_ago", [181, 10_000])
def test_a_writer_long_silent_is_followed_at_once(tmp_path, seconds_ago, capsys):
    Claim(another(tmp_path, seconds_ago)).take(NEVER)
    assert capsys.readouterr().out == ""


def test_a_dead_process_of_this_machine_is_followed_at_once(tmp_path):
    Claim(another(tmp_path, 0, os.uname().nodename, dead_pid())).take(NEVER)


def test_this_process_may_take_its_own_claim_again(tmp_path):
    """A notebook's kernel lives on after a loop that could not release it."""
    Claim(tmp_path / "writer.json").take(NEVER)
    Claim(tmp_path / "writer.json").take(NEVER)


def test_a_living_process_of_this_machine_is_refused_at_once(tmp_path):
    with pytest.raises(BlockingIOError, match=f"process {os.getppid()} of this machine writes to"):
        Claim(another(tmp_path, 0, os.uname().nodename, os.getppid())).take(NEVER)


def test_waiting_ends_when_the_session_does(tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(OSError, match="may still be writing there"):
        Claim(another(tmp_path, 0)).take(stop)


def test_a_clock_ahead_of_ours_costs_no_more_than_the_usual_wait(tmp_path, quick):
    before = time.monotonic()
    Claim(another(tmp_path, -10_000)).take(NEVER)
    assert time.monotonic() - before < 5


def test_a_writer_that_releases_while_waited_for_is_followed(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(session, "_STALE_SECONDS", 60)
    path = another(tmp_path, 0)
    threading.Timer(0.1, another, (tmp_path, time.time())).start()
    before = time.monotonic()
    Claim(path).take(NEVER)
    assert time.monotonic() - before < 30


def test_a_sign_of_life_read_while_it_is_written_is_not_its_end(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(session, "_STALE_SECONDS", 60)
    path = another(tmp_path, 0)
    threading.Timer(0.05, path.write_text, ("",)).start()
    threading.Timer(0.2, another, (tmp_path, 0)).start()
    with pytest.raises(BlockingIOError, match="elsewhere is training"):
        Claim(path).take(NEVER)


def test_a_claim_that_was_taken_over_is_lost(tmp_path):
    claim = Claim(tmp_path / "writer.json")
    claim.take(NEVER)
    another(tmp_path, 0)
    with pytest.raises(BlockingIOError, match="elsewhere took over"):
        claim.take(NEVER)
    assert read_json(tmp_path / "writer.json")["session"] == "x"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"time": "now"}', '{"time": 1e99, "pid": "one"}'])
def test_a_torn_sign_of_life_is_no_obstacle(tmp_path, content):
    (tmp_path / "writer.json").write_text(content)
    Claim(tmp_path / "writer.json").take(NEVER)


# --- signals


def test_ctrl_c_waits_for_the_end_of_the_block():
    handler, done = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), signals_wait():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the rest of the block")
    assert done == ["the rest of the block"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_breaks_in():
    handler, done = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), signals_wait():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("after one")
        os.kill(os.getpid(), signal.SIGINT)
        done.append("after two")
    assert done == ["after one"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_without_ctrl_c_a_block_ends_as_it_would():
    handler = signal.getsignal(signal.SIGINT)
    with signals_wait():
        pass
    with pytest.raises(ZeroDivisionError), signals_wait():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_thread_without_signals_runs_its_block_and_keeps_its_exceptions():
    done = []

    def work():
        with signals_wait():
            done.append("the block")
        try:
            with signals_wait():
                raise ValueError("its own")
        except ValueError as error:
            done.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["the block", "its own"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_ending_signal_raises_so_that_finally_runs(number):
    before, done = signal.getsignal(number), []
    with pytest.raises(SystemExit) as left, endings_raise():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            done.append("finally")
    assert left.value.code == 128 + number and done == ["finally"]
    assert signal.getsignal(number) is before


def test_an_ending_signal_waits_for_the_end_of_a_held_block():
    done = []
    with pytest.raises(SystemExit), endings_raise(), signals_wait():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("the rest of the block")
    assert done == ["the rest of the block"]


def test_what_was_ignored_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with endings_raise(), signals_wait():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_leaves_the_signals_alone():
    before, done = signal.getsignal(signal.SIGTERM), []

    def work():
        with endings_raise():
            done.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [before]
