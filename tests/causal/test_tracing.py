"""Tracing finds the states through which a fact was set to travel, and equals a loop over cells, with our hooks and theirs."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from interp_gpt2.causal.metrics import logit, logit_difference, probability
from interp_gpt2.causal.tracing import causal_trace
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, TokenError
from interp_gpt2.model import GPT2

SUBJECT = [2, 3]


@pytest.fixture
def deep(make_gpt2) -> GPT2:
    return make_gpt2(GPT2Config(n_layers=3, n_heads=2, d_model=16, d_vocab=50, n_ctx=16))


@pytest.fixture
def prompts() -> Tensor:
    return torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(1))


def noise_of(trace, seed: int, n_samples: int, d_model: int) -> Tensor:
    n_pairs, n_pos = trace.tokens.shape
    drawn = torch.randn(n_pairs, n_samples, n_pos, d_model, generator=torch.Generator().manual_seed(seed))
    return trace.noise_std * drawn * trace.subject[:, None, :, None]


@pytest.mark.parametrize(("point", "window"), [("resid_post", 1), ("attn_out", 1), ("mlp_out", 2), ("attn_out", 3)])
def test_every_cell_is_a_corrupted_run_with_one_state_restored(deep, prompts, point, window):
    metric, n_samples = logit_difference([3, 4], [5, 6]), 3
    found = causal_trace(deep, prompts, SUBJECT, metric, point, window=window, n_samples=n_samples, seed=4, batch_size=9)
    noise = noise_of(found, 4, n_samples, 16)
    clean = deep.run_with_cache(prompts)[1]
    for sample in range(n_samples):
        corrupt = {"embed": lambda value, site, sample=sample: value + noise[:, sample]}
        corrupted = metric(deep.run_with_edits(prompts, corrupt))
        torch.testing.assert_close(found.corrupted[:, sample].float(), corrupted, rtol=1e-4, atol=1e-4)
        for layer in range(3):
            for pos in range(7):
                edits = dict(corrupt)
                for at in range(layer - window // 2, layer + math.ceil(window / 2)):
                    if 0 <= at < 3:

                        def restore(value, site, pos=pos):
                            value[:, pos] = clean[site.name][:, pos]
                            return value

                        edits[point, at] = restore
                expected = metric(deep.run_with_edits(prompts, edits))
                torch.testing.assert_close(found.restored[layer, pos, :, sample].float(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("point", "window"), [("resid_post", 1), ("attn_out", 2), ("mlp_out", 3)])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_starting_at_the_restored_layer_is_running_everything(deep, prompts, point, window, batch_size):
    given = {"window": window, "n_samples": 2, "batch_size": batch_size}
    short, naive = (
        causal_trace(deep, prompts, SUBJECT, probability([3, 4]), point, **given, naive=naive) for naive in (False, True)
    )
    torch.testing.assert_close(short.restored, naive.restored, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(short.corrupted, naive.corrupted, rtol=1e-5, atol=1e-6)


@pytest.mark.hooked_transformer
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_transformer_lens_traces_the_same(deep, prompts):
    from interp_gpt2.convert.transformer_lens import to_hooked_transformer

    hooked, metric = to_hooked_transformer(deep), probability([3, 4])
    found = causal_trace(deep, prompts, SUBJECT, metric, n_samples=1, seed=2)
    noise = noise_of(found, 2, 1, 16)[:, 0]
    _, clean = hooked.run_with_cache(prompts)
    corrupt = ("hook_embed", lambda value, hook: value + noise)
    for layer in range(3):
        for pos in range(7):

            def restore(value, hook, pos=pos):
                value[:, pos] = clean[hook.name][:, pos]
                return value

            logits = hooked.run_with_hooks(prompts, fwd_hooks=[corrupt, (f"blocks.{layer}.hook_resid_post", restore)])
            torch.testing.assert_close(found.restored[layer, pos, :, 0].float(), metric(logits), rtol=1e-4, atol=1e-5)


def test_what_cannot_matter_does_not_and_what_is_everything_is(deep, prompts):
    found = causal_trace(deep, prompts, SUBJECT, logit_difference([3, 4], [5, 6]), n_samples=4)
    assert found.indirect_effects[:, :2].abs().max() < 1e-5  # before the subject nothing is corrupted
    last = found.restored[-1, -1]
    torch.testing.assert_close(last, found.clean[:, None].expand_as(last), rtol=1e-5, atol=1e-5)  # all that is unembedded
    assert found.indirect_effects[-1, :-1].abs().max() < 1e-5  # no layer is left to carry it to the answer


def planted() -> GPT2:
    """Block 1 copies the first token's embedding to the last position, where the unembedding reads it; block 0 does nothing."""
    d = 8
    config = GPT2Config(
        n_layers=3, n_heads=1, d_model=d, d_vocab=20, n_ctx=5, attn_only=True, layer_norm=False, bias=False, tied=False
    )
    model = GPT2(config).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.wte.weight[:10] = torch.randn(10, d, generator=draw)
        model.lm_head.weight[:10] = model.wte.weight[:10]
        model.blocks[1].attn.qkv.weight[2 * d :] = torch.eye(d)
        model.blocks[1].attn.proj.weight.copy_(5 * torch.eye(d))
    return model


def test_the_planted_path_is_found():
    model, prompts = planted(), torch.tensor([[3, 15, 16, 17, 18], [5, 15, 16, 17, 18]])
    metric = logit([3, 5])
    found = causal_trace(model, prompts, [0], metric, n_samples=200, seed=1)
    torch.testing.assert_close(model(prompts)[:, -1].gather(1, prompts[:, :1])[:, 0].double(), found.clean)
    full = found.clean[:, None] - found.corrupted
    cells = found.indirect_effects
    for layer, pos in ((0, 0), (1, 4), (2, 4)):  # the subject before block 1 reads it; the last position afterwards
        torch.testing.assert_close(cells[layer, pos], full, rtol=1e-4, atol=1e-4)
        cells[layer, pos] = 0
    assert cells.abs().max() < 1e-5
    written = causal_trace(model, prompts, [0], metric, "attn_out", n_samples=200, seed=1)
    torch.testing.assert_close(written.indirect_effects[1, 4], full, rtol=1e-4, atol=1e-4)
    assert written.indirect_effects[[0, 2]].abs().max() < 1e-5


def test_noise_is_three_standard_deviations_of_the_subjects_embeddings(deep, prompts):
    found = causal_trace(deep, prompts, SUBJECT, logit(3), n_samples=2)
    assert found.noise_std == pytest.approx(3 * float(deep.wte(prompts[:, 2:4]).detach().std()))
    given = causal_trace(deep, prompts, SUBJECT, logit(3), n_samples=2, noise_std=0.5)
    assert given.noise_std == 0.5
    first, again, other = (causal_trace(deep, prompts, SUBJECT, logit(3), n_samples=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.restored, again.restored)
    assert not torch.equal(first.corrupted, other.corrupted)


def test_each_prompt_may_have_its_own_subject(deep, prompts):
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, 1], mask[1, 4:6] = True, True
    found = causal_trace(deep, prompts, mask, logit([3, 4]), n_samples=2, noise_std=1.0)
    assert torch.equal(found.subject, mask)
    assert found.indirect_effects[:, 0].abs().max() < 1e-5
    assert found.indirect_effects[:, :4, 1].abs().max() < 1e-5
    assert found.indirect_effects[0, 1, 0].abs().max() > 1e-3


def test_a_table_has_a_row_for_each_cell(deep, prompts):
    found = causal_trace(deep, prompts, SUBJECT, logit([3, 4]), n_samples=5)
    table = found.to_frame()
    assert list(zip(table.layer, table.position, strict=True)) == [(layer, pos) for layer in range(3) for pos in range(7)]
    effects = found.indirect_effects[1, 3].mean(-1)
    row = table.iloc[7 + 3]
    assert row.indirect_effect == pytest.approx(float(effects.mean()))
    assert row.stderr == pytest.approx(float(effects.std()) / math.sqrt(2))
    assert table.subject.tolist() == [pos in SUBJECT for _ in range(3) for pos in range(7)]
    single = causal_trace(deep, prompts[:1], SUBJECT, logit(3), n_samples=5)
    np.testing.assert_allclose(single.stderr[0, 3], single.indirect_effects[0, 3, 0].std() / math.sqrt(5))


def test_nothing_is_left_on_the_model(deep, prompts):
    before = {name: weight.clone() for name, weight in deep.state_dict().items()}
    logits = deep(prompts)
    causal_trace(deep, prompts, SUBJECT, logit(3), n_samples=2)
    assert torch.equal(deep(prompts), logits)
    assert all(torch.equal(weight, before[name]) for name, weight in deep.state_dict().items())
    assert all(weight.grad is None for weight in deep.parameters())


@pytest.mark.parametrize(
    ("subject", "options", "message"),
    [
        ([7], {}, "no position 7: positions are 0 to 6"),
        ([-1], {}, "no position -1"),
        ([], {}, "prompt 0 has no subject token"),
        (torch.zeros(2, 3, dtype=torch.bool), {}, r"mask has shape \(2, 3\)"),
        (torch.zeros(2, 7, dtype=torch.bool), {}, "prompt 0 has no subject token"),
        ([2], {"n_samples": 0}, "nothing to trace"),
        ([2], {"point": "resid_post", "window": 2}, "window=2: of 'resid_post', 1 to 1"),
        ([2], {"point": "mlp_out", "window": 4}, "1 to 3 layers"),
        ([2], {"point": "z"}, "'z' cannot be restored here"),
        ([2], {"noise_std": 0.0}, "corrupts nothing"),
        ([2], {"noise_std": math.nan}, "corrupts nothing"),
        ([2], {"batch_size": 0}, "batch_size=0"),
        ([False, True], {}, "whole numbers"),
        ([1.7], {}, "whole numbers"),
        ("France", {}, "whole numbers"),
        (None, {}, "prompt 0 has no subject token"),
    ],
)
def test_holding_it_wrong(deep, prompts, subject, options, message):
    with pytest.raises(AnalysisError, match=message):
        causal_trace(deep, prompts, subject, logit(3), **options)


def test_a_metric_that_looks_before_the_subject_is_refused(deep, prompts):
    with pytest.raises(AnalysisError, match="noise on the subject changes no logit"):
        causal_trace(deep, prompts, [3], logit(3, pos=1))


def test_a_metric_must_know_its_prompts(deep, prompts):
    with pytest.raises(AnalysisError, match="needs a Metric"):
        causal_trace(deep, prompts, SUBJECT, lambda logits: logits[:, -1, 3])
    with pytest.raises(TokenError, match="token 50"):
        causal_trace(deep, prompts, SUBJECT, logit(50))
    with pytest.raises(TokenError, match="not in the vocabulary"):
        causal_trace(deep, prompts + 50, SUBJECT, logit(3))
