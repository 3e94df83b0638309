"""A folded model has the old one's log-probabilities, in any order of folding, and TransformerLens's weights."""

from itertools import permutations

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.convert import transformer_lens as convert
from interp_gpt2.convert.huggingface import to_huggingface
from interp_gpt2.errors import ConfigError, ConversionError, EditError
from interp_gpt2.folding import (
    center_unembed,
    center_writing_weights,
    fold_layer_norm,
    fold_value_biases,
    process_weights,
    refactor_factored_attn_matrices,
)
from interp_gpt2.hooks import tl_name
from interp_gpt2.model import GPT2

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
FOLDS = (fold_layer_norm, center_writing_weights, center_unembed, fold_value_biases)
SHAPES = {
    "ordinary": {},
    "untied": {"tied": False},
    "no biases": {"bias": False},
    "attention only": {"attn_only": True},
    "heads wider than the stream": {"n_heads": 3, "d_head": 12},
    "inverse layer scaling": {"scale_attn_by_inverse_layer_idx": True},
    "no layers": {"n_layers": 0},
    "heads wider than a circuit's rank": {"n_heads": 2, "d_head": 40},
}


def config_with(changes):
    return GPT2Config(**({"n_layers": 2, "n_heads": 4, "d_model": 32, "d_vocab": 50, "n_ctx": 16} | changes))


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def any_model(request, make_gpt2):
    return make_gpt2(config_with(request.param))


def log_probs(model, tokens):
    return model(tokens).log_softmax(-1)


@pytest.mark.parametrize("fold", [*FOLDS, process_weights, refactor_factored_attn_matrices])
@torch.no_grad()
def test_log_probabilities_stay_and_the_old_model_is_untouched(any_model, tokens, fold):
    before = {name: weight.clone() for name, weight in any_model.state_dict().items()}
    folded = fold(any_model)
    torch.testing.assert_close(log_probs(folded, tokens), log_probs(any_model, tokens), atol=1e-5, rtol=1e-5)
    theirs = {weight.data_ptr() for weight in any_model.parameters()}
    assert theirs.isdisjoint(weight.data_ptr() for weight in folded.parameters())
    for weight in folded.parameters():
        weight.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in any_model.state_dict().items())


@torch.no_grad()
def test_they_compose_in_any_order_and_with_layer_norms_first_to_the_same_model(model, tokens):
    expected = process_weights(model.double()).state_dict()
    for order in permutations(FOLDS):
        folded = model
        for fold in order:
            folded = fold(folded)
        torch.testing.assert_close(log_probs(folded, tokens), log_probs(model, tokens), atol=1e-12, rtol=1e-12)
        if order[0] is fold_layer_norm:
            for name, weight in folded.state_dict().items():
                torch.testing.assert_close(weight, expected[name], atol=1e-12, rtol=1e-12, msg=f"{name}, {order}")


@torch.no_grad()
def test_each_fold_leaves_nothing_of_what_it_folds(model, tokens):
    folded = fold_layer_norm(model)
    norms = [module for name, module in folded.named_modules() if name.endswith(("ln1", "ln2", "ln_final"))]
    assert len(norms) == 5
    assert all((norm.weight == 1).all() and not norm.bias.any() for norm in norms)
    _, cache = folded.run_with_cache(tokens)
    torch.testing.assert_close(cache["unembed.in"], cache["ln_final.normalized"])
    _, cache = center_writing_weights(model).run_with_cache(tokens)
    for name in ("embed", "pos_embed", "blocks.0.attn_out", "blocks.1.mlp_out", "blocks.1.resid_post"):
        torch.testing.assert_close(cache[name].mean(-1), torch.zeros(2, 12), atol=1e-6, rtol=0)
    torch.testing.assert_close(center_unembed(model)(tokens).mean(-1), torch.zeros(2, 12), atol=1e-5, rtol=0)
    assert not fold_value_biases(model).b_V.any()


@torch.no_grad()
def test_streams_are_the_old_ones_less_their_mean_after_centring(model, tokens):
    _, old = model.run_with_cache(tokens)
    _, new = center_writing_weights(model).run_with_cache(tokens)
    for name in ("resid_pre", "resid_mid", "resid_post"):
        stream = old.stack(name)
        torch.testing.assert_close(new.stack(name), stream - stream.mean(-1, keepdim=True), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(new["pattern", 1], old["pattern", 1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_folded_model_keeps_dtype_and_mode_and_is_saved_as_what_hugging_face_cannot_read(model, tokens, tmp_path):
    model.train()
    folded = fold_layer_norm(model.bfloat16())
    assert folded.training
    assert {weight.dtype for weight in folded.parameters()} == {torch.bfloat16}
    folded = process_weights(model.float().eval())
    assert not folded.training
    folded.save(tmp_path / "folded")
    back = GPT2.from_pretrained(str(tmp_path / "folded"))
    assert back.config == folded.config
    assert torch.equal(back(tokens), folded(tokens))
    with pytest.raises(ConversionError, match="unembed_bias=True: its unembedding has no bias"):
        to_huggingface(folded)


def affine(W, b):
    """Weights (layer, head, d_model, d_head) with their biases as one more row."""
    return torch.cat([W, b[:, :, None]], 2)


def circuits(model):
    """Every head's QK with its biases, and its OV."""
    QK = affine(model.W_Q, model.b_Q) @ affine(model.W_K, model.b_K).mT
    return QK, model.W_V @ model.W_O


@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"n_heads": 2, "d_head": 40}], ids=str)
@torch.no_grad()
def test_refactored_heads_have_the_same_circuits_in_orthogonal_coordinates(make_gpt2, tokens, changes):
    model = make_gpt2(config_with(changes)).double()
    new = refactor_factored_attn_matrices(model)
    for found, expected in zip(circuits(new), circuits(model), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    assert not new.b_V.any()
    S = torch.linalg.svdvals(circuits(model)[0])[..., : model.config.d_head]
    for W, b in ((new.W_Q, new.b_Q), (new.W_K, new.b_K)):  # of equal norms, the largest first
        gram = affine(W, b).mT @ affine(W, b)
        torch.testing.assert_close(gram, torch.diag_embed(torch.nn.functional.pad(S, (0, gram.shape[-1] - S.shape[-1]))))
    rank = min(model.config.d_head, model.config.d_model)
    torch.testing.assert_close((new.W_O @ new.W_O.mT)[..., :rank, :rank], torch.eye(rank).double().expand(2, len(S[0]), -1, -1))
    _, old_cache = model.run_with_cache(tokens, ["*attn_scores", "*pattern", "*attn_out", "*z"])
    _, cache = new.run_with_cache(tokens, ["*attn_scores", "*pattern", "*attn_out", "*result", "*z"])
    for name, value in cache.items():
        if name.endswith("z"):
            torch.testing.assert_close(value.norm(dim=-1), cache["result", int(name.split(".")[1])].norm(dim=-1))
        elif not name.endswith("result"):
            torch.testing.assert_close(value, old_cache[name], atol=1e-11, rtol=1e-11)


def test_what_would_not_be_equal_is_refused(make_gpt2, model):
    toy = make_gpt2(config_with({"layer_norm": False}))
    for fold in (fold_layer_norm, center_writing_weights):
        with pytest.raises(ConfigError, match="without layer norms"):
            fold(toy)
    with pytest.raises(EditError, match="standing edits cannot be folded"):
        fold_value_biases(model.with_edits({("z", 0): lambda z, site: z * 0}))


@torch.no_grad()
def test_a_model_without_layer_norms_is_processed_as_far_as_it_goes(make_gpt2, tokens):
    toy = make_gpt2(config_with({"layer_norm": False}))
    folded = process_weights(toy)
    torch.testing.assert_close(log_probs(folded, tokens), log_probs(toy, tokens), atol=1e-5, rtol=1e-5)
    assert not folded.b_V.any()


@pytest.mark.hooked_transformer
@torch.no_grad()
def test_weights_and_activations_are_those_transformer_lens_makes(any_model, tokens):
    hooked = convert.to_hooked_transformer(any_model)
    hooked.cfg.normalization_type = "LNPre"
    theirs = type(hooked)(hooked.cfg)
    theirs.load_and_process_state_dict(hooked.state_dict())
    folded = process_weights(any_model)
    ours = convert.hooked_state_dict(folded)
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(ours[name], weight, atol=1e-5, rtol=1e-5, msg=name)
    _, cache = folded.run_with_cache(tokens)
    logits, their_cache = theirs.run_with_cache(tokens)
    torch.testing.assert_close(folded(tokens), logits, atol=1e-5, rtol=1e-5)
    for name, value in cache.items():
        torch.testing.assert_close(value, their_cache[tl_name(name)], atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.hooked_transformer
@torch.no_grad()
def test_refactored_heads_are_those_transformer_lens_makes_but_for_signs(model, tokens):
    hooked = convert.to_hooked_transformer(model)
    hooked.cfg.normalization_type = "LNPre"
    theirs = type(hooked)(hooked.cfg)
    theirs.load_and_process_state_dict(hooked.state_dict(), refactor_factored_attn_matrices=True)
    ours = refactor_factored_attn_matrices(process_weights(model))
    torch.testing.assert_close(ours(tokens).log_softmax(-1), theirs(tokens).log_softmax(-1), atol=1e-5, rtol=1e-5)
    for found, expected in zip(circuits(ours), circuits(theirs), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K"):
        torch.testing.assert_close(getattr(ours, name).abs(), getattr(theirs, name).abs(), atol=2e-4, rtol=1e-3, msg=name)
    torch.testing.assert_close(ours.b_O, theirs.b_O, atol=1e-5, rtol=1e-5)


@pytest.mark.hooked_transformer
@torch.no_grad()
def test_a_folded_model_goes_to_transformer_lens_and_back(model, tokens):
    folded = process_weights(model)
    hooked = convert.to_hooked_transformer(folded)
    torch.testing.assert_close(hooked(tokens), folded(tokens), atol=1e-5, rtol=1e-5)
    back = convert.from_hooked_transformer(hooked)
    assert back.config == folded.config
    assert all(torch.equal(weight, back.state_dict()[name]) for name, weight in folded.state_dict().items())
