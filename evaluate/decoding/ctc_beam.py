"""CTC prefix beam search over characters (Hannun et al. 2014, algorithm 1), with words scored as they end.

A prefix is a text so far. Its paths, alignments that spell it, end in a blank or in its last character, and their probabilities are
summed apart, for a character after itself is a new one only behind a blank. White space counts as text writes it: spaces at the
beginning, at the end and after a space spell nothing.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import exp, inf, log1p
from typing import NamedTuple, Protocol

import numpy as np

SPACE = " "
UNREAD = -5.0
"""Nats that the beginning of a word is taken for, as long as nobody has read what stands before it."""


class Query(NamedTuple):
    """What a search wants to know next: what follows a state; with a word, its probability there too."""

    state: int
    word: str = ""


class WordScorer(Protocol):
    """Log-probabilities, in nats, of words after words. A state is a text of whole words; what is asked of it has to be read before."""

    start: int
    """The state before the first word."""

    def read(self, queries: Sequence[Query]) -> None:
        """Compute what answers need; many queries at once are cheaper than one by one."""
        ...

    def is_read(self, query: Query) -> bool:
        """Whether what a query needs has been computed."""
        ...

    def follow(self, state: int, word: str) -> tuple[float, int]:
        """log p(word) after a state, and the state behind the word; it has been asked for with this word."""
        ...

    def guess(self, state: int, word: str) -> float:
        """About log p(word), from what follows the state alone."""
        ...

    def ahead(self, state: int, letters: str) -> float:
        """About log p of the likeliest word that begins with these letters."""
        ...

    def end(self, state: int) -> float:
        """log p(nothing more)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamOptions:
    """How wide a search is; nats throughout.

    Args:
        width: prefixes that are kept after each frame.
        margin: prefixes that are so much worse than the best are not kept.
        least: characters whose log posterior is below this are not tried in a frame.
        word_margin: words that end so much worse, by the scorer's guess, than the best prefix stands are not scored.
    """

    width: int = 12
    margin: float = 8.0
    least: float = -5.0
    word_margin: float = 6.0

    @property
    def word_ends(self) -> int:
        """Words that are scored after a frame at most."""
        return max(4, self.width // 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class WordOptions:
    """log p_CTC + weight * log p_LLM + bonus * words is what is sought (shallow fusion: Gulcehre et al. 2015; Hannun et al. 2014)."""

    weight: float = 0.0
    bonus: float = 0.0
    """A scorer alone prefers few words; 4 to 6 times the weight makes up for it."""


class Prefix(NamedTuple):
    """A text so far: whole words, each with a space behind it, the scorer's state after them, and the letters since."""

    state: int
    words: str
    letters: str

    @property
    def last(self) -> str:
        """The character a repetition of which adds nothing. A space after none, too: it would spell nothing."""
        return self.letters[-1] if self.letters else SPACE


@dataclass(slots=True)
class Mass:
    """log probabilities of the paths of a prefix, and what its whole words are worth."""

    blank: float = -inf
    """Of paths that end in a blank."""
    letter: float = -inf
    """Of paths that end in the prefix's last character."""
    worth: float = 0.0

    @property
    def total(self) -> float:
        """Of all paths."""
        return log_add(self.blank, self.letter)


class Ended(NamedTuple):
    """A word that a space ends: the prefix before the space, the log probability of these paths, the worth of the words before."""

    prefix: Prefix
    paths: float
    worth: float


Searching = Generator[Sequence[Query], None, str]
"""Yields what has to be read before it goes on; returns the text."""


class Search:
    """One utterance's search.

    Args:
        alphabet: the character of each class, `[C]`; nothing where a class has none. The first class is the blank.
        scorer: of words; None: paths and the bonus alone.
    """

    def __init__(
        self,
        alphabet: Sequence[str],
        beam: BeamOptions,
        words: WordOptions = WordOptions(),
        scorer: WordScorer | None = None,
    ) -> None:
        self._alphabet, self._beam, self._words, self._scorer = alphabet, beam, words, scorer
        self._class = {character: number for number, character in enumerate(alphabet) if character}
        self._spoken = np.array([bool(character) for character in alphabet])
        start = Prefix(0 if scorer is None else scorer.start, "", "")
        self._prefixes = {start: Mass(blank=0.0)}
        self._asked: set[int] = set()

    def run(self, log_posteriors: np.ndarray) -> Searching:
        """The text of log posteriors `[T, C]`, class 0 the blank."""
        for frame in log_posteriors:
            grown, ended = self._grow(frame)
            yield from self._end_words(grown, ended)
            self._prefixes = self._best(grown)
            yield from self._ask([Query(prefix.state) for prefix in self._prefixes if prefix.letters])
        return (yield from self._finish())

    def _grow(self, frame: np.ndarray) -> tuple[dict[Prefix, Mass], list[Ended]]:
        """All prefixes after a frame but those that end a word in it, and these words."""
        blank, values = float(frame[0]), frame.tolist()
        tried = [(self._alphabet[c], values[c]) for c in self._likely(frame)]
        grown: dict[Prefix, Mass] = {}
        ended: list[Ended] = []
        for prefix, mass in self._prefixes.items():
            total, last = mass.total, prefix.last
            stays = grown.setdefault(prefix, Mass(worth=mass.worth))
            stays.blank = log_add(stays.blank, total + blank)
            again = (
                total if last == SPACE else mass.letter
            )  # a space after a space adds nothing, blank between them or not
            if last in self._class:
                stays.letter = log_add(stays.letter, again + values[self._class[last]])
            for character, value in tried:
                paths = value + (mass.blank if character == last else total)
                if paths == -inf:
                    continue
                if character != SPACE:
                    longer = Prefix(prefix.state, prefix.words, prefix.letters + character)
                    there = grown.setdefault(longer, Mass(worth=mass.worth))
                    there.letter = log_add(there.letter, paths)
                elif prefix.letters:
                    ended.append(Ended(prefix, paths, mass.worth))
        return grown, ended

    def _likely(self, frame: np.ndarray) -> list[int]:
        return np.flatnonzero(self._spoken & (frame > self._beam.least)).tolist()

    def _end_words(self, grown: dict[Prefix, Mass], ended: list[Ended]) -> Generator[Sequence[Query], None, None]:
        """Add the prefixes that end a word, those that are worth scoring."""
        if self._scorer is not None and ended:
            ended = self._promising(grown, ended, self._scorer)
            yield from self._ask([Query(prefix.state, prefix.letters) for prefix, _, _ in ended])
        for prefix, paths, worth in ended:
            value, state = self._whole(prefix)
            longer = Prefix(state, f"{prefix.words}{prefix.letters}{SPACE}", "")
            there = grown.setdefault(longer, Mass(worth=worth + value))
            there.letter = log_add(there.letter, paths)

    def _promising(self, grown: dict[Prefix, Mass], ended: list[Ended], scorer: WordScorer) -> list[Ended]:
        """Those whose words are worth the language model's time, by a guess."""
        guessed = [
            one.paths
            + one.worth
            + self._words.weight * scorer.guess(one.prefix.state, one.prefix.letters)
            + self._words.bonus
            for one in ended
        ]
        best = max(max(guessed), max(self._value(prefix, mass) for prefix, mass in grown.items()))
        order = sorted(range(len(ended)), key=lambda i: -guessed[i])[: self._beam.word_ends]
        return [ended[i] for i in order if guessed[i] > best - self._beam.word_margin]

    def _best(self, grown: dict[Prefix, Mass]) -> dict[Prefix, Mass]:
        """What is kept after a frame."""
        valued = sorted(((self._value(prefix, mass), prefix) for prefix, mass in grown.items()), reverse=True)
        least = valued[0][0] - self._beam.margin
        return {prefix: grown[prefix] for value, prefix in valued[: self._beam.width] if value >= least}

    def _value(self, prefix: Prefix, mass: Mass) -> float:
        """What a prefix is compared by: a word that has begun counts as far as one can look ahead."""
        value = mass.total + mass.worth
        if not prefix.letters:
            return value
        if self._scorer is None:
            return value + self._words.bonus
        # What other searches had read would make the text depend on them.
        ahead = self._scorer.ahead(prefix.state, prefix.letters) if prefix.state in self._asked else UNREAD
        return value + self._words.weight * ahead + self._words.bonus

    def _whole(self, prefix: Prefix) -> tuple[float, int]:
        """What the word is worth that the letters of a prefix are, and the state behind it."""
        if self._scorer is None:
            return self._words.bonus, prefix.state
        score, state = self._scorer.follow(prefix.state, prefix.letters)
        return self._words.weight * score + self._words.bonus, state

    def _finish(self) -> Searching:
        """The best text, its last word and its end scored."""
        yield from self._ask([Query(prefix.state, prefix.letters) for prefix in self._prefixes if prefix.letters])
        texts: dict[tuple[str, int], Mass] = {}
        for prefix, mass in self._prefixes.items():
            value, state = self._whole(prefix) if prefix.letters else (0.0, prefix.state)
            text = f"{prefix.words}{prefix.letters}".rstrip(SPACE)
            there = texts.setdefault((text, state), Mass(worth=mass.worth + value))
            there.letter = log_add(there.letter, mass.total)
        yield from self._ask([Query(state) for _, state in texts])
        return max(texts, key=lambda key: (texts[key].total + texts[key].worth + self._end(key[1]), key))[0]

    def _end(self, state: int) -> float:
        return 0.0 if self._scorer is None else self._words.weight * self._scorer.end(state)

    def _ask(self, queries: Sequence[Query]) -> Generator[Sequence[Query], None, None]:
        """Have queries read before it goes on, where there are some."""
        scorer = self._scorer
        self._asked.update(query.state for query in queries)
        if scorer is not None and (unread := [query for query in queries if not scorer.is_read(query)]):
            yield unread


def beam_text(
    log_posteriors: np.ndarray, alphabet: Sequence[str], beam: BeamOptions | None = None, bonus: float = 0.0
) -> str:
    """The text of log posteriors `[T, C]` without any language model: the likeliest one, where the beam is wide enough."""
    search = Search(alphabet, beam or BeamOptions(), WordOptions(bonus=bonus)).run(log_posteriors)
    try:
        next(search)
    except StopIteration as done:
        return done.value
    raise AssertionError("nothing is asked for without a scorer")


def greedy_text(log_posteriors: np.ndarray, alphabet: Sequence[str]) -> str:
    """The text of the best path: the best class of each frame, repetitions once, blanks not at all; words one space apart."""
    best = log_posteriors.argmax(1)
    kept = np.flatnonzero(np.diff(best, prepend=-1))
    return " ".join("".join(alphabet[c] for c in best[kept]).split())


def log_add(a: float, b: float) -> float:
    """log(e^a + e^b)."""
    if a < b:
        a, b = b, a
    return a if b == -inf else a + log1p(exp(b - a))
