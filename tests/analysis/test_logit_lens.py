import math

import pytest
import torch

from interp_gpt2.analysis import logit_lens as module
from interp_gpt2.analysis.logit_lens import (
    NO_TARGET,
    LensByLayer,
    LensOfPrompt,
    logit_lens,
    logit_lens_of,
    next_tokens,
    residual_streams,
)
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

N_LAYERS, D_VOCAB = 3, 11


@pytest.fixture(scope="module")
def model():
    model = GPT2(GPT2Config(n_layers=N_LAYERS, n_heads=2, d_model=16, d_vocab=D_VOCAB, n_ctx=12, embed_std=0.5), seed=1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("blocks") and weight.ndim == 2:
                weight.mul_(15)  # so that layers change their minds
    return model


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, D_VOCAB, (4, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def lens(model, tokens):
    return logit_lens(model, tokens)


def bare_model(d_vocab: int) -> GPT2:
    """No layer norm and an identity unembedding: a stream is its own logits."""
    config = GPT2Config(n_layers=1, n_heads=1, d_model=d_vocab, d_vocab=d_vocab, n_ctx=4, layer_norm=False, tied=False)
    model = GPT2(config)
    with torch.no_grad():
        model.W_U.copy_(torch.eye(d_vocab))
    return model


def test_the_last_layers_lens_is_the_models_output_exactly(model, tokens, lens):
    log_probs = model(tokens).double().log_softmax(-1)
    assert torch.equal(lens.target_log_probability[-1, :, :-1], log_probs[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0])
    assert torch.equal(lens.top_tokens[-1, ..., 0], log_probs.argmax(-1))
    assert (lens.kl[-1] == 0).all()


def test_each_layers_lens_is_its_stream_through_the_final_norm_and_unembedding(model, tokens, lens):
    _, cache = model.run_with_cache(tokens, ["*resid_pre", "*resid_post"])
    final = model(tokens).detach().double().log_softmax(-1)
    assert lens.kl[0].mean() > 0.5
    for layer, (label, hook_point) in enumerate(zip(lens.labels, lens.hook_points, strict=True)):
        logits = model.ln_final(cache[hook_point]) @ model.W_U
        log_probs = logits.detach().double().log_softmax(-1)
        kl = torch.nn.functional.kl_div(log_probs, final, reduction="none", log_target=True).sum(-1)
        entropy = torch.distributions.Categorical(logits=log_probs).entropy()
        # The unembedding here is another matrix product than nn.functional.linear: float32 rounding of logits below 10.
        assert torch.allclose(lens.kl[layer], kl, atol=1e-5), label
        assert torch.allclose(lens.entropy[layer], entropy, atol=1e-5), label


def test_layers_are_labelled_from_the_embedding_up(lens):
    assert lens.labels == ("embed", "L0", "L1", "L2")
    assert lens.hook_points == ("blocks.0.resid_pre", "blocks.0.resid_post", "blocks.1.resid_post", "blocks.2.resid_post")
    assert lens.kl.shape == (N_LAYERS + 1, 4, 9)
    assert lens.top_tokens.shape == (N_LAYERS + 1, 4, 9, 5)


def test_the_last_position_has_no_target(lens, tokens):
    assert torch.equal(lens.targets[:, :-1], tokens[:, 1:])
    assert (lens.targets[:, -1] == NO_TARGET).all()
    assert (lens.target_rank[..., -1] == NO_TARGET).all()
    assert lens.target_probability[..., -1].isnan().all()
    assert not lens.target_probability[..., :-1].isnan().any()
    assert (lens.target_rank[..., :-1] >= 0).all()


def test_rank_and_top_tokens_of_a_hand_made_stream():
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0])
    streams = logits.expand(1, 1, 4, 4)
    lens = logit_lens_of(bare_model(4), streams, torch.tensor([[1, 3, 2, 0]]), top_k=4)
    assert lens.target_rank[0, 0].tolist() == [0, 1, 2, 3]
    assert lens.top_tokens[0, 0, 0].tolist() == [1, 3, 2, 0]
    probabilities = logits.double().softmax(-1)
    assert torch.equal(lens.top_probabilities[0, 0, 0], probabilities[[1, 3, 2, 0]])
    assert torch.allclose(lens.target_probability[0, 0], probabilities[[1, 3, 2, 0]], atol=1e-15)


def test_ties_go_to_the_lower_token_id():
    streams = torch.tensor([1.0, 2.0, 2.0, 2.0]).expand(1, 1, 4, 4)
    lens = logit_lens_of(bare_model(4), streams, torch.tensor([[0, 1, 2, 3]]), top_k=4)
    assert lens.top_tokens[0, 0, 0].tolist() == [1, 2, 3, 0]
    assert lens.target_rank[0, 0].tolist() == [3, 0, 1, 2]


def test_ranks_agree_with_the_order_of_top_tokens(model, tokens):
    lens = logit_lens(model, tokens, top_k=D_VOCAB)
    found = lens.top_tokens[:, :, :-1].gather(-1, lens.target_rank[:, :, :-1, None])[..., 0]
    assert torch.equal(found, tokens[:, 1:].expand_as(found))


def test_entropy_and_kl_of_known_distributions():
    streams = torch.stack([torch.zeros(1, 1, 4), torch.tensor([100.0, 0, 0, 0])[None, None]])
    lens = logit_lens_of(bare_model(4), streams, torch.tensor([[2]]), top_k=1)
    assert lens.entropy[:, 0, 0].tolist() == pytest.approx([math.log(4), 0.0], abs=1e-12)
    # The output is certain, the first stream knows nothing: KL = ln 4.
    assert lens.kl[:, 0, 0].tolist() == pytest.approx([math.log(4), 0.0], abs=1e-12)


@pytest.mark.parametrize("chunk", [1, 7 * D_VOCAB, 2 * 9 * D_VOCAB])
def test_chunks_change_nothing(model, tokens, lens, chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    chunked = logit_lens(model, tokens)
    assert torch.equal(chunked.top_tokens, lens.top_tokens)
    assert torch.equal(chunked.target_rank, lens.target_rank)
    assert torch.allclose(chunked.kl, lens.kl, atol=1e-5)  # a matrix product of fewer rows rounds otherwise
    assert (chunked.kl[-1] == 0).all()


def test_edited_streams_can_be_read(model, tokens, lens):
    streams = residual_streams(model, tokens)
    assert torch.equal(logit_lens_of(model, streams, next_tokens(tokens)).kl, lens.kl)
    streams[1] = 0
    of_zero = logit_lens_of(model, streams, next_tokens(tokens))
    assert torch.equal(of_zero.kl[2], lens.kl[2])
    assert not torch.allclose(of_zero.kl[1], lens.kl[1])


def test_a_model_without_layers_has_one_lens(tokens):
    model = GPT2(GPT2Config(n_layers=0, n_heads=1, d_model=8, d_vocab=D_VOCAB, n_ctx=12))
    lens = logit_lens(model, tokens)
    assert lens.labels == ("embed",)
    assert (lens.kl == 0).all()


def test_what_has_no_lens_is_refused(model, tokens):
    with pytest.raises(AnalysisError, match="top_k=12"):
        logit_lens(model, tokens, top_k=12)
    with pytest.raises(AnalysisError, match="0 to 10"):
        logit_lens(model, tokens, targets=torch.full_like(tokens, 11))
    with pytest.raises(AnalysisError, match="are not"):
        logit_lens_of(model, residual_streams(model, tokens), tokens[:, :-1])
    diverged = GPT2(model.config)
    with torch.no_grad():
        diverged.W_U[0] = math.nan
    with pytest.raises(AnalysisError, match="diverged"):
        logit_lens(diverged, tokens)


def test_rows_by_layer_average_the_lens(model, tokens, lens):
    rows = {(row["metric"], row.get("label")): row for row in LensByLayer(tokens, batch_size=3)(model)}
    assert rows["lens_loss_uniform", None]["value"] == math.log(D_VOCAB)
    assert "layer" not in rows["lens_kl", "embed"]
    for layer, label in enumerate(lens.labels):
        assert rows["lens_kl", label]["value"] == pytest.approx(float(lens.kl[layer].mean()), abs=1e-6)
        loss = -lens.target_probability[layer, :, :-1].log()
        row = rows["lens_loss", label]
        assert row["value"] == pytest.approx(float(loss.mean()), abs=1e-6)
        assert row["n"] == 4 * 8
        assert row["high"] - row["value"] == pytest.approx(3.18245 * float(loss.mean(1).std()) / 2, rel=1e-3)  # t, 3 degrees
    final = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert rows["lens_loss", "L2"]["value"] == pytest.approx(final.item(), abs=1e-5)
    log_probs = model(tokens).log_softmax(-1)
    to_even_odds = torch.nn.functional.kl_div(torch.full_like(log_probs, 1 / D_VOCAB).log(), log_probs, log_target=True,
                                              reduction="none").sum(-1).mean()  # fmt: skip
    assert rows["lens_kl_uniform", None]["value"] == pytest.approx(to_even_odds.item(), abs=1e-5)
    assert rows["lens_top1_uniform", None]["value"] == 1 / D_VOCAB
    assert rows["lens_rank_uniform", None]["value"] == (D_VOCAB - 1) / 2


def test_a_lens_that_knows_nothing_scores_its_yardsticks():
    """No layers and no embeddings: even odds everywhere, and ranks that follow the ids."""
    model = GPT2(GPT2Config(n_layers=0, n_heads=1, d_model=8, d_vocab=D_VOCAB, n_ctx=12)).eval()
    with torch.no_grad():
        model.wte.weight.zero_()
    tokens = torch.arange(D_VOCAB)[None].repeat(3, 1)  # predicts 1 to 10, once each
    rows = {(row["metric"], row.get("label")): row["value"] for row in LensByLayer(tokens)(model)}
    for metric in ("lens_loss", "lens_kl", "lens_entropy"):
        assert rows[metric, "embed"] == pytest.approx(rows[f"{metric}_uniform", None], abs=1e-12)


def test_a_context_of_one_token_predicts_nothing_and_says_so():
    model = GPT2(GPT2Config(n_layers=1, n_heads=1, d_model=8, d_vocab=D_VOCAB, n_ctx=1)).eval()
    rows = {(row["metric"], row.get("label")): row for row in LensByLayer(torch.zeros(3, 1, dtype=torch.long))(model)}
    assert "value" not in rows["lens_loss", "L0"]
    assert rows["lens_loss", "L0"]["n"] == 0
    assert rows["lens_kl", "L0"]["value"] == 0


def test_rows_of_one_sequence_have_no_interval(model, tokens):
    assert all("low" not in row for row in LensByLayer(tokens[:1])(model))


def test_rows_of_a_prompt_are_the_lens_position_by_position(model, tokens):
    rows = LensOfPrompt(tokens[:1])(model)
    lens = logit_lens(model, tokens[:1])
    ranks = [row["value"] for row in rows if row["metric"] == "target_rank"]
    assert ranks == lens.target_rank[:, 0, :-1].flatten().tolist()
    tops = [row["value"] for row in rows if row["metric"] == "top_token" and row["label"] == "L1"]
    assert tops == lens.top_tokens[2, 0, :, 0].tolist()
    with pytest.raises(AnalysisError, match="one sequence"):
        LensOfPrompt(tokens)
