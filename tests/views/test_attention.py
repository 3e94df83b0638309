"""Packed attention patterns and their view."""

import numpy as np
import pytest
import torch

from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.views import attention_view, pack_attention

LABELS = list("abcdef")


def patterns(*shape: int) -> torch.Tensor:
    scores = torch.randn(*shape, 6, 6, generator=torch.Generator().manual_seed(0))
    return scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


def test_packing_keeps_every_weight_within_half_a_level() -> None:
    weights = patterns(2, 3)
    data = pack_attention(LABELS, weights)
    assert data.shape == [1, 2, 3, 6, 6]
    np.testing.assert_allclose(data.patterns()[0], weights, atol=0.5 / 255 + 1e-6, rtol=0)


def test_steps_keep_their_order() -> None:
    weights = patterns(2, 1, 1)
    data = pack_attention(LABELS, weights, steps=[0, 1000])
    assert data.steps == [0, 1000]
    np.testing.assert_allclose(data.patterns()[1], weights[1], atol=0.003)


def test_a_view_of_a_cached_run_holds_its_patterns(model: GPT2, tokens: torch.Tensor) -> None:
    _, cache = model.run_with_cache(tokens[:1])
    stacked = cache.stack("pattern")[:, 0]
    view = attention_view([str(token) for token in tokens[0].tolist()], stacked)
    np.testing.assert_allclose(view.data.patterns()[0], stacked.detach(), atol=0.003)


def test_the_enlarged_head_is_the_first_with_something_to_say() -> None:
    assert pack_attention(LABELS, patterns(2, 3)).first == "L0H0"
    assert pack_attention(LABELS, patterns(2, 3), notes={"L1H2": "induction 0.71"}).first == "L1H2"


def test_144_heads_of_128_tokens_fit_in_3_5_megabytes() -> None:
    weights = torch.zeros(12, 12, 128, 128)
    view = attention_view(["token"] * 128, weights)
    assert len(view._repr_html_()) < 3_500_000


def test_the_same_patterns_give_the_same_bytes() -> None:
    assert attention_view(LABELS, patterns(1, 2))._repr_html_() == attention_view(LABELS, patterns(1, 2))._repr_html_()


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (patterns(1, 2, 2), r"\(1, 2, 2, 6, 6\).*pattern\[0\]"),
        (patterns(2, 2)[..., :5], "length 6"),
        (patterns(2, 2) * 2, "lie in"),
        (patterns(2, 2).log(), "not `attn_scores`"),
    ],
)
def test_what_is_not_a_pattern_of_these_tokens_is_refused(weights: torch.Tensor, says: str) -> None:
    with pytest.raises(AnalysisError, match=says):
        pack_attention(LABELS, weights)


def test_a_view_works_in_the_sandboxed_frame_of_a_notebook(browser) -> None:
    page, wrongs = browser.new_page(), []
    page.on("console", lambda message: wrongs.append(message.text))
    page.on("pageerror", lambda error: wrongs.append(str(error)))
    weights = patterns(2, 3)
    page.set_content(attention_view(LABELS, weights, title="</script><b>title")._repr_html_())
    frame = page.frame_locator("iframe")
    frame.locator('.thumb[data-head="L1H2"]').click()
    frame.locator('.token[data-position="5"]').hover()
    best = int(weights[1, 2, 5].argmax())
    assert (
        f"Position 5 ‘f’ attends to {best} ‘{LABELS[best]}’ {weights[1, 2, 5, best]:.2f}" in frame.locator(".said").inner_text()
    )
    assert frame.locator("h1").inner_text() == "</script><b>title"
    page.close()
    assert wrongs == []
