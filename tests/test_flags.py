"""What is flagged, and what people really say and is not."""

import pytest
from encodeonce.evaluate.decoding.flags import FLAGS, LOOPS, flags_of
from hypothesis import given
from hypothesis import strategies as st

SAID = [
    "no no no said he",
    "never never never never never pray you undo this button",
    "of the bells bells bells bells bells bells bells keeping time time time",
    "all right all right all right said the man all right",
    "ha ha ha ha ha he laughed hahahahaha",
    "tick tock tick tock tick tock tick tock went the clock",
    "row row row your boat gently down the stream merrily merrily merrily merrily life is but a dream",
    "i'm sorry i can't come to the ball i am not able to dance and i cannot hear you",
    "i am sorry but i cannot help it",
    "as an aid to memory he was an airman and asked how may i help you",
    "i'm an artist not an artificial flower please provide any help you can",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen",
    "the sum was 1000000000 francs www.example.org",
    "aaaah said he mmm",
]
LOOPING = [
    "the cat sat on the on the on the on the on the",
    "no " * 8,
    "and he went to the house. And he went to the house. and he went to the house and he went to the house",
    "yes, " * 40,
    "heeeeeeeeeeeeeeeeeee",
    "lalalalalalalalalalalalala",
    "good dragons breathe fire " + "and then they went on and on to the sea for a long time again " * 4,
]
REFUSING = [
    "As an AI language model, I cannot listen to speech.",
    "I'm sorry, but I can't assist with that.",
    "I\N{RIGHT SINGLE QUOTATION MARK}m just a language model and cannot hear.",
    "Unfortunately I am unable to process the audio.",
    "You haven't provided any audio. Please provide the audio file.",
    "Hello! How can I assist you today?",
    "i am sorry i cannot transcribe this",
]


@pytest.mark.parametrize("text", SAID)
def test_what_people_say_is_not_flagged(text: str) -> None:
    assert flags_of(text, len(text.split()) / 4, True, "en") == ()
    assert flags_of(text.upper(), None, True) == ()


@pytest.mark.parametrize("text", LOOPING)
def test_loops_are_flagged(text: str) -> None:
    assert flags_of(text, 30.0, True, "en") == ("repetition",)


@pytest.mark.parametrize("text", REFUSING)
def test_refusals_are_flagged(text: str) -> None:
    for language in ("en", "de", None):
        assert flags_of(text, 10.0, True, language) == ("refusal",)


def test_the_other_flags() -> None:
    assert flags_of("", 2.0, True) == flags_of(" \n", 2.0, True, "zh") == ("empty",)
    assert flags_of("the end of", 2.0, False) == ("unfinished",)
    assert flags_of("", 2.0, False) == ("empty", "unfinished")
    words = " ".join(f"word{i}" for i in range(24))
    assert flags_of(words, 3.0, True) == ()
    assert flags_of(words + " more", 3.0, True) == ("too_long",)
    assert flags_of(words + " more", None, True) == ()
    assert flags_of("oh yes sir", 0.1, True) == ()
    assert flags_of("no " * 60, 2.0, False) == ("unfinished", "repetition", "too_long")
    assert set(FLAGS) == {"empty", "unfinished", "repetition", "too_long", "refusal"}


def test_languages_without_spaces_are_counted_in_letters() -> None:
    said = "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u6211\u4eec\u53bb\u516c\u56ed\u5427"  # 12 characters
    assert flags_of(said, 2.0, True, "zh") == ()
    assert flags_of(said, 0.5, True, "zh") == ("too_long",)
    assert flags_of(said, 0.5, True, "en") == ()
    assert flags_of("\u54c8" * 7, 2.0, True, "ja-JP") == ()
    assert flags_of("\u8c22\u8c22 " * 8, 9.0, True, "zh") == ("repetition",)


def naive_loop(words: list[str]) -> bool:
    """Whether some phrase stands in a row as often as `LOOPS` says, by trying every one."""
    return any(
        words[begin : begin + size * times] == words[begin : begin + size] * times
        for size in range(1, LOOPS[-1][0] + 1)
        for times in [next(times for most, times in LOOPS if size <= most)]
        for begin in range(len(words) - size * times + 1)
    )


@given(st.lists(st.tuples(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.integers(1, 9)), max_size=4))
def test_loops_are_those_that_trying_every_phrase_finds(parts: list[tuple[list[str], int]]) -> None:
    words = [word for phrase, times in parts for word in phrase * times]
    assert ("repetition" in flags_of(" ".join(words), None, True)) == naive_loop(words)
