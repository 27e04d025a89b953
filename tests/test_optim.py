"""The optimizer: which weights decay, which move by Muon, and at which rate."""

import pytest
import torch

from tinystories_lab.config import TrainConfig
from tinystories_lab.model import GPTConfig, new_model
from tinystories_lab.optim import make_optimizer, set_lr

MATRICES = {"qkv", "out", "gate", "up", "down"}


def grouped(optimizer, model):
    """The parameter groups with names instead of parameters, each name in exactly one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [group | {"params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    assert sorted(name for group in groups for name in group["params"]) == sorted(names.values())
    return groups


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "normuon"])
def test_the_layers_matrices_decay_and_norms_embedding_and_head_do_not(optimizer, tie_embeddings):
    model = new_model(GPTConfig(300, 2, 2, 32, 16, tie_embeddings=tie_embeddings))
    config = TrainConfig(
        optimizer=optimizer, weight_decay=0.2, beta1=0.8, beta2=0.9, eps=1e-7, peak_lr=2e-3, muon_lr=8e-3
    )
    made = make_optimizer(model, config)
    matrices, others = grouped(made, model)
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.2, 0)
    assert {name.split(".")[-2] for name in matrices["params"]} == MATRICES
    assert all("norm" in name or name in ("tok_emb.weight", "head.weight") for name in others["params"])
    for group in (matrices, others) if optimizer == "adamw" else (others,):
        assert group["betas"] == (0.8, 0.9) and group["eps"] == 1e-7
    set_lr(made, 0.5)
    assert [group["lr"] for group in made.param_groups] == [0.5 * 8e-3 / 2e-3 if optimizer != "adamw" else 0.5, 0.5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_muon_on_stacked_matrices_equals_pytorchs_muon_step_by_step(dtype):
    """The momentum is equal exactly. Weights differ by the rounding of bfloat16, in which PyTorch's Muon computes."""
    config = TrainConfig(optimizer="muon", peak_lr=0.01, muon_lr=0.01)
    model, expected = (new_model(GPTConfig(300, 2, 2, 32, 16)) for _ in range(2))
    optimizer = make_optimizer(model, config, dtype)
    theirs = torch.optim.Muon(
        [p for p in expected.blocks.parameters() if p.ndim == 2], adjust_lr_fn="match_rms_adamw", weight_decay=0.1
    )
    random = torch.Generator().manual_seed(0)
    for step in range(20):
        for ours, other in zip(model.parameters(), expected.parameters(), strict=True):
            ours.grad = torch.randn(ours.shape, generator=random)
            other.grad = ours.grad.clone()
        set_lr(optimizer, 0.001 * (step + 1))
        set_lr(theirs, 0.001 * (step + 1))
        optimizer.step()
        theirs.step()
        moved, other = (
            torch.cat([p.flatten() for p in m.blocks.parameters() if p.ndim == 2]) for m in (model, expected)
        )
        assert (moved - other).norm() < 0.01 * other.norm(), step
    for ours, other in zip(model.blocks.parameters(), expected.blocks.parameters(), strict=True):
        if ours.ndim == 2:
            assert optimizer.state[ours].keys() == theirs.state[other].keys()
            assert torch.equal(optimizer.state[ours]["momentum_buffer"], theirs.state[other]["momentum_buffer"])


def test_muon_gives_each_matrix_an_update_of_the_size_of_adamws_whatever_its_shape():
    model = new_model(GPTConfig(300, 1, 2, 32, 16))
    optimizer = make_optimizer(model, TrainConfig(optimizer="muon", peak_lr=1e-2, muon_lr=1e-2, weight_decay=0))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    ids = torch.randint(300, (4, 17), generator=torch.Generator().manual_seed(0))
    model(ids[:, :-1], ids[:, 1:])[1].backward()
    set_lr(optimizer, 1e-2)
    optimizer.step()
    for name, weight in model.state_dict().items():
        size = (weight - before[name]).square().mean().sqrt().item() / 1e-2
        expected = (0.1, 0.35) if name.split(".")[-2] in MATRICES else (0.9, 1.01)  # AdamW's first update is 1
        assert expected[0] < size < expected[1], name


def test_normuon_moves_each_row_of_a_matrix_as_far_as_the_others_and_the_matrix_as_far_as_muon():
    def moves(name):
        model = new_model(GPTConfig(300, 1, 2, 32, 16))
        optimizer = make_optimizer(model, TrainConfig(optimizer=name, peak_lr=1e-2, muon_lr=1e-2, weight_decay=0))
        set_lr(optimizer, 1e-2)
        weight, random = model.blocks[0].attention.qkv.weight, torch.Generator().manual_seed(0)
        before, scale = weight.detach().clone(), torch.logspace(-3, 0, len(weight))[:, None]
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        weight.grad *= scale  # some neurons have gradients a thousand times as large as others
        optimizer.step()
        return weight.detach() - before

    muon, normuon = (moves(name) for name in ("muon", "normuon"))
    assert normuon.norm().item() == pytest.approx(muon.norm().item(), rel=1e-3)
    assert muon.norm(dim=1).max() > 3 * muon.norm(dim=1).min(), "otherwise there is nothing to balance"
    assert normuon.norm(dim=1).max().item() == pytest.approx(normuon.norm(dim=1).min().item(), rel=1e-3)


@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_muon_with_adamw_continues_from_its_saved_state_as_if_it_had_not_stopped(name):
    def trained(stop):
        model, config = new_model(GPTConfig(300, 1, 2, 32, 16)), TrainConfig(optimizer=name)
        optimizer = make_optimizer(model, config)
        for step in range(5):
            if step == stop:
                saved, optimizer = optimizer.state_dict(), make_optimizer(model, config)
                optimizer.load_state_dict(saved)
            ids = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(step))
            model(ids[:, :-1], ids[:, 1:])[1].backward()
            set_lr(optimizer, 0.01 * (step + 1))
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict()

    uninterrupted, resumed = trained(None), trained(3)
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)
