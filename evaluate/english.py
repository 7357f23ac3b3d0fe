"""Whisper's English normaliser, four times as fast: most words stand still under it, and the rest is normalised piece by piece."""

import re
from functools import lru_cache
from itertools import pairwise
from typing import Any

REMEMBERED = 2**17
"""Words, and pieces of about three words."""
WHOLE = re.compile(r"[<\[(]|\band\W+(?:a\W+half|and)\b|\s\s|^\s|\s$|[^\S ]")
"""What reaches over more than the next word: brackets, `three and a half`, and white space that is no single space."""
TITLE = re.compile(r"\\b([a-z]+)\\b")
CONTRACTED = re.compile("[a-z]+(?:'[a-z]+)+")
PUNCTUATION = (",", ".", "?", "!", ";", ":")
"""One of them after a word becomes a space."""
PARTICIPLES = {"been", "gone", "done", "got"}
"""After `he's` they make it `he has`."""


class PiecewiseNormaliser:
    """The same function as transformers' EnglishTextNormalizer, which passes a text through sixty regular expressions.

    Most words become the same whatever stands beside them: `colour`, `it's`. A text may be cut between two such words. Pieces with
    numbers or hesitations in them are left, which are short, and recur.
    """

    def __init__(self, whole: Any) -> None:
        self.whole, self.numbers, self.spellings = whole, whole.standardize_numbers, whole.standardize_spellings
        fillers = set(re.findall("[a-z]+", whole.ignore_patterns.replace(r"\b", "")))
        self.titles = {match[1] for pattern in whole.replacers if (match := TITLE.fullmatch(pattern))}
        self.replaced = fillers | self.titles
        numbers = {*self.numbers.words, *self.numbers.literal_words} - {"and"}
        self.special = self.replaced | PARTICIPLES | numbers
        self._alone, self._piece = lru_cache(REMEMBERED)(self._word), lru_cache(REMEMBERED)(self._some_words)

    def __call__(self, text: str) -> str:
        lowered = text.lower()
        if WHOLE.search(lowered):
            return self._any(text)
        words = lowered.split(" ")
        alone = [self._alone(word) for word in words]
        cuts = [at for at, (before, after) in enumerate(pairwise(alone), 1) if before is not None and after is not None]
        pieces = []
        for begin, end in pairwise((0, *cuts, len(words))):
            first = alone[begin] if end - begin == 1 else None
            pieces.append(self._piece(" ".join(words[begin:end])) if first is None else first)
        return " ".join(filter(None, pieces))

    def _word(self, word: str) -> str | None:
        """What it becomes whatever stands beside it; None where that depends, or is a number."""
        bare = word[:-1] if word.endswith(PUNCTUATION) else word
        if self._plain(bare):
            return self.spellings(bare)
        if bare in self.titles or (CONTRACTED.fullmatch(bare) and self.special.isdisjoint(bare.split("'"))):
            found = self._any(word)
            return found if all(map(self._plain, found.split())) else None
        return None

    def _plain(self, word: str) -> bool:
        return word.isascii() and word.isalpha() and word not in self.special

    def _some_words(self, piece: str) -> str:
        words = piece.split(" ")
        if not (piece.isascii() and all(map(str.isalpha, words)) and self.replaced.isdisjoint(words)):
            return self._any(piece)
        spelt = self.spellings(self.numbers(piece))
        return " ".join(re.sub(r"([^0-9])%", r"\1 ", re.sub(r"[.$¢€£]([^0-9])", r" \1", spelt)).split())

    def _any(self, text: str) -> str:
        try:
            return " ".join(self.whole(text).split())
        except ValueError:  # a number of over 4300 digits, which Python refuses: somebody's decoding ran away
            return " ".join(text.lower().split())
