"""A frozen language model as the scorer of a beam search's words: each word is tokens of its own, behind a space."""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache

import numpy as np
from encodeonce.evaluate.decoding.ctc_beam import Query
from encodeonce.evaluate.decoding.forest import ROOT, Forest
from encodeonce.train.llm.frozen import FrozenLLM

ANCHOR = "a"
"""A text before a word or a line break: many tokenizers treat the beginning of a text in another way."""
LETTER = 2.3
"""Nats a letter for spelling that no token of the language model covers; random letters cost ln 26 = 3.3, English ones less."""
PIECE = 4.5
"""Nats for each further token of a word that has not been evaluated."""
UNKNOWN = -8.0
"""Nats for a first letter with which no token begins."""
LAST = "\U0010ffff"


class LLMWords:
    """log p(word | prompt, words before); see `WordScorer`. States are nodes of a forest.

    Args:
        prompt: lines that show the language model what is to come: texts of the same kind, one a line.
    """

    start = ROOT

    def __init__(self, llm: FrozenLLM, prompt: Sequence[str] = ()) -> None:
        words = llm.words
        self._words, self._anchor = words, words.encode(ANCHOR)
        said = words.encode("".join(f"\n {line}" for line in prompt) + "\n")
        self._forest = Forest(llm, [*words.first, *said] or [words.end])
        self._end = next(iter(self._behind("\n")), words.end)
        begins = sorted(
            (piece[1:], token) for token, piece in enumerate(words.pieces()) if len(piece.strip()) and piece[0] == " "
        )
        self._starts = [text for text, _ in begins]
        self._tokens = np.array([token for _, token in begins], np.int64)
        self._exact = dict(begins)
        self._ids = cache(lambda word: self._behind(f" {word}") or [words.end])
        self.clear()

    def clear(self) -> None:
        """Forget all states but the first."""
        self._forest.clear()
        self._aheads: dict[tuple[int, str], float] = {}

    def read(self, queries: Sequence[Query]) -> None:
        """Compute what answers need, in one call of the language model where it is not too much for one."""
        self._forest.evaluate({self._before_last(query) for query in queries})

    def is_read(self, query: Query) -> bool:
        """Whether what a query needs has been computed."""
        return self._forest.is_evaluated(self._before_last(query))

    def follow(self, state: int, word: str) -> tuple[float, int]:
        """log p(word) after a state, and the state behind the word; it has been read with this word."""
        ids = self._ids(word)
        path = self._path(state, ids)
        score = sum(float(self._forest.log_probs(node)[token]) for node, token in zip(path, ids, strict=False))
        return score, path[-1]

    def guess(self, state: int, word: str) -> float:
        """About log p(word): that of its first token, and a price for each further one."""
        ids = self._ids(word)
        return float(self._forest.log_probs(state)[ids[0]]) - PIECE * (len(ids) - 1)

    def ahead(self, state: int, letters: str) -> float:
        """About log p of the likeliest word that begins with these letters: of a token that does, or of one that the letters go on from."""
        found = self._aheads.get((state, letters))
        if found is None:
            log_probs = self._forest.log_probs(state)
            found = self._aheads[state, letters] = max(self._whole(log_probs, letters), self._begun(log_probs, letters))
        return found

    def end(self, state: int) -> float:
        """log p(line break), for a prompt's lines end so."""
        return float(self._forest.log_probs(state)[self._end])

    def _whole(self, log_probs: np.ndarray, letters: str) -> float:
        low, high = bisect_left(self._starts, letters), bisect_left(self._starts, letters + LAST)
        return float(log_probs[self._tokens[low:high]].max()) if high > low else -np.inf

    def _begun(self, log_probs: np.ndarray, letters: str) -> float:
        for length in range(len(letters), 0, -1):
            token = self._exact.get(letters[:length])
            if token is not None:
                return float(log_probs[token]) - LETTER * (1 + len(letters) - length)
        return UNKNOWN - LETTER * len(letters)

    def _before_last(self, query: Query) -> int:
        """The node that the last token of a query's word comes after; its state, where it has no word."""
        return self._path(query.state, self._ids(query.word)[:-1] if query.word else ())[-1]

    def _path(self, state: int, ids: Sequence[int]) -> list[int]:
        """The nodes of a state and of tokens behind it."""
        path = [state]
        for token in ids:
            path.append(self._forest.child(path[-1], token))
        return path

    def _behind(self, text: str) -> list[int]:
        """The ids of a text as it stands behind another one."""
        return self._words.encode(ANCHOR + text)[len(self._anchor) :]
