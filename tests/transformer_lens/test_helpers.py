"""utils, head_detector and Slice give what TransformerLens's give."""

import copy

import numpy as np
import pytest
import torch

from interp_gpt2.analysis.attention_patterns import induction_score
from interp_gpt2.errors import AnalysisError, HookNameError, ShapeError
from interp_gpt2.transformer_lens import head_detector, patching, utils

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
TEXT = "When John and Mary went to John and Mary went"


@pytest.mark.parametrize(
    "args",
    [("k", 6, "a"), ("pre", 2), ("embed",), ("normalized", 27, "ln2"), ("k6",), ("scale4ln1",), ("pre5",), ("scale",),
     ("pattern", 0), ("attn", 3), ("attn_logits", 1), ("query", 1), ("mlp_post", 1), ("resid_pre", 3), ("resid_post", 0, None),
     ("mlp_out", 2), ("attn_out", 2), ("hook_embed",), ("blocks.1.hook_resid_mid",), ("pos_embed",), ("result", 4),
     ("q_input", 1), ("attn_in", 1)],
    ids=str,
)  # fmt: skip
def test_names_are_spelled_as_there(theirs, args):
    assert utils.get_act_name(*args) == theirs.utils.get_act_name(*args)


def test_a_negative_layer_is_refused():
    with pytest.raises(HookNameError, match="from 0"):
        utils.get_act_name("k", -1)


def test_losses_and_accuracies(pair):
    logits = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    tokens = logits.argmax(-1).roll(1, 1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])

    def code(lens, model):
        u = lens.utils
        return [
            u.lm_cross_entropy_loss(logits, tokens), u.lm_cross_entropy_loss(logits, tokens, per_token=True),
            u.lm_cross_entropy_loss(logits, tokens, mask), u.lm_cross_entropy_loss(logits, tokens, mask.bool(), per_token=True),
            u.lm_accuracy(logits, tokens), u.lm_accuracy(logits, tokens, per_token=True).tolist(), u.get_corner(logits, 2),
            u.remove_batch_dim(logits[:1]), u.to_numpy(logits).tolist(), u.to_numpy([1, 2]).tolist(), u.transpose(logits),
            u.is_square(logits[0]), u.is_lower_triangular(torch.eye(3)),
        ]  # fmt: skip

    pair.both(code)
    with pytest.raises(ShapeError, match="attention_mask"):
        utils.lm_cross_entropy_loss(logits, tokens, mask[:, 1:])


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("bos", [True, False])
def test_attention_masks(pair, side, bos):
    def code(lens, model):
        tokens = model.to_tokens(["John", "When John and Mary went"], prepend_bos=bos, padding_side=side)
        return lens.utils.get_attention_mask(model.tokenizer, tokens, bos, side)

    mask = pair.both(code)
    assert not mask.all()


@pytest.mark.parametrize("given", [None, 2, -1, (2,), (1, 4), (0, 5, 2), [0, 3], torch.tensor([1, 2]), np.array([1, 4])], ids=str)
def test_slices(pair, given):
    value = torch.arange(30.0).reshape(2, 5, 3)

    def code(lens, model):
        cut = lens.utils.Slice(given)
        return [cut.apply(value, 1), cut.apply(value, dim=-2), cut.mode, lens.utils.Slice.unwrap(given).apply(value, 1)]

    pair.both(code)
    with pytest.raises(ShapeError, match="no slice"):
        utils.Slice("1:2")


@pytest.mark.parametrize("measure", ["mul", "abs"])
@pytest.mark.parametrize("name", head_detector.HEAD_NAMES)
def test_heads_are_detected_as_there(pair, name, measure):
    def code(lens, model):
        detect, given = lens.head_detector.detect_head, {"error_measure": measure}
        pattern = torch.eye(len(model.to_tokens(TEXT)[0])).roll(1, 0).tril()
        cache = model.run_with_cache(TEXT, remove_batch_dim=True)[1]
        return [
            detect(model, TEXT, name, **given), detect(model, TEXT, pattern, **given),
            detect(model, TEXT, name, heads=[(0, 1), (1, 3)], exclude_bos=True, **given),
            detect(model, TEXT, name, heads={1: [0, 2]}, exclude_current_token=True, **given),
            detect(model, TEXT, name, cache=cache, exclude_bos=True, exclude_current_token=True, **given), cache["pattern", 0],
            detect(model, [TEXT, "Tom and Tom and James"], name, **given),
        ]  # fmt: skip

    pair.both(code)


def test_the_induction_score_is_our_own_but_for_queries_without_a_target(pair):
    """detect_head divides by all attention; induction_score is the mean over queries that have a target."""
    model = pair.ours.model
    tokens = model.to_tokens(TEXT)
    pattern = model.run_with_cache(tokens)[1]["pattern", 1]
    ours, detected = induction_score(pattern, tokens), head_detector.detect_head(model, TEXT, "induction_head")[1]
    torch.testing.assert_close(ours.value.float() * ours.n / tokens.shape[1], detected, rtol=1e-4, atol=1e-5)


def test_mistakes_in_detection_and_patching_are_named(pair):
    model = pair.ours.model
    for given in ({"detection_pattern": "induction"}, {"detection_pattern": torch.ones(3, 3)}, {"error_measure": "max"}):
        with pytest.raises(AnalysisError, match=next(iter(given)).split("_")[0]):
            head_detector.detect_head(model, TEXT, **({"detection_pattern": "induction_head"} | given))
    tokens, cache = model.to_tokens(TEXT), model.run_with_cache(TEXT)[1]
    with pytest.raises(AnalysisError, match="not an axis"):
        patching.get_act_patch_resid_pre(model, tokens, cache, lambda logits: logits.sum(), index_axis_names=("layer", "neuron"))
    with pytest.raises(AttributeError, match="use datasets"):
        utils.get_dataset  # noqa: B018


def test_patching_takes_rows_of_indices(pair):
    def code(lens, model):
        tokens = model.to_tokens("When John and Mary")
        cache = model.run_with_cache(model.to_tokens("When Mary and John"))[1]
        rows = lens.patching.make_df_from_ranges([2, 3], ["layer", "pos"])
        patch = lens.patching.generic_activation_patch
        setter = lens.patching.layer_pos_patch_setter

        def metric(logits):
            return logits[0, -1, 4]

        by_rows = patch(model, tokens, cache, metric, setter, "attn_out", index_df=rows)
        grid, frame = patch(model, tokens, cache, metric, setter, "mlp_out", ("layer", "pos"), return_index_df=True)
        return [by_rows, grid, frame.to_numpy().tolist(), rows.columns.tolist()]

    pair.both(code)


@pytest.mark.parametrize("answer", [" Mary", "James", [" Mary", " John"]], ids=str)
def test_test_prompt_prints_what_it_prints_there(pair, answer, capsys):
    printed = []
    for lens, model in pair:
        lens.utils.test_prompt("When John and", answer, model, top_k=3)
        lines = capsys.readouterr().out.replace("\n", " ").split()
        printed.append(" ".join(lines))
    assert printed[0] == printed[1]


def test_activations_and_tables_of_logits(pair):
    values = torch.linspace(-4, 4, 41)

    def code(lens, model):
        u, logits = lens.utils, model(TEXT)[0, -1].detach()
        frames = [u.logits_to_df(logits, model.tokenizer, top_k=4), u.logits_to_df(logits)]
        cut = lens.utils.Slice((1, 4))
        return [
            u.gelu_new(values), u.gelu_fast(values), [[frame.columns.tolist(), frame.to_numpy().tolist()] for frame in frames],
            u.to_numpy(values.bfloat16()).tolist(), cut.indices(6).tolist(), lens.utils.Slice(-2).indices().tolist(),
            lens.utils.Slice([3, 1]).indices(5).tolist(), u.remove_batch_dim(torch.ones(2, 3)),
        ]  # fmt: skip

    pair.both(code)


@pytest.mark.parametrize("length", [6, 64])
@pytest.mark.parametrize("bos", [True, False])
def test_texts_become_rows_of_tokens(pair, tokenizer, length, bos, monkeypatch, tmp_path):
    from datasets import Dataset

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    texts = ["When John and Mary", "", "Mary went to the shops", "Tom gave the ball to James"]
    dataset = Dataset.from_dict({"text": texts, "number": [1, 2, 3, 4]})

    def code(lens, model):
        given = copy.deepcopy(tokenizer)
        options = {"max_length": length, "add_bos_token": bos, "num_proc": None}
        rows = lens.utils.tokenize_and_concatenate(dataset, given, **options)
        other = copy.deepcopy(tokenizer)
        other.pad_token = other.convert_ids_to_tokens(5)  # told apart from the end of text
        padded = lens.utils.tokenize_and_concatenate(dataset, other, **options)
        assert rows.column_names == ["tokens"]
        return [rows["tokens"][:], padded["tokens"][:], lens.utils.keep_single_column(dataset, "text").column_names]

    rows, *_ = pair.both(code)
    assert rows.shape[1] == length
    assert tokenizer.pad_token is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_bos_is_put_on_and_taken_off(pair, side):
    def code(lens, model):
        texts, u = ["John", "When John and Mary went"], lens.utils
        tokens = model.to_tokens(texts, padding_side=side)
        removed = u.get_tokens_with_bos_removed(model.tokenizer, tokens, side)
        written = u.get_input_with_manually_prepended_bos("<|endoftext|>", texts)
        return [removed, written, u.get_input_with_manually_prepended_bos("<s>", "a"),
                u.get_input_with_manually_prepended_bos(None, texts)]  # fmt: skip

    removed, *_ = pair.both(code)
    without = pair.ours.model.to_tokens(["John", "When John and Mary went"], prepend_bos=False, padding_side=side)
    assert torch.equal(removed, without)
