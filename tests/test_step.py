"""One step: one update or none, whatever the precision, the scale and the memory."""

import itertools
import warnings
from dataclasses import replace

import pytest
import torch
from micro import differences

from tinystories_lab.checkpoint import load_checkpoint
from tinystories_lab.model import GPTMini
from tinystories_lab.recipe import lr_at
from tinystories_lab.state import TrainState
from tinystories_lab.step import take_step


def a_step(model_config, train_config, dtype=torch.float32, **changes):
    state = TrainState.new(model_config, replace(train_config, **changes), "", "", torch.device("cpu"), dtype)
    ids = torch.randint(300, (4, 17), generator=torch.Generator().manual_seed(0))
    return state, (ids[:, :-1], ids[:, 1:])


def test_a_step_is_one_clipped_adamw_update(model_config, train_config):
    state, (x, y) = a_step(model_config, train_config, clip_norm=0.01)
    expected = GPTMini(model_config)
    expected.load_state_dict(state.model.state_dict())
    _, loss = expected(x, y)
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in expected.parameters()))
    assert norm > 0.01, "else nothing would be clipped"
    rate = lr_at(0, state.config)
    with torch.no_grad():
        for p in expected.parameters():
            gradient = p.grad * 0.01 / (norm + 1e-6)
            decay = 0.1 if p.ndim == 2 and p is not expected.tok_emb.weight else 0.0
            # after one step both of Adam's means are the gradient and its square, once corrected
            p -= rate * (gradient / (gradient.abs() + 1e-8) + decay * p)
    mean_loss, grad_norm = take_step(state, (x, y), torch.float32)
    assert (mean_loss.item(), grad_norm.item()) == pytest.approx((loss.item(), norm.item()))
    assert (state.step, state.skipped_updates) == (1, 0)
    for (name, moved), p in zip(state.model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(moved, p, atol=1e-6, rtol=0, msg=name)
    assert all(p.grad is None for p in state.model.parameters()), "gradients are cleared for the next step"


def test_muon_turns_each_matrix_by_its_orthogonal_part_and_adamw_moves_the_rest(model_config, train_config):
    """Whatever the gradient's size in a direction, Muon moves as far there: all singular values of the move are alike."""
    state, batch = a_step(
        model_config, train_config, optimizer="muon", matrix_lr=0.02, weight_decay=0.0, warmup_steps=0
    )
    before = {name: weight.detach().clone() for name, weight in state.model.named_parameters()}
    take_step(state, batch, torch.float32)
    for name, weight in state.model.named_parameters():
        move = (before[name] - weight).detach()
        if weight.ndim == 2 and name != "tok_emb.weight":
            values = torch.linalg.svdvals(move)
            expected = 0.02 * 0.2 * max(move.shape) ** 0.5  # as AdamW's, whose values are each about 0.2 of its rate
            assert 0.5 * expected < values[len(values) // 2] < 1.3 * expected, name
            assert values[0] < 1.3 * expected, name
        else:
            assert move.abs().max().item() == pytest.approx(lr_at(0, state.config), rel=0.05), name


def test_weights_stay_float32_in_every_precision(model_config, train_config):
    moved = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        state, batch = a_step(model_config, train_config, dtype)
        loss, *_ = take_step(state, batch, dtype)
        assert {p.dtype for p in state.model.parameters()} == {torch.float32}
        assert state.scaler.is_enabled() == (dtype is torch.float16)
        moved.append(loss.item())
    assert moved[0] == pytest.approx(moved[1], abs=0.02) == pytest.approx(moved[2], abs=0.02)
    assert moved[0] != moved[1], "bfloat16 was not used"


def test_an_overflow_is_retried_at_a_lower_scale_with_the_same_step(model_config, train_config):
    state, batch = a_step(model_config, train_config, torch.float16)
    state.step = 1
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    reference, _ = a_step(model_config, train_config, torch.float16)
    reference.step = 1
    loss, norm = take_step(state, batch, torch.float16)
    skipped = state.skipped_updates
    assert skipped > 0 and state.scaler.get_scale() == 2.0 ** (30 - skipped)
    assert state.optimizer.param_groups[0]["lr"] == lr_at(1, state.config)
    assert state.step == 2, "a step that was tried twice is one"
    reference_loss, reference_norm = take_step(reference, batch, torch.float16)
    assert reference.skipped_updates == 0
    assert loss.item() == pytest.approx(reference_loss.item(), abs=1e-3)
    assert norm.item() == pytest.approx(reference_norm.item(), rel=0.02)
    for moved, expected in zip(state.model.parameters(), reference.model.parameters(), strict=True):
        assert (moved - expected).abs().mean() < 0.1 * lr_at(1, state.config), "as one update, not none or two"
    assert all(entry["step"] == 1 for entry in state.optimizer.state.values()), "Adam counted a skipped update"


def test_gradients_that_overflow_at_every_scale_are_an_error(model_config, train_config):
    state, batch = a_step(model_config, train_config, torch.float16)
    with torch.no_grad():
        state.model.norm.weight.fill_(torch.inf)
    before = state.model.tok_emb.weight.clone()
    with pytest.raises(FloatingPointError, match="step 1: the gradients overflow float16 at every loss scale"):
        take_step(state, batch, torch.float16)
    assert torch.equal(state.model.tok_emb.weight, before)


# --- float16


@pytest.mark.parametrize("fused", [False, True])
def test_a_forced_overflow_moves_nothing_but_the_scale_with_either_adamw(model_config, train_config, fused):
    """The law of skipped updates: not the weights, not Adam's moments or counters, not the step, not the schedule."""
    state, batch = a_step(model_config, train_config, torch.float16)
    calm, _ = a_step(model_config, train_config, torch.float16)
    for one in (state, calm):
        groups = [{key: group[key] for key in ("params", "weight_decay")} for group in one.optimizer.param_groups]
        one.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=fused)
        take_step(one, batch, torch.float16)

    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    calm.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    take_step(state, batch, torch.float16)
    take_step(calm, batch, torch.float16)
    assert state.skipped_updates > 0 == calm.skipped_updates
    assert state.step == calm.step == 2
    for moved, expected in zip(state.optimizer.state.values(), calm.optimizer.state.values(), strict=True):
        assert moved["step"] == expected["step"] == 2
        torch.testing.assert_close(moved["exp_avg"], expected["exp_avg"], rtol=0.05, atol=1e-4)
    for moved, expected in zip(state.model.parameters(), calm.model.parameters(), strict=True):
        assert torch.isfinite(moved).all()
        assert (moved - expected).abs().mean() < 0.1 * lr_at(1, state.config)


def test_a_collapsed_scale_is_an_error_that_keeps_the_weights_and_forbids_saving(model_config, train_config):
    state, batch = a_step(model_config, train_config, torch.float16)
    with torch.no_grad():
        state.model.norm.weight.fill_(torch.inf)
    with pytest.raises(
        FloatingPointError, match=r"overflow float16 at every loss scale down to 1 .*\d+ updates skipped"
    ):
        take_step(state, batch, torch.float16)
    assert not state.whole and state.step == 0


# --- memory


def gpu_that_holds(monkeypatch, sequences, also=lambda state: False):
    """A stand-in for a GPU on which no more sequences at once fit; `also(state)` runs out whatever their number."""

    class Small(GPTMini):
        def forward(self, ids, targets=None):
            if ids.shape[0] > sequences or also(ids):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return super().forward(ids, targets)

    monkeypatch.setattr("tinystories_lab.state.GPTMini", Small)


@pytest.mark.parametrize(("holds", "micro_batches"), [(4, 1), (3, 2), (2, 2), (1, 4)])
def test_too_little_memory_at_the_first_step_halves_the_micro_batch_and_nothing_else(
    model_config, train_config, monkeypatch, holds, micro_batches
):
    whole, batch = a_step(model_config, train_config)
    expected = take_step(whole, batch, torch.float32)
    gpu_that_holds(monkeypatch, holds)
    state, _ = a_step(model_config, train_config)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        loss, norm = take_step(state, batch, torch.float32, may_split=True)
    assert state.config.micro_batches == micro_batches and state.config.batch_size == 4
    assert len(warned) == {1: 0, 2: 1, 4: 2}[micro_batches]
    assert all("the global batch and its data stay the same" in str(warning.message) for warning in warned)
    assert (loss.item(), norm.item()) == pytest.approx([value.item() for value in expected], rel=1e-3)
    for moved, right in zip(state.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(moved, right, atol=1e-3, rtol=0)


def test_gradients_of_a_pass_that_ran_out_are_not_counted_twice(model_config, train_config, monkeypatch):
    whole, batch = a_step(model_config, train_config)
    expected = take_step(whole, batch, torch.float32)
    calls = itertools.count(1)
    gpu_that_holds(monkeypatch, 4, also=lambda ids: next(calls) == 2)  # in the second micro-batch
    state, _ = a_step(model_config, train_config, micro_batches=2)
    with pytest.warns(UserWarning, match="4 micro-batches of 1"):
        _, norm = take_step(state, batch, torch.float32, may_split=True)
    assert norm.item() == pytest.approx(expected[1].item(), rel=1e-3)


def test_when_one_sequence_does_not_fit_it_says_what_to_do(model_config, train_config, monkeypatch):
    gpu_that_holds(monkeypatch, 0)
    state, batch = a_step(model_config, train_config)
    with (
        pytest.warns(UserWarning),
        pytest.raises(torch.OutOfMemoryError, match="does not hold 1 sequences of 16 tokens"),
    ):
        take_step(state, batch, torch.float32, may_split=True)
    assert state.whole and state.step == 0


def test_a_batch_that_cannot_be_halved_is_not_split(model_config, train_config, monkeypatch):
    gpu_that_holds(monkeypatch, 2)
    state, (x, y) = a_step(model_config, train_config, batch_size=3)
    with pytest.raises(torch.OutOfMemoryError, match="does not hold 3 sequences"):
        take_step(state, (x[:3], y[:3]), torch.float32, may_split=True)


def test_memory_that_runs_out_while_the_weights_move_is_not_tried_again(model_config, train_config, monkeypatch):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.amp.GradScaler, "step", run_out)
    state, batch = a_step(model_config, train_config)
    with pytest.raises(torch.OutOfMemoryError, match="step 1"):
        take_step(state, batch, torch.float32, may_split=True)
    assert not state.whole, "some weights may have moved: this state must not be saved"


def test_too_little_memory_later_is_not_split_but_explained(model_config, train_config, monkeypatch):
    gpu_that_holds(monkeypatch, 2)
    state, batch = a_step(model_config, train_config)
    with pytest.raises(torch.OutOfMemoryError, match=r"step 1: .*what was trained is kept: .*micro_batches \(now 1\)"):
        take_step(state, batch, torch.float32, may_split=False)
    assert all(p.grad is None for p in state.model.parameters())


def test_a_run_that_runs_out_of_memory_later_is_saved_where_it_was(run, uninterrupted, tmp_path, monkeypatch):
    calls = itertools.count(1)
    with monkeypatch.context() as patch:
        gpu_that_holds(patch, 4, also=lambda ids: ids.shape[0] == 4 and torch.is_grad_enabled() and next(calls) == 8)
        with pytest.raises(torch.OutOfMemoryError, match="step 8: "):
            list(run(tmp_path))
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 7
    list(run(tmp_path))
    assert not differences(tmp_path, uninterrupted())


def test_a_run_that_does_not_fit_at_first_trains_and_evaluates_in_smaller_micro_batches(run, tmp_path, monkeypatch):
    gpu_that_holds(monkeypatch, 2)
    with pytest.warns(UserWarning, match=r"going on with 2 micro-batches of 2"):
        rows = list(run(tmp_path))
    assert rows[-1]["step"] == 12 and rows[-1]["val_loss"] > 0
    assert load_checkpoint(tmp_path / "last.pt")["train_config"]["micro_batches"] == 2
