"""The settings of a run: their ranges, and learning rate and sequence length as functions of the step."""

import math
import re
from dataclasses import asdict

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tinystories_lab.config import TrainConfig, lr_at, seq_len_at
from tinystories_lab.generate import stream
from tinystories_lab.model import GPTConfig, new_model
from tinystories_lab.optim import set_lr
from tinystories_lab.trainer import TrainState, train_step

NAN, INF = math.nan, math.inf
COUNTS = ("batch_size", "seq_len", "grad_accum_steps", "total_steps", "log_every", "eval_every", "eval_batches")
COUNTS += ("save_every", "keep_every")
OUT_OF_RANGE = {name: ([0, -1, 2.5, "3", None, True], "an integer from 1 to") for name in COUNTS}
OUT_OF_RANGE |= {
    "warmup_steps": ([-1, 2.5, None], "an integer from 0 to"),
    "peak_lr": ([0, -1e-3, NAN, INF, "6e-4", None], "a number from 1e-09 to"),
    "final_lr_ratio": ([-0.1, 1.1, NAN], "a number from 0.0 to 1.0"),
    "weight_decay": ([-0.1, NAN, INF, 2], "a number from 0.0 to 1.0"),
    "beta1": ([-0.1, 1, NAN], "a number from 0.0 to 0.99999"),
    "beta2": ([-0.1, 1, NAN], "a number from 0.0 to 0.99999"),
    "eps": ([0, -1e-8, NAN], "a number from 1e-15 to"),
    "grad_clip": ([0, -1, NAN, INF], "a number from 1e-06 to"),  # 0 would train nothing, -1 would climb
    "optimizer": (["sgd", ""], "one of adamw, muon"),
    "muon_lr": ([0, -1, NAN], "a number from 1e-09 to"),
    "seq_len_start": ([63, 96, 1_024], "it must give seq_len 512"),
    "seq_len_warmup_fraction": ([0, -0.1, 1.1, NAN], "a number from 1e-06 to 1.0"),  # 0 would divide by zero
    "sampling": (["Random", "", "sequential"], "one of random, shuffle"),
    "seed": ([-1, 2**63, 0.5], "an integer from 0 to"),
    "save_minutes": ([0, -1, NAN], "a number from 1e-06 to"),
}


def test_every_setting_out_of_its_range_is_refused_with_its_name_its_value_and_what_is_needed():
    assert OUT_OF_RANGE.keys() == asdict(TrainConfig()).keys()
    for name, (values, needed) in OUT_OF_RANGE.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name} is {re.escape(repr(value))}; .*{needed}"):
                TrainConfig(**{name: value})
    with pytest.raises(ValueError, match="warmup_steps is 12207; it must be below total_steps 12207"):
        TrainConfig(warmup_steps=12_207)
    for batch_size, parts in ((32, 5), (4, 8)):
        with pytest.raises(ValueError, match=f"batch_size is {batch_size}; .* a multiple of grad_accum_steps {parts}"):
            TrainConfig(batch_size=batch_size, grad_accum_steps=parts)


def test_stored_values_make_the_same_config_under_old_names_too():
    old = {"micro_batches": 2, "clip_norm": 0.5, "matrix_lr": 0.02, "first_seq_len": 64, "seq_warmup": 0.5}
    names = ("grad_accum_steps", "grad_clip", "muon_lr", "seq_len_start", "seq_len_warmup_fraction")
    config = TrainConfig(batch_size=8, **dict(zip(names, old.values(), strict=True)))
    assert TrainConfig.from_dict(asdict(config)) == config
    assert TrainConfig.from_dict({"batch_size": 8} | old) == config, "missing values are the defaults"
    with pytest.raises(ValueError, match="TrainConfig has no setting colour"):
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
    almost_none = TrainConfig(seq_len_start=64, seq_len_warmup_fraction=1e-6)
    assert [seq_len_at(step, almost_none) for step in (0, 1, 12_206)] == [64, 512, 512]


# --- any settings at all: the ends of each range together, and now and then one value of any kind

EDGES = {
    "batch_size": (1, 6),
    "seq_len": (1, 8),
    "grad_accum_steps": (1, 2),
    "total_steps": (2, 10**9),
    "warmup_steps": (0, 1),
    "peak_lr": (1e-9, 1e-3, 10.0),
    "final_lr_ratio": (0.0, 1.0),
    "weight_decay": (0.0, 1.0),
    "beta1": (0.0, 0.99999),
    "beta2": (0.0, 0.99999),
    "eps": (1e-15, 1.0),
    "grad_clip": (1e-6, 1e6),
    "optimizer": ("adamw", "muon", "normuon"),
    "muon_lr": (1e-9, 10.0),
    "seq_len_start": (None, 1),
    "seq_len_warmup_fraction": (1e-6, 1.0),
    "sampling": ("random", "shuffle"),
    "seed": (0, 2**63 - 1),
}
SHAPES = {
    "n_layer": (1, 2),
    "n_head": (1, 2),
    "d_model": (4, 8),
    "max_len": (8, 9),
    "hidden": (None, 1),
    "norm_eps": (1e-12, 1.0),
    "rope_base": (1.0, 1e12),
    "tie_embeddings": (True, False),
}
ANYTHING = st.one_of(st.integers(-1, 9), st.floats(), st.sampled_from([None, True, "3", "", 2**70, -(2**70), [1], ()]))


def any_settings(edges: dict):
    usual = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in edges.items()})
    return st.tuples(usual, st.dictionaries(st.sampled_from(sorted(edges)), ANYTHING, max_size=1)).map(
        lambda parts: parts[0] | parts[1]
    )


@settings(max_examples=300)
@given(any_settings(SHAPES), any_settings(EDGES))
def test_any_settings_are_refused_in_a_sentence_or_train_and_generate_with_finite_numbers(shape, changes):
    shape = {"vocab_size": 20, "n_layer": 1, "n_head": 2, "d_model": 8, "max_len": 9} | shape
    changes = {"batch_size": 2, "seq_len": 8, "total_steps": 4, "warmup_steps": 1} | changes
    try:
        config, train_config = GPTConfig(**shape), TrainConfig(**changes)
    except ValueError as error:
        name, needed = re.match(r"(\w+) is .+; (.+)", str(error)).groups()
        assert name in shape | changes and re.search("must (be|give)|needs", needed)
        return
    if max(config.n_layer * config.d_model, train_config.seq_len) > 100 or train_config.seq_len > config.max_len:
        return  # too large for this test, or refused by `train`
    model = new_model(config, train_config.seed)
    state = TrainState.new(model, train_config, torch.float32)
    random = torch.Generator().manual_seed(0)
    for step in range(2):
        set_lr(state.optimizer, lr_at(step, train_config))
        ids = torch.randint(config.vocab_size, (train_config.batch_size, train_config.seq_len + 1), generator=random)
        loss, norm = train_step(state, (ids[:, :-1], ids[:, 1:]))
        assert math.isfinite(loss) and math.isfinite(norm)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert len(list(stream(model, [0], 5, seed=0))) == 5
    logits, _ = model(torch.tensor([[0, 1]]))
    assert logits.isfinite().all()
