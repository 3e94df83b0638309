"""AdamW, and its state as named tensors that a checkpoint can hold."""

from collections.abc import Mapping

import torch
from torch import Tensor

from interp_gpt2.errors import CheckpointError
from interp_gpt2.model import GPT2
from interp_gpt2.training.config import TrainConfig

_STATE = ("exp_avg", "exp_avg_sq", "step")


def make_optimizer(model: GPT2, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in one fused kernel. Matrices and embeddings are decayed, as in nanoGPT; biases and layer norms are not.

    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, betas=config.betas, fused=True)


def optimizer_tensors(model: GPT2, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The optimizer's moments and step counts by parameter: `blocks.0.attn.qkv.weight.exp_avg`. None before the first step."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(model: GPT2, optimizer: torch.optim.AdamW, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `optimizer_tensors`. Raises CheckpointError unless every parameter's state is there, and nothing else."""
    if not tensors:
        return
    parameters = dict(model.named_parameters())
    expected = {f"{name}.{key}": p.shape if key != "step" else () for name, p in parameters.items() for key in _STATE}
    for name in expected.keys() ^ tensors.keys():
        raise CheckpointError(
            f"the optimizer's state does not fit this model: {name} is {'missing' if name in expected else 'not one of its'}"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"the optimizer's state does not fit this model: {name} is {tuple(tensors[name].shape)}, not {tuple(shape)}"
            )
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {key: tensors[f"{name}.{key}"].to(parameter.device) for key in _STATE}
