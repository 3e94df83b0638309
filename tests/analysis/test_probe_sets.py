import random
from collections import Counter, defaultdict

import pytest
import torch

from interp_gpt2.analysis.probe_sets import UNLABELLED, probe_set
from interp_gpt2.analysis.rows import fingerprint
from interp_gpt2.analysis.text_labels import TEXT_LABELS, paragraph_starts
from interp_gpt2.errors import AnalysisError
from interp_gpt2.tokenizers import ByteTokenizer, CharTokenizer

N_CTX = 40


def document(seed: int) -> str:
    """Paragraphs of indented lines with words, numbers, capitals and quotes, some of them over a line break."""
    rng = random.Random(seed)
    paragraphs = []
    for _ in range(8):
        words = [rng.choice(["the", "An", "x1", '"so it is"', "—", "42", "isn't", "Deep"]) for _ in range(rng.randint(5, 25))]
        indent = "\n" + " " * rng.choice([0, 0, 3, 6, 10])
        paragraphs.append(indent.join(" ".join(words[i : i + 5]) for i in range(0, len(words), 5)))
    return "\n\n".join(paragraphs)


TEXTS = [document(seed) for seed in range(12)]
CHARS = CharTokenizer.from_text("".join(TEXTS))
DOCUMENTS = [torch.tensor(CHARS.encode(text)) for text in TEXTS]


@pytest.fixture(scope="module")
def data():
    return probe_set(DOCUMENTS, CHARS, N_CTX, n_tokens=1000)


def test_no_document_is_on_both_sides(data):
    train, test = (set(data.documents[half].tolist()) for half in (~data.is_test, data.is_test))
    assert train
    assert test
    assert not train & test


def test_windows_are_stretches_of_their_documents_from_a_paragraph_on_and_do_not_overlap(data):
    seen = defaultdict(set)
    for tokens, length, number in zip(data.tokens, data.lengths.tolist(), data.documents.tolist(), strict=True):
        text = CHARS.decode(tokens[:length].tolist())
        places = [start for start in paragraph_starts(TEXTS[number]).tolist() if TEXTS[number].startswith(text, start)]
        assert places
        assert length == N_CTX or TEXTS[number].endswith(text)
        free = [start for start in places if not seen[number] & set(range(start, start + length))]
        assert free
        seen[number].update(range(free[0], free[0] + length))


def test_each_window_has_the_labels_of_its_own_text(data):
    assert data.names == tuple(TEXT_LABELS)
    for label in data.labels:
        for tokens, labels, length in zip(data.tokens, label.labels, data.lengths.tolist(), strict=True):
            expected = torch.from_numpy(TEXT_LABELS[label.name].of(CHARS.decode(tokens[:length].tolist())))
            judged = labels[:length] != UNLABELLED
            assert torch.equal(labels[:length][judged], expected[judged])
            assert (labels[length:] == UNLABELLED).all()


def test_about_as_many_tokens_as_asked_for_are_on_each_side(data):
    for half in (data.is_test, ~data.is_test):
        assert 1000 <= int(data.lengths[half].sum()) < 1000 + N_CTX


def test_only_rare_classes_and_padding_are_unlabelled(data):
    rare = probe_set([*DOCUMENTS[:11], torch.tensor(CHARS.encode("42"))], CHARS, N_CTX, n_tokens=200)
    for each in (data, rare):
        padding = torch.arange(N_CTX) >= each.lengths[:, None]
        for label in each.labels:
            for half in (each.is_test, ~each.is_test):
                counts = Counter(label.labels[half][~padding[half]].tolist())
                assert all(n >= 10 for found, n in counts.items() if found != UNLABELLED)


def test_lookup_tables_are_smoothed_counts_of_the_training_documents(data):
    trained = set(range(12)) - set(data.documents[data.is_test].tolist())
    label = data.label("word_start")
    singles, pairs, prior = defaultdict(Counter), defaultdict(Counter), Counter()
    for number in trained:
        found = TEXT_LABELS["word_start"].of(TEXTS[number]).tolist()
        for previous, char, value in zip(["", *TEXTS[number]], TEXTS[number], found, strict=False):
            singles[char][value] += 1
            pairs[previous, char][value] += 1
            prior[value] += 1

    def said(previous: str, char: str) -> tuple[float, float]:
        """p(word start), from the character and from the last two, each backing off by one pseudo-count."""
        overall = prior[1] / prior.total()
        single = (singles[char][1] + overall) / (singles[char].total() + 1)
        return single, (pairs[previous, char][1] + single) / (pairs[previous, char].total() + 1)

    at = 0
    for window in data.is_test.nonzero()[:, 0].tolist():
        text = CHARS.decode(data.tokens[window, : data.lengths[window]].tolist())
        for position, char in enumerate(text):
            if position:  # the first character's predecessor is outside the window
                expected = said(text[position - 1], char)
                assert label.current_token[at, 1].item() == pytest.approx(expected[0])
                assert label.last_two_tokens[at, 1].item() == pytest.approx(expected[1])
            at += 1
    assert at == len(label.current_token) == len(label.last_two_tokens)


def test_bytes_have_the_label_of_the_last_whole_character():
    tokenizer = ByteTokenizer()
    documents = [torch.tensor(tokenizer.encode(text)) for text in TEXTS]
    data = probe_set(documents, tokenizer, N_CTX, ["indentation"], n_tokens=1000)
    n_split = 0
    for tokens, labels, length in zip(data.tokens, data.labels[0].labels, data.lengths.tolist(), strict=True):
        raw = bytes(tokens[:length].tolist())
        for end in range(1, length + 1):
            whole = raw[:end].decode("utf-8", "ignore")
            n_split += len(whole.encode()) < end
            if whole:  # before that, the label is the line break's in front of the window
                assert labels[end - 1] in (TEXT_LABELS["indentation"].of(whole)[-1], UNLABELLED)
    assert n_split > 10  # the dash is three bytes


def test_windows_with_rare_classes_are_drawn_more_often():
    plain = "the An x1\n\n" * 100
    texts = [plain + '"so it is"\n\n' * 10 + plain] * 4 + [plain * 2] * 4
    data = probe_set([torch.tensor(CHARS.encode(text)) for text in texts], CHARS, N_CTX, ["inside_quotes"], n_tokens=600)
    inside = torch.from_numpy(TEXT_LABELS["inside_quotes"].of("".join(texts))).double().mean()
    assert (data.labels[0].labels == 1).double().mean() > 5 * inside


def test_the_same_seed_gives_the_same_set(data):
    assert fingerprint(probe_set(DOCUMENTS, CHARS, N_CTX, n_tokens=1000)) == fingerprint(data)
    assert fingerprint(probe_set(DOCUMENTS, CHARS, N_CTX, n_tokens=1000, seed=1)) != fingerprint(data)


def test_a_label_of_one_class_is_left_out_or_refused():
    plain = [torch.tensor(CHARS.encode("the An x1\n\n" * 20)) for _ in range(4)]
    data = probe_set(plain, CHARS, N_CTX, n_tokens=300)
    assert "inside_quotes" not in data.names
    assert dict(data.skipped)["inside_quotes"].startswith("fewer than two classes")
    with pytest.raises(AnalysisError, match=r"'inside_quotes'.*fewer than two classes"):
        data.label("inside_quotes")
    with pytest.raises(AnalysisError, match="'inside_quotes' cannot be probed here"):
        probe_set(plain, CHARS, N_CTX, ["inside_quotes"], n_tokens=300)
    with pytest.raises(AnalysisError, match="no text label 'quotes'"):
        probe_set(plain, CHARS, N_CTX, ["quotes"])


def test_too_few_documents_are_refused():
    with pytest.raises(AnalysisError, match="3 documents"):
        probe_set(DOCUMENTS[:3], CHARS, N_CTX)
