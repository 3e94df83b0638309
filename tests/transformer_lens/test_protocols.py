"""TransformerLens's own functions run on our model, which they know by its protocols alone, and find what ours find.

Its code, not its models: the weights are ours and are never copied. What both 3.9 and 4.3 have runs with either.
"""

import importlib
import inspect
from importlib.metadata import version
from types import ModuleType

import pytest
import torch

from interp_gpt2.analysis.logit_attribution import direct_logit_attribution
from interp_gpt2.analysis.logit_lens import logit_lens
from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.transformer_lens import to_transformer_bridge
from interp_gpt2.folding import process_weights
from interp_gpt2.transformer_lens import HookedTransformer, head_detector, patching

TL_4 = int(version("transformer-lens").split(".")[0]) >= 4
with_tl_4 = pytest.mark.skipif(not TL_4, reason="needs transformer-lens >=4")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
TEXTS = [
    "When John and Mary went to the shops, John gave the bag to",
    "When Mary and John went to the shops, Mary gave the bag to",
]
GETTERS = [
    "resid_pre", "resid_mid", "attn_out", "mlp_out", "attn_head_out_by_pos", "attn_head_q_by_pos", "attn_head_k_by_pos",
    "attn_head_v_by_pos", "attn_head_pattern_by_pos", "attn_head_pattern_dest_src_pos", "attn_head_out_all_pos",
    "attn_head_q_all_pos", "attn_head_k_all_pos", "attn_head_v_all_pos", "attn_head_pattern_all_pos",
    "attn_head_all_pos_every", "attn_head_by_pos_every", "block_every",
]  # fmt: skip


def theirs(name: str) -> ModuleType:
    return importlib.import_module(f"transformer_lens.{name}")


def tl_cache(cache):
    """TransformerLens's own ActivationCache, over the tensors of ours."""
    return theirs("ActivationCache").ActivationCache(dict(cache.cache_dict), cache.model, cache.has_batch_dim)


def metric(logits):
    return (logits[:, -1, 3] - logits[:, -1, 4]).mean()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def make_hooked(tokenizer, make_gpt2):
    def make(folded: bool = True, **changes) -> HookedTransformer:
        shape = {"n_layers": 2, "n_heads": 4, "d_model": 32, "d_vocab": len(tokenizer), "n_ctx": 48}
        model = make_gpt2(GPT2Config(**(shape | changes)))
        return HookedTransformer.from_gpt2(process_weights(model) if folded else model, tokenizer, folded=folded)

    return make


@pytest.fixture
def hooked(make_hooked) -> HookedTransformer:
    return make_hooked()


@pytest.fixture
def runs(hooked):
    """Five tokens of each prompt, clean and corrupted, and the clean cache: (tokens, cache)."""
    tokens = hooked.to_tokens(TEXTS)[:, :5]
    return tokens[[1, 0]], hooked.run_with_cache(tokens)[1]


# The protocols --------------------------------------------------------------------------------------------------------


@with_tl_4
@pytest.mark.parametrize("changes", [{}, {"attn_only": True}, {"layer_norm": False, "folded": False}], ids=str)
def test_our_model_is_each_of_the_models_that_transformer_lens_describes(make_hooked, changes):
    protocols, hooked = theirs("model_protocol"), make_hooked(**changes)
    members = set()
    for name in ("TransformerLensModel", "TransformerLensModelWithWeights", "TrainableTransformerLensModel"):
        protocol = getattr(protocols, name)
        assert isinstance(hooked, protocol)
        members |= {member for kind in protocol.__mro__ for member in vars(kind) if not member.startswith("_")}
    assert members >= {"cfg", "run_with_cache", "run_with_hooks", "to_tokens", "blocks", "ln_final", "accumulated_bias"}
    for member in members:  # what isinstance asks from Python 3.12 on, and beartype always
        inspect.getattr_static(hooked, member)


def storages(tensors):
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def test_no_weight_is_copied_for_them(hooked, runs):
    ours = hooked.model
    cache = tl_cache(runs[1])
    assert cache.model is hooked
    assert {id(weight) for weight in hooked.parameters()} == {id(weight) for weight in ours.parameters()}
    seen = [hooked.W_E, hooked.W_U, hooked.W_pos, hooked.ln_final.w]
    for layer, block in enumerate(hooked.blocks):
        for part, names in ((block.attn, ("W_Q", "W_K", "W_V", "W_O")), (block.mlp, ("W_in", "W_out"))):
            seen += [getattr(part, name) for name in names]
            assert all(torch.equal(getattr(part, name), getattr(ours, name)[layer]) for name in names)
        seen.append(block.ln1.w)
    assert storages(seen) <= storages(ours.parameters())
    before = cache.get_neuron_results(1)
    with torch.no_grad():
        ours.blocks[1].mlp.proj.weight[:, 7] = 0  # of our model: their functions see it at once
    after = cache.get_neuron_results(1)
    assert before[..., 7, :].any()
    assert not after[..., 7, :].any()
    close(after[..., :7, :], before[..., :7, :])


# patching -------------------------------------------------------------------------------------------------------------


def test_every_getter_of_patching_is_listed_here():
    found = {name for name in dir(theirs("patching")) if name.startswith("get_act_patch_") and "direct_path" not in name}
    assert found == {f"get_act_patch_{name}" for name in GETTERS}


@pytest.mark.parametrize("name", GETTERS)
def test_their_patching_of_our_model_is_ours(hooked, runs, name):
    getter = f"get_act_patch_{name}"
    expected = getattr(patching, getter)(hooked, *runs, metric)
    found = getattr(theirs("patching"), getter)(hooked, *runs, metric)
    close(found, expected)
    assert (expected - metric(hooked(runs[0]))).abs().max() > 1e-3  # patches that do nothing would agree too


def test_their_generic_patching_of_our_model_is_ours(hooked, runs):
    results = []
    for module in (patching, theirs("patching")):
        rows = module.make_df_from_ranges([2, 5], ["layer", "pos"])
        setter = module.layer_pos_patch_setter
        flat = module.generic_activation_patch(hooked, *runs, metric, setter, "attn_out", index_df=rows)
        grid, frame = module.generic_activation_patch(
            hooked, *runs, metric, setter, "mlp_out", ("layer", "pos"), return_index_df=True
        )
        results.append([flat, grid, torch.tensor(frame.to_numpy())])
    for found, expected in zip(*results, strict=True):
        close(found, expected)


@with_tl_4
def test_their_statistics_over_examples_are_of_our_model(hooked, runs):
    result = theirs("patching").get_act_patch_resid_pre(
        hooked, *runs, lambda logits: logits[:, -1, 3] - logits[:, -1, 4], reduce="none", baseline=True
    )
    close(result.values.mean(-1), patching.get_act_patch_resid_pre(hooked, *runs, metric))
    close(result.baseline.mean(), metric(hooked(runs[0])))


@with_tl_4
def test_patching_our_model_is_patching_their_own(make_hooked):
    """A TransformerBridge of the same weights, which computes with Hugging Face's GPT-2."""
    hooked = make_hooked(folded=False)
    bridge = to_transformer_bridge(hooked.model)
    tokens = hooked.to_tokens(TEXTS)[:, :5]
    module = theirs("patching")
    for name in ("attn_head_all_pos_every", "attn_head_by_pos_every", "block_every"):
        getter = getattr(module, f"get_act_patch_{name}")
        results = [getter(model, tokens[[1, 0]], model.run_with_cache(tokens)[1], metric) for model in (hooked, bridge)]
        close(*results)
    for component in "qkv":
        results = [direct_paths(model, tokens, component) for model in (hooked, bridge)]
        close(*results)


def direct_paths(model, tokens, component):
    caches = [model.run_with_cache(each)[1] for each in (tokens, tokens[[1, 0]])]
    return theirs("patching").get_act_patch_direct_path_all_sources(
        model, tokens[[1, 0]], *caches, metric, component, verbose=False
    )


@with_tl_4
@torch.no_grad()
@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_their_direct_paths_are_an_edit_of_one_heads_input(hooked, component):
    tokens, corrupted = hooked.to_tokens(TEXTS)[:, :5], hooked.to_tokens(TEXTS)[[1, 0], :5]
    found = direct_paths(hooked, tokens, component)
    model = hooked.model
    (_, clean), (_, other) = model.run_with_cache(tokens), model.run_with_cache(corrupted)
    for source, target in [(0, 0), (2, 3)]:
        written = (clean["z", 0] - other["z", 0])[:, :, source] @ model.W_O[0, source]

        def read_more(stream, site, written=written, target=target):
            stream[:, :, target] += written
            return stream

        logits = model.run_with_edits(corrupted, {(f"{component}_input", 1): read_more})
        close(found[0, source, 1, target], metric(logits))
    assert (found[0, :, 1] - metric(model(corrupted))).abs().max() > 1e-4
    assert hooked.cfg.use_split_qkv_input is False


# head_detector --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["mul", "abs"])
@pytest.mark.parametrize("name", head_detector.HEAD_NAMES)
def test_their_detector_finds_in_our_model_what_ours_finds(hooked, name, measure):
    found, expected = [], []
    for module, results in ((theirs("head_detector"), found), (head_detector, expected)):
        own = torch.eye(hooked.to_tokens(TEXTS[0]).shape[1]).roll(1, 0).tril()
        _, cache = hooked.run_with_cache(TEXTS[0], remove_batch_dim=True)
        results += [
            module.detect_head(hooked, TEXTS[0], name, error_measure=measure),
            module.detect_head(hooked, TEXTS, name, error_measure=measure, exclude_bos=True),
            module.detect_head(hooked, TEXTS[0], own, heads=[(0, 1), (1, 2)], error_measure=measure),
            module.detect_head(hooked, TEXTS[0], name, {1: [0, 3]}, cache, exclude_current_token=True, error_measure=measure),
        ]
    close(torch.stack(found), torch.stack(expected))
    assert len(expected[0].unique()) > 1


# tools.analysis -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("incorrect", [None, 5])
def test_their_direct_logit_attribution_of_our_model_is_ours(hooked, incorrect):
    tokens = hooked.to_tokens(TEXTS)
    attribute = theirs("tools.analysis").direct_logit_attribution
    _, cache = hooked.model.run_with_cache(tokens)
    for unit, parts in (("component", "layers"), ("head", "heads")):
        found = attribute(hooked, tokens, 4, incorrect, unit=unit)
        ours = direct_logit_attribution(hooked.model, cache, 4, incorrect, parts, -1)
        shared = [label for label in found.labels if label in ours.labels]
        assert len(shared) == (6 if unit == "component" else 8)
        for label in shared:
            close(found.attribution[found.labels.index(label)], ours.values[ours.labels.index(label), :, 0])
        bias = ours.values[ours.labels.index("logit_bias"), :, 0]
        close(found.attribution.sum(0) + bias, ours.logits[:, 0])  # the rest is in "remainder", and all of it is the logit
    streams = attribute(hooked, cache=tl_cache(hooked.run_with_cache(tokens)[1]), answer_tokens=4, unit="layer", pos=None)
    assert streams.labels == ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"]
    close(streams.attribution[-1] + hooked.b_U[4], hooked(tokens)[..., 4])


@with_tl_4
@pytest.mark.parametrize("folded", [True, False])
def test_their_logit_lens_of_our_model_is_ours(make_hooked, folded):
    hooked = make_hooked(folded)
    tokens = hooked.to_tokens(TEXTS)
    lens = theirs("tools.analysis").logit_lens
    ours = logit_lens(hooked.model, tokens[:, :-1], targets=tokens[:, 1:], top_k=3)
    given = {"positions": None, "return_type": "log_probs"}
    by_target = lens(hooked, tokens[:, :-1], targets=tokens[:, 1:], **given)
    close(by_target.readout.values[..., 0].double(), ours.target_log_probability)
    assert torch.equal(by_target.rank_trajectory(), ours.target_rank)
    close(by_target.readout.entropy.double(), ours.entropy)
    best = lens(hooked, tokens[:, :-1], top_k=3, positions=None, return_type="probs")
    close(best.values.double(), ours.top_probabilities)
    assert torch.equal(best.readout.top_ids, ours.top_tokens)
    _, cache = hooked.run_with_cache(tokens)
    for result in (lens(hooked, TEXTS[0]), lens(tl_cache(cache)), tl_cache(cache).logit_lens(incl_mid=True)):
        close(result.values[-1, 0], hooked(tokens)[0, -1])
    read = theirs("tools.analysis").logit_readout(hooked, cache["resid_post", 0])
    close(read.values, hooked.model.unembed(cache["resid_post", 0]))


@with_tl_4
def test_their_attribution_patching_is_the_gradient_of_ours(hooked, runs):
    corrupted, clean = runs
    patched = theirs("tools.analysis").attribution_patch(hooked, hooked.to_tokens(TEXTS)[:, :5], corrupted, metric)
    _, values, gradients = hooked.model.run_with_gradients(corrupted, metric, ["embed", "*.z", "*mlp_out"])
    assert len(patched.node_scores) > 5 * 2 * 5  # positions, layers, four heads and an MLP
    for node, score in patched.node_scores.items():
        name = node.hook_name.replace("hook_", "")
        # The metric is a mean over both examples, which they take one by one, and then the mean of.
        effect = ((clean[node.hook_name] - values[name]) * gradients[name])[:, node.position]
        close(score, (effect if node.head is None else effect[:, node.head]).sum().item())
    assert max(map(abs, patched.node_scores.values())) > 0.1
