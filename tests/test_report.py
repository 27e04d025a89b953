"""The report and the short summary say what is in the run's files."""

import os
import re
import shutil
from dataclasses import replace

import pytest

from tinystories_lab.analysis.diagnosis import diagnose
from tinystories_lab.analysis.evaluation import (
    bits_per_byte,
    bytes_per_token,
    checklist,
    format_value,
    perplexity,
    save_samples,
)
from tinystories_lab.analysis.metrics import story_metrics, training_words
from tinystories_lab.analysis.ratings import save_rating
from tinystories_lab.analysis.report import summarize_run, summary_text, write_report
from tinystories_lab.checkpoint import load_model
from tinystories_lab.files import read_log, read_rows
from tinystories_lab.loader import BinInfo
from tinystories_lab.run import load_config, save_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory, lab, stories, uninterrupted):
    """The workspace of a micro run with everything that the five stages leave, rated by one reader."""
    run_dir = tmp_path_factory.mktemp("runs") / "micro"
    workspace = lab(shutil.copytree(uninterrupted(), run_dir))
    save_config(workspace)
    for when, texts in (("before", ["Lily xyz, xyz"] * 10), ("after", stories[:10])):
        samples = [{"prompt": "Lily", "story": text, "ended": False, "max_new_tokens": 50} for text in texts]
        save_samples(run_dir, when, samples)
    for author, fun in (("model", 1), ("model", 4), ("real", 5)):
        marks = {"grammar": 3, "coherence": 2, "fun": fun}
        save_rating(run_dir / "ratings.jsonl", {"story": "A.", "by": author}, marks, "Ada")
    for name in ("loss_curve.png", "loss_by_tokens.png"):
        (run_dir / name).touch()
    return workspace


def report_of(workspace):
    return write_report(summarize_run(workspace)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report(finished):
    return report_of(finished)


def cells_of(report, heading):
    """The cells of the table below a heading, without head and rule."""
    lines = report.split(f"\n## {heading}")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return rows[2:]


def test_the_report_has_the_runs_own_results(finished, report):
    log = read_log(finished.run_dir / "loss.jsonl")
    loss, seconds, tokens = log[-1]["val_loss"], log[-1]["seconds"], log[-1]["tokens"]
    bits = bits_per_byte(loss, bytes_per_token(finished.run_dir))
    parameters = load_model(finished.run_dir / "final.pt").count_parameters()
    assert f"loss **{loss:.3f}** nats per token" in report and f"**{bits:.3f}** bits per byte" in report
    assert f"as uncertain as choosing among {perplexity(loss):.2f} equally likely tokens" in report
    assert f"train.bin has {BinInfo.load(finished.data_dir / 'train.bin').tokens:,} tokens" in report
    assert f"has {parameters:,} parameters and read {tokens:,} tokens" in report
    found = diagnose(log, 300)
    assert f"Pattern: **{found.pattern}**, {found.evidence}. Advice: {found.advice}." in report
    own = ["micro", *map(format_value, (loss, bits, seconds / 60, round(tokens / seconds), tokens, parameters))]
    assert cells_of(report, "Comparison with other runs")[0] == own
    assert "the chapter" not in report, "its stories are not those of this run"


def test_the_report_has_metrics_overlaps_and_ratings(finished, report, tokenizer):
    after = [row for row in read_rows(finished.run_dir / "samples.jsonl") if row["when"] == "after"]
    known = training_words(finished.data_dir / "train.bin", tokenizer)
    *metrics, unknown = cells_of(report, "Automatic story metrics")
    assert [row[2] for row in metrics] == list(map(format_value, story_metrics(after, known).values()))
    assert metrics[2][::3] == ["known words", "1.00"] and unknown[3] == "none", "all words of real stories are known"
    assert [row[0] for row in cells_of(report, "Memorization")] == ["generated", "real"]
    assert ["fun", "model", "2.50", "1.50", "2"] in cells_of(report, "Ratings from 0 to 5")
    assert ["fun", "real", "5.00", "0.00", "1"] in cells_of(report, "Ratings from 0 to 5")


def test_the_report_has_samples_checklist_figures_and_sessions(finished, report):
    samples = read_rows(finished.run_dir / "samples.jsonl")
    for when in ("before", "after"):
        first = next(row for row in samples if row["when"] == when)
        assert f"\n{when.capitalize()}:\n\n````text\n{first['story']}\n````\n\n" in report
    items = checklist(finished.run_dir)
    assert all(items.values()) and all(f"- [x] {item}\n" in report for item in items)
    assert "](loss_curve.png)\n\n" in report and "](loss_by_tokens.png)\n\n## " in report
    assert "two_runs.png" not in report, "it was not drawn"
    (session,) = load_config(finished.run_dir)["sessions"]
    (row,) = cells_of(report, "Sessions")
    assert row[:3] == [session[key] for key in ("started", "device_name", "dtype")]
    assert all(f"{name} {version}" in row[3] for name, version in session["versions"].items())


def test_the_short_summary_has_the_same_results(finished):
    summary = summarize_run(finished)
    text = summary_text(summary)
    for part in ("micro", f"{summary.runs[0]['loss']:.3f} validation", summary.diagnosis.evidence, "final.pt saved"):
        assert part in text
    words = max(overlap.words for overlap in summary.overlaps["generated"])
    assert f"overlap     at most {words} words in a row" in text


@pytest.fixture
def copies(finished, tmp_path):
    """The workspace of a copy of that run, beside two more copies, the last with the newest final.pt."""
    for age, name in enumerate(("micro", "named", "newest")):
        shutil.copytree(finished.run_dir, tmp_path / name)
        os.utime(tmp_path / name / "final.pt", (1e9 + age, 1e9 + age))
    return replace(finished, run_dir=tmp_path / "micro")


def test_the_other_run_in_the_summary_is_the_one_named_or_the_newest(copies):
    for other_run, expected in (("", "newest"), ("named", "named")):
        runs = [row["run"] for row in summarize_run(copies, other_run).runs]
        assert runs == ["micro", expected]


def test_a_run_on_tinystories_is_compared_with_the_chapters_and_with_public_results(copies):
    config = copies.run_dir / "config.yaml"
    config.write_text(re.sub(r"^source: .*", "source: tinystories", config.read_text(), flags=re.MULTILINE))
    report = report_of(copies)
    assert [row[0] for row in cells_of(report, "Comparison with other runs")][2].startswith("the chapter: Colab T4")
    assert sum("YOUR RUN: micro" in row[0] for row in cells_of(report, "Comparison with published results")) == 1


def test_the_trackers_are_ticked_if_one_has_the_log(copies):
    for folder, tick in (("other", " "), ("tensorboard", "x"), ("wandb", "x")):
        path = copies.run_dir / folder
        path.mkdir()
        assert f"- [{tick}] optional: the log in TensorBoard or W&B\n" in report_of(copies)
        path.rmdir()


def test_a_report_can_be_written_before_stories_were_generated_or_rated(copies):
    for name in ("samples.jsonl", "ratings.jsonl"):
        (copies.run_dir / name).unlink()
    report = report_of(copies)
    assert "Nobody has rated the stories yet" in report and "There are no stories from after training" in report
    assert "- [ ] ten samples from after training\n" in report and "Memorization" not in report
    assert "overlap" not in summary_text(summarize_run(copies))


def test_any_text_stays_in_its_cell(copies):
    summary = summarize_run(copies)
    summary.config["sessions"][0]["device_name"] = "one | two\n\nthree"
    assert " | one \\| two three | " in write_report(summary).read_text(encoding="utf-8")


def test_numbers_have_three_digits_or_thousands_separators():
    values = (1234567, 0.93449, 210.04, 2.5, 99.97, True, None, "x")
    assert [format_value(value) for value in values] == ["1,234,567", "0.934", "210", "2.50", "100", "True", "–", "x"]
