"""A run folder is locked by one session at a time."""

import subprocess
import sys

import pytest
from filelock import FileLock

from tinystories_lab.durability.lock import run_lock


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
from tinystories_lab.durability.lock import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_session_in_another_process_keeps_the_lock_until_that_process_dies(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
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
        pytest.warns(UserWarning, match=r"cannot be locked .*make sure that nobody else trains there"),
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
