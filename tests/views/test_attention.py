"""Packed attention patterns and their view."""

from pathlib import Path

import numpy as np
import pytest
import torch

from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.views import attention_view, pack_attention
from tests.views.examples import draw, patterns

LABELS = list("abcdef")


def test_packing_keeps_every_weight_within_half_a_level() -> None:
    weights = patterns(2, 3, n=6)
    data = pack_attention(LABELS, weights)
    assert data.shape == [1, 2, 3, 6, 6]
    np.testing.assert_allclose(data.patterns()[0], weights, atol=0.5 / 255 + 1e-6, rtol=0)


def test_steps_keep_their_order() -> None:
    weights = patterns(2, 1, 1, n=6)
    data = pack_attention(LABELS, weights, steps=[0, 1000])
    assert data.steps == [0, 1000]
    np.testing.assert_allclose(data.patterns()[1], weights[1], atol=0.003)


def test_a_view_of_a_cached_run_holds_its_patterns(model: GPT2, tokens: torch.Tensor) -> None:
    _, cache = model.run_with_cache(tokens[:1])
    stacked = cache.stack("pattern")[:, 0]
    view = attention_view([str(token) for token in tokens[0].tolist()], stacked)
    np.testing.assert_allclose(view.packed.patterns()[0], stacked.detach(), atol=0.003)


def test_the_enlarged_head_is_the_first_with_something_to_say() -> None:
    assert pack_attention(LABELS, patterns(2, 3, n=6)).first == "L0H0"
    assert pack_attention(LABELS, patterns(2, 3, n=6), notes={"L1H2": "induction 0.71"}).first == "L1H2"


def test_144_heads_of_128_tokens_are_below_5_megabytes_and_seen_within_seconds(watch, tmp_path: Path) -> None:
    weights = draw(12, 12, 128, 128).abs().clamp(max=1)
    view = attention_view([f"·token{i}" for i in range(128)], weights, notes={"L5H1": "induction 0.71"})
    assert len(view._repr_html_()) < 5_000_000
    path = view.save(tmp_path / "heads.html")
    assert path.stat().st_size < 5_000_000
    watched = watch(path, viewport={"width": 1200, "height": 900})
    page = watched.page
    # From the navigation's start until the script, which paints all heads, has run; of about 0.2 s on one free core.
    assert page.evaluate("performance.getEntriesByType('navigation')[0].domComplete") < 5000
    assert page.locator(".thumb").count() == 144
    assert page.locator(".attention h4").inner_text() == "L5H1induction 0.71"
    page.locator('.thumb[data-head="L11H11"]').click()
    last, plot = (page.locator(one).bounding_box() for one in ('.thumb[data-head="L11H11"]', ".plot"))
    assert last["y"] + last["height"] < 900  # all heads and the enlarged one, in one window
    assert plot["y"] + plot["height"] < 900
    page.mouse.move(plot["x"] + plot["width"] * 0.51, plot["y"] + plot["height"] * 0.76)
    root = page.locator(".attention")
    query, key = int(root.get_attribute("data-query")), int(root.get_attribute("data-other"))
    assert page.locator(".said").inner_text() == (
        f"Position {query} ‘·token{query}’ attends to {key} ‘·token{key}’: {weights[11, 11, query, key]:.2f}"
    )


def test_a_thumbnail_has_the_colours_of_its_weights(watch, tmp_path: Path) -> None:
    from matplotlib import colormaps

    weights = patterns(2, 6, n=6)
    page = watch(attention_view(LABELS, weights).save(tmp_path / "heads.html")).page
    pixels = page.locator('.thumb[data-head="L1H4"] canvas').evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
    )
    found = np.array(pixels).reshape(6, 6, 4)
    levels = np.rint(weights[1, 4].numpy() * 255) / 255
    wanted = 255 * np.array(colormaps["viridis"](levels))[..., :3]
    seen = np.tri(6, dtype=bool)
    np.testing.assert_allclose(found[seen][:, :3], wanted[seen], atol=3)  # the page interpolates between 17 colours
    assert (found[seen][:, 3] == 255).all()
    assert (found[~seen][:, 3] == 0).all()


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (patterns(1, 2, 2, n=6), r"\(1, 2, 2, 6, 6\).*pattern\[0\]"),
        (patterns(2, 2, n=6)[..., :5], "length 6"),
        (patterns(2, 2, n=6) * 2, "lie in"),
        (patterns(2, 2, n=6).log(), "not `attn_scores`"),
    ],
)
def test_what_is_not_a_pattern_of_these_tokens_is_refused(weights: torch.Tensor, says: str) -> None:
    with pytest.raises(AnalysisError, match=says):
        pack_attention(LABELS, weights)


def test_a_view_works_in_the_sandboxed_frame_of_a_notebook(watch) -> None:
    weights = patterns(2, 3, n=6)
    frame = watch(attention_view(LABELS, weights)._repr_html_()).shown
    frame.locator('.thumb[data-head="L1H2"]').click()
    frame.locator('.token[data-position="5"]').hover()
    best = int(weights[1, 2, 5].argmax())
    said = f"Position 5 ‘f’ attends to {best} ‘{LABELS[best]}’ {weights[1, 2, 5, best]:.2f}"
    assert said in frame.locator(".said").inner_text()
