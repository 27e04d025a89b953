"""The optimizer: AdamW with two parameter groups, or Muon for the layers' matrices and AdamW for all else."""

from functools import partial

import torch

from tinystories_lab.config import TrainConfig
from tinystories_lab.model import GPTMini


class _MuonWithAdamW(torch.optim.Optimizer):
    """PyTorch's Muon (Jordan et al. 2024) and AdamW as one optimizer, with one state and one `step`."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._muon, self._adamw = muon, adamw

    def step(self) -> None:
        # Both use the groups and the state of this optimizer, which load_state_dict replaces.
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self._muon.state = self._adamw.state = self.state
        self._muon.step()
        self._adamw.step()


def make_optimizer(model: GPTMini, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer of `config`. It applies weight decay to the layers' matrices, not to norms and embedding."""
    # They are selected by place. The chapter's filter by name, `'embed' in name`, misses a parameter called tok_emb.
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    decayed = {"params": matrices, "weight_decay": config.weight_decay}
    not_decayed = {"params": others, "weight_decay": 0.0}
    adamw = partial(torch.optim.AdamW, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
    if config.optimizer == "adamw":
        return adamw([decayed, not_decayed])
    decayed["lr_ratio"] = config.muon_lr / config.peak_lr
    # This adjustment scales updates so that AdamW's learning rates suit matrices of any shape.
    return _MuonWithAdamW(torch.optim.Muon([decayed], adjust_lr_fn="match_rms_adamw"), adamw([not_decayed]))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of each parameter group. In Muon's group it is `lr_ratio` times as high as AdamW's."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)
