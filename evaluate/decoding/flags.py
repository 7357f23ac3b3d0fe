"""What is suspicious about a written text, by rules that anyone can check; nothing is ever removed for it."""

import re
import string
from collections.abc import Sequence
from dataclasses import replace

from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.evaluate.normalise import is_unspaced

PUNCTUATION = (
    string.punctuation
    + "\N{HORIZONTAL ELLIPSIS}\N{EM DASH}\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"
)
"""Around words; a word is the same with it and without."""
EMPTY, UNFINISHED, REPETITION, TOO_LONG, REFUSAL = "empty", "unfinished", "repetition", "too_long", "refusal"
FLAGS = {
    EMPTY: "nothing was written",
    UNFINISHED: "the budget of tokens was used up before the text ended",
    REPETITION: "the same words, or letters, several times in a row",
    TOO_LONG: "more words than anyone says in this time",
    REFUSAL: "the language model speaks of itself instead of writing what was said",
}
"""Every flag, and what it means."""
LOOPS = ((1, 8), (3, 5), (40, 4))
"""Words of a phrase at most, and how many times in a row are a loop. People say no no no, and Poe seven times bells."""
LETTER_LOOPS = ((2, 12), (12, 8))
"""The same for letters inside a word, and where there are no spaces between words: hahaha is none, and 1000000 neither."""
WORDS_PER_SECOND, WORDS_AT_ONCE = 7.0, 3
"""Nobody says more words than `WORDS_AT_ONCE` and so many a second; fast speech has 5 a second."""
LETTERS_PER_SECOND = 15.0
"""The same where there are no spaces between words: fast Mandarin has 8 syllables a second, Japanese 10 letters."""
_AI = r"(?:just |only )?an? (?:ai|artificial intelligence|(?:large )?language model|virtual assistant)"
_CANNOT = r"i(?: cannot| can't| can not|(?:'m| am) (?:not able|unable) to)"
_HEAR = r"(?:process|access|listen to|hear) (?:the |this |your |any )?(?:audio|recording)"
REFUSALS = (
    rf"\b(?:as|i'm|i am) {_AI}\b",
    rf"\bi(?:'m| am) (?:very |so )?sorry,? (?:but )?{_CANNOT} (?:assist|process|fulfill|comply|provide|translate|access)\b",
    rf"\b{_CANNOT} (?:transcribe|assist (?:you )?with (?:that|this)|{_HEAR})\b",
    r"\b(?:please|you (?:have not|haven't|did not|didn't)) provided? (?:me with )?(?:the|an|any|a) (?:audio|recording|transcript)\b",
    r"\bhow (?:can|may) i (?:assist|help) you today\b",
)
"""What assistants say where they do not do what they were asked; in English, whatever language was asked for."""
_REFUSAL = re.compile("|".join(REFUSALS))


def flags_of(text: str, reference_seconds: float | None, ended: bool, language: str | None = None) -> tuple[str, ...]:
    """The flags of `FLAGS` that a text has, in their order.

    Args:
        reference_seconds: of the audio; None: unknown, and nothing is too long.
        ended: the end token came before the budget of tokens was used up.
        language: its code; None: one with spaces between words.
    """
    spaced = not is_unspaced(language)
    text = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    words = [word for part in text.split() if (word := part.strip(PUNCTUATION))]
    letters = "".join(filter(str.isalnum, text))
    holds = {
        EMPTY: not text.strip(),
        UNFINISHED: not ended,
        REPETITION: _loops(words, LOOPS)
        or any(_loops(part, LETTER_LOOPS) for part in (words if spaced else [letters])),
        TOO_LONG: reference_seconds is not None and _too_long(words, letters, reference_seconds, spaced),
        REFUSAL: _REFUSAL.search(text) is not None,
    }
    return tuple(flag for flag, held in holds.items() if held)


def flagged_anew(one: Hypothesis, language: str) -> Hypothesis:
    """What was decoded, with the flags that its text has in this language; that it did not end nothing else tells."""
    return replace(one, flags=flags_of(one.pred_text, one.duration, UNFINISHED not in one.flags, language))


def _too_long(words: Sequence[str], letters: str, seconds: float, spaced: bool) -> bool:
    if spaced:
        return len(words) > WORDS_AT_ONCE + WORDS_PER_SECOND * seconds
    return len(letters) > WORDS_AT_ONCE + LETTERS_PER_SECOND * seconds


def _loops(units: Sequence[str], limits: Sequence[tuple[int, int]]) -> bool:
    """Whether a phrase stands so many times in a row: then (times - 1) * size units running equal those `size` before them."""
    for size in range(1, min(limits[-1][0], len(units) // limits[-1][1]) + 1):
        times = next(times for most, times in limits if size <= most)
        run = 0
        for here, before in zip(units[size:], units, strict=False):
            run = run + 1 if here == before else 0
            if run >= (times - 1) * size:
                return True
    return False
