"""Progress: a bar that moves in a terminal and in a notebook, a few lines in a file."""

import io
import sys
from types import ModuleType

import pytest

from tinystories_lab import progress as progress_module
from tinystories_lab.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(stderr, monkeypatch, seconds=None):
    """Run a bar of a thousand steps, with all lines due that may be due. Return what it wrote."""
    monkeypatch.setattr(sys, "stderr", stderr)
    if seconds is not None:
        monkeypatch.setattr(progress_module, "_SECONDS", seconds)
    with progress(desc="train", total=1_000, unit=" steps") as bar:
        for _ in range(4):
            bar.set_postfix(loss=2.5, refresh=False)
            bar.update(250)
    return stderr.getvalue()


def test_in_a_terminal_and_in_a_notebook_a_bar_moves_in_one_line(monkeypatch):
    assert run(Terminal(), monkeypatch).count("\r") >= 2
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))  # its stderr is not a terminal
    assert run(io.StringIO(), monkeypatch).count("\r") >= 2


@pytest.mark.parametrize("part", ["train: ", "250/1000", "25%", "<", "loss=2.5"])
def test_in_a_file_a_state_is_a_line_with_the_share_the_time_left_and_the_values(monkeypatch, part):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    written = run(io.StringIO(), monkeypatch, seconds=0)
    assert "\r" not in written and part in written.splitlines()[1]


def test_in_a_file_what_takes_a_few_seconds_prints_nothing(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert run(io.StringIO(), monkeypatch) == ""
