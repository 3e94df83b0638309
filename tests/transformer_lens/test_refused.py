"""Everything TransformerLens has under a name is here, or says by that name that it is not and what to use instead."""

import inspect
import re
from dataclasses import replace

import pytest
import torch

from interp_gpt2 import transformer_lens as ours
from interp_gpt2.errors import InterpGPT2Error
from interp_gpt2.transformer_lens import ActivationCache, HookedTransformer, HookedTransformerKeyValueCache, refused, utils

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
TEXT = "When John and Mary went"
ONLY_FOR_STATE_SPACE_MODELS = {"ssm_layers", "compute_ssm_state", "compute_ssm_effective_attention"}


def public(thing):
    return {name for name in dir(thing) if not name.startswith("_")}


def refused_here(thing, names, table):
    """Names that `thing` lacks. Each must be in the table, which must not deny what is there."""
    missing = set()
    for name in names:
        if name in table:
            with pytest.raises(AttributeError, match=rf"no '{name}'.*; use .*\w"):
                getattr(thing, name)
        elif not hasattr(thing, name):
            missing.add(name)
    return missing


def test_the_packages_names(theirs):
    names = set(theirs.__all__) | public(theirs) - {"loading"}
    assert not refused_here(ours, names, refused.PACKAGE)
    assert ours.utilities is utils
    with pytest.raises(AttributeError, match="no 'HookedEverything'"):
        ours.HookedEverything  # noqa: B018


def test_the_models_methods(pair):
    own = public(pair.theirs.lens.HookedTransformer) - public(torch.nn.Module)
    assert not refused_here(pair.ours.model, own, refused.METHODS)
    assert public(pair.theirs.lens.ActivationCache) - public(ActivationCache) == ONLY_FOR_STATE_SPACE_MODELS
    with pytest.raises(AttributeError, match="no attribute 'W_nothing'"):
        pair.ours.model.W_nothing  # noqa: B018


def test_the_helpers(theirs):
    assert not refused_here(utils, set(theirs.utils.__all__), refused.UTILS)
    with pytest.raises(AttributeError, match="no 'get_everything'; it has"):
        utils.get_everything  # noqa: B018


def test_the_functions_of_patching_and_of_the_detector(theirs):
    for module in ("patching", "head_detector"):
        there = getattr(theirs, module)
        functions = {name for name in public(there) if getattr(getattr(there, name), "__module__", "") == there.__name__}
        assert functions - public(getattr(ours, module)) <= {"get_supported_heads", "PatchingResult"}


@pytest.mark.parametrize("kind", ["HookedTransformer", "ActivationCache"])
def test_arguments_have_their_names_and_their_order(theirs, kind):
    there, here = getattr(theirs, kind), getattr(ours, kind)
    for name in public(there) & public(here) - public(torch.nn.Module):
        if not inspect.isroutine(getattr(there, name)):
            continue
        wanted, found = (
            [p.name for p in inspect.signature(getattr(cls, name)).parameters.values() if p.kind.name != "VAR_KEYWORD"]
            for cls in (there, here)
        )
        if name != "from_pretrained_no_processing":  # whose options are those of from_pretrained
            assert found[: len(wanted)] == wanted, name


def refusals(model):
    """A call for each argument that the docstring lists."""
    cache = HookedTransformerKeyValueCache.init_cache(model.cfg, "cpu")
    load = HookedTransformer.from_pretrained
    state = model.state_dict()
    return {
        "from_pretrained": {
            "n_devices": lambda: load("gpt2", n_devices=2),
            "n_ctx": lambda: load("gpt2", n_ctx=8),
            "first_n_layers": lambda: load("gpt2", first_n_layers=1),
            "checkpoint_label": lambda: load("gpt2", checkpoint_label=1),
        },
        "a call": {
            "shortformer_pos_embed": lambda: model(TEXT, shortformer_pos_embed=torch.zeros(1)),
            "past_kv_cache with start_at_layer": lambda: model(TEXT, past_kv_cache=cache, start_at_layer=1),
            "past_kv_cache with stop_at_layer": lambda: model(TEXT, past_kv_cache=cache, stop_at_layer=1),
            "past_kv_cache of another library": lambda: model(TEXT, past_kv_cache=object()),
        },
        "run_with_hooks": {
            "bwd_hooks with reset_hooks_end": lambda: model.run_with_hooks(TEXT, bwd_hooks=[("hook_embed", print)]),
        },
        "run_with_cache": {"reset_hooks_end": lambda: model.run_with_cache(TEXT, reset_hooks_end=False)},
        "generate": {
            "freq_penalty": lambda: model.generate(TEXT, freq_penalty=1.0),
            "use_past_kv_cache": lambda: model.generate(TEXT, use_past_kv_cache=False),
            "top_k with top_p": lambda: model.generate(TEXT, top_k=2, top_p=0.5),
            "embeddings": lambda: model.generate(torch.zeros(1, 3, 32)),
        },
        "load_state_dict": {
            "strict": lambda: model.load_state_dict(state, strict=False),
            "assign": lambda: model.load_state_dict(state, assign=True),
        },
    }


def test_the_arguments_in_the_docstring(make_gpt2, tokenizer, config):
    model = HookedTransformer.from_gpt2(make_gpt2(replace(config, d_vocab=len(tokenizer))), tokenizer)
    table = re.findall(r"^    ([\w ]+?)  +(\w.*(?:\n {16,}.*)*)", ours.__doc__, re.MULTILINE)
    listed = {where: [name.strip() for name in names.replace("\n", " ").split(",")] for where, names in table}
    calls = refusals(model)
    assert listed == {where: list(each) for where, each in calls.items()}
    for each in calls.values():
        for name, call in each.items():
            with pytest.raises(InterpGPT2Error, match=name.split()[0]):
                call()
