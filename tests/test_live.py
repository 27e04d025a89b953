"""A run while it goes on: one display, drawn from the run's own files, and a loop that can be left anywhere."""

import re

import pytest
import torch

from tinystories_lab.checkpoint import load_checkpoint
from tinystories_lab.notebook import live
from tinystories_lab.notebook.live import LiveRun, _figures_of
from tinystories_lab.trainer import train


class Display:
    """Stands in for the front end: keeps every page of the one display it gives out."""

    def __init__(self):
        self.pages, self.displays = [], 0

    def __call__(self, page, display_id):
        self.displays += 1
        self.update(page)
        return self

    def update(self, page):
        self.pages.append(page.data)


@pytest.fixture
def shown(monkeypatch):
    display = Display()
    monkeypatch.setattr(live, "display", display)
    monkeypatch.setattr(live, "_REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(live, "_SHARE_OF_TIME", float("inf"))
    monkeypatch.setattr(live, "_STORY_SECONDS", 0.0)
    return display


@pytest.fixture
def start(tmp_path, data_dir, model_config, train_config):
    """`start()` begins, or goes on with, a micro run of twelve steps."""

    def live_run():
        rows = train(tmp_path, data_dir, model_config, train_config)
        return LiveRun(rows, tmp_path, model_config, train_config)

    return live_run


def leave(loop, at_step, with_error=None):
    for row in loop:
        if row["step"] == at_step:
            if with_error:
                raise with_error
            break


def test_it_gives_every_row_and_leaving_it_saves(start, tmp_path):
    leave(start(), 6)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 6
    assert [row["step"] for row in start()] == [9, 12]


def test_a_run_is_one_display_drawn_anew(start, shown):
    list(start())
    assert shown.displays == 1 and len(shown.pages) == 6  # five rows, and the end
    assert [re.search(r"(\d+)/12 ", page)[1] for page in shown.pages] == ["1", "3", "6", "9", "12", "12"]
    assert "training" in shown.pages[-2] and "finished" in shown.pages[-1]
    assert all(page.count("<img") == 1 for page in shown.pages)


@pytest.mark.parametrize("limit", [{"_REFRESH_SECONDS": 1_000.0}, {"_SHARE_OF_TIME": 1e-6}])
def test_between_rows_that_come_fast_nothing_is_drawn(start, shown, monkeypatch, limit):
    monkeypatch.setattr(live, *limit.popitem())
    list(start())
    assert len(shown.pages) == 2, "the first row and the end"


def test_stopped_by_hand_it_says_saved_only_once_it_is(start, shown, tmp_path):
    loop = iter(start())
    next(loop)
    with pytest.raises(KeyboardInterrupt) as stopped:
        loop.throw(KeyboardInterrupt())
    (line,) = stopped.value._render_traceback_()
    assert line == "KeyboardInterrupt: stopped and saved; run this cell again to go on"
    assert "stopped and saved; run this cell again to go on" in shown.pages[-1]
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 1
    assert "a second ago" in shown.pages[-1]


def test_a_run_that_fails_does_not_say_that_it_was_saved(start, shown):
    loop = iter(start())
    next(loop)
    with pytest.raises(FloatingPointError):
        loop.throw(FloatingPointError("diverged"))
    assert "stopped by what stands below" in shown.pages[-1] and "stopped and saved" not in shown.pages[-1]


def test_the_story_is_by_the_newest_checkpoint(start, shown):
    list(start())
    told = [re.search(r"by the model of step (\d+)", page) for page in shown.pages]
    assert told[0] is told[1] is None and "comes with the first checkpoint" in shown.pages[0]
    assert [int(step[1]) for step in told[2:]] == [6, 8, 12, 12]
    assert "Once upon a time" in shown.pages[-1]


@pytest.mark.parametrize(
    ("step_of_it", "error"), [("load_checkpoint", ValueError("damaged")), ("tell", torch.OutOfMemoryError("full"))]
)
def test_a_story_that_cannot_be_told_does_not_cost_the_run(start, shown, monkeypatch, step_of_it, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(live, step_of_it, refuse)
    assert [row["step"] for row in start()][-1] == 12
    assert "comes with the first checkpoint" in shown.pages[-1]


def test_watching_changes_nothing_of_the_run(start, shown, tmp_path, data_dir, model_config, train_config):
    watched = list(start())
    unwatched = list(train(tmp_path / "other", data_dir, model_config, train_config))
    losses = [[row["train_loss"] for row in rows] for rows in (watched, unwatched)]
    assert losses[0] == losses[1]
    one, other = (load_checkpoint(folder / "last.pt") for folder in (tmp_path, tmp_path / "other"))
    assert torch.equal(one["torch_rng"], other["torch_rng"])


ROW = {"train_loss": 2.3456, "lr": 0.00061, "tokens_per_second": 12_345, "eta_seconds": 300.0, "skipped_updates": 0}


def test_the_figures_beside_the_curves_are_those_of_the_newest_rows():
    validated = [{"step": 500, "val_loss": 3.0}, {"step": 1_000, "val_loss": 2.5}, {"step": 1_010}]
    assert _figures_of(ROW, validated, 42) == {
        "train loss": "2.346",
        "validation loss": "2.500 at step 1,000",
        "learning rate": "0.00061",
        "tokens a second": "12,345",
        "left": "5 minutes",
        "saved": "42 seconds ago",
    }


def test_mirror_and_skipped_updates_are_told_where_there_are_any():
    figures = _figures_of(ROW | {"mirrored_step": None, "eta_seconds": 0.0}, [], None)
    assert figures["mirrored"] == figures["saved"] == "not yet" and figures["left"] == "nothing"
    figures = _figures_of(ROW | {"mirrored_step": 1_500, "skipped_updates": 3}, [], None)
    assert figures["mirrored"] == "to step 1,500" and figures["skipped updates"] == "3"
