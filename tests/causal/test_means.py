"""Means over a dataset are those of all its real tokens, however it is cut into batches, and remember what they are of."""

import pytest
import torch

from interp_gpt2.causal.means import ActivationMeans, activation_means
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, DataError, InterpGPT2Error, TokenError
from interp_gpt2.hooks import hook_point_names

ZEROS = torch.zeros(2, 3, dtype=torch.long)


@pytest.fixture
def data() -> torch.Tensor:
    return torch.randint(0, 50, (7, 12), generator=torch.Generator().manual_seed(2))


def test_means_are_those_of_one_pass_over_everything(any_model, data):
    names = [name for name in hook_point_names(any_model.config) if not name.endswith(("pattern", "attn_scores"))]
    means = activation_means(any_model, data, names, batch_size=3)
    with torch.no_grad():
        _, cache = any_model.run_with_cache(data, names)
    for name in names:
        torch.testing.assert_close(means.positional_mean(name), cache[name].double().mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(means.mean(name), cache[name].double().mean((0, 1)), rtol=1e-5, atol=1e-6)
    assert means.n_tokens == 84


def test_padding_counts_for_nothing_on_either_side(model, data):
    lengths = [12, 5, 9, 1, 12, 7, 3]
    alone = {name: torch.zeros(12, *shape[2:]).double() for name, shape in model.hook_points(1, 12).items() if "attn.z" in name}
    counts = torch.zeros(12)
    for row, n in zip(data, lengths, strict=True):
        with torch.no_grad():
            _, cache = model.run_with_cache(row[None, :n], "*attn.z")
        for name, total in alone.items():
            total[:n] += cache[name][0]
        counts[:n] += 1
    for side in ("right", "left"):
        tokens, mask = torch.zeros_like(data), torch.zeros_like(data)
        for i, n in enumerate(lengths):
            at = slice(0, n) if side == "right" else slice(12 - n, 12)
            tokens[i, at], mask[i, at] = data[i, :n], 1
        means = activation_means(model, tokens, "*attn.z", mask, batch_size=2)
        assert torch.equal(means.counts, counts.long())
        for name, total in alone.items():
            torch.testing.assert_close(means.positional_mean(name), total / counts[:, None, None], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(means.mean(name), total.sum(0) / counts.sum(), rtol=1e-4, atol=1e-6)


def test_batches_of_any_size_and_length_give_the_same(model, data):
    whole = activation_means(model, data, batch_size=7)
    parts = activation_means(model, [data[:2], (data[2:6], torch.ones(4, 12, dtype=torch.long)), data[6:]])
    assert whole.computed_on == parts.computed_on
    for name in whole.sums:
        torch.testing.assert_close(whole.sums[name], parts.sums[name])
    shorter = activation_means(model, iter([data[:2, :4], data[2:]]))
    assert shorter.counts.tolist() == [7] * 4 + [5] * 8


def test_memory_does_not_grow_with_the_data(model, data, largest_made):
    peaks = []
    for n in (1, 8):
        with largest_made() as made:
            activation_means(model, (data[:2] for _ in range(n)), "*attn_out")
        peaks.append(made.n_bytes)
    assert peaks[0] == peaks[1]


def test_sums_are_in_float64(model, data):
    half = model.bfloat16()
    means = activation_means(half, data, "*attn_out", batch_size=2)
    with torch.no_grad():
        exact = half.run_with_cache(data, ("attn_out", 1))[1]["attn_out", 1].double().mean((0, 1))
    torch.testing.assert_close(means.mean(("attn_out", 1)), exact, rtol=1e-12, atol=1e-12)


def test_saved_means_are_read_back_with_what_they_are_of(model, data, tmp_path):
    means = activation_means(model.with_edits({("z", 0): lambda z, site: z * 0}), data, note="made-up tokens")
    found = ActivationMeans.load(means.save(tmp_path / "means.safetensors"))
    assert found.config == model.config
    assert found.computed_on == means.computed_on
    assert found.computed_on.edited_at == ("blocks.0.attn.z",)
    assert found.computed_on.note == "made-up tokens"
    assert torch.equal(found.counts, means.counts)
    assert found.sums.keys() == means.sums.keys()
    assert all(torch.equal(found.sums[name], total) for name, total in means.sums.items())


def test_means_know_their_model(model, make_gpt2, data):
    means = activation_means(model, data)
    means.check(model)
    with pytest.raises(AnalysisError, match="other weights"):
        means.check(make_gpt2(model.config, seed=3))
    with pytest.raises(AnalysisError, match="n_layers=2, not 3"):
        means.check(make_gpt2(GPT2Config(n_layers=3, n_heads=4, d_model=32, d_vocab=50, n_ctx=16)))


def test_files_that_hold_no_means_are_refused(tmp_path, model):
    with pytest.raises(DataError, match="cannot be read"):
        ActivationMeans.load(tmp_path / "absent.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"\x08" + bytes(40))
    with pytest.raises(DataError, match="cannot be read"):
        ActivationMeans.load(tmp_path / "noise.safetensors")
    model.save(tmp_path / "model")
    with pytest.raises(DataError, match="does not hold activation means"):
        ActivationMeans.load(tmp_path / "model" / "model.safetensors")


@pytest.mark.parametrize(
    ("data", "names", "error", "message"),
    [
        ([], None, AnalysisError, "no token in 0 sequences"),
        (torch.zeros(0, 5, dtype=torch.long), None, AnalysisError, "no token in 0 sequences"),
        ([(ZEROS, ZEROS)], None, AnalysisError, "no token in 2 sequences"),
        (torch.full((2, 3), 50), None, TokenError, "not in the vocabulary"),
        (torch.zeros(2, 3), None, AnalysisError, "float32"),
        (torch.zeros(3, dtype=torch.long), None, AnalysisError, r"\(batch, pos\)"),
        (["text"], None, AnalysisError, "a batch is a tensor"),
        (ZEROS, "*pattern", AnalysisError, "has a column for every key"),
        (ZEROS, "*nothing", InterpGPT2Error, "no hook point matches"),
    ],
)
def test_holding_it_wrong(model, data, names, error, message):
    with pytest.raises(error, match=message):
        activation_means(model, data, names)


def test_what_was_not_recorded_is_named(model, data):
    with pytest.raises(AnalysisError, match=r"no means of 'blocks.0.attn_out'; there are of blocks.0.attn.z"):
        activation_means(model, data, "*attn.z").mean(("attn_out", 0))
