"""Texts are compared as Whisper's authors compare them, errors are counted as an edit distance, and a score says how it was made."""

import json
import sys
from importlib.metadata import version
from importlib.resources import files
from unicodedata import category, normalize

import pytest
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.metrics.word_errors import character_errors, word_errors
from encodeonce.evaluate.normalise import RAW, find_normaliser, is_unspaced
from encodeonce.store.errors import StoreError
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.models.whisper import english_normalizer
from transformers.models.whisper.english_normalizer import BasicTextNormalizer as TransformersBasic
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

TEXTS = [
    "MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES",
    "Mr. Quilter's manner, twenty-one colours; he counselled [noise] (laughs) um $20.00 and 5%!",
    "It's nineteen sixty four, they've got one hundred and one dalmatians, can't they?",
    "",
    " -- ",
]
ENGLISH = find_normaliser("en")
TRANSFORMERS = english_normalizer.EnglishTextNormalizer(
    json.loads((files("whisper_normalizer") / "normalizers" / "english.json").read_text())
)
# fmt: off
ODD = [
    "and", "a", "half", "one", "hundred", "two", "twenty", "first", "5", "20", "$3", "$2", "¢7", "1", "1s", "3.5",
    "2,000", "%", "5%", "...", "hello.", "a.b", "mr.", "mr", "st", "nd", "th", "s", "é", "été", "o'clock", "(x)",
    "[y]", "<z>", "a)", "--", "-", "can", "'t", "'s", "got", "been", "he's", "he'd", "it's", "one's", "um", "um's",
    "'tis", "won't", "£", "$", "3rd", "1960s", "40th", "l'été", "ﬁ", "½", "²", "+", "minus", "per", "cent", "point",
    "double", "colour", "the", "cat", "dogs'", "\u0301", "İ", "cat,", "sat.", "what?", "one,", "one.", "and,", "a,",
    "half.", "no...", "it's,", "he's,", "been,", "hey!!", "mr.,",
]
# fmt: on
"""What means something to Whisper's English normaliser, or might, beside words that do not."""
WORDS = st.lists(st.sampled_from(["a", "b", "cc", "dé"]), max_size=6).map(" ".join)


@pytest.mark.parametrize("text", TEXTS)
def test_normalisers_agree_with_another_implementation_of_whispers(text):
    assert find_normaliser("en")(text) == " ".join(EnglishTextNormalizer()(text).split())
    assert find_normaliser("de")(text) == " ".join(BasicTextNormalizer()(text).split())


@pytest.mark.parametrize(
    "text",
    [
        "two and a half men and a half",
        "and a half of it",
        "three, and a, half",
        "two hundred and and the cat",
        "he'd been and she's got it, what's done is done",
        "it's oh so one oh one of a hundred and five per cent",
        "um 'tis dogs' um 's",
        "double and triple o seven point and minus the cat",
        "twenty mr. jones's st. james, dr. no one's wanna",
        "the colour of $2 and ¢7 or two dollars and seven cents",
        "no... wait. what?! a [laughs and] half",
        "he [that is the old man] sat (with all his cats) on <some or other> mat",
        "the cat$ sat$",
    ],
)
def test_english_is_normalised_piece_by_piece_as_as_a_whole(text):
    for written in (text, text.upper()):
        assert ENGLISH(written) == " ".join(TRANSFORMERS(written).split())


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([" ", " ", " ", "  ", "\n"]))
def test_english_is_normalised_piece_by_piece_whatever_words_meet(draw, space):
    words = draw.sample(ODD, 6)
    for length in (2, 3, 4, 6, 9):
        text = space.join(draw.choices(words, k=length))
        assert ENGLISH(text) == " ".join(TRANSFORMERS(text).split())


def test_a_number_of_more_digits_than_python_reads_stays_as_it_is():
    assert find_normaliser("en")(f"Call {'7' * 5000} now") == f"call {'7' * 5000} now"


@pytest.mark.parametrize("language", ["de", "pt-BR", None])
def test_a_language_without_a_normaliser_of_its_own_says_so(language):
    basic = find_normaliser(language)
    assert basic("Grüße, [lacht] EINS!") == "grüße eins"
    assert basic.caveat == (
        "texts were compared in lower case without punctuation; numbers, contractions and spellings count as they are written"
    )
    assert find_normaliser("en").caveat is None


# fmt: off
MARKED = {
    "hi": ("नमस्ते दुनिया।", "नमस्ते दुनिया"), "ta": ("வணக்கம், உலகம்!", "வணக்கம் உலகம்"), "ar": ("مَرْحَبًا، بالعالم!", "مَرْحَبًا بالعالم"),
    "th": ("ที่นี่", "ที่ นี่"), "km": ("ខ្ញុំ។", "ខ្ញុំ"), "my": ("ကို", "ကို"),
}
# fmt: on
"""Texts and what they become: their vowel signs stay where they are."""


@pytest.mark.parametrize("language", MARKED)
def test_vowel_signs_stay(language):
    text, wanted = (normalize("NFKC", one) for one in MARKED[language])
    assert "".join(find_normaliser(language)(text).split()) == "".join(wanted.split())
    if language in ("hi", "ta", "ar"):
        assert find_normaliser(language)(text) == wanted


def test_a_wrong_vowel_is_an_error():
    assert word_errors(["दिन"], ["दीन"], find_normaliser("hi")).rate == 1
    assert character_errors(["दिन"], ["दीन"], find_normaliser("hi")).rate == 1 / 3


@settings(max_examples=300, deadline=None)
@given(st.text(), st.booleans())
def test_without_marks_the_basic_normaliser_is_whispers(text, letters):
    text = "".join(char for char in text if category(char)[0] != "M")
    assume(all(category(char)[0] != "M" for char in normalize("NFKC", text.lower())))
    wanted = TransformersBasic(split_letters=letters)(text)
    assert find_normaliser("zh" if letters else "fr")(text) == " ".join(wanted.split())


@pytest.mark.parametrize("language", ["zh", "zh-TW", "cmn_hans_cn", "yue", "yue_hant_hk", "km_kh", "ja"])
def test_languages_without_spaces_are_known_by_all_their_codes(language):
    assert is_unspaced(language)
    assert find_normaliser(language)("今日は。") == "今 日 は"


def test_english_is_normalised_for_titles_numbers_and_spelling():
    normalise = find_normaliser("en-GB")
    assert normalise("MISTER JONES COUNSELLED TWENTY ONE") == normalise("Mr. Jones counseled 21.")
    assert RAW("MISTER  JONES\n") == "MISTER JONES"


def test_languages_without_spaces_are_counted_by_letters():
    assert find_normaliser("ja")("今日は。") == "今 日 は"
    assert word_errors(["今日は"], ["今日わ"], find_normaliser("ja")).rate == 1 / 3
    assert character_errors(["今日は"], ["今日わ"], find_normaliser("ja")).rate == 1 / 3


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
    assert (raw.rate, raw.signature) == (0.5, f"word|raw|rapidfuzz:{version('rapidfuzz')}")
    normalised = word_errors(["A b"], ["a b"], find_normaliser())
    assert normalised.rate == 0
    assert normalised.signature == (
        f"word|whisper-english|transformers:{version('transformers')}"
        f"|spellings:{version('whisper-normalizer')}|rapidfuzz:{version('rapidfuzz')}"
    )


def test_references_and_hypotheses_must_be_as_many():
    with pytest.raises(EvaluationError, match="2 references and 1 hypotheses"):
        word_errors(["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("package", "use"), [("rapidfuzz", lambda: word_errors(["a"], ["a"])), ("whisper_normalizer", find_normaliser)]
)
def test_a_missing_library_is_an_error_that_names_the_extra(package, use, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StoreError, match=rf"{package}.*encodeonce\[evaluate\]"):
        use()
