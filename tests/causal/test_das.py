"""A variable written along a known direction by hand is found there, and nowhere else; controls find nothing."""

import pytest
import torch
from torch import Tensor

from interp_gpt2.causal.das import Search, Subspace, align, find_subspace, random_subspace
from interp_gpt2.causal.interchange import Location, Triples, interchange, interchange_accuracy
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, TokenError
from interp_gpt2.model import GPT2

D, N_NUISANCE = 16, 6
QUERY, ANSWERS = 40, 41  # tokens 0-19 carry the first variable, 20-39 the second; answers are 41 + 2 first + second


def planted(seed: int = 0) -> tuple[GPT2, Tensor]:
    """A model whose stream holds two signs along two orthogonal directions, among other things, and their (d, 2).

    Block 0 copies what the first two tokens carry to the last position; the unembedding reads the two signs there.
    """
    draw = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(D, D, generator=draw)).Q
    config = GPT2Config(
        n_layers=2, n_heads=1, d_model=D, d_vocab=45, n_ctx=4, attn_only=True, layer_norm=False, bias=False, tied=False
    )
    model = GPT2(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        sign = torch.tensor([1.0 if token % 2 else -1.0 for token in range(20)])
        nuisance = torch.randn(40, N_NUISANCE, generator=draw) @ basis[:, 2 : 2 + N_NUISANCE].T
        model.wte.weight[:40] = nuisance
        model.wte.weight[:20] += sign[:, None] * basis[:, 0]
        model.wte.weight[20:40] += sign[:, None] * basis[:, 1]
        model.blocks[0].attn.qkv.weight[2 * D :] = torch.eye(D)
        model.blocks[0].attn.proj.weight.copy_(3 * torch.eye(D))
        for first in range(2):
            for second in range(2):
                reads = (2 * first - 1) * basis[:, 0] + (2 * second - 1) * basis[:, 1]
                model.lm_head.weight[ANSWERS + 2 * first + second] = reads
    return model, basis[:, :2]


def triples(n: int, seed: int, tokens: range) -> Triples:
    """Counterfactual: the source's first variable, the base's second. From these of the 20 tokens for each variable."""
    draw = torch.Generator().manual_seed(seed)

    def prompts() -> Tensor:
        first, second = (torch.randint(low + tokens[0], low + tokens[-1] + 1, (n,), generator=draw) for low in (0, 20))
        return torch.stack([first, second, torch.full((n,), QUERY)], 1)

    base, source = prompts(), prompts()
    return Triples(base, source, ANSWERS + 2 * (source[:, 0] % 2) + base[:, 1] % 2)


MODEL, DIRECTIONS = planted()
TRAIN, TEST = triples(256, 1, range(14)), triples(300, 2, range(14, 20))  # no token in both
RIGHT = Location(("resid_post", 0))


@pytest.fixture(scope="module")
def alignment():
    return align(MODEL, TRAIN, TEST, RIGHT, k=1)


def test_the_model_computes_both_variables():
    answers = MODEL(TEST.base)[:, -1].argmax(-1)
    assert torch.equal(answers, ANSWERS + 2 * (TEST.base[:, 0] % 2) + TEST.base[:, 1] % 2)


def test_the_planted_direction_is_found(alignment):
    assert alignment.iia > 0.97
    assert alignment.subspace.overlap(DIRECTIONS[:, 0]) > 0.95
    assert alignment.subspace.overlap(DIRECTIONS[:, 1]) < 0.3


def test_yardsticks_are_near_what_they_must_be(alignment):
    iia = {name: found.value for name, found in alignment.accuracies.items()}
    assert abs(iia["full swap"] - 0.5) < 0.1  # the second variable comes along, and is right by chance
    assert abs(iia["unchanged"] - 0.5) < 0.1
    assert iia["shuffled labels"] < 0.35
    assert iia["random weights"] < 0.35
    assert iia["random subspace"] < 0.75


def test_the_wrong_layer_holds_nothing_to_swap():
    before = Location(("resid_pre", 0))  # at the last position, which has not read the others yet
    found = find_subspace(MODEL, TRAIN, before, 1, Search(n_steps=30))
    unchanged = (MODEL(TEST.base)[:, -1].argmax(-1) == TEST.labels).double().mean()
    assert interchange_accuracy(MODEL, TEST, before, found.basis).value == pytest.approx(float(unchanged))


def test_both_variables_need_two_directions():
    swapped = TRAIN.with_labels(ANSWERS + 2 * (TRAIN.source[:, 0] % 2) + TRAIN.source[:, 1] % 2)
    held_out = TEST.with_labels(ANSWERS + 2 * (TEST.source[:, 0] % 2) + TEST.source[:, 1] % 2)
    two = find_subspace(MODEL, swapped, RIGHT, 2)
    assert two.overlap(DIRECTIONS) > 0.95
    assert interchange_accuracy(MODEL, held_out, RIGHT, two.basis).value > 0.97
    assert interchange_accuracy(MODEL, held_out, RIGHT, DIRECTIONS[:, :1]).value < 0.7


def test_the_planted_direction_itself_is_perfect():
    accuracy = interchange_accuracy(MODEL, TEST, RIGHT, DIRECTIONS[:, :1])
    assert (accuracy.value, accuracy.stderr, accuracy.n) == (1.0, 0.0, 300)


def test_an_interchange_is_what_a_loop_over_triples_computes(make_gpt2):
    model = make_gpt2(GPT2Config(n_layers=2, n_heads=2, d_model=16, d_vocab=45, n_ctx=6))
    draw = torch.Generator().manual_seed(0)
    base, source = (torch.randint(0, 45, (7, 6), generator=draw) for _ in range(2))
    base_at, source_at = torch.tensor([0, 1, 2, 3, 1, 0, 2]), torch.tensor([5, 4, 0, 1, 1, 2, 3])
    answer_at = torch.tensor([2, 5, 4, 3, 1, 5, 4])
    basis = random_subspace(16, 3, seed=1)
    given = Triples(base, source, base[:, 0], answer_at)
    found = interchange(model, given, Location(("mlp_out", 0), base_at, source_at), basis, batch_size=3)
    for i in range(7):
        taken = model.run_with_cache(source[i : i + 1], ("mlp_out", 0))[1]["mlp_out", 0][0, source_at[i]]

        def swap(value, site, taken=taken, at=int(base_at[i])):
            value[0, at] += basis @ (basis.T @ (taken - value[0, at]))
            return value

        expected = model.run_with_edits(base[i : i + 1], {("mlp_out", 0): swap})[0, answer_at[i]]
        torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-5)


def test_swapping_every_direction_is_swapping_the_whole_activation():
    whole = interchange(MODEL, TEST, RIGHT)
    torch.testing.assert_close(interchange(MODEL, TEST, RIGHT, torch.eye(D)), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole, MODEL(TEST.source)[:, -1], rtol=1e-5, atol=1e-5)  # the last position reads nothing else


def test_an_interchange_with_oneself_changes_nothing():
    same = Triples(TEST.base, TEST.base, TEST.labels)
    torch.testing.assert_close(interchange(MODEL, same, RIGHT, DIRECTIONS), MODEL(TEST.base)[:, -1])


def test_the_search_is_repeatable_and_leaves_the_model_and_torchs_generator_alone():
    before = {name: weight.clone() for name, weight in MODEL.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with torch.no_grad():  # a search makes its own gradients
        first, again = (find_subspace(MODEL, TRAIN, RIGHT, 2, Search(n_steps=5)) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.basis, again.basis)
    assert first.losses == again.losses
    other = find_subspace(MODEL, TRAIN, RIGHT, 2, Search(n_steps=5, seed=1))
    assert not torch.allclose(first.basis, other.basis, atol=1e-2)
    assert all(weight.grad is None for weight in MODEL.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in MODEL.state_dict().items())
    torch.testing.assert_close(first.basis.T @ first.basis, torch.eye(2), rtol=0, atol=1e-5)


def test_overlap_is_the_cosine_of_the_largest_angle():
    found = Subspace(torch.eye(4)[:, :2], "blocks.0.resid_post", ())
    assert found.overlap(torch.tensor([3.0, 4.0, 0.0, 0.0])) == pytest.approx(1)
    assert found.overlap(torch.tensor([1.0, 0.0, 1.0, 0.0])) == pytest.approx(0.5**0.5)
    assert found.overlap(torch.eye(4)[:, 1:3]) == pytest.approx(0, abs=1e-6)
    with pytest.raises(AnalysisError, match="zero or depend"):
        found.overlap(torch.zeros(4))


def test_a_table_has_a_row_for_each_accuracy(alignment):
    table = alignment.to_frame()
    yardsticks = ["full swap", "random subspace", "unchanged", "commonest label", "shuffled labels", "random weights"]
    assert list(table.subspace) == ["das", *yardsticks]
    assert (table.n == 300).all()
    assert table.iia[0] == alignment.iia
    assert set(table.layer) == {0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: align(MODEL, TRAIN, TRAIN[:5], RIGHT, 1), "5 of 5 test triples are training triples"),
        (lambda: align(MODEL, TRAIN, TEST, RIGHT, 1, controls=("luck",)), "no control 'luck'"),
        (lambda: find_subspace(MODEL, TRAIN, RIGHT, 17), "k=17 directions do not fit: there are 1 to 16"),
        (lambda: find_subspace(MODEL, TRAIN, RIGHT, 0), "k=0"),
        (lambda: Search(n_steps=0), "searches nothing"),
        (lambda: find_subspace(MODEL, TRAIN, Location(("z", 0)), 1), r"is not \(batch, pos, d\)"),
        (lambda: find_subspace(MODEL, TRAIN, Location("embed"), 1), "is in no layer"),
        (lambda: find_subspace(MODEL, TRAIN, Location("*resid_post"), 1), "stands for 2 hook points"),
        (lambda: interchange(MODEL, TEST, Location(("resid_post", 0), 7)), "no position 7 in prompts of 3 tokens"),
        (lambda: interchange(MODEL, Triples(TEST.base, TEST.source, TEST.labels, 0), RIGHT), "cannot reach the answer at 0"),
        (lambda: interchange(MODEL, TEST, RIGHT, torch.ones(16, 2)), "not orthonormal"),
        (lambda: interchange(MODEL, TEST, RIGHT, torch.eye(5)), "a subspace is"),
        (lambda: Triples(TEST.base, TEST.source[:4], TEST.labels), "one triple or more"),
        (lambda: TEST[:0], "one triple or more"),
        (lambda: Search(n_steps=1.5), "searches nothing"),
        (lambda: interchange(MODEL, TEST, Location(("resid_post", 0), True)), "one whole number"),
    ],
)
def test_holding_it_wrong(call, message):
    with pytest.raises(AnalysisError, match=message):
        call()


@pytest.mark.parametrize("labels", [TEST.labels.float(), TEST.labels.tolist()])
def test_labels_that_are_no_ids_are_refused(labels):
    with pytest.raises(TokenError, match="labels is a tensor of ids"):
        TEST.with_labels(labels)


def test_labels_of_another_vocabulary_are_refused():
    with pytest.raises(TokenError, match="label 99 is not in the vocabulary"):
        interchange(MODEL, TEST.with_labels(torch.full((300,), 99)), RIGHT)


def test_a_model_under_standing_edits_is_searched_as_it_is():
    edited = MODEL.with_edits({"unembed.in": lambda value, site: -value})
    expected = edited(TEST.source)[:, -1]
    torch.testing.assert_close(interchange(edited, TEST, RIGHT), expected, rtol=1e-5, atol=1e-5)
