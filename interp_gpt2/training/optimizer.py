"""The optimizer, and its state as named tensors that a checkpoint can hold."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from interp_gpt2.errors import CheckpointError
from interp_gpt2.model import GPT2
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.muon import Muon

_ADAMW_STATE, _MUON_STATE = ("exp_avg", "exp_avg_sq", "step"), ("momentum",)


class MuonAndAdamW:
    """Muon for the blocks' matrices and AdamW for embeddings, unembedding and vectors, in the place of one optimizer."""

    def __init__(self, muon: Muon, adamw: torch.optim.AdamW) -> None:
        self.parts: tuple[torch.optim.Optimizer, ...] = (muon, adamw)

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts:
            part.step()


AnyOptimizer = torch.optim.Optimizer | MuonAndAdamW


def make_optimizer(model: GPT2, config: TrainConfig) -> AnyOptimizer:
    """AdamW in one fused kernel; with optimizer="muon", Muon for the matrices inside the blocks and AdamW for the rest.

    Matrices and embeddings are decayed, as in nanoGPT; biases and layer norms are not.
    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """
    hidden = {
        name: p
        for name, p in model.named_parameters()
        if config.optimizer == "muon" and name.startswith("blocks.") and p.ndim == 2
    }
    rest = [p for name, p in model.named_parameters() if name not in hidden]
    matrices = [p for p in rest if p.ndim >= 2]
    vectors = [p for p in rest if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    if not hidden:
        return adamw
    stacked = [p for name, p in hidden.items() if name.endswith(".qkv.weight")]
    others = [p for name, p in hidden.items() if not name.endswith(".qkv.weight")]
    muon_groups = [{"params": stacked, "stacked": 3}, {"params": others}]
    return MuonAndAdamW(Muon(muon_groups, config.lr, config.weight_decay), adamw)


def skip_where(optimizer: AnyOptimizer, spike: Tensor) -> None:
    """Make the next step leave weights and state as they are if `spike` is 1, decided on the device.

    By `found_inf`, with which torch's GradScaler tells fused optimizers the same.
    """
    for part in _parts(optimizer):
        part.found_inf = spike


def optimizer_tensors(model: GPT2, optimizer: AnyOptimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter: `blocks.0.attn.qkv.weight.exp_avg`. None before the first step."""
    state = {parameter: values for part in _parts(optimizer) for parameter, values in part.state.items()}
    return {
        f"{name}.{key}": value for name, parameter in model.named_parameters() for key, value in state.get(parameter, {}).items()
    }


def restore_optimizer(model: GPT2, optimizer: AnyOptimizer, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `optimizer_tensors`. Raises CheckpointError unless every parameter's state is there, and nothing else."""
    if not tensors:
        return
    parameters, owner = dict(model.named_parameters()), _owners(optimizer)
    keys = _keys(model, optimizer)
    expected = {f"{name}.{key}": p.shape if key != "step" else () for name, p in parameters.items() for key in keys[name]}
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
        owner[parameter].state[parameter] = {key: tensors[f"{name}.{key}"].to(parameter.device) for key in keys[name]}


def blank_tensors(model: GPT2, optimizer: AnyOptimizer) -> dict[str, Tensor]:
    """What `optimizer_tensors` is after a step, all zeros: laid out and spread over processes as the parameters are."""
    parameters = dict(model.named_parameters())
    return {
        f"{name}.{key}": torch.zeros(()) if key == "step" else torch.zeros_like(parameters[name], requires_grad=False)
        for name, keys in _keys(model, optimizer).items()
        for key in keys
    }


def parameter_groups(model: GPT2, optimizer: AnyOptimizer) -> list[dict[str, Any]]:
    """The optimizer's groups, ready for JSON: which parameters are updated by which numbers."""
    names = {p: name for name, p in model.named_parameters()}
    return [
        {key: value for key, value in group.items() if key != "params"} | {"params": [names[p] for p in group["params"]]}
        for part in _parts(optimizer)
        for group in part.param_groups
    ]


def check_groups(model: GPT2, optimizer: AnyOptimizer, trainer: Mapping[str, Any]) -> None:
    """Raises CheckpointError if the parameters were not grouped as now, nor decayed as now, where the checkpoint was written."""
    if "parameter_groups" not in trainer:  # a checkpoint from before they were written down
        return
    both = trainer["parameter_groups"], parameter_groups(model, optimizer)
    before, now = ([(group["params"], group["weight_decay"]) for group in groups] for groups in both)
    if before != now:
        raise CheckpointError(
            f"the optimizer had {len(before)} groups of parameters, decayed by {[decay for _, decay in before]}; this one has "
            f"{len(now)}, of other parameters or decayed by {[decay for _, decay in now]}: another version of this code wrote it"
        )


def _keys(model: GPT2, optimizer: AnyOptimizer) -> dict[str, tuple[str, ...]]:
    owner = _owners(optimizer)
    return {name: _MUON_STATE if isinstance(owner[p], Muon) else _ADAMW_STATE for name, p in model.named_parameters()}


def _owners(optimizer: AnyOptimizer) -> dict[Tensor, torch.optim.Optimizer]:
    return {p: part for part in _parts(optimizer) for group in part.param_groups for p in group["params"]}


def _parts(optimizer: AnyOptimizer) -> tuple[torch.optim.Optimizer, ...]:
    return optimizer.parts if isinstance(optimizer, MuonAndAdamW) else (optimizer,)
