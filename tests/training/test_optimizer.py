"""Muon's matrices are orthogonal, it is torch's where torch has it, and its state comes back."""

from dataclasses import replace

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import CheckpointError
from interp_gpt2.model import GPT2
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.muon import Muon, orthogonalised
from interp_gpt2.training.optimizer import MuonAndAdamW, make_optimizer, optimizer_tensors, restore_optimizer, skip_where

CONFIG = TrainConfig(model=GPT2Config(n_layers=2, n_heads=2, d_model=16, d_vocab=20, n_ctx=8), optimizer="muon", lr=1e-2)


def step(model: GPT2, optimizer, seed: int = 0) -> None:
    optimizer.zero_grad()
    tokens = torch.randint(20, (4, 8), generator=torch.Generator().manual_seed(seed))
    model(tokens).logsumexp(-1).mean().backward()
    optimizer.step()


@pytest.mark.parametrize("shape", [(3, 24, 16), (2, 16, 40)])
def test_orthogonalised_matrices_keep_their_directions_and_lose_their_sizes(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    U, S, V = torch.linalg.svd(matrices, full_matrices=False)
    inner = U.mT @ orthogonalised(matrices) @ V.mT  # diagonal where the directions are the same
    sizes = inner.diagonal(dim1=1, dim2=2)
    assert 0.5 < sizes.min() < sizes.max() < 1.4
    assert S.max() / S.min() > 3
    assert (inner - torch.diag_embed(sizes)).abs().max() < 0.06  # bfloat16, through five iterations


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon to compare with")
def test_it_is_torchs_muon_on_matrices_that_stand_alone():
    weights = [torch.nn.Parameter(torch.randn(12, 8, generator=torch.Generator().manual_seed(0))) for _ in range(2)]
    ours = Muon([{"params": [weights[0]]}], lr=0.02, weight_decay=0.1)
    theirs = torch.optim.Muon([weights[1]], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for i in range(3):
        for weight, optimizer in zip(weights, (ours, theirs), strict=True):
            weight.grad = torch.randn(12, 8, generator=torch.Generator().manual_seed(i))
            optimizer.step()
    update = 0.02 * 0.2 * 12**0.5
    assert torch.allclose(weights[0], weights[1], atol=0.05 * update)  # products in bfloat16 round in another order


def test_q_k_and_v_are_made_orthogonal_each_by_itself():
    model = GPT2(CONFIG.model)
    optimizer = make_optimizer(model, replace(CONFIG, weight_decay=0.0))
    before = model.blocks[0].attn.qkv.weight.detach().clone()
    step(model, optimizer)
    moved = (before - model.blocks[0].attn.qkv.weight.detach()) / (CONFIG.lr * 0.2 * 16**0.5)
    for part in moved.view(3, 16, 16):
        assert torch.linalg.matrix_norm(part, 2) < 1.4
        assert part.norm() > 1


def test_muon_has_the_blocks_matrices_and_adamw_the_rest():
    model = GPT2(CONFIG.model)
    optimizer = make_optimizer(model, CONFIG)
    assert isinstance(optimizer, MuonAndAdamW)
    step(model, optimizer)
    state = optimizer_tensors(model, optimizer)
    muon = {name.removesuffix(".momentum") for name in state if name.endswith(".momentum")}
    assert muon == {name for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
    assert len(state) == len(muon) + 3 * (len(list(model.parameters())) - len(muon))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_from_its_saved_state_an_optimizer_goes_on_bit_for_bit(kind):
    config = replace(CONFIG, optimizer=kind)
    model = GPT2(config.model)
    optimizer = make_optimizer(model, config)
    step(model, optimizer, 0)
    other = GPT2(config.model)
    other.load_state_dict(model.state_dict())
    resumed = make_optimizer(other, config)
    restore_optimizer(other, resumed, {name: value.clone() for name, value in optimizer_tensors(model, optimizer).items()})
    step(model, optimizer, 1)
    step(other, resumed, 1)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name


def test_one_optimizers_state_is_refused_by_the_other():
    model = GPT2(CONFIG.model)
    muon, adamw = (make_optimizer(model, replace(CONFIG, optimizer=kind)) for kind in ("muon", "adamw"))
    step(model, muon)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        restore_optimizer(model, adamw, optimizer_tensors(model, muon))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_that_is_skipped_leaves_weights_and_state_and_the_next_is_as_if_it_had_not_been(kind):
    config = replace(CONFIG, optimizer=kind)
    ends = []
    for with_a_spike in (True, False):
        model = GPT2(config.model)
        optimizer = make_optimizer(model, config)
        skip_where(optimizer, torch.tensor(0.0))
        step(model, optimizer, 0)
        if with_a_spike:
            before = {name: p.clone() for name, p in (model.state_dict() | optimizer_tensors(model, optimizer)).items()}
            skip_where(optimizer, torch.tensor(1.0))
            step(model, optimizer, 7)
            after = model.state_dict() | optimizer_tensors(model, optimizer)
            assert all(torch.equal(before[name], after[name]) for name in before)
        skip_where(optimizer, torch.tensor(0.0))
        step(model, optimizer, 1)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
