"""The settings of a run: their ranges, and learning rate and sequence length as functions of the step."""

import math
from dataclasses import asdict

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tinystories_lab.config import TrainConfig, lr_at, seq_len_at

NAN, INF = math.nan, math.inf
COUNTS = ("batch_size", "seq_len", "grad_accum_steps", "total_steps", "log_every", "eval_every", "eval_batches")
OUT_OF_RANGE = {name: ([0, -1], "at least 1") for name in (*COUNTS, "save_every", "keep_every")} | {
    "warmup_steps": ([-1, 12_207, 20_000], "below total_steps 12207"),
    "peak_lr": ([0, -1e-3, NAN, INF], "above 0"),  # Muon's rate is a multiple of it: 0 would divide by zero
    "final_lr_ratio": ([-0.1, 1.1, NAN], "from 0 to 1"),
    "weight_decay": ([-0.1, NAN, INF], "at least 0"),
    "beta1": ([-0.1, 1, NAN], "below 1"),
    "beta2": ([-0.1, 1, NAN], "below 1"),
    "eps": ([0, -1e-8, NAN], "above 0"),
    "grad_clip": ([0, -1, NAN], "above 0"),
    "optimizer": (["sgd", "", None], "one of adamw, muon"),
    "muon_lr": ([0, -1, NAN], "above 0"),
    "seq_len_start": ([0, -64, 63, 96, 1_024], "it must give seq_len 512"),
    "seq_len_warmup_fraction": ([0, -0.1, 1.1, NAN], "above 0 and at most 1"),  # 0 would divide by zero
    "sampling": (["Random", "", None, "sequential"], "one of random, shuffle"),
    "seed": ([-1], "at least 0"),
    "save_minutes": ([0, -1, NAN], "above 0"),
}


def test_every_setting_out_of_its_range_is_refused_with_its_name_its_value_and_what_is_needed():
    assert OUT_OF_RANGE.keys() == asdict(TrainConfig()).keys()
    for name, (values, needed) in OUT_OF_RANGE.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name} is {value!r}; .*{needed}"):
                TrainConfig(**{name: value})
    for batch_size, parts in ((32, 5), (4, 8)):
        with pytest.raises(ValueError, match=f"batch_size is {batch_size}; .* a multiple of grad_accum_steps {parts}"):
            TrainConfig(batch_size=batch_size, grad_accum_steps=parts)


def test_stored_values_make_the_same_config_under_old_names_too():
    old = {"micro_batches": 2, "clip_norm": 0.5, "matrix_lr": 0.02, "first_seq_len": 64, "seq_warmup": 0.5}
    names = ("grad_accum_steps", "grad_clip", "muon_lr", "seq_len_start", "seq_len_warmup_fraction")
    config = TrainConfig(batch_size=8, **dict(zip(names, old.values(), strict=True)))
    assert TrainConfig.from_dict(asdict(config)) == config
    assert TrainConfig.from_dict({"batch_size": 8} | old) == config, "missing values are the defaults"
    with pytest.raises(TypeError, match="colour"):
        TrainConfig.from_dict({"colour": "red"})


def test_a_step_reads_the_tokens_of_its_global_batch():
    assert TrainConfig().tokens_per_step == 16_384
    assert TrainConfig(batch_size=6, seq_len=7, grad_accum_steps=2).tokens_per_step == 42


def test_rows_evaluations_and_saves_are_due_at_their_intervals_and_at_the_end():
    config = TrainConfig(total_steps=20, warmup_steps=1, log_every=5, save_every=4, eval_every=6)
    steps = range(1, 21)
    assert [step for step in steps if config.is_evaluated(step)] == [6, 12, 18, 20]
    assert [step for step in steps if config.is_logged(step)] == [1, 5, 6, 10, 12, 15, 18, 20]
    assert [step for step in steps if config.is_saved(step)] == [4, 6, 8, 12, 16, 18, 20]


def test_learning_rate_warms_up_from_the_first_step_and_falls_in_a_cosine_to_its_final_ratio():
    config = TrainConfig(total_steps=1_099, warmup_steps=99, peak_lr=1e-3, final_lr_ratio=0.1)
    quarter = 1e-3 * (0.1 + 0.9 * (1 + 2**-0.5) / 2)
    expected = {0: 1e-5, 49: 5e-4, 98: 9.9e-4, 99: 1e-3, 349: quarter, 599: 5.5e-4, 1_099: 1e-4, 5_000: 1e-4}
    assert {step: lr_at(step, config) for step in expected} == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 60), st.integers(1, 200), st.floats(0, 1))
def test_learning_rate_rises_then_falls_between_end_and_peak(warmup, total, ratio):
    assume(warmup < total)
    config = TrainConfig(total_steps=total, warmup_steps=warmup, peak_lr=1.0, final_lr_ratio=ratio)
    rates = [lr_at(step, config) for step in range(total + 1)]
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == rates[warmup] == pytest.approx(1.0) and rates[-1] == pytest.approx(ratio)
    assert min(rates) > 0 or ratio == 0


def test_sequences_double_at_even_intervals_until_the_warm_up_is_over():
    config = TrainConfig(total_steps=1_000, seq_len=512, seq_len_start=64, seq_len_warmup_fraction=0.6)
    lengths = [seq_len_at(step, config) for step in range(1_000)]
    assert [lengths.index(length) for length in (64, 128, 256, 512)] == [0, 200, 400, 600]
    assert lengths == sorted(lengths) and set(lengths) == {64, 128, 256, 512}
    assert {seq_len_at(step, TrainConfig()) for step in range(0, 12_207, 100)} == {512}
    assert seq_len_at(0, TrainConfig(seq_len_start=512)) == 512
    almost_none = TrainConfig(seq_len_start=64, seq_len_warmup_fraction=1e-12)
    assert [seq_len_at(step, almost_none) for step in (0, 1, 12_206)] == [64, 512, 512]
