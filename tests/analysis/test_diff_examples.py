"""Examples of a difference are the places where it was planted."""

import copy

import pytest
import torch

from interp_gpt2.analysis.diff_examples import neuron_examples, pattern_examples
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

TOKENS = torch.randint(0, 50, (9, 16), generator=torch.Generator().manual_seed(0))
WINDOWS = Windows(TOKENS, torch.tensor([16, 16, 3, 16, 1, 9, 16, 16, 12]), torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 7]))


@pytest.fixture
def other(model: GPT2) -> GPT2:
    """The model with one head that looks elsewhere and one neuron that reads something else."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.blocks[1].attn.qkv.weight.view(3, 4, 8, 32)[0, 2] *= -3
        changed.blocks[0].mlp.fc.weight[9] *= -1
    return changed


def test_a_heads_examples_are_the_queries_that_moved_most_each_of_another_document(model: GPT2, other: GPT2) -> None:
    found = pattern_examples(model, other, WINDOWS, [(1, 2), (0, 0)], k=4, width=5)
    patterns = [each.run_with_cache(TOKENS)[1]["pattern", 1][:, 2].detach() for each in (model, other)]
    apart = (patterns[0] - patterns[1]).abs().sum(-1) / 2
    apart[~WINDOWS.real] = apart[:, 0] = -1
    by_document = torch.stack([apart[WINDOWS.documents == document].max() for document in range(8)])
    assert [one.document for one in found["L1H2"]] == by_document.sort(descending=True).indices[:4].tolist()
    first = found["L1H2"][0]
    window = int((apart == by_document.max()).any(1).nonzero()[0])
    assert first.distance == pytest.approx(float(by_document.max()), abs=1e-5)
    assert first.position == int(apart[window].argmax())
    assert first.tokens == tuple(TOKENS[window, max(0, first.position - 4) : first.position + 1].tolist())
    for pattern, (key, token, weight) in zip(patterns, (first.before[0], first.after[0]), strict=True):
        row = pattern[window, first.position]
        assert (key, token) == (int(row.argmax()), int(TOKENS[window, int(row.argmax())]))
        assert weight == pytest.approx(float(row.max()), abs=1e-5)
    assert all(one.distance < 1e-6 for one in found["L0H0"]), "heads of the layer below did not move"


def test_a_neurons_examples_are_its_peaks_in_each(model: GPT2, other: GPT2) -> None:
    found = neuron_examples(model, other, WINDOWS, [(0, 9)], k=2, width=6)["L0N9"]
    for each, contexts in ((model, found.before), (other, found.after)):
        values = each.run_with_cache(TOKENS)[1]["post", 0][..., 9].detach().masked_fill(~WINDOWS.real, -torch.inf)
        assert contexts[0].activations[contexts[0].peak] == pytest.approx(float(values.max()), abs=1e-5)
        assert len({context.document for context in contexts}) == 2
    assert found.before[0].tokens != found.after[0].tokens


def test_windows_of_one_token_give_no_query_and_what_is_not_there_is_refused(model: GPT2, other: GPT2) -> None:
    assert pattern_examples(model, other, Windows.of(TOKENS[:, :1]), [(0, 0)]) == {"L0H0": ()}
    with pytest.raises(AnalysisError, match="no head 4 in layer 1: the models have 2 layers of 4 heads"):
        pattern_examples(model, other, WINDOWS, [(1, 4)])
    with pytest.raises(AnalysisError, match="no neuron 999"):
        neuron_examples(model, other, WINDOWS, [(1, 999)])
    smaller = GPT2(GPT2Config(n_layers=1, n_heads=4, d_model=32, d_vocab=50, n_ctx=16)).eval()
    with pytest.raises(AnalysisError, match="n_layers"):
        pattern_examples(model, smaller, WINDOWS, [(0, 0)])
