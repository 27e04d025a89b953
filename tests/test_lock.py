"""A run folder and a data folder are locked by one session at a time."""

import subprocess
import sys
from threading import Timer

import pytest
from filelock import FileLock

from tinystories_lab.durability.lock import data_lock, run_lock


def test_a_second_session_is_refused_while_the_first_holds_the_lock(tmp_path):
    with run_lock(tmp_path / "run"):
        with (
            pytest.raises(BlockingIOError, match=r"another session is training in .*run: stop it first"),
            run_lock(tmp_path / "run"),
        ):
            pass
        with run_lock(tmp_path / "other"):
            pass
    with run_lock(tmp_path / "run"):
        pass


HOLD = """
import sys, time
from tinystories_lab.durability import lock
with getattr(lock, sys.argv[1])(sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(kind, folder):
    """A process that holds a lock, once it has printed that it does."""
    return subprocess.Popen([sys.executable, "-c", HOLD, kind, str(folder)], stdout=subprocess.PIPE, text=True)


def test_a_session_in_another_process_keeps_the_lock_until_that_process_dies(tmp_path):
    with hold("run_lock", tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="another session"), run_lock(tmp_path):
            pass
        process.kill()
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize("error", [OSError(38, "Function not implemented"), NotImplementedError("no flock here")])
def test_a_disk_without_locks_gives_a_warning(tmp_path, monkeypatch, error):
    def no_locks(*_, **__):
        raise error

    monkeypatch.setattr(FileLock, "acquire", no_locks)
    with (
        pytest.warns(UserWarning, match=r"cannot be locked .*make sure that nobody else writes there"),
        run_lock(tmp_path),
    ):
        pass


def test_the_lock_is_released_if_the_block_raises(tmp_path):
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        _ = 1 / 0
    with run_lock(tmp_path):
        pass


def test_a_new_folder_is_kept_only_if_the_block_leaves_a_file_in_it(tmp_path):
    with pytest.raises(ValueError, match="refused"), run_lock(tmp_path / "runs" / "new"):
        raise ValueError("refused")
    assert not (tmp_path / "runs" / "new").exists()
    with run_lock(tmp_path / "runs" / "new"):
        (tmp_path / "runs" / "new" / "loss.jsonl").touch()
    assert (tmp_path / "runs" / "new" / "loss.jsonl").exists()


def test_a_second_writer_of_data_waits_for_the_first_and_says_so(tmp_path, capsys):
    with hold("data_lock", tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        Timer(0.5, process.kill).start()
        with data_lock(tmp_path):
            assert process.wait(10) == -9, "the first writer must have ended"
    assert capsys.readouterr().out == f"another session is writing to {tmp_path}: waiting until it has finished ...\n"
