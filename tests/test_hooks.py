"""Names find hook points, or say what was meant."""

import random
import string

import numpy as np
import pytest

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import EditError, HookNameError
from interp_gpt2.hooks import _resolve, default_hook_points, hook_point_names, resolve, resolve_edits, tl_name

CONFIG = GPT2Config(n_layers=12, d_vocab=50)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("blocks.3.attn.pattern", {"blocks.3.attn.pattern"}),
        ("blocks.3.attn.hook_pattern", {"blocks.3.attn.pattern"}),
        ("hook_embed", {"embed"}),
        ("unembed.hook_in", {"unembed.in"}),
        (("pattern", 3), {"blocks.3.attn.pattern"}),
        (("pattern", -1), {"blocks.11.attn.pattern"}),
        (("attn", 3), {"blocks.3.attn.pattern"}),
        (("pre", 0, "mlp"), {"blocks.0.mlp.pre"}),
        (("scale", 4, "ln2"), {"blocks.4.ln2.scale"}),
        ("k6", {"blocks.6.attn.k"}),
        ("scale4ln1", {"blocks.4.ln1.scale"}),
        ("blocks.*.attn.hook_z", {f"blocks.{layer}.attn.z" for layer in range(12)}),
        (["embed", ("q", 0), ["ln_final.scale"]], {"embed", "blocks.0.attn.q", "ln_final.scale"}),
        (lambda name: name.endswith("resid_mid"), {f"blocks.{layer}.resid_mid" for layer in range(12)}),
        ((), set()),
    ],
)
def test_every_way_of_naming_finds_the_hook_points_it_means(names, expected):
    assert resolve(names, CONFIG) == expected


def test_every_hook_point_is_found_by_its_transformer_lens_spelling():
    for name in hook_point_names(CONFIG):
        assert resolve(tl_name(name), CONFIG) == {name}


def test_the_default_set_has_seventeen_points_a_block_and_six_at_the_ends():
    # As counted in TransformerLens 3.9: 210 for 12 layers.
    assert len(default_hook_points(CONFIG)) == 12 * 17 + 6


def test_a_model_without_mlps_or_norms_has_no_such_points():
    names = hook_point_names(GPT2Config(n_layers=1, attn_only=True, layer_norm=False))
    assert not [name for name in names if "mlp" in name or "ln" in name or "resid_mid" in name]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("blocks.3.attn.patern", "'blocks.3.attn.pattern'"),
        ("resid_pre", "'blocks.0.resid_pre'"),
        ("blocks.12.resid_pre", "Nearest: 'blocks"),
        ("blocks.*.attn.patern", "pattern'"),
        (("pattern", 12), "the model's layers are 0 to 11"),
        (("patern", 2), "'blocks.2.attn.pattern'"),
        (lambda name: False, "accepted none of the"),
        (3, "named by str, tuple, list or function"),
        (["embed", "pos_embed", None], "None names no hook point"),
        (("z", 0, 1), "no hook point is named 'z'"),
        (("z", [0, 1]), "no hook point is named 'z'"),
        (("z", 0.5), "no hook point is named 'z'"),
    ],
)
def test_a_name_that_matches_nothing_is_an_error_that_names_the_nearest(wrong, said):
    with pytest.raises(HookNameError) as error:
        resolve(wrong, CONFIG)
    assert said in str(error.value)


@pytest.mark.parametrize("first", [1, 1.0, np.int64(1)])
def test_a_layer_means_the_same_whichever_number_was_asked_for_first(first):
    _resolve.cache_clear()
    for layer in (first, 1, 1.0, np.int64(1)):
        assert resolve(("z", layer), CONFIG) == {"blocks.1.attn.z"}


def test_the_right_name_comes_first_for_nineteen_of_twenty_one_letter_typos():
    draw = random.Random(0)
    trials, first = 200, 0
    for _ in range(trials):
        name = draw.choice(hook_point_names(CONFIG))
        at = draw.choice([i for i, char in enumerate(name) if char.isalpha()])
        typo = name[:at] + draw.choice(string.ascii_lowercase.replace(name[at], "")) + name[at + 1 :]
        with pytest.raises(HookNameError) as error:
            resolve(typo, CONFIG)
        first += f"Nearest: {name!r}" in str(error.value)
    assert first / trials >= 0.95


def test_edits_that_could_do_nothing_are_refused():
    def edit(value, site):
        return value

    with pytest.raises(EditError, match="that edit would do nothing"):
        resolve_edits({("q_input", 0): edit, "blocks.0.ln1.scale": edit}, CONFIG)
    resolve_edits({("q_input", 0): edit, "blocks.1.ln1.scale": edit}, CONFIG)
    with pytest.raises(EditError, match="an edit is a function"):
        resolve_edits({("z", 0): 0.0}, CONFIG)
    with pytest.raises(EditError, match="pass a dict"):
        resolve_edits([("z0", edit)], CONFIG)
    with pytest.raises(HookNameError, match="None names no hook point"):
        resolve_edits({None: edit}, CONFIG)
