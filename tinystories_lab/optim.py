"""The optimizer: AdamW with two parameter groups, or Muon or NorMuon for the layers' matrices, AdamW for all else."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.linalg import matrix_norm

from tinystories_lab.config import TrainConfig
from tinystories_lab.device import has_cuda_graphs
from tinystories_lab.model import GPTMini

_MOMENTUM = 0.95  # of Muon, and of NorMuon's rows
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of K. Jordan, https://kellerjordan.github.io/posts/muon/


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Return matrices (N, rows, columns) with about equal singular values, near 1, and the same singular vectors.

    These are five Newton-Schulz iterations, computed in `dtype`.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    norms = matrix_norm(matrices, keepdim=True).clamp(min=1e-7)
    x = (matrices.mT if is_tall else matrices).div(norms).to(dtype)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(5):
        products = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(products, products, products, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class _Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for a group of matrices, and AdamW for all other weights.

    Muon equals `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` and has the same state. But matrices of one shape are
    stacked, so that few GPU kernels update them all. If it `balances_rows`, it is NorMuon (Li et al. 2025,
    arXiv:2510.05491): over some steps, each row of a matrix, which is one neuron, moves as far as the others.
    """

    def __init__(self, group: dict, adamw: torch.optim.AdamW, dtype: torch.dtype, balances_rows: bool) -> None:
        super().__init__([group, *adamw.param_groups], {})
        self._adamw, self._dtype, self._balances_rows = adamw, dtype, balances_rows

    @torch.no_grad()
    def step(self) -> None:
        group, *other_groups = self.param_groups
        stacks: dict[torch.Size, list[Tensor]] = {}
        for matrix in group["params"]:
            stacks.setdefault(matrix.shape, []).append(matrix)
        for shape, matrices in stacks.items():
            gradients = [matrix.grad for matrix in matrices]
            means = self._buffers("momentum_buffer", gradients, matrices)
            torch._foreach_lerp_(means, gradients, 1 - _MOMENTUM)
            updates = torch.stack(torch._foreach_lerp(gradients, means, _MOMENTUM))  # Nesterov's momentum
            updates = orthogonalize(updates, self._dtype).float()
            if self._balances_rows:
                squares = updates.square().mean(-1, keepdim=True).unbind()
                means = self._buffers("row_squares", squares, matrices)
                torch._foreach_lerp_(means, squares, 1 - _MOMENTUM)
                balanced = updates / (torch.stack(means).sqrt() + 1e-8)
                updates = balanced * (matrix_norm(updates, keepdim=True) / matrix_norm(balanced, keepdim=True))
            size = 0.2 * math.sqrt(max(shape)) * group["lr"]  # an entry of AdamW's updates is about 0.2 lr
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_sub_(matrices, (updates * size).unbind())
        # AdamW uses the groups and the state of this optimizer, which load_state_dict replaces.
        self._adamw.param_groups, self._adamw.state = other_groups, self.state
        self._adamw.step()

    def _buffers(self, name: str, shaped_like: Sequence[Tensor], matrices: list[Tensor]) -> list[Tensor]:
        """Return the running means of this name, one for each matrix. At first, they are zeros."""
        for matrix, value in zip(matrices, shaped_like, strict=True):
            if name not in self.state[matrix]:
                self.state[matrix][name] = torch.zeros_like(value)
        return [self.state[matrix][name] for matrix in matrices]


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
    capturable, betas = has_cuda_graphs(device), (float(config.beta1), float(config.beta2))
    for group in (decayed, not_decayed):  # a CUDA graph reads the learning rate from the same memory at every step
        group["lr"] = torch.zeros((), device=device) if capturable else 0.0
    adamw = partial(torch.optim.AdamW, betas=betas, eps=config.eps, fused=True, capturable=capturable)
    if config.optimizer == "adamw":
        return adamw([decayed, not_decayed])
    decayed["lr_ratio"] = config.muon_lr / config.peak_lr
    return _Muon(decayed, adamw([not_decayed]), dtype, balances_rows=config.optimizer == "normuon")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of each parameter group. In Muon's group it is `lr_ratio` times as high as AdamW's."""
    for group in optimizer.param_groups:
        group_lr = lr * group.get("lr_ratio", 1.0)
        group["lr"] = group["lr"].fill_(group_lr) if isinstance(group["lr"], Tensor) else group_lr
