"""The induction heads of a trained model, found and taken apart by the tutorials' calls, with either library.

The model is the last checkpoint of `demo-induction` (two layers of two heads, letters), loaded as a HookedTransformer is.
Its previous-token head L0H1 writes which letter came before, the keys of its induction head L1H0 read it, and what follows
is copied; L1H1 does the same less well. Letters in random order, twice: every second half can be predicted, no first half.
"""

from functools import partial
from pathlib import Path

import pytest
import torch

from interp_gpt2 import Run
from interp_gpt2 import transformer_lens as ours
from interp_gpt2.convert.transformer_lens import to_hooked_transformer
from interp_gpt2.folding import process_weights

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
RUN = Path(__file__).parents[1] / "data" / "study" / "demo-induction"
LENGTH = 16  # of the alphabet, and of each half


@pytest.fixture(scope="module")
def model():
    return ours.HookedTransformer.from_pretrained(RUN, checkpoint_value=2000)


@pytest.fixture(params=[600, 2000], ids=["before the phase change", "at the end"])
def study_pair(request, theirs, pair_of):
    """The same step of the run, in TransformerLens and loaded by the drop-in."""
    from transformers import AutoTokenizer

    hooked = to_hooked_transformer(process_weights(Run(RUN).model(request.param)))
    tokenizer = AutoTokenizer.from_pretrained(RUN)
    tokenizer.eos_token = tokenizer.pad_token = "A"  # without them TransformerLens tokenizes nothing; neither is used
    hooked.set_tokenizer(tokenizer)
    hooked.cfg.default_prepend_bos = False
    return pair_of(ours.HookedTransformer.from_pretrained(RUN, checkpoint_value=request.param), hooked)


def letters_twice(model, batch=20):
    draw = torch.Generator().manual_seed(0)
    half = torch.stack([torch.randperm(model.cfg.d_vocab, generator=draw) for _ in range(batch)])
    return torch.cat([half, half], 1)


def of_heads(model, score_of_layer):
    return torch.stack([score_of_layer(layer) for layer in range(model.cfg.n_layers)])  # (layer, head)


def log_probs_of_what_comes(logits, tokens):
    return logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


# The recipe; each runs with either library ----------------------------------------------------------------------------


def loss_by_half(lens, model):
    tokens = letters_twice(model)
    found = log_probs_of_what_comes(model(tokens), tokens)
    loss = model(tokens, return_type="loss", loss_per_token=True)
    torch.testing.assert_close(loss, -found)
    return [found[:, : LENGTH - 1].mean(), found[:, LENGTH:].mean()]


def induction_stripe(lens, model):
    store = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)

    def score(pattern, hook):
        store[hook.layer()] = pattern.diagonal(dim1=-2, dim2=-1, offset=1 - LENGTH).mean((0, -1))

    hooks = [(lambda name: name.endswith("pattern"), score)]
    model.run_with_hooks(letters_twice(model), return_type=None, fwd_hooks=hooks)
    return store


def previous_token_stripe(lens, model):
    _, cache = model.run_with_cache(letters_twice(model), names_filter=lambda name: name.endswith("pattern"))
    return of_heads(model, lambda layer: cache["pattern", layer].diagonal(dim1=-2, dim2=-1, offset=-1).mean((0, -1)))


def detected_heads(lens, model):
    text = model.to_string(letters_twice(model)[0])
    return {name: lens.head_detector.detect_head(model, text, name) for name in lens.head_detector.HEAD_NAMES}


def attribution_of_heads(lens, model):
    """Each head's share of the logit of the letter that comes, in the second half."""
    tokens = letters_twice(model)
    logits, cache = model.run_with_cache(tokens)
    second = (LENGTH, 2 * LENGTH - 1)
    heads, labels = cache.stack_head_results(pos_slice=second, return_labels=True)
    parts = cache.decompose_resid(pos_slice=second)
    comes = tokens[:, LENGTH + 1 :]
    shares = cache.logit_attrs(heads, comes, pos_slice=second).mean((1, 2))
    whole = cache.logit_attrs(parts, comes, pos_slice=second).sum(0) + model.b_U[comes]
    torch.testing.assert_close(whole, logits[:, LENGTH:-1].gather(-1, comes[..., None])[..., 0], rtol=1e-4, atol=1e-4)
    return [shares.reshape(model.cfg.n_layers, -1), labels]


def lens_accuracy(lens, model):
    """How often each stream's best guess is the letter that comes, in the second half."""
    tokens = letters_twice(model)
    _, cache = model.run_with_cache(tokens)
    streams, labels = cache.accumulated_resid(apply_ln=True, incl_mid=True, return_labels=True)
    guesses = model.unembed(streams.flatten(0, 1)).unflatten(0, streams.shape[:2]).argmax(-1)
    return [(guesses[:, :, LENGTH:-1] == tokens[:, LENGTH + 1 :]).float().mean((1, 2)), labels]


def silencing(z, hook, head):
    z[:, :, head] = 0.0
    return z


def loss_without_each_head(lens, model):
    tokens = letters_twice(model)

    def loss(hooks):
        return model.run_with_hooks(tokens, return_type="loss", loss_per_token=True, fwd_hooks=hooks)[:, LENGTH:].mean()

    def without(layer):
        name = lens.utils.get_act_name("z", layer)
        return torch.stack([loss([(name, partial(silencing, head=head))]) for head in range(model.cfg.n_heads)])

    return of_heads(model, without) - loss([])


def stripes_without_the_previous_token_head(lens, model):
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", partial(silencing, head=1))]):
        return induction_stripe(lens, model)


def circuits(lens, model):
    """What copies (OV), what looks one back (QK of positions), and what reads what L0 wrote (K-composition), by weights."""
    letters, E = torch.arange(model.cfg.d_vocab), model.W_E
    copying = [E @ model.OV[1, head] @ model.W_U for head in range(2)]
    eigenvalues = torch.stack([full.eigenvalues.sum().real / full.eigenvalues.abs().sum() for full in copying])
    scores = model.W_pos @ model.W_Q[0] @ model.W_K[0].mT @ model.W_pos.T / model.cfg.d_head**0.5  # (head, query, key)
    future = torch.ones_like(scores).triu(1).bool()
    one_back = scores.masked_fill(future, -torch.inf)[:, 1:].argmax(-1) == torch.arange(model.cfg.n_ctx - 1)
    matching = torch.zeros(2, 2)
    for early in range(2):
        for late in range(2):
            written = E @ model.W_V[0, early] @ model.W_O[0, early]
            match = lens.FactoredMatrix(E @ model.W_Q[1, late], (written @ model.W_K[1, late]).T)
            matching[early, late] = (match.AB.argmax(-1) == letters).float().mean()
    return [eigenvalues, one_back.float().mean(-1), matching, model.all_composition_scores("K")[0, :, 1]]


def patching_heads(lens, model):
    """What is known of the second half when one head's output is taken from letters that do repeat; and the two ends."""
    clean = letters_twice(model, batch=8)
    corrupted = torch.cat([clean[:, :LENGTH].roll(1, 0), clean[:, LENGTH:]], 1)  # another row's first half
    _, cache = model.run_with_cache(clean)

    def metric(logits):
        return log_probs_of_what_comes(logits, clean)[:, LENGTH:].mean()

    ends = [metric(model(tokens)).detach() for tokens in (corrupted, clean)]
    return [lens.patching.get_act_patch_attn_head_out_all_pos(model, corrupted, cache, metric), *ends]


CODE = [
    loss_by_half, induction_stripe, previous_token_stripe, detected_heads, attribution_of_heads, lens_accuracy,
    loss_without_each_head, stripes_without_the_previous_token_head, circuits, patching_heads,
]  # fmt: skip


@pytest.mark.parametrize("code", CODE, ids=lambda code: code.__name__)
def test_the_same_code_finds_the_same_with_either_library(study_pair, code):
    study_pair.both(code)


# What it finds --------------------------------------------------------------------------------------------------------


def best(scores):
    return divmod(int(scores.argmax()), scores.shape[-1])  # (layer, head)


def test_the_second_half_is_predicted_and_the_first_is_not(model):
    first, second = loss_by_half(ours, model)
    assert first < -2.5  # nats; a uniform guess is -ln 16 = -2.77
    assert second > -1.1
    accuracy, labels = lens_accuracy(ours, model)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"]
    assert accuracy[:3].max() < 0.2  # what comes is in the stream only behind the induction heads
    assert accuracy[3:].min() > 0.6


def test_the_induction_head_is_l1h0_and_the_previous_token_head_l0h1(model):
    stripe, previous = induction_stripe(ours, model), previous_token_stripe(ours, model)
    assert best(stripe) == (1, 0)
    assert best(previous) == (0, 1)
    assert stripe[1, 0] > 0.5 > 10 * stripe[0].max()  # evenly spread attention would score 0.04
    assert previous[0, 1] > 0.7 > 3 * previous[previous != previous.max()].max()
    detected = detected_heads(ours, model)
    assert best(detected["induction_head"]) == (1, 0)
    assert best(detected["previous_token_head"]) == (0, 1)
    assert detected["duplicate_token_head"].max() < 0.05


def test_the_induction_head_says_what_comes_and_needs_the_previous_token_head(model):
    shares, labels = attribution_of_heads(ours, model)
    assert labels == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert best(shares) == (1, 0)
    assert shares[1, 0] > 1 > 10 * shares[0].abs().max()
    cost = loss_without_each_head(ours, model)
    assert best(cost) == (0, 1)
    assert cost[1, 0] == cost[1].max()
    assert cost[0, 1] > 1.5
    without, stripe = stripes_without_the_previous_token_head(ours, model), induction_stripe(ours, model)
    assert without[1].max() < 0.1 * stripe[1, 0] + 0.05
    patched, corrupted, clean = patching_heads(ours, model)
    recovered = (patched - corrupted) / (clean - corrupted)
    assert best(recovered) == (1, 0)
    assert recovered[1].min() > 0.4 > 4 * recovered[0].max()


def test_their_circuits_compose_through_the_keys(model):
    eigenvalues, one_back, matching, composition = circuits(ours, model)
    assert eigenvalues.min() > 0.95  # in [-1, 1]: both heads of layer 1 copy
    assert one_back[1] > 0.9
    assert best(composition) == (1, 0)  # L0H1 into the keys of L1H0
    assert composition[1, 0] > 2 / model.cfg.d_model**0.5  # twice what unrelated heads score
    assert matching[1, 0] == 1  # each letter looks for the place behind the same letter
    assert matching[0].max() < 0.7


def test_before_the_phase_change_there_is_no_circuit():
    early = ours.HookedTransformer.from_pretrained(RUN, checkpoint_value=600)
    assert early.cfg.checkpoint_value == 600
    assert induction_stripe(ours, early).max() < 0.1
    first, second = loss_by_half(ours, early)
    assert second - first < 0.2
    assert previous_token_stripe(ours, early).max() < 0.2
