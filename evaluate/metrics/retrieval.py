"""Retrieval: whether an utterance finds its text among all texts, and a text one of its utterances."""

from dataclasses import dataclass, replace

import numpy as np
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.evaluation import Score
from encodeonce.evaluate.metrics.intervals import Bootstrap, Clusters
from encodeonce.evaluate.metrics.means import mean_score

CUTOFFS = (1, 5, 10)
TIE = 1e-6
"""Cosines in float32 that differ by less are equal."""
BLOCK = 1 << 24
"""Cosines that are held at once: 64 MB."""


@dataclass(frozen=True)
class Embedded:
    """Utterances and the different texts that are said in them, in the space where they are compared.

    Attributes:
        speech: `[F, W]` float32 of norm 1, the queries of all utterances one after the other.
        counts: `[N]` int64, queries of each utterance, 1 or more.
        text: `[M, W]` float32 of norm 1.
        text_of: `[N]` int64, which text each utterance has; every text has one or more.
    """

    speech: np.ndarray
    counts: np.ndarray
    text: np.ndarray
    text_of: np.ndarray

    def queries(self, here: slice) -> tuple[np.ndarray, np.ndarray]:
        """The queries of some utterances, and where each utterance's begin among them."""
        ends = np.cumsum(self.counts)
        starts = (ends - self.counts)[here]
        return self.speech[starts[0] : ends[here][-1]], starts - starts[0]


@dataclass(frozen=True)
class Ranks:
    """Where what is right stands among all candidates; 1 is first.

    Attributes:
        speech_to_text: `[N]` of each utterance's text among the M texts.
        text_to_speech: `[M]` of the best of each text's utterances among them and the utterances of all other texts.
        hardest: `[N]` int64, the wrong text that is most like each utterance; -1 where there is no other.
    """

    speech_to_text: np.ndarray
    text_to_speech: np.ndarray
    hardest: np.ndarray


def find_ranks(embedded: Embedded) -> Ranks:
    """Ranks by similarity: the largest cosine between any query of an utterance and a text, as in the contrastive objective.

    Utterances with one text are right for it all alike, so that the same sentence read twice is no mistake. What is wrong and as
    near as what is right (within `TIE`), or not a number, stands before it: a model to which all is one finds nothing.
    Memory is that of the embeddings and of `BLOCK` cosines, whatever N and M.

    Raises:
        EvaluationError: no utterance.
    """
    counts, text, text_of = embedded.counts, embedded.text, embedded.text_of
    if not len(counts):
        raise EvaluationError("no utterance to retrieve: give a split whose utterances have texts")
    rows = max(1, int(BLOCK**0.5) // int(counts.max()))
    columns = max(1, BLOCK // (rows * int(counts.max())))
    own = np.concatenate([_own(embedded, here) for here in _slices(len(counts), rows)])  # [N]
    best = np.full(len(text), -np.inf, np.float32)
    with np.errstate(invalid="ignore"):
        np.maximum.at(best, text_of, own)
    by_speech, by_text = np.ones(len(counts), np.int64), np.ones(len(text), np.int64)
    hardest, nearest = np.full(len(counts), -1), np.full(len(counts), -np.inf, np.float32)
    for here in _slices(len(counts), rows):
        queries, starts = embedded.queries(here)
        for there in _slices(len(text), columns):
            cosines = np.maximum.reduceat(queries @ text[there].T, starts, axis=0)  # [rows, columns]
            wrong = text_of[here, None] != np.arange(len(text))[there]
            by_speech[here] += (wrong & ~(cosines < own[here, None] - TIE)).sum(1)
            by_text[there] += (wrong & ~(cosines < best[there] - TIE)).sum(0)
            cosines[~wrong] = -np.inf
            place = cosines.argmax(1)
            value = cosines[np.arange(len(place)), place]
            nearer = value > nearest[here]
            nearest[here][nearer], hardest[here][nearer] = value[nearer], there.start + place[nearer]
    return Ranks(by_speech, by_text, hardest)


def _own(embedded: Embedded, here: slice) -> np.ndarray:
    """The cosine of each utterance of a block with its own text."""
    queries, starts = embedded.queries(here)
    texts = np.repeat(embedded.text[embedded.text_of[here]], embedded.counts[here], axis=0)
    return np.maximum.reduceat(np.einsum("fw,fw->f", queries, texts), starts)


def _slices(count: int, size: int) -> list[slice]:
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


def recall_scores(ranks: Ranks, signature: str, bootstrap: Bootstrap | None = None) -> dict[str, Score]:
    """`recall_at_1_speech_to_text` ... `recall_at_10_text_to_speech`: the share of utterances, or of texts, that rank so well.

    Recall falls with the number of candidates: a signature should say how many there were.
    Intervals resample who asks, and leave the candidates as they are: utterances by `bootstrap`, texts one by one.
    """
    utterances, texts = len(ranks.speech_to_text), len(ranks.text_to_speech)
    over_texts = None if bootstrap is None else replace(bootstrap, clusters=Clusters.find(None, texts))
    directions = (
        ("speech_to_text", ranks.speech_to_text, bootstrap),
        ("text_to_speech", ranks.text_to_speech, over_texts),
    )
    return {
        (name := f"recall_at_{cutoff}_{direction}"): mean_score(
            name, (places <= cutoff).astype(float), signature, resampled, {"utterances": utterances, "texts": texts}
        )
        for direction, places, resampled in directions
        for cutoff in CUTOFFS
    }


def wrong_texts(text_of: np.ndarray, texts: int, seed: int = 0) -> np.ndarray:
    """For each of `[N]` utterances the number of another text than its own, each of the others as likely as the next.

    Raises:
        EvaluationError: there is one text alone.
    """
    if texts < 2:
        raise EvaluationError(
            "all utterances have one text: there is no wrong one to tell from it; give a larger split"
        )
    return (text_of + np.random.default_rng(seed).integers(1, texts, size=len(text_of))) % texts


def matching_score(
    name: str, right: np.ndarray, wrong: np.ndarray, signature: str, bootstrap: Bootstrap | None = None
) -> Score:
    """Accuracy of telling whether a text belongs to an utterance: of half of the pairs it does, so that guessing gives a half.

    Args:
        right, wrong: `[N]`, how probably each utterance's text, and a wrong one, is its own. Above 0.5 is a yes; NaN is a mistake.
    """
    yes, no = right > 0.5, wrong <= 0.5
    counts = {"pairs": 2 * len(yes), "accepted": float(yes.sum()), "refused": float(no.sum())}
    return mean_score(name, (yes + no.astype(float)) / 2, signature, bootstrap, counts)
