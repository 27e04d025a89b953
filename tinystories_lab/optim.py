"""The optimizer: AdamW in two parameter groups, or Muon for the layers' matrices and AdamW for everything else."""

from typing import Any

import torch

from tinystories_lab.config import TrainConfig
from tinystories_lab.model import GPTMini


class _MuonWithAdamW(torch.optim.Optimizer):
    """PyTorch's Muon (Jordan et al. 2024) and its AdamW as one optimizer, with one state to save and one step to take."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._parts = muon, adamw
        self._share_state()

    def _share_state(self) -> None:
        muon, adamw = self._parts
        muon.param_groups, adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        muon.state = adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # this replaces param_groups and state
        self._share_state()

    def step(self) -> None:
        for part in self._parts:
            part.step()


def make_optimizer(model: GPTMini, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer of `config`, with weight decay on the layers' matrices and none on norms and embedding."""
    # Selected by place, not by name: the chapter's filter `'embed' in name` misses a parameter called tok_emb.
    matrices = [p for p in model.blocks.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    betas, eps = (config.beta1, config.beta2), config.eps
    if config.optimizer == "muon":
        muon = torch.optim.Muon(
            [{"params": matrices, "lr_ratio": config.muon_lr / config.peak_lr}],
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",  # scales updates so that AdamW's learning rates suit matrices of any shape
        )
        return _MuonWithAdamW(muon, torch.optim.AdamW(others, betas=betas, eps=eps, weight_decay=0.0, fused=True))
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group. Muon's group has an `lr_ratio`: its rate over AdamW's."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)
