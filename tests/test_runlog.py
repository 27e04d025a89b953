"""The run's record: a crash costs one line at most, and the curve has a name."""

import math

import pytest

from tinystories_lab.runlog import append_row, diagnose, progress_of, read_log, read_rows

UNTRAINED = math.log(8_000)  # 8.99


def test_rows_come_back_in_order(tmp_path):
    rows = [{"step": 1, "train_loss": 8.9}, {"step": 2, "note": "“Zoë”\u2028said"}]
    for row in rows:
        append_row(tmp_path / "loss.jsonl", row)
    assert read_rows(tmp_path / "loss.jsonl") == rows
    assert (tmp_path / "loss.jsonl").read_bytes().count(b"\n") == 2


def test_no_file_is_no_rows(tmp_path):
    assert read_rows(tmp_path / "loss.jsonl") == read_log(tmp_path / "loss.jsonl") == []


@pytest.mark.parametrize("torn", ['{"step": 2, "tra', "{", '{"step": 2, "a": "\\u26'])
def test_a_torn_last_line_costs_only_itself(tmp_path, torn):
    path = tmp_path / "loss.jsonl"
    append_row(path, {"step": 1})
    with open(path, "a") as file:
        file.write(torn)
    with pytest.warns(UserWarning, match=r"loss\.jsonl, line 2: torn, skipped"):
        assert read_rows(path) == [{"step": 1}]
    append_row(path, {"step": 2})
    append_row(path, {"step": 3})
    with pytest.warns(UserWarning, match="line 2"):
        assert read_log(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert path.read_text().splitlines()[1] == torn


def test_a_line_torn_within_a_letter_costs_only_itself(tmp_path):
    path = tmp_path / "ratings.jsonl"
    path.write_bytes('{"who": "Zoë'.encode()[:-1] + b"\n" + b'{"who": "Ben"}\n')
    with pytest.warns(UserWarning, match="line 1"):
        assert read_rows(path) == [{"who": "Ben"}]


def test_the_last_row_of_a_step_counts_and_steps_rise(tmp_path):
    for step, loss in [(1, 9.0), (5, 8.0), (10, 7.0), (5, 8.5), (6, 8.4)]:
        append_row(tmp_path / "loss.jsonl", {"step": step, "train_loss": loss})
    log = [(row["step"], row["train_loss"]) for row in read_log(tmp_path / "loss.jsonl")]
    assert log == [(1, 9.0), (5, 8.5), (6, 8.4), (10, 7.0)]


def rows_of(losses, validation=()):
    rows = [{"step": 50 * i + 1, "train_loss": loss} for i, loss in enumerate(losses)]
    for row, loss in zip(rows, validation, strict=False):
        if loss is not None:
            row["val_loss"] = loss
    return rows


FALLING = [max(2.4, UNTRAINED - 0.5 * i) for i in range(40)]


@pytest.mark.parametrize(
    ("rows", "pattern", "evidence"),
    [
        (rows_of(FALLING), "healthy", "fell from 8.99 to 2.40"),
        (rows_of([UNTRAINED, 8.8, 8.6, 8.4]), "healthy", "fell from 8.99 to 8.40"),  # young, but on its way
        (rows_of(FALLING, [loss + 0.1 for loss in FALLING]), "healthy", "fell from 8.99 to 2.40"),
        # a wobble of less than 1, and a validation loss that wobbles by less than 0.05
        (rows_of([*FALLING, 3.3, 2.4, 2.4], [*FALLING, 2.44]), "healthy", "fell"),
        (rows_of([8.99, 7.0, math.nan]), "diverging", "not a number at step 101"),
        (rows_of([8.99, math.inf, 7.0, 6.0]), "diverging", "not a number at step 51"),
        (rows_of([*FALLING, *[5.0] * 10]), "diverging", "rose from 2.40 to 5.00"),
        (rows_of([UNTRAINED] * 3), "stuck", "ln(8000) = 8.99"),
        (rows_of([UNTRAINED - 0.01 * i for i in range(30)]), "stuck", "the loss is 8.71"),
        (rows_of([9.0]), "stuck", "the loss is 9.00"),
        (rows_of([*FALLING, 4.5, *[2.4] * 20]), "spiking", "jumped by over 1 at step 2001"),
        (rows_of([*FALLING, 4.5, 2.4, 5.0, *[2.4] * 30]), "spiking", "at step 2001 and 1 more times"),
        (
            rows_of([4.0, 3.0, 2.5, 2.0, 1.5], [4.1, 3.2, 3.0, 3.1, 3.3]),
            "overfitting",
            "validation rose from 3.00 (step 101) to 3.30",
        ),
    ],
)
def test_each_pattern_is_named_with_its_evidence(rows, pattern, evidence):
    found = diagnose(iter(rows), 8_000)
    assert found.pattern == pattern
    assert evidence in found.evidence
    assert found.advice


def test_batches_that_scatter_are_no_spikes():
    scattering = [loss + (0.3, -0.5, 0.1, 1.6, -0.2)[i % 5] for i, loss in enumerate(FALLING)]
    assert diagnose(rows_of(scattering), 8_000).pattern == "healthy"
    assert diagnose(rows_of([*scattering, 12.0, *scattering[-9:]]), 8_000).pattern == "spiking"


def test_a_loss_after_a_low_one_is_no_jump_but_one_above_the_last_five_is():
    rows = [*FALLING, 1.0, 2.4, 2.4, 2.4]
    assert diagnose(rows_of(rows), 8_000).pattern == "healthy"
    assert "at step 2201" in diagnose(rows_of([*rows, 4.0, *[2.4] * 20]), 8_000).evidence


def test_a_jump_on_the_way_does_not_hide_that_a_run_overfits():
    rows = rows_of([4.0, 3.0, 2.5, 5.0, 2.0, 1.5], [4.1, 3.2, 3.0, 3.1, 3.2, 3.3])
    assert diagnose(rows, 8_000).pattern == "overfitting"


def test_rising_validation_is_no_overfitting_while_train_rises_too():
    assert diagnose(rows_of([4.0, 3.0, 2.5, 2.8], [4.1, 3.2, 2.6, 2.9]), 8_000).pattern == "healthy"


def test_the_gravest_pattern_is_named_first():
    spiking_then_lost = rows_of([*FALLING, 4.5, *[2.4] * 5, math.nan])
    assert diagnose(spiking_then_lost, 8_000).pattern == "diverging"


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows to diagnose: train some steps first"):
        diagnose([], 8_000)


def test_a_progress_bar_shows_skipped_updates_and_the_mirror_where_there_are_any():
    row = {"train_loss": 2.3456, "tokens_per_second": 12_345, "skipped_updates": 0}
    assert progress_of(row) == {"loss": "2.346", "tokens_per_second": "12,345"}
    assert progress_of(row | {"skipped_updates": 3})["skipped_updates"] == "3"
    assert progress_of(row | {"mirrored_step": None})["mirrored"] == "not yet"
    assert progress_of(row | {"mirrored_step": 1_500})["mirrored"] == "to step 1,500"
