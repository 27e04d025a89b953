"""A live run: one display, drawn from the files of the run, around a loop that can be left at any row."""

import re
import shutil
from unittest.mock import Mock

import pytest
import torch
from micro import MODEL, TRAIN, differences

from tinystories_lab.analysis.timelapse import read_timelapse, story_card
from tinystories_lab.checkpoint import load_checkpoint
from tinystories_lab.files import read_log
from tinystories_lab.notebook import live
from tinystories_lab.notebook.html import cards
from tinystories_lab.notebook.live import LiveRun
from tinystories_lab.pipeline import train_run

LIMITS = {"_REFRESH_SECONDS": 0.0, "_MAX_TIME_FRACTION": float("inf")}  # draw at every row


def pages_of(display):
    """What the front end was told to show: a first page, then its updates."""
    return [shown.args[0].data for shown in display.mock_calls]


@pytest.fixture
def display(monkeypatch):
    monkeypatch.setattr(live, "display", Mock())
    return live.display


@pytest.fixture(scope="module")
def watched(tmp_path_factory, lab):
    """A micro run of twelve steps with a new picture at every row: its folder, its rows and the display."""
    folder = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (LIMITS | {"display": Mock()}).items():
            patch.setattr(live, name, value)
        return folder, list(LiveRun(train_run(lab(folder), "cpu", torch.float32), folder, MODEL, TRAIN)), live.display


@pytest.fixture
def replay(uninterrupted, display):
    """`replay()` loops over the rows of a finished run and returns them; its last row may be replaced by an error."""

    def rows(error):
        *log, last = read_log(uninterrupted() / "loss.jsonl")
        yield from log
        if error:
            raise error
        yield last

    return lambda error=None: list(LiveRun(rows(error), uninterrupted(), MODEL, TRAIN))


def test_every_row_is_passed_on_and_watching_changes_nothing(watched, uninterrupted):
    folder, rows, _ = watched
    assert rows == read_log(folder / "loss.jsonl") and len(rows) == 5
    assert differences(folder, uninterrupted()) == []


def test_a_run_has_one_display_that_is_redrawn_at_rows_and_at_the_end(watched):
    *_, display = watched
    pages = pages_of(display)
    assert display.call_count == 1
    assert [re.search(r"(\d+)/12 ", page)[1] for page in pages] == ["1", "3", "6", "9", "12", "12"]
    assert "training" in pages[-2] and "finished" in pages[-1]
    assert all(page.count("<img") == 1 for page in pages)


def test_the_story_is_the_newest_one_of_the_time_lapse_and_announced_with_its_step(watched):
    folder, _, display = watched
    pages, kept = pages_of(display), read_timelapse(folder)
    shown = [[row["step"] for row in kept if cards([story_card(row)]).data in page] for page in pages]
    assert shown == [[0], [3], [6], [6], [12], [12]]
    assert all(f"step {step}: " in page for (step,), page in zip(shown, pages, strict=True))


def test_a_story_of_steps_that_a_resumed_run_has_not_reached_again_is_not_shown(watched, display, tmp_path):
    for name in ("loss.jsonl", "timelapse.jsonl"):
        shutil.copy(watched[0] / name, tmp_path)
    rows = (row for row in read_log(tmp_path / "loss.jsonl") if row["step"] == 3)
    list(LiveRun(rows, tmp_path, MODEL, TRAIN))
    assert "step 3: 192 tokens read" in pages_of(display)[-1] and "step 12: " not in pages_of(display)[-1]


def test_rows_that_come_fast_are_not_all_drawn(replay, display, monkeypatch):
    for name, value in (("_REFRESH_SECONDS", 1_000.0), ("_MAX_TIME_FRACTION", 1e-6)):
        display.reset_mock()
        for limit in LIMITS:
            monkeypatch.setattr(live, limit, value if limit == name else LIMITS[limit])
        replay()
        assert len(pages_of(display)) == 2, "the first row and the end"


def test_a_run_that_is_stopped_is_saved_before_it_says_so_and_continues_in_the_next_loop(run, display, tmp_path):
    says = "stopped and saved; run this cell again to continue"
    loop = iter(LiveRun(run(tmp_path), tmp_path, MODEL, TRAIN))
    next(loop)
    with pytest.raises(KeyboardInterrupt) as stopped:
        loop.throw(KeyboardInterrupt())
    assert stopped.value._render_traceback_() == [f"KeyboardInterrupt: {says}"]
    assert says in pages_of(display)[-1] and "a second ago" in pages_of(display)[-1]
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 1

    loop = iter(LiveRun(run(tmp_path), tmp_path, MODEL, TRAIN))
    assert {"step": 3, "resumed_from": 1}.items() <= next(loop).items()
    loop.close()  # as `break` does
    assert says in pages_of(display)[-1] and load_checkpoint(tmp_path / "last.pt")["step"] == 3


def test_a_run_that_fails_does_not_say_that_it_was_saved(replay, display):
    with pytest.raises(FloatingPointError):
        replay(FloatingPointError("diverged"))
    page = pages_of(display)[-1]
    assert "stopped by the error below" in page and "stopped and saved" not in page


def test_a_run_without_a_time_lapse_is_shown_without_a_story(replay, display):
    assert replay()[-1]["step"] == 12
    assert "finished" in pages_of(display)[-1] and "tokens read" not in pages_of(display)[-1]


def test_the_figures_beside_the_curves_are_those_of_the_newest_rows():
    row = {"train_loss": 2.3456, "lr": 0.00061, "tokens_per_second": 12_345, "eta_seconds": 300.0, "skipped_updates": 0}
    validated = [{"step": 500, "val_loss": 3.0}, {"step": 1_000, "val_loss": 2.5}, {"step": 1_010}]
    assert live._figures_of(row, validated, 42) == {
        "train loss": "2.346",
        "validation loss": "2.500 at step 1,000",
        "learning rate": "0.00061",
        "tokens per second": "12,345",
        "time left": "5 minutes",
        "saved": "42 seconds ago",
    }
    figures = live._figures_of(row | {"mirrored_step": None, "eta_seconds": 0.0}, [], None)
    assert figures["mirrored"] == figures["saved"] == "not yet" and figures["time left"] == "none"
    figures = live._figures_of(row | {"mirrored_step": 1_500, "skipped_updates": 3}, [], None)
    assert figures["mirrored"] == "to step 1,500" and figures["skipped updates"] == "3"
