"""The optimizer: AdamW with two parameter groups, or Muon for the layers' matrices and AdamW for all else."""

import math
from functools import partial

import torch
from torch import Tensor

from tinystories_lab.config import TrainConfig
from tinystories_lab.device import has_cuda_graphs
from tinystories_lab.model import GPTMini

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of K. Jordan, https://kellerjordan.github.io/posts/muon/


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Return matrices (N, rows, columns) with about equal singular values, near 1, and the same singular vectors.

    These are five Newton-Schulz iterations, computed in `dtype`.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    norms = torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=1e-7)
    x = (matrices.mT if is_tall else matrices).div(norms).to(dtype)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(5):
        products = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(products, products, products, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class _Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024), with updates scaled so that AdamW's learning rates suit matrices of any shape.

    It equals `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` and has the same state. But matrices of one shape are
    stacked: 2,365 GPU kernels per step of the chapter's model, each with its launch, become 80.
    """

    def __init__(self, groups: list[dict], dtype: torch.dtype, momentum: float = 0.95) -> None:
        super().__init__(groups, {"momentum": momentum})
        self._dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            stacks: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                stacks.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in stacks.items():
                for matrix in matrices:
                    if not self.state[matrix]:
                        self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
                gradients = [matrix.grad for matrix in matrices]
                means = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
                torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
                updates = torch.stack(torch._foreach_lerp(gradients, means, group["momentum"]))  # Nesterov's momentum
                size = 0.2 * math.sqrt(max(shape)) * group["lr"]  # an entry of AdamW's updates is about 0.2 lr
                updates = orthogonalize(updates, self._dtype) * size
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_sub_(matrices, updates.unbind())


class _MuonWithAdamW(torch.optim.Optimizer):
    """Muon and AdamW as one optimizer, with one state and one `step`."""

    def __init__(self, muon: _Muon, adamw: torch.optim.AdamW) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._muon, self._adamw = muon, adamw

    def step(self) -> None:
        # Both use the groups and the state of this optimizer, which load_state_dict replaces.
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self._muon.state = self._adamw.state = self.state
        self._muon.step()
        self._adamw.step()


def make_optimizer(model: GPTMini, config: TrainConfig, dtype: torch.dtype = torch.float32) -> torch.optim.Optimizer:
    """Return the optimizer of `config`. It applies weight decay to the layers' matrices, not to norms and embedding.

    `dtype` is that of the run's matrix products, which Muon uses for its own. Weights and state are float32.
    """
    # They are selected by place. The chapter's filter by name, `'embed' in name`, misses a parameter called tok_emb.
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    decayed = {"params": matrices, "weight_decay": config.weight_decay}
    not_decayed = {"params": others, "weight_decay": 0.0}
    device = model.tok_emb.weight.device
    capturable, betas = has_cuda_graphs(device), (config.beta1, config.beta2)
    for group in (decayed, not_decayed):  # a CUDA graph reads the learning rate from the same memory at every step
        group["lr"] = torch.zeros((), device=device) if capturable else 0.0
    adamw = partial(torch.optim.AdamW, betas=betas, eps=config.eps, fused=True, capturable=capturable)
    if config.optimizer == "adamw":
        return adamw([decayed, not_decayed])
    decayed["lr_ratio"] = config.muon_lr / config.peak_lr
    return _MuonWithAdamW(_Muon([decayed], dtype), adamw([not_decayed]))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of each parameter group. In Muon's group it is `lr_ratio` times as high as AdamW's."""
    for group in optimizer.param_groups:
        group_lr = lr * group.get("lr_ratio", 1.0)
        group["lr"] = group["lr"].fill_(group_lr) if isinstance(group["lr"], Tensor) else group_lr
