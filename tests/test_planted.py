"""Planted circuits do what they say, and nothing else does: by attention patterns, by loss, and edge by edge."""

import math

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ConfigError
from interp_gpt2.planted import PLANTED_CONFIG, ROLES, induction_pair, plant

SHAPE = {"n_layers": 2, "n_heads": 2, "d_model": 256, "d_head": 40, "d_mlp": 32, "d_vocab": 12, "n_ctx": 26}
CONFIGS = {
    "untied": {"tied": False},
    "tied": {},
    "no layer norm": {"layer_norm": False, "tied": False},
    "attention only": {"attn_only": True, "tied": False},
    "no biases": {"bias": False, "tied": False},
    "three layers, scores divided by layer + 1": {"n_layers": 3, "scale_attn_by_inverse_layer_idx": True, "tied": False},
}
PERIOD = 11
UNTIED = GPT2Config(**SHAPE, tied=False)


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def any_config(request) -> GPT2Config:
    return GPT2Config(**(SHAPE | request.param))


def losses(model, tokens, edits=None):
    """Of each prediction, in nats: (batch, pos - 1)."""
    log_probs = model.run_with_edits(tokens, edits or {}).log_softmax(-1)
    return -log_probs[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


def without(*heads):
    """Edits that remove what heads write."""

    def remove(head):
        def edit(z, site):
            z[:, :, head] = 0
            return z

        return edit

    return {("z", layer): remove(head) for layer, head in heads}


def patterns(circuit, tokens):
    _, cache = circuit.model.run_with_cache(tokens, "*pattern")
    n_heads = circuit.model.config.n_heads
    return {(at, head): cache["pattern", at][:, head] for at in range(cache.n_layers) for head in range(n_heads)}


def assert_even(pattern):
    even = torch.ones_like(pattern).tril() / torch.arange(1, pattern.shape[-1] + 1)[:, None]
    torch.testing.assert_close(pattern, even)


@torch.no_grad()
def test_a_previous_token_head_attends_to_the_position_before_and_the_others_evenly(any_config):
    circuit = plant({"previous_token": (1, 0)}, any_config)
    tokens = torch.randint(0, 12, (3, 26), generator=torch.Generator().manual_seed(0))
    for head, pattern in patterns(circuit, tokens).items():
        if head == (1, 0):
            assert pattern[:, range(1, 26), range(25)].min() > 0.999
        else:
            assert_even(pattern)


@torch.no_grad()
def test_an_induction_pair_predicts_what_is_repeated_and_has_no_opinion_before(any_config):
    circuit = induction_pair((0, 1), (any_config.n_layers - 1, 0), any_config)
    tokens = circuit.repeated_tokens(4, PERIOD)
    found = losses(circuit.model, tokens)
    assert (-found[:, PERIOD + 1 :]).exp().min() > 0.98
    slack = 0.5 if any_config.tied else 1e-3  # tied, the embedding speaks for the token itself
    assert (found[:, : PERIOD + 1] - math.log(12)).abs().max() < slack


@torch.no_grad()
def test_the_induction_head_attends_to_what_followed_and_else_to_bos(any_config):
    circuit = induction_pair((0, 1), (any_config.n_layers - 1, 0), any_config)
    found = patterns(circuit, circuit.repeated_tokens(4, PERIOD))
    pattern = found.pop((any_config.n_layers - 1, 0))
    second = torch.arange(PERIOD + 1, 2 * PERIOD + 1)
    assert pattern[:, second, second - PERIOD + 1].min() > 0.999
    assert pattern[:, : PERIOD + 1, 0].min() > 0.999
    previous = found.pop((0, 1))
    assert previous.diagonal(-1, 1, 2).min() > 0.999
    for other in found.values():
        assert_even(other)


@torch.no_grad()
@pytest.mark.parametrize("removed", [(0, 0), (1, 1)])
def test_without_either_of_the_pair_the_model_is_ignorant(removed):
    circuit = induction_pair((0, 0), (1, 1), UNTIED)
    tokens = circuit.repeated_tokens(4, PERIOD)
    ignorant = losses(circuit.model, tokens, without(removed))[:, PERIOD + 1 :]
    if removed == (1, 1):
        torch.testing.assert_close(ignorant, torch.full_like(ignorant, math.log(12)))
    else:
        assert ignorant.mean() > math.log(12) - 0.05


@torch.no_grad()
@pytest.mark.parametrize("removed", [(0, 1), (1, 0)])
def test_without_any_other_head_nothing_changes(removed):
    circuit = induction_pair((0, 0), (1, 1), UNTIED)
    tokens = circuit.repeated_tokens(4, PERIOD)
    torch.testing.assert_close(losses(circuit.model, tokens, without(removed)), losses(circuit.model, tokens), rtol=0, atol=0)


@torch.no_grad()
def test_a_duplicate_token_head_attends_evenly_to_earlier_occurrences_and_raises_the_token(any_config):
    circuit = plant({"duplicate_token": (0, 1)}, any_config)
    tokens = torch.tensor([[0, 5, 7, 5, 2, 5, 7, 3]])
    pattern = patterns(circuit, tokens)[0, 1][0]
    expected = torch.zeros(8, 8)
    for query, keys in {0: [0], 1: [0], 2: [0], 3: [1], 4: [0], 5: [1, 3], 6: [2], 7: [0]}.items():
        expected[query, keys] = 1 / len(keys)
    torch.testing.assert_close(pattern, expected, atol=1e-3, rtol=0)
    probs = circuit.model(tokens).softmax(-1)[0].gather(-1, tokens[0, :, None])[:, 0]
    assert probs[[3, 5, 6]].min() > 0.98
    assert probs[[1, 2, 4, 7]].max() < (0.5 if any_config.tied else 0.1)  # tied, the embedding speaks for the token itself


@torch.no_grad()
def test_without_a_bos_heads_that_find_nothing_attend_evenly():
    """A duplicate-token head to everything earlier: it never attends to the position it is at."""
    circuit = plant({"previous_token": (0, 0), "duplicate_token": (0, 1), "induction": (1, 0)}, UNTIED)
    found = patterns(circuit, torch.tensor([[5, 7, 3, 2, 9, 11]]))
    assert_even(found[1, 0])
    earlier = torch.ones(6, 6).tril(-1) / torch.arange(6).clamp(min=1)[:, None]
    torch.testing.assert_close(found[0, 1][0, 1:], earlier[1:])


@torch.no_grad()
@pytest.mark.parametrize("role", ["copying", "anti_copying"])
def test_a_copying_head_raises_what_is_there_and_an_anti_copying_head_lowers_it(any_config, role):
    circuit = plant({role: (1, 1)}, any_config)
    tokens = torch.tensor([[0, 3, 4, 3, 9, 9]])
    without_it = circuit.model.run_with_edits(tokens, without((1, 1)))[0, -1]
    change = (circuit.model(tokens)[0, -1] - without_it) * (1 if role == "copying" else -1)
    seen = torch.tensor([3, 4, 9])
    assert change[seen].min() > 0.5
    assert change[4] < change[3]
    if not any_config.tied:  # tied, a longer stream makes less of the embedding
        unseen = torch.tensor([1, 2, 5, 6, 7, 8, 10, 11])
        torch.testing.assert_close(change[unseen], torch.zeros(8), atol=1e-5, rtol=0)


@torch.no_grad()
def test_noise_elsewhere_leaves_the_circuit_working():
    for seed in range(3):
        circuit = induction_pair(noise=0.02, seed=seed)
        tokens = circuit.repeated_tokens(8, 19, seed)
        assert (-losses(circuit.model, tokens)[:, 20:]).exp().min() > 0.98
        assert circuit.model.blocks[1].mlp.fc.weight.std() > 0.019


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_something_passes_through_each_edge_and_nothing_through_any_other(tied):
    """Each sender is taken out of each input alone, in models without layer norms, where nothing else can change."""
    config = GPT2Config(**(SHAPE | {"layer_norm": False, "tied": tied, "n_heads": 5}))
    heads = {"previous_token": (0, 1), "induction": (1, 0), "duplicate_token": (0, 0), "copying": (1, 1), "anti_copying": (1, 2)}
    circuit = plant(heads, config)
    tokens = torch.cat([circuit.repeated_tokens(2, PERIOD), torch.tensor([[5], [7]])], 1)
    _, cache = circuit.model.run_with_cache(tokens, "*")
    senders = {name: cache[name] for name in ("embed", "pos_embed")}
    senders |= {f"L{at}H{head}": cache["result", at][:, :, head] for at in range(2) for head in range(5)}
    found = []
    for at, head in [(at, head) for at in range(2) for head in range(5)]:
        for name in "qkv":
            for sender, written in senders.items():
                if sender[0] == "L" and int(sender[1]) >= at:
                    continue

                def cut(value, site, head=head, written=written):
                    value[:, :, head] -= written
                    return value

                _, changed = circuit.model.run_with_cache(tokens, (name, at), {(f"{name}_input", at): cut})
                whole = cache[name, at][:, :, head]
                if (changed[name, at][:, :, head] - whole).abs().max() > 1e-3 * whole.abs().max():
                    found.append((sender, f"L{at}H{head}.{name}"))
    for sender, written in senders.items():
        if (written @ circuit.model.W_U).abs().max() > 1e-3:
            found.append((sender, "logits"))
    assert set(found) == set(circuit.edges)
    assert len(circuit.edges) == len(set(circuit.edges))


def test_the_edges_of_the_induction_pair_are_these():
    assert set(induction_pair((0, 1), (1, 2)).edges) == {
        ("pos_embed", "L0H1.q"), ("pos_embed", "L0H1.k"), ("embed", "L0H1.v"),
        ("embed", "L1H2.q"), ("L0H1", "L1H2.k"), ("embed", "L1H2.k"), ("embed", "L1H2.v"), ("L1H2", "logits"),
    }  # fmt: skip


def test_the_seed_is_all_the_chance_there_is():
    same, again, other = (induction_pair(noise=0.02, seed=seed).model.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert not torch.equal(same["wte.weight"], other["wte.weight"])


@pytest.mark.parametrize(
    ("heads", "changes", "message"),
    [
        ({"successor": (0, 0)}, {}, "not a role"),
        ({"copying": (2, 0)}, {}, r"no head \(2, 0\)"),
        ({"copying": (0, 0), "anti_copying": (0, 0)}, {}, "two share one"),
        ({"induction": (1, 0)}, {}, "earlier layer"),
        ({"induction": (0, 0), "previous_token": (0, 1)}, {}, "earlier layer"),
        ({"duplicate_token": (0, 0)}, {"d_head": 38}, "at least 39"),
        ({"previous_token": (0, 0)}, {"d_head": 25}, "at least 26"),
        ({"copying": (0, 0)}, {"d_model": 50}, "at least 51"),
    ],
)
def test_what_cannot_be_planted_is_refused(heads, changes, message):
    with pytest.raises(ConfigError, match=message):
        plant(heads, GPT2Config(**(SHAPE | changes)))


def test_a_period_without_room_is_refused():
    with pytest.raises(ConfigError, match="1 to 19"):
        induction_pair().repeated_tokens(2, 20)


def test_every_role_has_room_in_the_default_config():
    spots = [(0, 0), (1, 0), (0, 1), (1, 1), (1, 2)]
    circuit = plant(dict(zip(ROLES, spots, strict=True)))
    assert circuit.model.config == PLANTED_CONFIG
    assert circuit.label("induction") == "L1H0"
