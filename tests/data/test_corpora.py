"""Corpora are the same text in the same order every time, and what is held out is never trained on."""

import builtins
import json
import re
from pathlib import Path

import pytest

from interp_gpt2.data import corpora
from interp_gpt2.data.corpora import Corpus, Document, docstrings, load_corpus, pieces, python_docs, split
from interp_gpt2.errors import DataError


@pytest.fixture
def small_library(tmp_path, monkeypatch) -> Path:
    """A standard library of two modules, a test and a file that is not Python, in place of the real one."""
    library = tmp_path / "lib"
    (library / "test").mkdir(parents=True)
    (library / "b.py").write_text('"""Shared."""\nclass B:\n    """A class.\n\n    Here:\n        indented.\n    """\n')
    (library / "a.py").write_text(
        '"""Module a."""\nif True:\n    def f():\n        "Of f."\n    async def g():\n        """Shared."""\nx = 1\n'
    )
    (library / "test" / "test_a.py").write_text('"""Left out."""\n')
    (library / "bad.py").write_text("def broken(:\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(library))
    return library


def test_docstrings_are_found_in_the_order_of_the_source_and_kept_once(small_library):
    assert list(docstrings(small_library)) == [
        Document("docstrings/a.py", "Module a.\n\nOf f.\n\nShared.\n\n"),
        Document("docstrings/b.py", "A class.\n\nHere:\n    indented.\n\n"),
    ]


def test_python_docs_hold_every_topic_and_the_docstrings_and_come_from_the_cache_the_second_time(small_library, tmp_path):
    from pydoc_data.topics import topics

    first = python_docs(cache=tmp_path / "cache")
    assert [doc.name for doc in first.documents] == [f"topics/{name}" for name in sorted(topics)] + [
        "docstrings/a.py",
        "docstrings/b.py",
    ]
    assert all(topics[name].strip("\n") in first.text for name in topics)
    assert first.notes == ()
    (small_library / "a.py").write_text('"""Changed: only a new Python version is looked at again."""')
    again = python_docs(cache=tmp_path / "cache")
    assert again.sha256 == first.sha256


@pytest.mark.parametrize("damage", ["", "[]", '{"documents": [["a", "b"]], "sha256": "0"}'])
def test_a_damaged_cache_is_collected_again(small_library, tmp_path, damage):
    first = python_docs(cache=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_text(damage)
    assert python_docs(cache=tmp_path / "cache").sha256 == first.sha256
    assert json.loads(kept.read_text())["documents"]


def test_a_cache_that_cannot_be_written_costs_only_time(small_library, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert "docstrings/a.py" in [doc.name for doc in python_docs(cache=tmp_path / "cache").documents]


def test_without_library_sources_the_corpus_says_that_it_is_topics_only(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "nowhere"))
    corpus = python_docs(cache=tmp_path / "cache")
    assert all(doc.name.startswith("topics/") for doc in corpus.documents)
    assert corpus.notes == ("topics only: this Python's library sources are not installed",)
    assert not (tmp_path / "cache").exists()


def test_without_any_documentation_the_error_says_what_to_give_instead(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "nowhere"))
    real_import = builtins.__import__

    def without_topics(name, *args):
        if name.startswith("pydoc_data"):
            raise ImportError(name)
        return real_import(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_topics)
    with pytest.raises(DataError, match="give the path of a text"):
        python_docs(cache=tmp_path / "cache")


def many_documents(count: int = 300) -> Corpus:
    return Corpus("many", tuple(Document(f"doc-{i}", f"Document {i}.\n\n" * (1 + i % 7)) for i in range(count)))


def test_many_documents_are_held_out_whole_and_make_up_a_tenth():
    corpus = many_documents()
    parts = split(corpus)
    assert parts.by_document
    assert {*parts.train, *parts.validation} == {*corpus.documents}
    assert not {*parts.train} & {*parts.validation}
    held_out = sum(len(doc.text) for doc in parts.validation)
    assert 0.09 < held_out / len(corpus.text) <= 0.1
    assert split(many_documents()) == parts


def test_the_split_depends_on_names_and_not_on_order_or_content():
    corpus = many_documents()
    backwards = Corpus("many", corpus.documents[::-1])
    assert {*split(backwards).validation} == {*split(corpus).validation}
    other_text = Corpus("many", tuple(Document(doc.name, doc.text.replace("D", "E")) for doc in corpus.documents))
    assert [doc.name for doc in split(other_text).validation] == [doc.name for doc in split(corpus).validation]


def test_no_document_makes_up_most_of_the_held_out_text():
    long = tuple(Document(f"long-{i}", "long " * 2000) for i in range(20))
    parts = split(Corpus("mixed", many_documents().documents + long))
    longest = max(len(doc.text) for doc in parts.validation)
    assert parts.validation
    assert longest <= (len(long) * 10000 + len(many_documents().text)) / 100


def test_of_a_few_documents_the_last_tenth_is_held_out_from_a_blank_line_on():
    text = "".join(f"Speech {i}\nwith two lines.\n\n" for i in range(100))
    parts = split(Corpus("play", (Document("play", text),)))
    assert not parts.by_document
    assert parts.train[0].text + parts.validation[0].text == text
    assert parts.validation[0].text.startswith("Speech 9")
    assert len(parts.validation[0].text) == pytest.approx(len(text) / 10, rel=0.05)


@pytest.mark.parametrize("text", ["line\n" * 100, "x" * 500, "a\n\n" + "y" * 400, "ab"])
def test_text_without_a_blank_line_in_reach_is_cut_near_its_last_tenth(text):
    parts = split(Corpus("t", (Document("t", text),)))
    assert parts.train[0].text + parts.validation[0].text == text
    assert len(parts.validation[0].text) == pytest.approx(len(text) / 10, abs=len(text) / 20 + 1)


def test_a_text_too_short_to_be_cut_is_refused():
    with pytest.raises(DataError, match="t has 1 characters"):
        split(Corpus("t", (Document("t", "a"),)))


def test_pieces_join_to_the_text_and_end_with_blank_lines():
    text = "".join(f"Paragraph {i}." + "\n" * (2 + i % 3) for i in range(60)) + "end"
    parts = pieces(text, at_least=100)
    assert "".join(parts) == text
    assert all(len(part) >= 100 and part.endswith("\n\n") for part in parts[:-1])
    assert len(parts) > 5


def test_a_text_file_is_one_document_with_unix_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert load_corpus(str(tmp_path / "a.txt")) == Corpus("a.txt", (Document("a.txt", "one\ntwo\nthree\n"),))


def test_a_file_of_stories_is_divided_at_its_end_of_text_marks(tmp_path):
    (tmp_path / "s.txt").write_text("Once.\n<|endoftext|>\n\nTwice.\n<|endoftext|>\n")
    assert load_corpus(str(tmp_path / "s.txt")).documents == (Document("s.txt#0", "Once.\n\n"), Document("s.txt#1", "Twice.\n\n"))


def test_a_folder_is_a_document_for_each_text_file_and_names_what_it_left_out(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "sub" / "a.md").write_text("a\n\n\n")
    (tmp_path / ".hidden" / "c.txt").write_text("c")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\x00")
    (tmp_path / "nothing.txt").write_text("\n")
    corpus = load_corpus(str(tmp_path))
    assert corpus.documents == (Document("b.txt", "b\n\n"), Document("sub/a.md", "a\n\n"))
    assert corpus.notes == ("2 files that are empty or not UTF-8 text were left out: nothing.txt, picture.png",)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"a\x00b", "binary file"),
        (b"caf\xe9", r"byte 0xe9 at 3\); convert it to UTF-8"),
        (b"<|endoftext|>\n", "no text in"),
    ],
)
def test_a_file_that_is_no_text_is_refused_by_name(tmp_path, content, complaint):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(str(path))}.*{complaint}|{complaint} {re.escape(str(path))}"):
        load_corpus(str(path))


def test_a_missing_path_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no file or folder at 'pyhton-docs'; .* python-docs"):
        load_corpus("pyhton-docs")
    with pytest.raises(DataError, match="no text in"):
        load_corpus(str(tmp_path))
    with pytest.raises(DataError, match="no file or folder at ''"):  # and not the current folder
        load_corpus("")


def test_tiny_shakespeare_is_found_or_the_error_names_the_file_that_would_serve(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTERP_GPT2_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match=r"put its input\.txt at data/tinyshakespeare/input\.txt, or set INTERP_GPT2_DATA"):
        load_corpus("tiny-shakespeare")
    path = tmp_path / "data" / corpora.SHAKESPEARE
    path.parent.mkdir(parents=True)
    path.write_text("Not by Shakespeare.\n")
    assert "not the published text" in load_corpus("tiny-shakespeare").notes[0]


def test_the_published_tiny_shakespeare_has_its_known_size(shared_data, monkeypatch):
    monkeypatch.setenv("INTERP_GPT2_DATA", str(shared_data))
    corpus = load_corpus("tiny-shakespeare")
    assert (len(corpus.text), len(set(corpus.text)), corpus.notes) == (1_115_394, 65, ())
