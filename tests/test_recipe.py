"""The recipe: the learning rate of each step, and which weights decay."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tinystories_lab.recipe import TrainConfig, lr_at, make_optimizer, seq_len_at

from tinystories_lab.model import GPTConfig, GPTMini

CONFIG = TrainConfig(total_steps=1_100, warmup_steps=99, peak_lr=1e-3, final_lr_ratio=0.1)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1e-5),  # one hundredth of the peak: the first step moves already
        (49, 5e-4),
        (98, 9.9e-4),
        (99, 1e-3),  # the end of warm-up is the peak
        (1_100, 1e-4),  # the end is a tenth of it
        (5_000, 1e-4),  # and so is all that comes later
    ],
)
def test_learning_rate_at_the_corners(step, expected):
    assert lr_at(step, CONFIG) == pytest.approx(expected, rel=1e-9)


def test_learning_rate_in_the_middle_of_the_cosine_is_the_mean_of_peak_and_floor():
    config = TrainConfig(total_steps=1_200, warmup_steps=200, peak_lr=6e-4)
    assert lr_at(700, config) == pytest.approx((6e-4 + 6e-5) / 2, rel=1e-9)
    quarter = 0.1 + 0.9 * (1 + 2**-0.5) / 2
    assert lr_at(450, config) == pytest.approx(6e-4 * quarter, rel=1e-9)


def test_without_warm_up_the_first_step_is_the_peak():
    assert lr_at(0, TrainConfig(total_steps=10, warmup_steps=0, peak_lr=1e-3)) == 1e-3


@given(st.integers(0, 60), st.integers(1, 200), st.floats(0, 1))
def test_learning_rate_goes_up_then_down_between_floor_and_peak(warmup, total, ratio):
    assume(warmup < total)
    config = TrainConfig(total_steps=total, warmup_steps=warmup, peak_lr=1.0, final_lr_ratio=ratio)
    rates = [lr_at(step, config) for step in range(total + 1)]
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == rates[warmup] == pytest.approx(1.0) and rates[-1] == pytest.approx(ratio)
    assert min(rates) > 0 or ratio == 0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_each_parameter_is_in_exactly_one_group(name, tied):
    model = GPTMini(GPTConfig(300, 2, 2, 32, 16, tied=tied))
    grouped = [
        id(p) for group in make_optimizer(model, TrainConfig(optimizer=name)).param_groups for p in group["params"]
    ]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("tied", [True, False])
def test_the_layers_matrices_decay_and_norms_embedding_and_head_do_not(tied):
    model = GPTMini(GPTConfig(300, 2, 2, 32, 16, tied=tied))
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.1, beta1=0.8, beta2=0.9, eps=1e-7))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if "norm" in name or name in ("tok_emb.weight", "head.weight") else 0.1), (
            name
        )
    assert all(group["betas"] == (0.8, 0.9) and group["eps"] == 1e-7 for group in optimizer.param_groups)
    assert isinstance(optimizer, torch.optim.AdamW)


def test_the_default_step_is_the_chapters_16384_tokens():
    assert TrainConfig().tokens_per_step == 16_384
    assert TrainConfig(batch_size=6, seq_len=7, micro_batches=2).tokens_per_step == 42


@pytest.mark.parametrize(("batch_size", "micro_batches"), [(32, 0), (32, -1), (32, 5), (4, 8)])
def test_micro_batches_that_do_not_divide_the_batch_are_refused(batch_size, micro_batches):
    with pytest.raises(
        ValueError, match=f"batch_size {batch_size} must be a multiple of micro_batches {micro_batches}"
    ):
        TrainConfig(batch_size=batch_size, micro_batches=micro_batches)


@pytest.mark.parametrize(("warmup_steps", "total_steps"), [(-1, 10), (10, 10), (11, 10), (0, 0)])
def test_a_warm_up_that_never_ends_is_refused(warmup_steps, total_steps):
    with pytest.raises(ValueError, match=f"warmup_steps {warmup_steps} must lie below total_steps {total_steps}"):
        TrainConfig(warmup_steps=warmup_steps, total_steps=total_steps)


def test_the_next_save_is_the_next_of_saving_evaluating_and_the_end():
    config = TrainConfig(total_steps=20, warmup_steps=1, save_every=4, eval_every=6)
    assert [config.next_save(step) for step in (0, 3, 4, 5, 6, 17, 18, 19)] == [4, 4, 6, 6, 8, 18, 20, 20]


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_minutes_between_saves_must_be_above_nothing(minutes):
    with pytest.raises(ValueError, match=r"save_minutes is .*; it must be above 0"):
        TrainConfig(save_minutes=minutes)


# --- muon -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_muon_has_the_layers_matrices_and_adamw_the_rest(tied):
    model = GPTMini(GPTConfig(300, 2, 2, 32, 16, tied=tied))
    optimizer = make_optimizer(model, TrainConfig(optimizer="muon", peak_lr=2e-3, matrix_lr=8e-3, weight_decay=0.05))
    of_muon, of_adamw = optimizer.param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].split(".")[-2] for p in of_muon["params"]} == {"qkv", "out", "gate", "up", "down"}
    others = ("tok_emb.weight", "head.weight")
    assert all("norm" in names[id(p)] or names[id(p)] in others for p in of_adamw["params"])
    assert len(of_muon["params"]) + len(of_adamw["params"]) == len(names)
    assert of_muon["lr_ratio"] == 4 and "lr_ratio" not in of_adamw
    assert (of_muon["weight_decay"], of_adamw["weight_decay"]) == (0.05, 0)


def test_muon_with_adamw_goes_on_from_its_saved_state_as_if_it_had_not_stopped():
    def moved(steps, stop):
        torch.manual_seed(0)
        model = GPTMini(GPTConfig(300, 1, 2, 32, 16))
        optimizer = make_optimizer(model, TrainConfig(optimizer="muon"))
        for step in range(steps):
            if step == stop:
                saved, optimizer = optimizer.state_dict(), make_optimizer(model, TrainConfig(optimizer="muon"))
                optimizer.load_state_dict(saved)
            ids = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(step))
            model(ids[:, :-1], ids[:, 1:])[1].backward()
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (step + 1) * group.get("lr_ratio", 1)
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict()

    whole, resumed = moved(5, None), moved(5, 3)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_unknown_optimizer_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"optimizer is 'sgd'; it must be one of \('adamw', 'muon'\)"):
        TrainConfig(optimizer="sgd")


# --- the length of sequences ------------------------------------------------------------------------------------------


def test_sequences_double_at_even_distances_until_the_warm_up_is_over():
    config = TrainConfig(total_steps=1_000, seq_len=512, first_seq_len=64, seq_warmup=0.6)
    lengths = [seq_len_at(step, config) for step in range(1_000)]
    assert [lengths.index(length) for length in (64, 128, 256, 512)] == [0, 200, 400, 600]
    assert lengths == sorted(lengths) and set(lengths) == {64, 128, 256, 512}


def test_without_a_first_length_all_sequences_are_as_long():
    assert {seq_len_at(step, TrainConfig()) for step in range(0, 12_207, 100)} == {512}
    assert seq_len_at(0, TrainConfig(first_seq_len=512)) == 512


@pytest.mark.parametrize("first", [0, -64, 63, 96, 1_024])
def test_a_first_length_that_does_not_double_to_the_last_is_refused(first):
    with pytest.raises(ValueError, match=f"seq_len 512 must be first_seq_len {first} doubled some times"):
        TrainConfig(first_seq_len=first)
