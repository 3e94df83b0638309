"""Patching under TransformerLens's names finds what TransformerLens finds, and runs on the engine wherever that is exact."""

import os
import signal
from functools import partial

import pytest
import torch

from interp_gpt2.errors import EditError
from interp_gpt2.model import GPT2
from interp_gpt2.transformer_lens import HookedTransformer, patching

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
TEXTS = ["When John and Mary", "When Mary and John"]
GETTERS = sorted(name for name in dir(patching) if name.startswith("get_act_patch_"))
N_LAYERS, N_POS = 2, 5


def metric(logits):
    return (logits[:, -1, 3] - logits[:, -1, 4]).mean()


def runs(model, n_pos=N_POS):
    """Corrupted tokens, and the cache of the clean ones; they differ from position 2 on."""
    tokens = model.to_tokens(TEXTS)[:, :n_pos]
    return tokens[[1, 0]], model.run_with_cache(tokens)[1]


@pytest.fixture
def hooked(pair) -> HookedTransformer:
    return pair.ours.model


@pytest.fixture
def passes(monkeypatch):
    """How often a pass ran through the layers: under hooks, one for each cell, and of the model below, whole."""
    counts = {"hooked": 0, "whole": 0}

    def counting(kind, real, *args, **named):
        counts[kind] += 1
        return real(*args, **named)

    real_run, real_forward = HookedTransformer.run_with_hooks, GPT2.forward
    monkeypatch.setattr(HookedTransformer, "run_with_hooks", lambda *a, **k: counting("hooked", real_run, *a, **k))
    monkeypatch.setattr(GPT2, "forward", lambda *a, **k: counting("whole", real_forward, *a, **k))
    return counts


@pytest.mark.parametrize("processed", [True, False], ids=["processed", "as they are"])
@pytest.mark.parametrize("getter", GETTERS)
def test_every_sweep_is_transformer_lenss_own_from_one_whole_pass(make_pair, passes, getter, processed):
    def code(lens, model):
        return getattr(lens.patching, getter)(model, *runs(model), metric)

    found = make_pair(processed=processed).both(code)
    assert found.dtype == torch.float32
    assert passes == {"hooked": 0, "whole": {"all_pos_every": 5, "by_pos_every": 5, "block_every": 3}.get(ending(getter), 1)}


def ending(getter: str) -> str:
    return "_".join(getter.split("_")[-3:] if "pos" in getter else getter.split("_")[-2:])


def test_padding_on_the_left_is_seen_as_in_the_loop(pair, passes):
    def code(lens, model):
        model.tokenizer.padding_side = "left"
        clean, corrupted = (model.to_tokens([text, text + " went"]) for text in TEXTS)
        cache = model.run_with_cache(clean)[1]
        return lens.patching.get_act_patch_attn_head_out_by_pos(model, corrupted, cache, metric)

    pair.both(code)
    assert passes == {"hooked": 0, "whole": 1}


def test_one_clean_run_is_patched_into_every_corrupted_one(pair, passes):
    def code(lens, model):
        tokens, _ = runs(model)
        one = model.run_with_cache(tokens[:1])[1]
        return lens.patching.get_act_patch_resid_pre(model, tokens, one, metric)

    pair.both(code)
    assert passes["hooked"] == 0


def scale(value, hook):
    return 2 * value


def with_a_hook(model):
    model.add_hook("blocks.1.hook_mlp_out", scale)


def with_a_permanent_hook(model):
    model.add_perma_hook("blocks.1.hook_mlp_out", scale)


@pytest.mark.parametrize("change", [with_a_hook, with_a_permanent_hook])
def test_a_model_with_hooks_is_patched_with_them_in_whole_passes(pair, passes, change):
    def code(lens, model):
        given = runs(model)
        plain = lens.patching.get_act_patch_mlp_out(model, *given, metric)
        change(model)
        found = lens.patching.get_act_patch_mlp_out(model, *given, metric)
        return [plain, found, (found - plain).abs().max() > 1e-3]

    pair.both(code)
    assert passes["hooked"] == N_LAYERS * N_POS


@pytest.mark.parametrize(
    ("setter", "name", "axes"),
    [
        ("layer_pos_patch_setter", "pattern", ("layer", "head")),  # there, a pattern's head stands in the position's place
        ("layer_head_vector_patch_setter", "resid_pre", ("layer", "head")),  # and in the stream, a neuron in the head's
    ],
)
def test_a_setter_that_copies_another_piece_there_does_so_in_whole_passes(pair, passes, setter, name, axes):
    def code(lens, model):
        setting = getattr(lens.patching, setter)
        return lens.patching.generic_activation_patch(model, *runs(model), metric, setting, name, axes)

    pair.both(code)
    assert passes["hooked"] == N_LAYERS * 4


def test_a_setter_of_ones_own_runs_in_whole_passes(pair, passes):
    def halfway(corrupted, index, clean):
        corrupted[:, index[1]] = (corrupted[:, index[1]] + clean[:, index[1]]) / 2
        return corrupted

    def code(lens, model):
        def setting(corrupted_activation, index, clean_activation):
            return halfway(corrupted_activation, index, clean_activation)

        return lens.patching.generic_activation_patch(model, *runs(model), metric, setting, "resid_pre", ("layer", "pos"))

    pair.both(code)
    assert passes["hooked"] == N_LAYERS * N_POS


def test_a_cache_of_longer_prompts_is_read_as_far_as_it_is_needed(pair, passes):
    def code(lens, model):
        tokens, _ = runs(model, n_pos=4)
        return lens.patching.get_act_patch_resid_pre(model, tokens, runs(model)[1], metric)

    pair.both(code)
    assert passes["hooked"] == N_LAYERS * 4


def test_a_metric_that_is_not_a_number_somewhere_stays_so_there(pair):
    def only_below(logits, limit):
        return metric(logits) if metric(logits) < limit else torch.tensor(torch.nan)

    def code(lens, model):
        given = runs(model)
        values = lens.patching.get_act_patch_mlp_out(model, *given, metric)
        found = lens.patching.get_act_patch_mlp_out(model, *given, partial(only_below, limit=values.mean()))
        return [found.isnan(), found.nan_to_num()]

    assert 0 < pair.both(code)[0].sum() < N_LAYERS * N_POS


def test_a_metric_of_several_numbers_is_refused_as_ever(hooked):
    with pytest.raises((RuntimeError, ValueError), match=r"only one element|cannot be converted"):
        patching.get_act_patch_resid_pre(hooked, *runs(hooked), lambda logits: logits[:, -1, 3])


def test_dropout_drops_and_torchs_own_hooks_are_heard(make_pair, passes):
    hooked = make_pair(dropout=0.5).ours.model
    patching.get_act_patch_mlp_out(hooked.eval(), *runs(hooked), metric)
    assert passes["hooked"] == 0
    patching.get_act_patch_mlp_out(hooked.train(), *runs(hooked), metric)
    assert passes["hooked"] == N_LAYERS * N_POS
    hooked.eval().model.blocks[0].mlp.register_forward_hook(lambda module, args, out: 2 * out)
    patching.get_act_patch_mlp_out(hooked, *runs(hooked), metric)
    assert passes["hooked"] == 2 * N_LAYERS * N_POS


def test_a_subclass_may_run_as_it_likes(hooked, passes):
    class Louder(HookedTransformer):
        def forward(self, *args, **named):
            return 2 * super().forward(*args, **named)

    given = runs(hooked)
    expected = patching.get_act_patch_mlp_out(hooked, *given, metric)
    louder = Louder.from_gpt2(hooked.model, hooked.tokenizer)
    torch.testing.assert_close(patching.get_act_patch_mlp_out(louder, *given, metric), 2 * expected)
    assert passes["hooked"] == N_LAYERS * N_POS


def test_ctrl_c_ends_a_sweep_as_it_ends_a_loop(hooked):
    def interrupted(logits):
        os.kill(os.getpid(), signal.SIGINT)
        return metric(logits)

    with pytest.raises(KeyboardInterrupt):
        patching.get_act_patch_block_every(hooked, *runs(hooked), interrupted)


def test_a_pattern_that_attends_to_the_future_is_refused(hooked):
    tokens, cache = runs(hooked)
    cache.cache_dict["blocks.1.attn.hook_pattern"] = torch.full_like(cache["pattern", 1], 1 / N_POS)
    with pytest.raises(EditError, match="attends to later positions"):
        patching.get_act_patch_attn_head_pattern_all_pos(hooked, tokens, cache, metric)
