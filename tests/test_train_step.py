"""A training step updates the weights once or not at all: in every precision, and with too little memory."""

import itertools
import warnings
from dataclasses import replace

import pytest
import torch

from tinystories_lab import trainer
from tinystories_lab.checkpoint import load_checkpoint
from tinystories_lab.config import lr_at
from tinystories_lab.model import GPTMini, new_model
from tinystories_lab.optim import set_lr
from tinystories_lab.trainer import TrainState, train_step


def a_step(model_config, train_config, dtype=torch.float32, **changes):
    """Return a state before its first step, with the learning rate of that step, and a batch."""
    state = TrainState.new(new_model(model_config), replace(train_config, **changes), dtype)
    set_lr(state.optimizer, lr_at(0, state.config))
    ids = torch.randint(300, (4, 17), generator=torch.Generator().manual_seed(0))
    return state, (ids[:, :-1], ids[:, 1:])


def test_a_step_is_one_clipped_adamw_update(model_config, train_config):
    state, (x, y) = a_step(model_config, train_config, grad_clip=0.01)
    expected = new_model(model_config)
    _, loss = expected(x, y)
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in expected.parameters()))
    assert norm > 0.01, "otherwise nothing is clipped"
    rate = lr_at(0, state.config)
    with torch.no_grad():
        for p in expected.parameters():
            gradient = p.grad * 0.01 / (norm + 1e-6)
            decay = 0.1 if p.ndim == 2 and p is not expected.tok_emb.weight else 0.0
            # after one step, Adam's bias-corrected means are the gradient and its square
            p -= rate * (gradient / (gradient.abs() + 1e-8) + decay * p)
    mean_loss, grad_norm = train_step(state, (x, y))
    assert (mean_loss.item(), grad_norm.item()) == pytest.approx((loss.item(), norm.item()))
    assert (state.step, state.skipped_updates) == (1, 0)
    for (name, moved), p in zip(state.model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(moved, p, atol=1e-6, rtol=0, msg=name)
    assert all(p.grad is None for p in state.model.parameters()), "gradients are cleared for the next step"


def test_muon_updates_each_matrix_with_an_orthogonalized_gradient_and_adamw_the_rest(model_config, train_config):
    """Muon's update has the same size in every direction: all of its singular values are about equal."""
    state, batch = a_step(model_config, train_config, optimizer="muon", muon_lr=0.02, weight_decay=0.0, warmup_steps=0)
    before = {name: weight.detach().clone() for name, weight in state.model.named_parameters()}
    train_step(state, batch)
    for name, weight in state.model.named_parameters():
        move = (before[name] - weight).detach()
        if weight.ndim == 2 and name != "tok_emb.weight":
            values = torch.linalg.svdvals(move)
            expected = 0.02 * 0.2 * max(move.shape) ** 0.5  # AdamW's entries are about 0.2 of its rate
            assert 0.5 * expected < values[len(values) // 2] < 1.3 * expected, name
            assert values[0] < 1.3 * expected, name
        else:
            assert move.abs().max().item() == pytest.approx(lr_at(0, state.config), rel=0.05), name


def test_weights_stay_float32_in_every_precision(model_config, train_config):
    moved = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        state, batch = a_step(model_config, train_config, dtype)
        loss, *_ = train_step(state, batch)
        assert {p.dtype for p in state.model.parameters()} == {torch.float32}
        assert state.scaler.is_enabled() == (dtype is torch.float16)
        moved.append(loss.item())
    assert moved[0] == pytest.approx(moved[1], abs=0.02) == pytest.approx(moved[2], abs=0.02)
    assert moved[0] != moved[1], "bfloat16 was not used"


def test_an_overflow_is_retried_at_a_lower_scale_with_the_same_step(model_config, train_config):
    state, batch = a_step(model_config, train_config, torch.float16)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    reference, _ = a_step(model_config, train_config, torch.float16)
    loss, norm = train_step(state, batch)
    skipped = state.skipped_updates
    assert skipped > 0 and state.scaler.get_scale() == 2.0 ** (30 - skipped)
    assert state.step == 1, "a step that was tried twice counts once"
    reference_loss, reference_norm = train_step(reference, batch)
    assert reference.skipped_updates == 0
    assert loss.item() == pytest.approx(reference_loss.item(), abs=1e-3)
    assert norm.item() == pytest.approx(reference_norm.item(), rel=0.02)
    for moved, expected in zip(state.model.parameters(), reference.model.parameters(), strict=True):
        assert (moved - expected).abs().mean() < 0.1 * lr_at(0, state.config), "one update, not none or two"
    assert all(entry["step"] == 1 for entry in state.optimizer.state.values()), "Adam counted a skipped update"


def test_gradients_that_overflow_at_every_scale_are_an_error_that_keeps_the_weights(model_config, train_config):
    state, batch = a_step(model_config, train_config, torch.float16)
    with torch.no_grad():
        state.model.norm.weight.fill_(torch.inf)
    before = state.model.tok_emb.weight.clone()
    with pytest.raises(
        FloatingPointError,
        match=r"step 1: the gradients overflow float16 at every loss scale .*\d+ skipped updates",
    ):
        train_step(state, batch)
    assert torch.equal(state.model.tok_emb.weight, before) and state.step == 0


# --- memory


def gpu_that_holds(monkeypatch, sequences, also=lambda ids: False):
    """Simulate a GPU with memory for this many sequences at once. It also runs out of memory if `also(ids)` is true."""
    forward = GPTMini.forward

    def forward_or_run_out(model, ids, targets=None, cache=None):
        if ids.shape[0] > sequences or also(ids):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(model, ids, targets, cache)

    monkeypatch.setattr(GPTMini, "forward", forward_or_run_out)


@pytest.mark.parametrize(("holds", "grad_accum_steps"), [(4, 1), (3, 2), (1, 4)])
def test_too_little_memory_halves_the_micro_batch_and_changes_nothing_else(
    model_config, train_config, monkeypatch, holds, grad_accum_steps
):
    whole, batch = a_step(model_config, train_config)
    expected = train_step(whole, batch)
    gpu_that_holds(monkeypatch, holds)
    state, _ = a_step(model_config, train_config)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        loss, norm = train_step(state, batch)
    assert state.config.grad_accum_steps == grad_accum_steps and state.config.batch_size == 4
    assert len(warned) == {1: 0, 2: 1, 4: 2}[grad_accum_steps]
    assert all("the result stays the same" in str(warning.message) for warning in warned)
    assert (loss.item(), norm.item()) == pytest.approx([value.item() for value in expected], rel=1e-3)
    for moved, right in zip(state.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(moved, right, atol=1e-3, rtol=0)


def test_gradients_from_before_an_out_of_memory_error_are_not_counted_twice(model_config, train_config, monkeypatch):
    whole, batch = a_step(model_config, train_config)
    expected = train_step(whole, batch)
    calls = itertools.count(1)
    gpu_that_holds(monkeypatch, 4, also=lambda ids: next(calls) == 2)  # in the second micro-batch
    state, _ = a_step(model_config, train_config, grad_accum_steps=2)
    with pytest.warns(UserWarning, match="4 micro-batches per step"):
        _, norm = train_step(state, batch)
    assert norm.item() == pytest.approx(expected[1].item(), rel=1e-3)


def test_if_one_sequence_does_not_fit_the_error_says_what_to_do(model_config, train_config, monkeypatch):
    gpu_that_holds(monkeypatch, 0)
    state, batch = a_step(model_config, train_config)
    with (
        pytest.warns(UserWarning),
        pytest.raises(torch.OutOfMemoryError, match="too little memory for 1 sequences of 16 tokens"),
    ):
        train_step(state, batch)
    assert not state.updating and state.step == 0


def test_a_batch_that_cannot_be_halved_is_not_split(model_config, train_config, monkeypatch):
    gpu_that_holds(monkeypatch, 2)
    state, (x, y) = a_step(model_config, train_config, batch_size=3)
    with pytest.raises(torch.OutOfMemoryError, match="too little memory for 3 sequences"):
        train_step(state, (x[:3], y[:3]))


def test_a_step_that_runs_out_of_memory_while_the_weights_change_is_not_repeated(
    model_config, train_config, monkeypatch
):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.amp.GradScaler, "step", run_out)
    state, batch = a_step(model_config, train_config)
    with pytest.raises(torch.OutOfMemoryError, match="step 1"):
        train_step(state, batch)
    assert state.updating, "some weights may have changed already"


def test_one_of_several_processes_does_not_split_its_batch_but_gives_advice(model_config, train_config, monkeypatch):
    gpu_that_holds(monkeypatch, 2)
    monkeypatch.setattr(trainer, "world_size", lambda: 2)
    state, batch = a_step(model_config, train_config)
    with pytest.raises(
        torch.OutOfMemoryError, match=r"step 1: .*grad_accum_steps \(now 1\).*resumes from its last save"
    ):
        train_step(state, batch)
    assert all(p.grad is None for p in state.model.parameters())


def test_a_run_that_does_not_fit_at_first_trains_and_evaluates_in_smaller_micro_batches(run, tmp_path, monkeypatch):
    gpu_that_holds(monkeypatch, 2)
    with pytest.warns(UserWarning, match=r"continuing with 2 micro-batches per step"):
        rows = list(run(tmp_path))
    assert rows[-1]["step"] == 12 and rows[-1]["val_loss"] > 0
    assert load_checkpoint(tmp_path / "last.pt")["train_config"]["grad_accum_steps"] == 2
