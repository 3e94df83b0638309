"""Pairs say what they hold, pad so that nothing changes, and refuse what could not be patched."""

from dataclasses import replace

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ContextLengthError, TokenError, TokenizerError
from interp_gpt2.prompts.alignment import aligned
from interp_gpt2.prompts.named import PROMPT_SETS, prompt_set
from interp_gpt2.prompts.pairs import PromptPairs, concatenated
from interp_gpt2.tokenizers import ByteTokenizer, CharTokenizer

BYTES = ByteTokenizer()


def pairs_of_texts(*changes, **options):
    given = {"clean": "abc", "corrupted": "abd", "correct": "x", "incorrect": "y"} | dict(changes)
    return PromptPairs.from_text(BYTES, *given.values(), **options)


@pytest.fixture
def mixed():
    """Pairs of 3, 5 and 2 tokens, with 1, 2 and 1 correct answers."""
    clean, corrupted = ["abc", "abcde", "ab"], ["axc", "abxye", "xb"]
    return PromptPairs.from_text(BYTES, clean, corrupted, ["1", ["2", "3"], "4"], ["5", "6", "7"])


# What they hold -------------------------------------------------------------------------------------------------------


def test_pairs_of_one_length_need_no_mask_and_others_are_padded_on_the_right(mixed):
    assert mixed.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5, [1, 1, 0, 0, 0]]
    assert mixed.lengths.tolist() == [3, 5, 2]
    assert mixed[:1].attention_mask is None
    assert mixed[:1].clean.tolist() == [list(b"abc")]
    assert pairs_of_texts().attention_mask is None


def test_a_pair_with_fewer_answers_has_minus_one_in_their_place(mixed):
    assert mixed.correct.tolist() == [[ord("1"), -1], [ord("2"), ord("3")], [ord("4"), -1]]
    assert mixed.incorrect.shape == (3, 1)
    assert PromptPairs.from_text(BYTES, "ab", "ac", "x").incorrect.shape == (1, 0)
    assert PromptPairs.from_text(BYTES, "ab", "ac", ["x", "y"]).correct.tolist() == [[ord("x"), ord("y")]]


def test_the_first_difference_is_where_a_clean_and_a_corrupted_pass_part(mixed):
    assert mixed.first_difference.tolist() == [1, 2, 0]
    assert mixed.differs.nonzero().tolist() == [[0, 1], [1, 2], [1, 3], [2, 0]]


def test_padding_changes_no_logit(mixed, make_gpt2):
    model = make_gpt2(GPT2Config(n_layers=2, n_heads=2, d_model=16, d_vocab=256, n_ctx=8))
    together = model(mixed.clean, attention_mask=mixed.attention_mask)
    for i, length in enumerate(mixed.lengths.tolist()):
        torch.testing.assert_close(together[i, :length], model(mixed[i].clean)[0], atol=1e-5, rtol=1e-5)


def test_choosing_pairs_gives_pairs_without_the_padding_they_do_not_need(mixed):
    assert [len(one) for one in mixed] == [1, 1, 1]
    assert mixed[-1].labels == ("ab",)
    for which in ([0, 2], slice(None, None, 2), torch.tensor([0, 2]), torch.tensor([True, False, True])):
        some = mixed[which]
        assert some.clean.tolist() == [list(b"abc"), [*b"ab", 0]]
        assert some.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
        assert some.labels == ("abc", "ab")
    with pytest.raises(TokenError, match="none of the 3 pairs"):
        mixed[3:]
    with pytest.raises(IndexError):
        mixed[3]


def test_concatenating_the_pairs_one_by_one_gives_them_all_again(mixed):
    again = concatenated(list(mixed))
    for name in ("clean", "corrupted", "correct", "incorrect", "attention_mask"):
        assert torch.equal(getattr(again, name), getattr(mixed, name))
    assert (again.labels, again.tokenizer) == (mixed.labels, BYTES)
    with pytest.raises(TokenError, match="tokenizers of 2 kinds"):
        concatenated([mixed, PromptPairs.from_text(CharTokenizer("abc"), "a", "b", "c")])
    with pytest.raises(TokenError, match="there are no prompts"):
        concatenated([])


def test_swapping_exchanges_the_prompts_and_leaves_the_answers(mixed):
    swapped = mixed.swapped()
    assert torch.equal(swapped.clean, mixed.corrupted)
    assert torch.equal(swapped.correct, mixed.correct)
    assert torch.equal(swapped.swapped().clean, mixed.clean)


def test_pairs_move_to_a_device_whole(mixed):
    moved = mixed.to(torch.device("cpu"))
    assert (moved.labels, moved.tokenizer) == (mixed.labels, mixed.tokenizer)
    assert torch.equal(moved.attention_mask, mixed.attention_mask)
    with pytest.raises(TokenError, match="correct is on meta, the clean prompts are on cpu"):
        replace(mixed, correct=mixed.correct.to("meta"))


def test_positions_are_labelled_by_the_tokens_that_stand_there(mixed):
    assert mixed.clean_str_tokens == [["a", "b", "c"], ["a", "b", "c", "d", "e"], ["a", "b"]]
    assert mixed.corrupted_str_tokens[2] == ["x", "b"]
    assert mixed.position_labels == ["a", "b", "c", "d", "e"]
    several = PromptPairs.from_text(BYTES, ["a b", "c\nb", "d b"], ["a c"] * 3, list("xxx"))
    assert several.position_labels == ["a/c/…", "·/↵", "b"]
    assert PromptPairs.from_tokens([[1, 2]], [[1, 3]], [4]).position_labels == ["1", "2"]


def test_an_end_of_text_token_goes_first_only_where_it_is_asked_for(bpe):
    plain = PromptPairs.from_text(bpe, "The dog", "The cat", " is", " are")
    begun = PromptPairs.from_text(bpe, "The dog", "The cat", " is", " are", bos=True)
    assert begun.clean.tolist() == [[bpe.eos_token_id, *plain.clean[0].tolist()]]
    assert begun.correct.tolist() == plain.correct.tolist()
    with pytest.raises(TokenError, match="byte tokenizer has no end-of-text token"):
        pairs_of_texts(bos=True)


def test_pairs_say_what_they_are_in_a_line(mixed):
    assert repr(mixed) == "PromptPairs(3 pairs of 2 to 5 tokens, answers: 2 correct, 1 incorrect)"


# What is refused ------------------------------------------------------------------------------------------------------


def test_prompts_of_different_length_are_refused_with_their_tokens_over_each_other(bpe):
    with pytest.raises(TokenError) as error:
        PromptPairs.from_text(bpe, "The dog near the park", "The dog Kate near the park", " is", " are", labels=["mine"])
    assert str(error.value).splitlines()[1:4] == [
        "clean      The  ·dog  —      ·near  ·the  ·park",
        "corrupted  The  ·dog  ·Kate  ·near  ·the  ·park",
        "                      ^^^^^",
    ]
    assert "mine: the clean prompt has 5 tokens and the corrupted one 6" in str(error.value)
    assert "first differ at position 2" in str(error.value)


def test_of_long_prompts_the_place_where_they_part_is_shown():
    clean, corrupted = [str(i) for i in range(1000)], [str(i) for i in range(1000) if i != 500]
    shown = aligned(clean, corrupted).splitlines()
    assert shown[0].split() == ["clean", "…496…", *map(str, range(496, 510)), "…490…"]
    assert shown[1].split() == ["corrupted", "…496…", *map(str, range(496, 500)), "—", *map(str, range(501, 510)), "…490…"]
    assert shown[2].index("^") == shown[0].index("500")


def test_a_prompt_that_begins_the_other_is_refused_too():
    with pytest.raises(TokenError, match="first differ at position 2"):
        pairs_of_texts(("clean", "ab"), ("corrupted", "abc"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clean": ""}, "pair 0: the clean prompt is empty"),
        ({"corrupted": ""}, "pair 0: the corrupted prompt is empty"),
        ({"corrupted": "abc"}, "pair 0 ('abc'): the clean and the corrupted prompt are the same tokens"),
        ({"clean": "a\0c"}, "holds U+0000 at character 1"),
        ({"clean": "a\rc"}, "holds U+000D at character 1"),
        ({"clean": "\ufeffabc"}, "holds U+FEFF at character 0"),
        ({"clean": "ab\ufffd"}, "holds U+FFFD at character 2"),
        ({"clean": None}, "the clean prompts are NoneType (None)"),
        ({"clean": [["abc"]]}, "pair 0: the clean prompt is list"),
        (
            {"clean": ["abc", None], "corrupted": ["abd", "abd"], "correct": ["x", "x"], "incorrect": ["y", "y"]},
            "pair 1: the clean",
        ),
        ({"correct": ""}, "the correct answer is empty"),
        ({"correct": "Mary"}, "Mary is 4 tokens, M a r y"),
        ({"incorrect": ["x", "no"]}, "but for incorrect ones: pair 0: no is 2 tokens"),
        ({"incorrect": "x"}, "token 120 (x) is both a correct and an incorrect answer"),
        ({"incorrect": ["y", "y"]}, "token 121 (y) is given twice"),
        ({"correct": []}, "has no correct answer"),
        ({"correct": [1.5]}, "not text"),
        ({"clean": ["abc"], "corrupted": ["abd"], "correct": 5}, "the correct answers to the prompts are int (5)"),
        ({"clean": ["abc", "abc"], "corrupted": ["abd"]}, "2 clean prompts and 1 corrupted"),
        ({"clean": ["abc"], "corrupted": ["abd"], "correct": ["x", "y"]}, "1 prompts, but 2 with correct answers"),
    ],
)
def test_what_is_no_pair_is_refused_by_name(changes, said):
    with pytest.raises(TokenError) as error:
        pairs_of_texts(*changes.items())
    assert said in str(error.value)


def test_all_answers_of_several_tokens_are_named_with_what_was_meant(bpe):
    with pytest.raises(TokenError) as error:
        PromptPairs.from_text(bpe, ["The dog"] * 3, ["The cat"] * 3, [" is", "Mary", "was here"], [" are"] * 3)
    assert "pair 1: Mary is" in str(error.value)
    assert "did you mean ' Mary'?" in str(error.value)
    assert "pair 2: was·here is" in str(error.value)


def test_a_space_that_belongs_to_the_answer_is_not_left_to_the_prompt(bpe):
    with pytest.raises(TokenError, match="end the prompt with 'at near the' and answer ' a'"):
        PromptPairs.from_text(bpe, "The cat near the ", "The dog near the ", "a", "x")
    assert len(PromptPairs.from_text(BYTES, "The cat is ", "The dog is ", "a", "b"))  # to bytes the space is by itself


def test_a_tokenizer_of_another_library_is_refused_with_what_to_use():
    with pytest.raises(TokenError, match=r"str is not a tokenizer of interp_gpt2; use run\.tokenizer\(\)"):
        PromptPairs.from_text("gpt2", "a", "b", "c")
    for name in PROMPT_SETS:
        with pytest.raises(TokenError, match="str is not a tokenizer"):
            prompt_set(name, "gpt2")


def test_a_character_without_a_token_is_named_with_its_prompt():
    with pytest.raises(TokenizerError, match="pair 1: the corrupted prompt: cannot encode 'z'"):
        PromptPairs.from_text(CharTokenizer("abc"), ["a", "a"], ["b", "z"], ["c", "c"])


def tensors(**changes):
    given = {"clean": [[1, 2], [3, 4]], "corrupted": [[1, 5], [3, 5]], "correct": [[6], [6]], "incorrect": [[7], [7]]} | changes
    mask = given.pop("attention_mask", None)
    return PromptPairs(**{name: torch.tensor(value) for name, value in given.items()}, attention_mask=mask)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clean": [[1.0, 2.0], [3.0, 4.0]]}, "clean must be an int64 tensor, a row for each pair, not torch.float32"),
        ({"clean": [1, 2]}, "of shape (2,)"),
        ({"corrupted": [[1], [3]]}, "corrupted has shape (2, 1), which does not fit clean prompts of shape (2, 2)"),
        ({"correct": [[6]]}, "correct has shape (1, 1)"),
        ({"correct": [[6], [-1]]}, "pair 1 has no correct answer"),
        ({"correct": [[6], [-2]]}, "pair 1 has no correct answer"),
        ({"correct": [[6, -2], [6, 8]]}, "an answer is token -2; ids begin at 0"),
        ({"corrupted": [[1, 5], [3, -1]]}, "corrupted holds token -1"),
        ({"attention_mask": torch.tensor([[0, 1], [1, 1]])}, "pair 0: its attention mask must be 1 at its tokens"),
        ({"attention_mask": torch.tensor([[1, 1], [1, 2]])}, "pair 1: its attention mask"),
        ({"attention_mask": torch.tensor([[1, 1]])}, "attention_mask has shape (1, 2)"),
        ({"attention_mask": torch.tensor([[1, 1], [1, 0]])}, "pair 1: the clean and the corrupted prompt are the same tokens"),
        ({"clean": [[], []], "corrupted": [[], []]}, "not torch.float32"),
    ],
)
def test_tensors_that_are_no_pairs_are_refused(changes, said):
    with pytest.raises(TokenError) as error:
        tensors(**changes)
    assert said in str(error.value)


def test_lists_of_different_numbers_are_refused():
    with pytest.raises(TokenError, match="2 clean prompts, but 1 of labels"):
        PromptPairs.from_tokens([[1], [1]], [[2], [2]], [3, 3], labels=["one"])
    with pytest.raises(TokenError, match="pair 0 has a prompt without tokens"):
        PromptPairs.from_tokens([[]], [[]], [3])
    with pytest.raises(TokenError, match="1 labels for 2 pairs"):
        PromptPairs(
            torch.ones(2, 1).long(), torch.zeros(2, 1).long(), torch.ones(2, 1).long(), torch.zeros(2, 0).long(), None, ("a",)
        )


def test_a_model_that_cannot_read_the_pairs_is_told_which(mixed):
    mixed.check(GPT2Config(n_layers=1, n_heads=1, d_model=8, d_vocab=256, n_ctx=5))
    with pytest.raises(ContextLengthError, match=r"pair 1 \('abcde'\) has 5 tokens, which do not fit in n_ctx=4"):
        mixed.check(GPT2Config(n_layers=1, n_heads=1, d_model=8, d_vocab=256, n_ctx=4))
    with pytest.raises(TokenError, match=r"pair 0 \('abc'\): token 120 of the corrupted prompt is not in the vocabulary"):
        mixed.check(GPT2Config(n_layers=1, n_heads=1, d_model=8, d_vocab=120, n_ctx=8))
    with pytest.raises(TokenError, match="token 70 of the incorrect answer"):
        PromptPairs.from_tokens([[1]], [[2]], [3], [70]).check(GPT2Config(n_layers=1, n_heads=1, d_model=8, d_vocab=64, n_ctx=8))


@pytest.mark.parametrize("wrong", [1.5, True, "7", torch.tensor(1.5), None])
def test_ids_that_are_no_whole_numbers_are_refused_and_not_rounded(wrong):
    with pytest.raises(TokenError, match="is no token; ids are whole numbers"):
        PromptPairs.from_tokens([[wrong, 2]], [[1, 3]], [4], [5])


def test_tokens_and_answers_may_be_tensors():
    ids = torch.tensor([[1, 2], [3, 4]])
    of_tensors = PromptPairs.from_tokens(ids, ids + 5, ids[:, 0], ids + 20)
    of_lists = PromptPairs.from_tokens(ids.tolist(), (ids + 5).tolist(), ids[:, 0].tolist(), (ids + 20).tolist())
    assert torch.equal(of_tensors.clean, of_lists.clean)
    assert torch.equal(of_tensors.correct, of_lists.correct)
