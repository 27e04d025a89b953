"""The report says what the run's files say."""

import math
import os
import shutil
from dataclasses import replace

import pytest

from tinystories_lab import stages
from tinystories_lab.checkpoint import load_model
from tinystories_lab.metrics import story_metrics, training_words
from tinystories_lab.presets import PRESETS
from tinystories_lab.ratings import save_rating
from tinystories_lab.reciting import Copied
from tinystories_lab.report import _FIGURES, _in_full, copied_rows, in_short, look_back, shown, table, write_report
from tinystories_lab.review import checklist, perplexity
from tinystories_lab.runlog import diagnose, read_log, read_rows
from tinystories_lab.tokenizer import BinInfo, load_tokenizer
from tinystories_lab.workspace import load_config, plan_workspace


@pytest.fixture(scope="module")
def lab(tmp_path_factory, stories, model_config, train_config):
    """A micro run through all five stages, rated by one reader."""
    home = tmp_path_factory.mktemp("lab")
    (home / "made_up.txt").write_text("\n\n".join(stories))
    micro = replace(PRESETS["tiny"], name="micro", sample_tokens=12, model=model_config, train=train_config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "micro", micro)
        lab = plan_workspace(home, "micro", str(home / "made_up.txt"))
        for stage in stages.STAGES.values():
            stage(lab)
    for by, fun in (("model", 1), ("model", 4), ("real", 5)):
        marks = {"grammar": 3, "coherence": 2, "fun": fun}
        save_rating(lab.run_dir / "ratings.jsonl", {"story": "A.", "by": by}, marks, "Ada")
    return lab


def cells_of(report, heading):
    """The cells of the table below a heading, without head and rule."""
    lines = report.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return rows[2:]


@pytest.fixture(scope="module")
def report(lab):
    return write_report(look_back(lab)).read_text(encoding="utf-8")


def test_it_says_the_runs_own_figures(lab, report):
    log = read_log(lab.run_dir / "loss.jsonl")
    loss, seconds, tokens = log[-1]["val_loss"], log[-1]["seconds"], log[-1]["tokens"]
    bits = loss / math.log(2) / BinInfo.of(lab.data_dir / "val.bin").bytes_per_token
    parameters = load_model(lab.run_dir / "final.pt").count_parameters()
    assert f"**{loss:.3f}** nats a token: as unsure as among {perplexity(loss):.2f} tokens" in report
    assert f"**{bits:.3f}** bits a byte" in report
    assert f"{BinInfo.of(lab.data_dir / 'train.bin').tokens:,} tokens, of which {tokens:,} were read" in report
    assert f"by {parameters:,} parameters" in report
    found = diagnose(log, 300)
    assert f"Pattern: **{found.pattern}**, {found.evidence}." in report
    mine = [lab.run_dir.name, *map(shown, (loss, bits, seconds / 60, round(tokens / seconds), tokens, parameters))]
    assert cells_of(report, "Beside other runs")[0] == mine
    assert cells_of(report, "Beside the chapter's loss, step by step")[0][2:] == [
        "8.99",
        *[shown(log[0]["train_loss"])] * 2,
    ]


def test_it_says_what_was_measured_and_rated(lab, report):
    after = [row for row in read_rows(lab.run_dir / "samples.jsonl") if row["when"] == "after"]
    known = training_words(lab.data_dir / "train.bin", load_tokenizer(lab.run_dir / "tokenizer.json"))
    *figures, unknown = cells_of(report, "The stories, without a reader")
    assert [row[2] for row in figures] == list(map(shown, story_metrics(after, known).values()))
    assert figures[2][::3] == ["known words", "1.00"] and unknown[3] == "none", "real stories' words are all known"
    assert [row[0] for row in cells_of(report, "Writing or reciting?")] == ["told", "real"]
    assert ["fun", "model", "2.50", "1.50", "2"] in cells_of(report, "The stories, rated from 0 to 5")
    assert ["fun", "real", "5.00", "0.00", "1"] in cells_of(report, "The stories, rated from 0 to 5")


def test_it_shows_samples_from_before_and_after_checklist_figures_and_sessions(lab, report):
    samples = read_rows(lab.run_dir / "samples.jsonl")
    for when in ("before", "after"):
        first = next(row for row in samples if row["when"] == when)
        assert f"{when.capitalize()}:\n\n````text\n{first['story']}\n````" in report
    ticks = checklist(lab.run_dir)
    assert all(ticks.values()) and all(f"- [x] {item}\n" in report for item in ticks)
    drawn = [name for name in _FIGURES if (lab.run_dir / name).exists()]
    assert drawn == ["loss_curve.png", "loss_by_tokens.png"]
    assert [name for name in _FIGURES if f"]({name})" in report] == drawn
    (session,) = load_config(lab.run_dir)["sessions"]
    (row,) = cells_of(report, "Sessions")
    assert row[:3] == [session[key] for key in ("started", "device_name", "dtype")]
    assert all(f"{name} {version}" in row[3] for name, version in session["versions"].items())


@pytest.mark.parametrize("folder", ["tensorboard", "wandb"])
def test_the_trackers_are_ticked_when_one_was_handed_the_log(lab, report, folder):
    assert "- [ ] optional: the log in TensorBoard or W&B\n" in report
    (lab.run_dir / folder).mkdir()
    try:
        assert "- [x] optional: the log in TensorBoard or W&B\n" in _in_full(look_back(lab))
    finally:
        (lab.run_dir / folder).rmdir()


def test_the_short_form_has_the_same_figures(lab):
    back = look_back(lab)
    short = in_short(back)
    for part in (
        lab.run_dir.name,
        f"{back.runs[0]['loss']:.3f} validation",
        back.found.evidence,
        "done: final.pt saved",
    ):
        assert part in short
    assert f"copied      {max(copied.words for copied in back.copies['told'])} words in a row" in short


def test_the_run_named_stands_beside_it_and_else_the_newest(lab):
    names = [f"{lab.run_dir.name}-{which}" for which in ("named", "newest")]
    try:
        for age, name in enumerate(names):
            shutil.copytree(lab.run_dir, lab.run_dir.with_name(name))
            os.utime(lab.run_dir.with_name(name) / "final.pt", (1e9 + age, 1e9 + age))
        for other_run, name in (("", names[1]), (names[0], names[0])):
            runs = look_back(lab, other_run).runs
            assert [row["run"] for row in runs[:2]] == [lab.run_dir.name, name] and len(runs) == 5
    finally:
        for name in names:
            shutil.rmtree(lab.run_dir.with_name(name), ignore_errors=True)


def test_it_can_be_written_before_anything_was_told_or_rated(lab, tmp_path, monkeypatch):
    back = look_back(lab)
    for name in ("samples.jsonl", "ratings.jsonl"):
        (lab.run_dir / name).rename(tmp_path / name)
    try:
        early = _in_full(look_back(lab))
    finally:
        for name in ("samples.jsonl", "ratings.jsonl"):
            (tmp_path / name).rename(lab.run_dir / name)
    assert "Nobody has rated them yet" in early and "No stories were kept" in early
    assert "- [ ] ten samples from after training" in early and look_back(lab) == back


def test_any_text_stays_in_its_cell():
    assert table([{"a": "one | two\n\nthree", "b": None}]).splitlines()[2] == "| one \\| two three | – |"


def test_copies_are_counted_on_average_and_at_most():
    rows = copied_rows({"told": [Copied(3, "c d e"), Copied(2, "a b")], "real": [Copied(0, "")]})
    assert [list(row.values()) for row in rows] == [["told", 2.5, 3], ["real", 0, 0]]


def test_values_are_shown_to_three_digits():
    assert list(map(shown, (1234567, 0.93449, 210.04, 2.5, 99.97, True, None, "x"))) == [
        *("1,234,567", "0.934", "210", "2.50", "100", "True", "–", "x")
    ]
