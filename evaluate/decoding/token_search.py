"""Texts token by token from whatever says what comes next: the likeliest token each time, one that is drawn, or a beam search.

Shapes: R rows, texts that are being written, V tokens there are. An utterance's text does not depend on what else is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple, Protocol

import numpy as np
import torch
from encodeonce.evaluate.errors import EvaluationError
from torch import Tensor


class NextTokens(Protocol):
    """Says what comes next, and remembers each text so far."""

    end: int
    """The token that ends a text."""

    def begin(self) -> Tensor:
        """What comes first: logits `[R, V]`, a row an utterance."""
        ...

    def go_on(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """What comes after tokens `[R]` that go on from rows `[R]` of the last call; a row may go on several times, or not at all."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A text: its tokens without the end, log p of all of them and of the end, and whether it ended by itself."""

    tokens: tuple[int, ...]
    score: float
    ended: bool


class Choice(Protocol):
    """How one token is chosen."""

    def __call__(self, logits: Tensor, utterances: Sequence[int], step: int) -> Tensor:
        """A token `[R]` of each row of logits `[R, V]`; the rows are of these utterances, and of their token number `step`."""
        ...


def likeliest(logits: Tensor, utterances: Sequence[int], step: int) -> Tensor:
    """The likeliest token, always; see `Choice`."""
    return logits.argmax(1)


class Drawn:
    """A token drawn by its probability. What is drawn for an utterance depends on the seed and its name, not on its batch.

    Args:
        names: of the utterances.
        most: tokens that are drawn for one at most.
        top_p: draw from the likeliest tokens that hold so much of the probability (nucleus sampling, Holtzman et al. 2020).
    """

    def __init__(
        self, seed: int, names: Sequence[str], most: int, temperature: float = 1.0, top_p: float = 1.0
    ) -> None:
        self._shares = np.stack([_shares(seed, name, most) for name in names]) if names else np.empty((0, most))
        self._temperature, self._top_p = temperature, top_p

    def __call__(self, logits: Tensor, utterances: Sequence[int], step: int) -> Tensor:
        likely, tokens = (logits.double() / self._temperature).softmax(1).sort(dim=1, descending=True, stable=True)
        sums = likely.cumsum(1)
        kept = (sums - likely < self._top_p).sum(1)  # [R]; the one that passes top_p is kept
        whole = sums.gather(1, kept[:, None] - 1)
        share = torch.from_numpy(self._shares[list(utterances), step]).to(logits.device)[:, None]
        place = torch.searchsorted(sums, share * whole, right=True)
        return tokens.gather(1, torch.minimum(place, kept[:, None] - 1))[:, 0]


def write_one_by_one(
    model: NextTokens, budgets: Sequence[int], choose: Choice = likeliest, no_repeat_ngram: int | None = None
) -> list[Found]:
    """A text of each utterance, a token chosen at a time; an utterance that has ended is computed no further.

    Args:
        budgets: tokens of each at most, the end token included, 1 or more.
        no_repeat_ngram: no so many tokens stand in a text twice.

    Raises:
        EvaluationError: a score is NaN.
    """
    texts: list[list[int]] = [[] for _ in budgets]
    scores, ended = [0.0] * len(budgets), [False] * len(budgets)
    writing, logits, step = list(range(len(budgets))), model.begin(), 0
    while writing:
        logits = checked(logits)
        values = _forbid(logits, [texts[utterance] for utterance in writing], no_repeat_ngram)
        chosen = choose(values, writing, step)
        gained = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(1)
        step += 1
        rows: list[int] = []
        for row, (utterance, token, gain) in enumerate(zip(writing, chosen.tolist(), gained.tolist(), strict=True)):
            scores[utterance] += gain
            if token == model.end:
                ended[utterance] = True
                continue
            texts[utterance].append(token)
            if step < budgets[utterance]:
                rows.append(row)
        writing = [writing[row] for row in rows]
        if writing:
            at = torch.tensor(rows, device=chosen.device)
            logits = model.go_on(at, chosen[at])
    return [Found(tuple(text), score, end) for text, score, end in zip(texts, scores, ended, strict=True)]


class Beam(NamedTuple):
    """A text that may go on: its tokens, log p of them, and its row."""

    tokens: tuple[int, ...]
    score: float
    row: int


@dataclass(slots=True)
class Beams:
    """The beam search of one utterance, as transformers does it (`early_stopping=False`).

    Of the 2 K likeliest ways to go on, those among the first K that end are done, and the first K that do not are kept. It is over
    when K are done and the best that is kept, divided by its tokens to the power of the length penalty, is no better than the
    worst of them: a heuristic where the penalty is not 0.
    """

    budget: int
    width: int
    penalty: float
    kept: list[Beam] = field(default_factory=lambda: [Beam((), 0.0, 0)])
    done: list[tuple[float, Found]] = field(default_factory=list)

    def advance(self, likely: Sequence[tuple[float, int, int]], end: int) -> None:
        """Go on by so many ways, the likeliest first: log p of the text, which of the kept ones it goes on from, and the token."""
        length, before = len(self.kept[0].tokens) + 1, self.kept
        self.kept = []
        for place, (score, which, token) in enumerate(likely[: 2 * self.width]):
            ends = token == end
            tokens = before[which].tokens if ends else (*before[which].tokens, token)
            if ends or length == self.budget:
                if place < self.width:
                    self.done.append((score / length**self.penalty, Found(tokens, score, ends)))
            elif len(self.kept) < self.width:
                self.kept.append(Beam(tokens, score, before[which].row))
        self.done = sorted(self.done, key=lambda one: -one[0])[: self.width]
        full = len(self.done) == self.width
        if self.kept and full and self.kept[0].score / length**self.penalty <= self.done[-1][0]:
            self.kept = []

    @property
    def best(self) -> Found:
        """Of those that are done."""
        return self.done[0][1]


def write_by_beams(
    model: NextTokens,
    budgets: Sequence[int],
    width: int,
    length_penalty: float = 1.0,
    no_repeat_ngram: int | None = None,
) -> list[Found]:
    """The best text of each utterance that a beam search finds; see `Beams`, and `write_one_by_one` for the arguments."""
    searches = [Beams(budget, width, length_penalty, [Beam((), 0.0, row)]) for row, budget in enumerate(budgets)]
    logits = model.begin()
    while going := [search for search in searches if search.kept]:
        texts = [beam.tokens for search in going for beam in search.kept]
        values = _forbid(checked(logits).log_softmax(1), texts, no_repeat_ngram)
        # The best 2 K of an utterance are among the best 2 K of each of its rows.
        best, tokens = (found.tolist() for found in values.topk(min(2 * width, values.shape[1]), dim=1))
        row = 0
        for search in going:
            ways = [
                (beam.score + gain, which, token)
                for which, beam in enumerate(search.kept)
                for gain, token in zip(best[row + which], tokens[row + which], strict=True)
                if gain > -np.inf
            ]
            search.kept = [beam._replace(row=row + which) for which, beam in enumerate(search.kept)]
            row += len(search.kept)
            search.advance(sorted(ways, key=lambda way: -way[0]), model.end)
        if beams := [beam for search in searches for beam in search.kept]:
            rows, latest = [beam.row for beam in beams], [beam.tokens[-1] for beam in beams]
            logits = model.go_on(*torch.tensor([rows, latest], device=logits.device))
    return [search.best for search in searches]


def checked(logits: Tensor) -> Tensor:
    """Logits in float32.

    Raises:
        EvaluationError: one of them is NaN.
    """
    if logits.isnan().any():
        raise EvaluationError(
            "the model's scores are NaN: its training diverged, or 16 bits do not hold them; take another checkpoint, or "
            "precision float32"
        )
    return logits.float()


def _forbid(values: Tensor, texts: Sequence[Sequence[int]], size: int | None) -> Tensor:
    """Values `[R, V]` without the tokens that would make a text hold some `size` tokens twice."""
    if size is None:
        return values
    values = values.clone()
    for row, text in enumerate(texts):
        last = tuple(text[len(text) - size + 1 :])
        starts = range(len(text) - size + 1)
        if banned := [text[i + size - 1] for i in starts if tuple(text[i : i + size - 1]) == last]:
            values[row, banned] = -torch.inf
    return values


def _shares(seed: int, name: str, count: int) -> np.ndarray:
    """`[count]` uniform numbers in [0, 1), a function of seed and name on every machine: Philox' own output."""
    key = np.frombuffer(sha256(f"{seed} {name}".encode()).digest()[:16], "<u8")
    return (np.random.Philox(key=key).random_raw(count) >> np.uint64(11)) * 2.0**-53
