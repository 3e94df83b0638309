"""A head's share of a logit, split by source: it adds up, is what removing a source changes, and finds planted sources."""

import pytest
import torch

from interp_gpt2.analysis.logit_attribution import direct_logit_attribution
from interp_gpt2.analysis.source_attribution import source_attribution
from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.transformer_lens import to_hooked_transformer
from interp_gpt2.errors import AnalysisError, HookNameError, TokenError
from interp_gpt2.folding import process_weights
from interp_gpt2.planted import induction_pair


@pytest.fixture
def targets():
    return torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(8))


@torch.no_grad()
def test_sources_add_up_to_the_shares_of_heads(any_model, tokens, targets):
    _, cache = any_model.run_with_cache(tokens)
    for incorrect in (None, 7):
        found = source_attribution(any_model, cache, targets, incorrect)
        direct = direct_logit_attribution(any_model, cache, targets, incorrect, parts="heads")
        n_heads = len(found.labels)
        assert direct.labels[:n_heads] == found.labels
        torch.testing.assert_close(found.shares, direct.values[:n_heads], atol=1e-5, rtol=0)
        torch.testing.assert_close(found.values.sum(-1), direct.values[:n_heads], atol=1e-5, rtol=0)
        assert not found.residue.numel() or found.residue.abs().max() < 1e-5
        assert not found.values.triu(1).any()


@torch.no_grad()
def test_a_value_is_what_hiding_the_source_from_the_head_changes(model, tokens, targets):
    """With the final scale and the last MLP held still: the causal meaning of a direct effect."""
    logits, cache = model.run_with_cache(tokens)

    def hide(pattern, site):
        pattern[:, 2, 9, 4] = 0
        return pattern

    edits = {("pattern", 1): hide}
    edits |= {name: lambda value, site, name=name: cache[name] for name in ("blocks.1.mlp_out", "ln_final.scale")}
    change = (logits - model.run_with_edits(tokens, edits)).gather(-1, targets[..., None])[:, 9, 0]
    found = source_attribution(model, cache, targets, layers=[1])
    torch.testing.assert_close(found.values[found.labels.index("L1H2"), :, 9, 4], change, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_destinations_and_layers_can_be_chosen(model, tokens, targets):
    _, cache = model.run_with_cache(tokens)
    whole = source_attribution(model, cache, targets)
    some = source_attribution(model, cache, targets[:, [3, -1]], layers=[1], positions=[3, -1])
    torch.testing.assert_close(some.values, whole.values[4:, :, [3, 11]])
    assert some.labels == ("L1H0", "L1H1", "L1H2", "L1H3")
    assert some.destinations.tolist() == [3, 11]


@torch.no_grad()
def test_padding_says_nothing(model, tokens):
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    found = source_attribution(model, cache, 7)
    assert not found.values[:, 0, :, :3].any()
    assert found.residue.abs().max() < 1e-5


@torch.no_grad()
def test_an_edit_of_z_is_the_residue(model, tokens):
    _, cache = model.run_with_cache(tokens, edits={("z", 1): lambda z, site: z + 1})
    found = source_attribution(model, cache, 7)
    ones = torch.ones(2, 12, 4, 8)
    _, plain = model.run_with_cache(tokens, edits={("z", 1): lambda z, site: ones})
    assert found.residue[:4].abs().max() < 1e-5
    scales = plain["ln_final.scale"][..., 0] / cache["ln_final.scale"][..., 0]
    expected = source_attribution(model, plain, 7).shares[4:] * scales
    torch.testing.assert_close(found.residue[4:], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_induction_head_has_its_answer_from_where_it_was_and_no_other_head_has_any():
    circuit = induction_pair((0, 1), (1, 2), noise=0.005)
    tokens = circuit.repeated_tokens(4, 15)
    _, cache = circuit.model.run_with_cache(tokens)
    destinations = list(range(16, 30))
    found = source_attribution(circuit.model, cache, tokens[:, 17:], positions=destinations)
    frame = found.to_frame()
    planted = frame[: 4 * len(destinations)]  # one source for each destination of each sequence
    assert set(planted["label"]) == {"L1H2"}
    assert (planted["source"] == planted["destination"] - 14).all()
    assert planted["value"].min() > 10
    assert frame[4 * len(destinations) :]["value"].abs().max() < 0.5


@torch.no_grad()
def test_the_table_has_a_row_for_each_source_that_is_seen(model, tokens):
    _, cache = model.run_with_cache(tokens)
    found = source_attribution(model, cache, 7, positions=[2, 5])
    frame = found.to_frame()
    assert len(frame) == 8 * 2 * (3 + 6)
    assert frame["value"].abs().is_monotonic_decreasing
    row = frame.iloc[5]
    at = found.heads.index((row["layer"], row["head"]))
    assert found.values[at, row["batch"], [2, 5].index(row["destination"]), row["source"]] == pytest.approx(row["value"])
    sums = frame.groupby(["label", "batch", "destination"])[["value", "share"]].agg({"value": "sum", "share": "first"})
    assert (sums["value"] - sums["share"]).abs().max() < 1e-5


@pytest.mark.hooked_transformer
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
@torch.no_grad()
def test_values_are_transformer_lenss_of_the_split_results(make_gpt2, tokens, targets):
    model = process_weights(make_gpt2(GPT2Config(n_layers=2, n_heads=4, d_model=32, d_vocab=50, n_ctx=16)))
    hooked = to_hooked_transformer(model)
    _, cache = hooked.run_with_cache(tokens)
    _, own = model.run_with_cache(tokens)
    found = source_attribution(model, own, targets)
    for layer in range(2):
        moved = torch.einsum("bhqk,bkhe,hed->hkbqd", cache["pattern", layer], cache["v", layer], hooked.W_O[layer])
        expected = cache.logit_attrs(moved.flatten(0, 1), targets).unflatten(0, (4, 12))  # (head, key, batch, query)
        ours = found.values[4 * layer : 4 * layer + 4]
        torch.testing.assert_close(ours, expected.permute(0, 2, 3, 1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_what_cannot_be_split_is_refused(model, tokens):
    _, cache = model.run_with_cache(tokens)
    with pytest.raises(AnalysisError, match="layer 2 is not among"):
        source_attribution(model, cache, 7, layers=[2])
    with pytest.raises(TokenError, match="token 50"):
        source_attribution(model, cache, 50)
    _, cache = model.run_with_cache(tokens, ["*pattern", "*attn.z", "ln_final.scale", "unembed.out"])
    with pytest.raises(HookNameError, match="was not recorded"):
        source_attribution(model, cache, 7)
    parts = ["*pattern", "*attn.z", "*attn.v", "ln_final.scale", "unembed.out"]
    _, cache = model.run_with_cache(
        tokens, parts, keep=lambda value: value[:, :, -1:] if value.shape[1:] == (4, 12, 12) else value
    )
    with pytest.raises(AnalysisError, match=r"\(1, 12\) queries by keys where v has 12"):
        source_attribution(model, cache, 7)
