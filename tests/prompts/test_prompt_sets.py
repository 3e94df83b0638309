"""Each set of prompts has the answers that its task gives it, and uses no word that is several tokens."""

import pytest
import torch

from interp_gpt2.errors import DataError, TokenError
from interp_gpt2.prompts.agreement import subject_verb_agreement
from interp_gpt2.prompts.capitals import capital_cities
from interp_gpt2.prompts.docstring import docstring
from interp_gpt2.prompts.greater_than import TWO_DIGITS, greater_than
from interp_gpt2.prompts.induction import induction
from interp_gpt2.prompts.ioi import TEMPLATES, ioi
from interp_gpt2.prompts.named import PROMPT_SETS, prompt_set
from interp_gpt2.prompts.prompt_set import usable, words
from interp_gpt2.prompts.pronouns import gendered_pronouns
from interp_gpt2.tokenizers import ByteTokenizer, CharTokenizer


def texts(prompts, which):
    """The words of each clean or corrupted prompt, or of its answers."""
    rows, tokenizer = getattr(prompts.pairs, which), prompts.pairs.tokenizer
    keep = rows >= 0 if "correct" in which else torch.arange(rows.shape[1]) < prompts.pairs.lengths[:, None]
    if which == "corrupted":
        keep = torch.arange(rows.shape[1]) < prompts.pairs.lengths[:, None]
    return [tokenizer.decode(row[kept].tolist()) for row, kept in zip(rows, keep, strict=True)]


def at(prompts, position, which="clean"):
    """The token of each prompt at a named position, as text."""
    rows = getattr(prompts.pairs, which)
    columns = prompts.positions[position]
    return [prompts.pairs.tokenizer.decode([int(row[column])]) for row, column in zip(rows, columns, strict=True)]


# What holds for every set ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_a_seed_makes_the_same_prompts_again_and_another_seed_others(tokenizer, name):
    one, again, other = (prompt_set(name, tokenizer, 20, seed) for seed in (3, 3, 4))
    assert torch.equal(one.pairs.clean, again.pairs.clean)
    assert torch.equal(one.pairs.corrupted, again.pairs.corrupted)
    assert texts(one, "clean") != texts(other, "clean")


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_there_are_as_many_different_pairs_as_were_asked_for(tokenizer, name):
    prompts = prompt_set(name, tokenizer, 600)
    assert len(prompts) == 600
    assert len(set(zip(texts(prompts, "clean"), texts(prompts, "corrupted"), strict=True))) == 600
    assert all(len(where) == 600 for where in prompts.positions.values())


@pytest.mark.parametrize("name", PROMPT_SETS)
@pytest.mark.parametrize("bos", [False, True])
def test_the_answer_is_read_at_the_last_token_of_each_prompt(tokenizer, name, bos):
    prompts = prompt_set(name, tokenizer, bos=bos)
    assert torch.equal(prompts.positions["end"], prompts.pairs.lengths - 1)
    assert bool((prompts.pairs.clean[:, 0] == tokenizer.eos_token_id).all()) is bos


@pytest.mark.parametrize("name", ["ioi", "greater-than", "gendered-pronouns", "subject-verb-agreement", "capital-cities"])
def test_a_prompt_and_its_answer_are_the_tokens_of_their_text_together(tokenizer, name):
    prompts = prompt_set(name, tokenizer)
    for row, length, text, correct in zip(
        prompts.pairs.clean.tolist(), prompts.pairs.lengths, texts(prompts, "clean"), prompts.pairs.correct, strict=True
    ):
        answer = correct[0].item()
        if name != "greater-than":  # where 17 and 55 may be written with one token
            assert tokenizer.encode(text + tokenizer.decode([answer])) == [*row[:length], answer]


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_a_token_before_the_prompt_moves_every_position_by_one(tokenizer, name):
    plain, begun = prompt_set(name, tokenizer), prompt_set(name, tokenizer, bos=True)
    assert torch.equal(plain.pairs.clean, begun.pairs.clean[:, 1:])
    assert {place: (where + 1).tolist() for place, where in plain.positions.items()} == {
        place: where.tolist() for place, where in begun.positions.items()
    }


def test_sets_say_what_they_are(bpe):
    prompts = ioi(bpe)
    assert repr(prompts).startswith("PromptSet(IOI: 8 pairs, ")
    assert "logit_difference" in repr(prompts)
    for name in PROMPT_SETS:
        made = prompt_set(name, bpe, 2)
        assert "corrupted: " in made.description
        assert " et al. " in made.source or " & " in made.source


@pytest.mark.parametrize("name", [name for name in PROMPT_SETS if name != "induction"])
def test_a_tokenizer_without_words_is_refused_with_what_is_missing(name):
    with pytest.raises(TokenError, match="under the byte tokenizer"):
        prompt_set(name, ByteTokenizer())


@pytest.mark.parametrize("n", [0, 2.5])
@pytest.mark.parametrize("name", PROMPT_SETS)
def test_fewer_than_one_prompt_or_parts_of_one_are_refused(bpe, name, n):
    with pytest.raises(DataError, match="at least 1"):
        prompt_set(name, bpe, n)


def test_an_unknown_set_is_refused_with_the_names_there_are(bpe):
    with pytest.raises(DataError, match=r"no prompts are called 'ioy'; choose ioi, greater-than"):
        prompt_set("ioy", bpe)


def test_words_that_are_several_tokens_are_left_out_and_said_so(bpe):
    prompts = ioi(bpe, n=400)
    assert prompts.left_out
    assert set(prompts.left_out) == {name for name in names() if len(bpe.encode(f" {name}")) > 1}
    used = {name for position in ("IO", "S2") for name in at(prompts, position)}
    assert len(used) > 90
    assert not used & {f" {name}" for name in prompts.left_out}


def test_too_few_words_are_an_error_that_names_the_others(bpe):
    with pytest.raises(TokenError, match=r"of 5 names, 4 are one token .* at least 5 are needed; left out: Nebuchadnezzar"):
        ioi(bpe, names=["Mary", "John", "Anna", "Tom", "Nebuchadnezzar"])
    assert usable(bpe, ["Mary", "Mary"], 1, "names") == (["Mary"], ())


def test_more_pairs_than_there_are_is_an_error_with_how_many_there_are(bpe):
    with pytest.raises(DataError, match="only 8 different pairs were found of the 9 asked for"):
        capital_cities(bpe, n=9, capitals={"France": "Paris", "Peru": "Lima"})
    assert len(capital_cities(bpe, n=8, capitals={"France": "Paris", "Peru": "Lima"})) == 8


def test_single_letters_are_names_where_characters_are_tokens():
    text = "".join(sorted(set("".join(TEMPLATES) + "".join(words()["places"] + words()["objects"]) + "UVXYZ")))
    for tokenizer in (ByteTokenizer(), CharTokenizer.from_text(text)):
        prompts = ioi(tokenizer, names=["U", "V", "X", "Y", "Z"])
        assert at(prompts, "IO") == texts(prompts, "correct")
        assert at(prompts, "S2") == at(prompts, "S1") == texts(prompts, "incorrect")
        assert all(text.endswith("to ") for text in texts(prompts, "clean"))


# Indirect objects -----------------------------------------------------------------------------------------------------


def names():
    return [*words()["female"], *words()["male"]]


@pytest.mark.parametrize("order", ["ABBA", "BABA", "both"])
def test_the_indirect_object_is_the_name_that_is_said_once(tokenizer, order):
    prompts = ioi(tokenizer, 40, order=order)
    for text, correct, incorrect in zip(
        texts(prompts, "clean"), texts(prompts, "correct"), texts(prompts, "incorrect"), strict=True
    ):
        assert text.count(correct) == 1
        assert text.count(incorrect) == 2
    assert at(prompts, "IO") == texts(prompts, "correct")
    assert at(prompts, "S1") == at(prompts, "S2") == texts(prompts, "incorrect")
    abba = (prompts.positions["IO"] < prompts.positions["S1"]).tolist()
    assert abba == {"ABBA": [True] * 40, "BABA": [False] * 40, "both": [True, False] * 20}[order]
    assert bool((prompts.positions["S1"] < prompts.positions["S2"]).all())


def test_swapping_the_subject_makes_the_other_name_the_indirect_object(tokenizer):
    prompts = ioi(tokenizer, 40, corruption="swap_subject")
    assert prompts.pairs.differs.sum(1).tolist() == [1] * 40
    assert torch.equal(prompts.pairs.first_difference, prompts.positions["S2"])
    assert at(prompts, "S2", "corrupted") == texts(prompts, "correct")


def test_random_names_leave_none_said_twice(tokenizer):
    prompts = ioi(tokenizer, 40, corruption="abc")
    places = ("IO", "S1", "S2")
    for i, (correct, incorrect) in enumerate(zip(texts(prompts, "correct"), texts(prompts, "incorrect"), strict=True)):
        others = [at(prompts, place, "corrupted")[i] for place in places]
        assert len({*others, correct, incorrect}) == 5
    assert prompts.pairs.differs.sum(1).tolist() == [3] * 40


def test_flipping_the_first_names_keeps_the_answer(tokenizer):
    prompts = ioi(tokenizer, 40, corruption="flip")
    assert at(prompts, "S1", "corrupted") == at(prompts, "IO")
    assert at(prompts, "IO", "corrupted") == at(prompts, "S1")
    assert at(prompts, "S2", "corrupted") == at(prompts, "S2")


def test_gpt2_reads_every_template_with_its_names_at_the_same_positions(gpt2):
    for i in range(len(TEMPLATES)):
        prompts = ioi(gpt2, len(TEMPLATES), seed=i, order="ABBA")
        assert (prompts.pairs.clean.shape[1], prompts.pairs.attention_mask) == (14, None)
        for place, position in {"IO": 1, "S1": 3, "S2": 9}.items():
            assert prompts.positions[place].tolist() == [position] * len(TEMPLATES)
    assert ioi(gpt2).left_out == docstring(gpt2).left_out == gendered_pronouns(gpt2).left_out == ()
    assert subject_verb_agreement(gpt2).left_out == ()


@pytest.mark.parametrize("name", [name for name in PROMPT_SETS if name != "capital-cities"])
def test_to_gpt2_the_prompts_of_a_set_have_one_length(gpt2, name):
    assert prompt_set(name, gpt2, 200).pairs.attention_mask is None


def test_unknown_ways_to_corrupt_are_refused(bpe):
    with pytest.raises(DataError, match="'swap' must be one of swap_subject, abc, flip"):
        ioi(bpe, corruption="swap")
    with pytest.raises(DataError, match="order='AABB' ABBA, BABA or both"):
        ioi(bpe, order="AABB")
    with pytest.raises(DataError, match="one of random_definition"):
        docstring(bpe, corruption="random")
    with pytest.raises(DataError, match="one of shuffle_first_half"):
        induction(50, corruption="random")
    with pytest.raises(DataError, match="one of simple"):
        subject_verb_agreement(bpe, structure="attractor")


# Years ----------------------------------------------------------------------------------------------------------------


def test_correct_years_are_all_that_are_later(tokenizer):
    prompts = greater_than(tokenizer, 60)
    two_digits = {tokenizer.encode(digits)[0]: int(digits) for digits in TWO_DIGITS}
    for began, correct, incorrect in zip(at(prompts, "YY"), prompts.pairs.correct, prompts.pairs.incorrect, strict=True):
        assert {two_digits[token] for token in correct.tolist() if token >= 0} == set(range(int(began) + 1, 100))
        assert {two_digits[token] for token in incorrect.tolist() if token >= 0} == set(range(int(began) + 1))
    assert at(prompts, "YY", "corrupted") == ["01"] * 60
    assert at(prompts, "XX") == at(prompts, "end")
    assert prompts.pairs.differs.sum(1).tolist() == [1] * 60


def test_years_with_a_token_of_their_own_are_left_out(gpt2):
    prompts = greater_than(gpt2, 300)
    assert "1440" in prompts.left_out
    assert len(prompts.left_out) == 61  # of 679; the others are a century and two digits
    assert not [text for text in texts(prompts, "clean") for year in prompts.left_out if year in text]


# Docstrings -----------------------------------------------------------------------------------------------------------


def test_the_next_argument_is_the_third_of_the_definition(tokenizer):
    prompts = docstring(tokenizer, 30)
    assert at(prompts, "C") == texts(prompts, "correct")
    assert at(prompts, "B1") == at(prompts, "B1_doc")
    assert at(prompts, "B2") == at(prompts, "B2_doc")
    for text, answer in zip(texts(prompts, "clean"), texts(prompts, "correct"), strict=True):
        assert text.count(f"{answer},") == text.count(answer) == 1
        assert text.endswith("\n    :param")


@pytest.mark.parametrize(
    ("corruption", "changed"),
    [
        ("random_definition", {"B1", "B2", "C", "D"}),
        ("random_docstring", {"B1_doc", "B2_doc"}),
        ("random_both", {"B1", "B2", "C", "D", "B1_doc", "B2_doc"}),
    ],
)
def test_only_the_named_arguments_are_replaced_and_none_is_the_answer(tokenizer, corruption, changed):
    prompts = docstring(tokenizer, 30, corruption=corruption)
    assert prompts.pairs.differs.sum(1).tolist() == [len(changed)] * 30
    for place in changed:
        assert all(prompts.pairs.differs[i, column] for i, column in enumerate(prompts.positions[place]))
    if corruption != "random_docstring":
        assert not [
            i
            for i, (text, answer) in enumerate(zip(texts(prompts, "corrupted"), texts(prompts, "correct"), strict=True))
            if answer in text.split(":")[0]
        ]
    for i, incorrect in enumerate(texts(prompts, "incorrect")):
        for place in ("B1", "B2", "D"):
            assert at(prompts, place)[i] in incorrect
            assert corruption == "random_docstring" or at(prompts, place, "corrupted")[i] in incorrect


# Induction ------------------------------------------------------------------------------------------------------------


def continued(tokens):
    """What followed the last token where it stood before; None where it did not."""
    *before, last = tokens
    return tokens[before.index(last) + 1] if last in before else None


@pytest.mark.parametrize("bos", [False, True])
def test_induction_answers_the_clean_prompt_rightly_and_the_shuffled_one_wrongly(bpe, bos):
    pairs = induction(bpe, 200, period=7, bos=bos).pairs
    assert pairs.clean.shape == (200, 13 + bos)
    assert [continued(row) for row in pairs.clean.tolist()] == pairs.correct[:, 0].tolist()
    assert [continued(row) for row in pairs.corrupted.tolist()] == pairs.incorrect[:, 0].tolist()
    half = slice(bos, bos + 7)
    assert torch.equal(pairs.clean[:, half].sort().values, pairs.corrupted[:, half].sort().values)
    assert torch.equal(pairs.clean[:, bos + 7 :], pairs.corrupted[:, bos + 7 :])
    assert not (pairs.clean[:, bos:] == bpe.eos_token_id).any()


def test_without_the_token_before_it_induction_has_no_answer():
    prompts = induction(50, 200, period=7, corruption="change_previous_token")
    pairs = prompts.pairs
    assert [continued(row) for row in pairs.clean.tolist()] == pairs.correct[:, 0].tolist()
    assert [continued(row) for row in pairs.corrupted.tolist()] == [None] * 200
    assert pairs.differs.sum(1).tolist() == [1] * 200
    assert torch.equal(pairs.first_difference, prompts.positions["current"])
    assert torch.equal(pairs.clean.gather(1, prompts.positions["answer"][:, None]), pairs.correct)


def test_induction_needs_more_tokens_than_it_repeats():
    with pytest.raises(DataError, match="period=12 must be at least 3 and below the 12 tokens"):
        induction(12)
    with pytest.raises(DataError, match="period=2 must be at least 3"):
        induction(12, period=2)
    with pytest.raises(DataError, match="bos needs a tokenizer"):
        induction(50, bos=True)
    assert len(induction(4, n=5, period=3).pairs) == 5


# Pronouns, verbs, capitals --------------------------------------------------------------------------------------------


def test_the_pronoun_has_the_names_gender_and_the_other_prompt_the_other_one(tokenizer):
    prompts = gendered_pronouns(tokenizer, 40)
    pronoun = {f" {name}": (" she", " he") for name in words()["female"]}
    pronoun |= {f" {name}": (" he", " she") for name in words()["male"]}
    answers = list(zip(texts(prompts, "correct"), texts(prompts, "incorrect"), strict=True))
    assert [pronoun[name] for name in at(prompts, "name")] == answers
    assert [pronoun[name][::-1] for name in at(prompts, "name", "corrupted")] == answers
    assert texts(prompts, "correct") == [" she", " he"] * 20


def test_no_name_is_in_both_genders():
    assert not set(words()["female"]) & set(words()["male"])


@pytest.mark.parametrize("structure", ["simple", "same_number", "other_number"])
def test_the_verb_has_the_number_of_its_subject(tokenizer, structure):
    prompts = subject_verb_agreement(tokenizer, 40, structure=structure)
    plural = [noun.endswith("s") for noun in at(prompts, "subject")]
    assert [noun.endswith("s") for noun in at(prompts, "subject", "corrupted")] == [not each for each in plural]
    assert plural == [False, True] * 20
    forms = [" is was has", " are were have"]
    assert texts(prompts, "correct") == [forms[each] for each in plural]
    assert texts(prompts, "incorrect") == [forms[not each] for each in plural]
    if structure != "simple":
        between = [noun.endswith("s") for noun in at(prompts, "attractor")]
        assert between == [each if structure == "same_number" else not each for each in plural]
        assert at(prompts, "attractor") == at(prompts, "attractor", "corrupted")
        assert at(prompts, "end") == at(prompts, "attractor")


def test_nouns_need_both_their_numbers(bpe):
    prompts = subject_verb_agreement(bpe, nouns=["dog", "cat", "boy", "sheep"])
    assert prompts.left_out == ("sheep", "sheeps")
    with pytest.raises(TokenError, match=r"of 6 nouns in both numbers, 4 are one token"):
        subject_verb_agreement(bpe, nouns=["dog", "cat", "sheep"])


def test_capitals_are_those_of_their_countries(tokenizer):
    prompts = capital_cities(tokenizer, 60)
    for text, other, correct, incorrect in zip(
        *(texts(prompts, name) for name in ("clean", "corrupted", "correct", "incorrect")), strict=True
    ):
        [country] = [name for name, city in words()["capitals"].items() if city == correct.strip()]
        [stranger] = [name for name, city in words()["capitals"].items() if city == incorrect.strip()]
        assert text.replace(country, stranger) == other
    assert not {left for left in prompts.left_out if left.endswith("(Paris)")}


def test_a_country_without_another_of_as_many_tokens_is_left_out(gpt2):
    given = {"France": "Paris", "Italy": "Rome", "South Korea": "Seoul", "Bulgaria": "Sofia"}
    prompts = capital_cities(gpt2, 8, capitals=given)
    assert prompts.left_out == ("South Korea (Seoul)", "Bulgaria (Sofia)")
    with pytest.raises(TokenError, match="no two countries"):
        capital_cities(gpt2, capitals={"France": "Paris", "South Korea": "Seoul"})
