"""Texts are compared as Whisper's authors compare them, errors are counted as an edit distance, and a score says how it was made."""

import sys
from importlib.metadata import version

import pytest
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.metrics.word_errors import character_errors, word_errors
from encodeonce.evaluate.normalise import RAW, find_normaliser
from encodeonce.store.errors import StoreError
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

TEXTS = [
    "MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES",
    "Mr. Quilter's manner, twenty-one colours; he counselled [noise] (laughs) um $20.00 and 5%!",
    "It's nineteen sixty four, they've got one hundred and one dalmatians, can't they?",
    "",
    " -- ",
]
WORDS = st.lists(st.sampled_from(["a", "b", "cc", "dé"]), max_size=6).map(" ".join)


@pytest.mark.parametrize("text", TEXTS)
def test_normalisers_agree_with_another_implementation_of_whispers(text):
    assert find_normaliser("en")(text) == " ".join(EnglishTextNormalizer()(text).split())
    assert find_normaliser("de")(text) == " ".join(BasicTextNormalizer()(text).split())


def test_english_is_normalised_for_titles_numbers_and_spelling():
    normalise = find_normaliser("en-GB")
    assert normalise("MISTER JONES COUNSELLED TWENTY ONE") == normalise("Mr. Jones counseled 21.")
    assert RAW("MISTER  JONES\n") == "MISTER JONES"


def test_languages_without_spaces_are_counted_by_letters():
    assert find_normaliser("ja")("今日は。") == "今 日 は"


@pytest.mark.parametrize("language", ["", "english!", "E", "de_"])
def test_what_is_no_language_code_is_refused(language):
    with pytest.raises(EvaluationError, match="no language code; give one such as en"):
        find_normaliser(language)


def edit_distance(wanted: list[str] | str, heard: list[str] | str) -> int:
    """Levenshtein's, the textbook's table."""
    row = list(range(len(heard) + 1))
    for i, one in enumerate(wanted, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1]


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), max_size=4))
def test_rates_are_the_corpus_edit_distance_over_the_reference_units(pairs):
    references, hypotheses = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    words = word_errors(references, hypotheses)
    characters = character_errors(references, hypotheses)
    for counted, edits, units in (
        (words, sum(edit_distance(a.split(), b.split()) for a, b in pairs), sum(len(a.split()) for a in references)),
        (characters, sum(edit_distance(a, b) for a, b in pairs), sum(map(len, references))),
    ):
        assert counted.substitutions + counted.deletions + counted.insertions == edits
        assert counted.reference_units == units
        assert counted.rate == (edits / units if units else None)
        assert counted.utterances == len(pairs)


def test_what_is_heard_where_nothing_was_said_counts_as_insertions():
    errors = word_errors(["um", "hello there"], ["thank you", "hello there"], find_normaliser())
    assert (errors.insertions, errors.reference_units, errors.empty_references) == (2, 2, 1)
    assert word_errors(["um"], ["hm"], find_normaliser()).rate is None


def test_a_score_carries_the_normaliser_and_its_versions():
    raw = word_errors(["A b"], ["a b"])
    assert (raw.rate, raw.signature) == (0.5, f"word|raw|jiwer:{version('jiwer')}")
    normalised = word_errors(["A b"], ["a b"], find_normaliser())
    assert normalised.rate == 0
    assert normalised.signature == (
        f"word|whisper-english|transformers:{version('transformers')}"
        f"|spellings:{version('whisper-normalizer')}|jiwer:{version('jiwer')}"
    )


def test_references_and_hypotheses_must_be_as_many():
    with pytest.raises(EvaluationError, match="2 references and 1 hypotheses"):
        word_errors(["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("package", "use"), [("jiwer", lambda: word_errors(["a"], ["a"])), ("whisper_normalizer", find_normaliser)]
)
def test_a_missing_library_is_an_error_that_names_the_extra(package, use, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StoreError, match=rf"{package}.*encodeonce\[evaluate\]"):
        use()
