"""The pattern of a run is named from its log, with evidence and advice."""

import math

import pytest

from tinystories_lab.analysis.diagnosis import diagnose
from tinystories_lab.config import TrainConfig

UNTRAINED = math.log(8_000)  # 8.99
FALLING = [max(2.4, UNTRAINED - 0.5 * i) for i in range(40)]


def rows_of(losses, validation=()):
    rows = [{"step": 50 * i + 1, "train_loss": loss} for i, loss in enumerate(losses)]
    for row, loss in zip(rows, validation, strict=False):
        row["val_loss"] = loss
    return rows


def pattern_of(losses, validation=()):
    return diagnose(rows_of(losses, validation), 8_000).pattern


@pytest.mark.parametrize(
    ("rows", "pattern", "evidence"),
    [
        (rows_of([UNTRAINED, 8.8, 8.6, 8.4]), "healthy", "fell from 8.99 to 8.40"),  # young, but it learns
        (rows_of(FALLING, [loss + 0.1 for loss in FALLING]), "healthy", "fell from 8.99 to 2.40"),
        # both losses rise at the end: that is not overfitting
        (rows_of([4.0, 3.0, 2.5, 2.8], [4.1, 3.2, 2.6, 2.9]), "healthy", "fell"),
        # a train loss that varies by less than 1, and a validation loss that varies by less than 0.05
        (rows_of([*FALLING, 3.3, 2.4, 2.4], [*FALLING, 2.44]), "healthy", "fell"),
        (rows_of([8.99, 7.0, math.nan]), "diverging", "not finite at step 101"),
        (rows_of([8.99, math.inf, 7.0, 6.0]), "diverging", "not finite at step 51"),
        (rows_of([*FALLING, *[5.0] * 10]), "diverging", "rose from 2.40 to 5.00"),
        (rows_of([UNTRAINED - 0.01 * i for i in range(30)]), "stuck", "the loss is 8.71"),
        (rows_of([9.0]), "stuck", "the loss is 9.00; an untrained model has ln(8000) = 8.99"),
        (rows_of([*FALLING, 4.5, *[2.4] * 20]), "spiking", "by more than 1: 1, the first at step 2001"),
        (rows_of([*FALLING, 4.5, 2.4, 5.0, *[2.4] * 30]), "spiking", "by more than 1: 2, the first at step 2001"),
        (rows_of([4.0, 3.0, 2.5, 2.0, 1.5], [4.1, 3.2, 3.0, 3.1, 3.3]), "overfitting", "from 3.00 (step 101) to 3.30"),
    ],
)
def test_each_pattern_is_named_with_its_evidence(rows, pattern, evidence):
    found = diagnose(iter(rows), 8_000)
    assert found.pattern == pattern and evidence in found.evidence and found.advice


PATTERNS = {
    "healthy": rows_of(FALLING),
    "diverging": rows_of([*FALLING, *[5.0] * 10]),
    "not finite": rows_of([8.99, 7.0, math.nan]),
    "stuck": rows_of([UNTRAINED] * 30),
    "spiking": rows_of([*FALLING, 4.5, *[2.4] * 20]),
    "overfitting": rows_of([4.0, 3.0, 2.5, 2.0, 1.5], [4.1, 3.2, 3.0, 3.1, 3.3]),
}


def advice_for(pattern, **changes):
    return diagnose(PATTERNS[pattern], 8_000, TrainConfig(**{"total_steps": 10_000} | changes)).advice


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_run_is_not_advised_to_do_what_it_does_already(pattern):
    last = PATTERNS[pattern][-1]["step"]
    assert "clip gradients" not in advice_for(pattern, grad_clip=1.0) + advice_for(pattern, grad_clip=0.5)
    if pattern in ("diverging", "not finite", "spiking"):
        assert advice_for(pattern, grad_clip=5.0).startswith("clip gradients at 1.0, ")
    for changes in ({"total_steps": last, "warmup_steps": 1}, {"total_steps": last + 1_000, "warmup_steps": 1}):
        finished, advice = changes["total_steps"] == last, advice_for(pattern, **changes)
        assert not (finished and ("continue" in advice or "at the start" in advice)), advice
    muon = advice_for(pattern, optimizer="muon")
    assert ("peak_lr and muon_lr" in muon) == ("peak_lr" in advice_for(pattern)), "Muon has a second learning rate"


def test_a_finished_healthy_run_is_advised_a_new_one_and_an_unfinished_one_to_continue():
    last = PATTERNS["healthy"][-1]["step"]
    for advice in (advice_for("healthy", total_steps=last), diagnose(PATTERNS["healthy"], 8_000).advice):
        assert "a new run with more tokens (a larger total_steps) or a larger model" in advice
    assert advice_for("healthy", total_steps=last + 1).startswith("continue")


def test_advice_names_the_setting_to_change_and_the_checkpoint_to_use():
    assert "grad_clip, which is 0.5, and look at that step's batch" in advice_for("spiking", grad_clip=0.5)
    assert "best.pt has the model of the lowest validation loss" in advice_for("overfitting")
    assert advice_for("stuck", warmup_steps=5_000).startswith("this is normal at the start")


def test_losses_that_vary_from_batch_to_batch_are_not_spikes():
    varying = [loss + (0.3, -0.5, 0.1, 1.6, -0.2)[i % 5] for i, loss in enumerate(FALLING)]
    assert pattern_of(varying) == "healthy"
    assert pattern_of([*varying, 12.0, *varying[-9:]]) == "spiking"


def test_a_jump_is_measured_from_the_last_five_losses_and_not_from_the_lowest():
    losses = [*FALLING, 1.0, 2.4, 2.4, 2.4]
    assert pattern_of(losses) == "healthy"
    assert "at step 2201" in diagnose(rows_of([*losses, 4.0, *[2.4] * 20]), 8_000).evidence
    assert pattern_of([*(9 - 0.1 * i for i in range(67)), 4.5, *[2.4] * 30]) == "spiking", "it was higher before"


def test_the_most_serious_pattern_is_named():
    assert pattern_of([*FALLING, 4.5, *[2.4] * 5, math.nan]) == "diverging", "worse than spiking"
    assert pattern_of([4.0, 3.0, 2.5, 5.0, 2.0, 1.5], [4.1, 3.2, 3.0, 3.1, 3.2, 3.3]) == "overfitting"


def test_an_empty_log_is_refused():
    with pytest.raises(ValueError, match="no rows to diagnose: train some steps first"):
        diagnose([], 8_000)
