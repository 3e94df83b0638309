"""The engine computes only what an intervention changes, and gives what whole passes give."""

import os
import signal

import pytest
import torch

from interp_gpt2.causal import engine, propagation
from interp_gpt2.causal.engine import run_patches
from interp_gpt2.causal.metrics import kl_divergence, logit_difference, probability, rank
from interp_gpt2.causal.patch import HEAD_POINTS, SQUARE_POINTS, Patch
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, EditError, HookNameError, TokenError
from interp_gpt2.hooks import hook_point_names
from interp_gpt2.model import GPT2

METRICS = {
    "logit difference": logit_difference([1, 2], [3, 4]),
    "probability at another position": probability([3], pos=-2),
    "one number for each pair": lambda logits: logits[:, -1, 1] - logits[:, 2, 4],
    "one number for all pairs": lambda logits: logits[:, -1, 1].mean(),
}
MASKS = {
    "no padding": None,
    "right": torch.tensor([[1] * 9, [1] * 6 + [0] * 3]),
    "left": torch.tensor([[0] * 2 + [1] * 7, [1] * 9]),
}


@torch.no_grad()
def runs(model: GPT2, mask: torch.Tensor | None = None, differ_at: int = 3) -> tuple[torch.Tensor, dict]:
    """Tokens to patch, and everything from a run over others that differ at one position."""
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, 50, (2, 9), generator=draw)
    other = tokens.clone()
    other[:, differ_at] = (other[:, differ_at] + 1) % 50
    return tokens, model.run_with_cache(other, "*", attention_mask=mask)[1]


def pieces(name: str) -> list[dict]:
    """Pieces of a hook point: whole, some positions, heads, keys and neurons."""
    leaf = name.rpartition(".")[2]
    found = [{}, {"positions": [4, 6]}, {"positions": 3}, {"positions": -1}]
    if leaf in HEAD_POINTS:
        found += [{"heads": 0}, {"heads": [0, -1], "positions": [3, 5]}]
    if leaf in SQUARE_POINTS:
        found += [{"heads": 0}, {"heads": 0, "positions": [5, 8], "keys": [3, 4]}]
    if leaf in ("pre", "post", "resid_pre", "z"):
        found += [{"neurons": [1, 3], "positions": slice(3, 6)}]
    return found


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest metric."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("metric", "padding"), list(zip(METRICS, ["no padding", "right", "left", "right"], strict=True)))
def test_every_piece_of_every_hook_point_gives_what_whole_passes_give(any_model, metric, padding):
    metric, mask = METRICS[metric], MASKS[padding]
    tokens, source = runs(any_model, mask)
    cells = [[Patch(name, **piece)] for name in hook_point_names(any_model.config) for piece in pieces(name)]
    found = run_patches(any_model, tokens, cells, metric, source, mask)
    naive = run_patches(any_model, tokens, cells, metric, source, mask, naive=True)
    assert apart(found.values, naive.values) <= 1e-5
    assert apart(found.base, naive.base) <= 1e-5
    assert (found.values != found.base)[~found.skipped].any() or any_model.config.n_layers == 0


def test_nothing_is_computed_where_nothing_differs_or_the_metric_does_not_look(model, monkeypatch):
    tokens, source = runs(model, differ_at=4)
    cells = [[Patch("resid_pre", 1, at)] for at in range(9)]
    monkeypatch.setattr(engine, "enter", counted := Counting(engine.enter))
    found = run_patches(model, tokens, cells, logit_difference(1, 2, pos=6), source)
    assert found.skipped[:, 0].tolist() == [True] * 4 + [False] * 3 + [True] * 2  # before the difference, after the metric
    assert counted.n_cases == 2 * 3
    assert torch.equal(found.values[found.skipped[:, 0]], found.base.expand(6, 2))


class Counting:
    def __init__(self, real):
        self.real, self.n_cases = real, 0

    def __call__(self, run, ids, cases, source):
        self.n_cases += len(cases)
        return self.real(run, ids, cases, source)


def test_a_patch_computes_no_earlier_layer_and_no_earlier_position(model, monkeypatch):
    tokens, source = runs(model)
    cells = [[Patch("resid_pre", 1, at)] for at in (3, 7)]
    rows = []
    real = type(model.blocks[0].mlp).forward

    def counting(self, normed, hooks):
        if normed.ndim == 2:  # the engine's rows; whole passes have (batch, pos, d_model)
            rows.append((self is model.blocks[0].mlp, len(normed)))
        return real(self, normed, hooks)

    monkeypatch.setattr(type(model.blocks[0].mlp), "forward", counting)
    run_patches(model, tokens, cells, lambda logits: logits.sum((1, 2)), source)
    assert rows == [(False, 2 * (6 + 2))]  # two pairs, from position 3 and from position 7 on, in layer 1 alone
    rows.clear()
    run_patches(model, tokens, cells, logit_difference(1, 2), source)
    assert rows == [(False, 2 * 2)]  # in the last layer only the metric's position


def test_the_unembedding_computes_only_the_tokens_that_the_metric_names(model, monkeypatch):
    tokens, source = runs(model)
    columns = []
    real = type(model).unembed
    monkeypatch.setattr(type(model), "unembed", lambda self, resid, *hooks: columns.append(1) or real(self, resid, *hooks))
    run_patches(model, tokens, [[Patch("z", 0, heads=1)]], logit_difference(1, 2), source)
    assert len(columns) == 1  # the base run's
    run_patches(model, tokens, [[Patch("z", 0, heads=1)]], rank(3), source)
    assert len(columns) == 3


@pytest.mark.parametrize("per_case", [1, 3])
def test_small_budgets_split_the_sweep_and_change_nothing(model, per_case):
    tokens, source = runs(model)
    cells = [[Patch("z", layer, at, head)] for layer in range(2) for at in range(9) for head in range(4)]
    whole = run_patches(model, tokens, cells, METRICS["logit difference"], source)
    one = run_patches(model, tokens, [[Patch("z", 0, 3, 0)]], METRICS["logit difference"], source).bytes_used // 2
    split = run_patches(model, tokens, cells, METRICS["logit difference"], source, budget=per_case * one)
    assert 0 < split.bytes_used <= per_case * one < whole.bytes_used
    assert apart(split.values, whole.values) <= 1e-5


def test_a_budget_that_holds_nothing_is_refused(model):
    tokens, source = runs(model)
    with pytest.raises(AnalysisError, match=r"the budget of 0.0 MiB does not hold"):
        run_patches(model, tokens, [[Patch("z", 0)]], logit_difference(1, 2), source, budget=100)


@pytest.mark.parametrize("naive", [False, True])
def test_ctrl_c_keeps_the_finished_cells(model, naive):
    tokens, source = runs(model)
    cells = [[Patch("resid_pre", layer, at)] for layer in range(2) for at in range(3, 9)]
    done = run_patches(model, tokens, cells, METRICS["one number for each pair"], source)
    calls = []

    def interrupted(logits):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return METRICS["one number for each pair"](logits)

    budget = 3 * run_patches(model, tokens, [cells[0]], METRICS["one number for each pair"], source).bytes_used
    with pytest.warns(UserWarning, match=r"interrupted: \d+ of 12 cells are finished"):
        found = run_patches(model, tokens, cells, interrupted, source, budget=budget, naive=naive)
    assert not found.complete
    finished = ~found.values.isnan()
    assert 0 < finished.sum() < finished.numel()
    assert apart(found.values[finished], done.values[finished]) <= 1e-5


def test_a_model_with_standing_edits_is_patched_with_them(model):
    tokens, source = runs(model)
    edited = model.with_edits({("z", 0): lambda z, site: 0 * z})
    found = run_patches(edited, tokens, [[Patch("resid_pre", 1, 3)]], logit_difference(1, 2), source)
    by_hand = edited.run_with_edits(tokens, {("resid_pre", 1): lambda r, site: _put(r, source["resid_pre", 1], 3)})
    assert torch.equal(found.values[0], logit_difference(1, 2)(by_hand))
    assert not torch.equal(found.base, run_patches(model, tokens, [[Patch("z", 0)]], logit_difference(1, 2), source).base)


def _put(value, source, at):
    value[:, at] = source[:, at]
    return value


def test_the_model_and_the_source_stay_as_they_were(model):
    tokens, source = runs(model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    kept = {name: value.clone() for name, value in source.items()}
    run_patches(model, tokens, [[Patch(name)] for name in hook_point_names(model.config)], METRICS["logit difference"], source)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(torch.equal(value, kept[name]) for name, value in source.items())


def test_the_precision_is_the_model_s(model):
    tokens, source = runs(model.double())
    found = run_patches(model, tokens, [[Patch("z", 0, heads=1)], [Patch("k", 1, 4)]], logit_difference(1, 2), source)
    naive = run_patches(model, tokens, [[Patch("z", 0, heads=1)], [Patch("k", 1, 4)]], logit_difference(1, 2), source, naive=True)
    assert found.values.dtype == torch.float64
    assert apart(found.values, naive.values) <= 1e-14


@pytest.mark.parametrize(
    ("patch", "error", "message"),
    [
        (Patch("resid_pree", 0), HookNameError, "resid_pre"),
        (Patch("resid_pre", 2), HookNameError, "there is no layer 2"),
        (Patch("resid_pre"), HookNameError, "no hook point is named 'resid_pre'"),
        (Patch("*resid_pre"), HookNameError, "matches 2 hook points; a patch is of one"),
        (Patch("resid_pre", 0, positions=9), AnalysisError, "has no position 9 to patch; they are 0 to 8"),
        (Patch("z", 0, heads=4), AnalysisError, "has no head 4 to patch; they are 0 to 3"),
        (Patch("z", 0, heads=[]), AnalysisError, "chooses no head at all"),
        (Patch("resid_pre", 0, heads=1), AnalysisError, "has no heads to choose from"),
        (Patch("z", 0, keys=1), AnalysisError, "has no keys"),
        (Patch("pattern", 0, neurons=1), AnalysisError, "has no neurons"),
    ],
)
def test_a_piece_that_does_not_exist_is_refused_before_anything_runs(model, monkeypatch, patch, error, message):
    tokens, source = runs(model)
    monkeypatch.setattr(GPT2, "forward", lambda *inputs, **named: pytest.fail("a pass was run"))
    with pytest.raises(error, match=message):
        run_patches(model, tokens, [[Patch("z", 0)], [patch]], logit_difference(1, 2), source)


def test_a_source_that_lacks_what_is_copied_is_refused(model):
    tokens, source = runs(model)
    with pytest.raises(AnalysisError, match="there is no source run"):
        run_patches(model, tokens, [[Patch("z", 0)]], logit_difference(1, 2))
    with pytest.raises(AnalysisError, match=r"has not kept 'blocks.0.attn.z'"):
        run_patches(model, tokens, [[Patch("z", 0)]], logit_difference(1, 2), {"embed": source["embed"]})


def test_a_value_of_another_shape_is_refused(model):
    tokens, _ = runs(model)
    with pytest.raises(ValueError, match=r"has shape \(3,\), the activation \(2, 9, 4, 8\)"):
        run_patches(model, tokens, [[Patch("z", 0, value=torch.zeros(3))]], logit_difference(1, 2))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda logits: logits[:, -1], r"shape \(2, 50\); expected one number, or \(2,\)"),
        (lambda logits: logits.sum() * torch.nan, "not finite"),
        (lambda logits: "good", "gave str"),
        (logit_difference([1, 2, 3], [4, 5, 6]), "tokens for 3 pairs; there are 2"),
        (logit_difference(1, 50), "token 50, which is not in the vocabulary of 50"),
        (logit_difference(1, 2, pos=9), "looks at position 9 of pair 0, which has 9 tokens"),
    ],
)
def test_a_metric_that_cannot_be_compared_is_refused(model, metric, message):
    tokens, source = runs(model)
    with pytest.raises((AnalysisError, TokenError), match=message):
        run_patches(model, tokens, [[Patch("z", 0)]], metric, source)


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize(("mask", "key"), [(None, 5), (MASKS["left"], 0)], ids=["the future", "padding"])
def test_a_pattern_that_attends_to_what_cannot_be_seen_is_refused(model, mask, key, naive):
    tokens, source = runs(model, mask)
    pattern = source["pattern", 1].clone()
    pattern[0, 2, 4, key] = 0.1
    with pytest.raises(EditError, match="attends to later positions or to padding"):
        run_patches(model, tokens, [[Patch("pattern", 1, 4, value=pattern)]], logit_difference(1, 2), None, mask, naive=naive)


def test_dropout_is_refused(make_gpt2):
    model = make_gpt2(GPT2Config(n_layers=1, n_heads=2, d_model=16, d_vocab=50, n_ctx=16, dropout=0.1)).train()
    with pytest.raises(AnalysisError, match=r"call model\.eval"):
        run_patches(model, torch.zeros(1, 4, dtype=torch.long), [[Patch("z", 0, value=torch.zeros(()))]], logit_difference(1, 2))


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([Patch("z", 0)], r"cell 0 is Patch\(.*a cell is a list of patches"),
        ([[Patch("z", 0, positions=torch.arange(9) == 3)]], "no whole number, slice or list of them; of a mask"),
        ([[Patch("z", 0, heads=[True, False])]], "no whole number"),
        ([[Patch("z", 0, positions=1.7)]], "position 1.7 of"),
        ([[Patch("z", 0, value=0.0)]], "is float; pass a tensor"),
    ],
)
def test_what_looks_like_a_patch_and_is_none_is_refused(model, cells, message, naive):
    tokens, source = runs(model)
    with pytest.raises(AnalysisError, match=message):
        run_patches(model, tokens, cells, logit_difference(1, 2), source, naive=naive)


@pytest.mark.parametrize("naive", [False, True])
def test_a_source_run_over_other_lengths_is_not_broadcast(model, naive):
    tokens, _ = runs(model)
    _, source = model.run_with_cache(tokens[:, :1], ("z", 0))
    with pytest.raises(ValueError, match=r"the source run's 'blocks.0.attn.z' has shape .* run the source over as many tokens"):
        run_patches(model, tokens, [[Patch("z", 0)]], logit_difference(1, 2), source, naive=naive)


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("metric", ["logit difference", "one number for all pairs"])
def test_a_metric_that_is_not_finite_after_a_patch_is_refused_rather_than_taken_for_unfinished(model, metric, naive):
    tokens, source = runs(model)
    cells = [[Patch("z", 0)], [Patch("z", 0, 3, value=torch.tensor(torch.nan))]]
    with pytest.raises(AnalysisError, match="not finite"):
        run_patches(model, tokens, cells, METRICS[metric], source, naive=naive)


@pytest.mark.parametrize("naive", [False, True])
def test_no_patch_at_all_leaves_the_base_run(model, naive):
    tokens, source = runs(model)
    found = run_patches(model, tokens, [[], [Patch("z", 0)]], logit_difference(1, 2), source, naive=naive)
    assert torch.equal(found.values[0], found.base)
    assert not torch.equal(found.values[1], found.base)


def test_whole_numbers_and_truths_are_metrics_that_an_interrupt_can_leave_nan(model):
    tokens, source = runs(model)
    found = run_patches(model, tokens, [[Patch("z", 0)]], lambda logits: logits[:, -1].argmax(-1), source)
    naive = run_patches(model, tokens, [[Patch("z", 0)]], lambda logits: logits[:, -1].argmax(-1), source, naive=True)
    assert found.values.is_floating_point()
    assert torch.equal(found.values, naive.values)
    truths = run_patches(model, tokens, [[Patch("z", 0)]], lambda logits: logits[:, -1, 1] > 0, source)
    assert truths.values.dtype == torch.float64


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (torch.zeros(1, 9, 50), r"logits \(pair, pos\) of \(1, 9\); those of this run are \(2, 9\)"),
        (torch.zeros(4, 9, 50), r"of \(4, 9\)"),
        (torch.zeros(2, 5, 50), r"of \(2, 5\)"),
        (torch.zeros(2, 9, 40), "logits of 40 tokens; the vocabulary has 50"),
    ],
)
def test_a_divergence_from_the_logits_of_other_prompts_is_refused(model, reference, message):
    tokens, source = runs(model)
    with pytest.raises((AnalysisError, TokenError), match=message):
        run_patches(model, tokens, [[Patch("z", 0)]], kl_divergence(reference), source)


@pytest.mark.parametrize("metric", [None, "logit_difference"])
def test_what_is_no_metric_is_refused(model, metric):
    tokens, source = runs(model)
    with pytest.raises(AnalysisError, match="is no metric"):
        run_patches(model, tokens, [[Patch("z", 0)]], metric, source)


@pytest.mark.parametrize("pos", [1.5, True, None, "end"])
def test_a_metric_looks_at_a_whole_position(model, pos):
    tokens, source = runs(model)
    with pytest.raises(AnalysisError, match="a position is a whole number"):
        run_patches(model, tokens, [[Patch("z", 0)]], logit_difference(1, 2, pos=pos), source)


@pytest.mark.parametrize("point", ["resid_pre", "q", "k", "v", "z", "pattern", "mlp_out"])
def test_late_positions_of_a_long_prompt_read_the_keys_before_them_without_copying_them(make_gpt2, monkeypatch, point):
    model = make_gpt2(GPT2Config(n_layers=3, n_heads=2, d_model=64, d_vocab=50, n_ctx=64))
    tokens = torch.randint(0, 50, (1, 60), generator=torch.Generator().manual_seed(0))
    source = model.run_with_cache((tokens + 1) % 50, "*")[1]
    cells = [[Patch(point, layer, at)] for layer in range(3) for at in range(54, 60)]
    keys = []
    real = propagation.attend_in_two

    def noting(scale, q, k_before, v_before, k, v):
        keys.append((len(k_before), k.shape[1]))
        return real(scale, q, k_before, v_before, k, v)

    monkeypatch.setattr(propagation, "attend_in_two", noting)
    for metric in (logit_difference(1, 2), METRICS["one number for each pair"]):
        found = run_patches(model, tokens, cells, metric, source)
        assert apart(found.values, run_patches(model, tokens, cells, metric, source, naive=True).values) <= 1e-5
    assert set(keys) <= {(54, 6), (59, 1)}  # shared keys, and each case's own
    assert len(keys) >= 3
