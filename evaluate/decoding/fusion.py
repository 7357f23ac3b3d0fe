"""Decoding of utterances in lock-step, so that the language model is asked for all of them at once; tuning of its weights."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from encodeonce.evaluate.decoding.ctc_beam import BeamOptions, Query, Search, Searching, WordOptions, WordScorer
from encodeonce.evaluate.decoding.llm_words import LLMWords
from encodeonce.evaluate.decoding.posteriors import Posteriors
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.metrics.word_errors import word_errors
from encodeonce.train.llm.frozen import FrozenLLM

GRID = tuple((weight, share * weight) for weight in (0.5, 0.7, 1.0, 1.4) for share in (4, 5, 6))
"""Weights and bonuses that are tried unless others are given."""

Name = TypeVar("Name")


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """How a language model's words are weighed, and how wide the search is.

    Args:
        weight, word_bonus: log p_CTC + weight * log p_LLM + word_bonus * words is what is sought.
        beam: width and margins of the search.
        prompt: texts that the language model is shown before each utterance, one a line; `prompt_lines` picks some.
        group: utterances that are decoded together. The language model's memory grows with them.
    """

    weight: float = 1.0
    word_bonus: float = 4.0
    beam: BeamOptions = field(default_factory=BeamOptions)
    prompt: tuple[str, ...] = ()
    group: int = 10

    @property
    def words(self) -> WordOptions:
        """What the search is told of words."""
        return WordOptions(weight=self.weight, bonus=self.word_bonus)


@dataclass(frozen=True, slots=True)
class Trial:
    """A weight and a bonus, and the WER that they gave."""

    weight: float
    word_bonus: float
    wer: float


def decode(posteriors: Posteriors, llm: FrozenLLM, options: Fusion | None = None) -> dict[str, str]:
    """The texts of utterances, by id: CTC's beam search with a frozen language model.

    Raises:
        TrainingError: this language model cannot score words so, or the prompt is too long for it.
    """
    options = options or Fusion()
    return decode_with(LLMWords(llm, options.prompt), posteriors, options)


def decode_with(scorer: LLMWords, posteriors: Posteriors, options: Fusion) -> dict[str, str]:
    """As `decode`, by a scorer that shows the language model the prompt of the options already."""
    texts: dict[str, str] = {}
    for group in _groups(posteriors, options.group):
        scorer.clear()
        texts |= _decode(group, scorer, options)
    return {name: texts[name] for name in posteriors.frames}


def tune(
    posteriors: Posteriors,
    texts: Mapping[str, str],
    llm: FrozenLLM,
    options: Fusion | None = None,
    grid: Iterable[tuple[float, float]] = GRID,
) -> tuple[Fusion, list[Trial]]:
    """The options whose weight and bonus, of those in a grid, give the lowest WER; and all trials.

    Args:
        posteriors: of utterances that the model was neither trained on nor will be judged by.
        texts: what is said in them, by id.

    Raises:
        EvaluationError: nothing to try, or to try it on. TrainingError: as `decode`.
    """
    options, ids = options or Fusion(), list(posteriors.frames)
    tried = [replace(options, weight=weight, word_bonus=bonus) for weight, bonus in grid]
    if not tried:
        raise EvaluationError("nothing to try: give at least one weight and word bonus")
    scorer = LLMWords(llm, options.prompt)
    found: list[dict[str, str]] = [{} for _ in tried]
    for group in _groups(posteriors, options.group):
        scorer.clear()  # what it has read for one trial serves the others
        for written, trial in zip(found, tried, strict=True):
            written |= _decode(group, scorer, trial)
    trials = []
    for written, trial in zip(found, tried, strict=True):
        rate = word_errors([texts[name] for name in ids], [written[name] for name in ids]).rate
        if rate is None:
            raise EvaluationError("nothing to tune the language model's weight with: give utterances that have texts")
        trials.append(Trial(trial.weight, trial.word_bonus, rate))
    best = min(trials, key=lambda trial: trial.wer)
    return replace(options, weight=best.weight, word_bonus=best.word_bonus), trials


def prompt_lines(texts: Sequence[str], count: int = 10) -> tuple[str, ...]:
    """Texts for a prompt, from those that are trained on: of middle length, and from all over the corpus."""
    if len(texts) <= count:
        return tuple(texts)
    spare = (len(texts) - max(count, len(texts) // 2)) // 2
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    middle = sorted(by_length[spare : len(texts) - spare])
    return tuple(texts[middle[i * len(middle) // count]] for i in range(count))


def _groups(posteriors: Posteriors, size: int) -> Iterator[Posteriors]:
    """Utterances of about one length, so that they end together."""
    ids = sorted(posteriors.frames, key=lambda name: len(posteriors.frames[name]))
    for begin in range(0, len(ids), size):
        yield posteriors.of(ids[begin : begin + size])


def _decode(group: Posteriors, scorer: LLMWords, options: Fusion) -> dict[str, str]:
    searches = {
        name: Search(group.alphabet, options.beam, options.words, scorer).run(frames)
        for name, frames in group.frames.items()
    }
    return in_step(searches, scorer)


def in_step(searches: Mapping[Name, Searching], scorer: WordScorer) -> dict[Name, str]:
    """The texts that searches find, each of which goes on until it has to be told something; then all are told at once."""
    texts: dict[Name, str] = {}
    waiting: dict[Name, Sequence[Query]] = dict.fromkeys(searches, ())
    while waiting:
        going, waiting = list(waiting), {}
        for name in going:
            try:
                waiting[name] = next(searches[name])
            except StopIteration as done:
                texts[name] = done.value
        if queries := [query for asked in waiting.values() for query in asked]:
            scorer.read(queries)
    return texts
