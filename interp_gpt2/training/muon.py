"""Muon: momentum whose matrices are made orthogonal, for the matrices inside the blocks.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the step's size as in Liu et al. 2025, "Muon
is Scalable for LLM Training", so that AdamW's learning rate and weight decay serve.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that the paper tuned for the steepest rise at 0


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, times 0.2 sqrt(max(rows, columns)), with decoupled weight decay.

    A group's "stacked" says how many matrices one parameter holds on top of each other: 3 for q, k and v, each of which
    is made orthogonal by itself. Where `found_inf` is set to a tensor, as on torch's fused optimizers, its 1 leaves
    weights and momentum as they are.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "stacked": 1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every matrix, those of one shape together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for matrices in by_shape.values():
                self._step(matrices, group)

    def _step(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        keep = 1.0 if self.found_inf is None else 1 - self.found_inf
        moved = []
        for matrix in matrices:
            momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
            # 0 times nan is nan: a gradient that is left out may hold anything
            grad = matrix.grad if self.found_inf is None else matrix.grad.where(self.found_inf == 0, 0)
            momentum.lerp_(grad, (1 - MOMENTUM) * keep)
            moved.append(grad.lerp(momentum, MOMENTUM))
        rows, columns = matrices[0].shape
        parts = torch.stack(moved).view(len(matrices) * group["stacked"], rows // group["stacked"], columns)
        size = group["lr"] * 0.2 * max(parts.shape[1:]) ** 0.5
        updates = orthogonalised(parts).view(len(matrices), rows, columns)
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"] * keep).sub_(update * (size * keep))


def orthogonalised(matrices: Tensor) -> Tensor:
    """Nearly U V^T of each matrix U S V^T, (matrix, row, column): five Newton-Schulz steps in bfloat16.

    Singular values end between about 0.7 and 1.2, which trains as well as exactly 1.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # (a + b G + c G^2) X
    return (x.mT if tall else x).to(matrices.dtype)
