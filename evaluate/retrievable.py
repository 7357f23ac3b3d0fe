"""The utterances of a split that can be retrieved by their texts, and the texts by them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.store.reader import FeatureStore
from encodeonce.store.streaming.where import matching
from encodeonce.train.config import DataConfig
from encodeonce.train.corpus import cleaned, targets
from encodeonce.train.model import AdapterModel
from encodeonce.train.objectives.base import Tokens
from encodeonce.train.validation import pick_sample


@dataclass(frozen=True)
class Retrievable:
    """Utterances, and what is said in them.

    Attributes:
        ids, speakers: `[N]`.
        text_of: `[N]` int64, the number of each one's text.
        texts: `[M]`, all different to the model: what its vocabulary writes alike is one text, as in training.
        tokens: `[M]`, their ids.
        without_text, beyond, too_long: utterances that are left out: they have no text, were not drawn into the sample, or have a
            text that is longer than the model may be trained on.
    """

    ids: Sequence[str]
    speakers: Sequence[str | None]
    text_of: np.ndarray
    texts: Sequence[str]
    tokens: Sequence[Sequence[int]]
    without_text: int
    beyond: int
    too_long: int

    def tokens_of(self, numbers: Sequence[int], device: torch.device | str) -> Tokens:
        """Some texts, padded."""
        return Tokens.of([self.tokens[number] for number in numbers], device)


def choose(
    model: AdapterModel, store: FeatureStore, where: str | None, data: DataConfig, most: int, seed: int
) -> Retrievable:
    """The utterances of a split, in the store's order; of more than `most`, a sample that their ids and the seed decide.

    Raises:
        EvaluationError: there are none.
        TrainingError, StoreError: no such text or column.
    """
    text_side = model.text
    assert text_side is not None, "it is trained for contrast or matching"
    positions = np.arange(len(store)) if where is None else matching(store, where)
    said, ids = targets(store, data.target), store.ids
    texts = {ids[place]: cleaned(said[place], data.lower) for place in positions.tolist()}
    known = {name: text for name, text in texts.items() if text}
    sample = set(pick_sample(list(known), most, seed))
    tokens = {text: tuple(text_side.encode(text)) for name, text in known.items() if name in sample}
    room = _room(model, list(tokens.values()))
    fitting = [text for text, fits in zip(tokens, room, strict=True) if fits]
    number = {written: place for place, written in enumerate(dict.fromkeys(tokens[text] for text in fitting))}
    text_of = {text: number[tokens[text]] for text in fitting}
    taken = [name for name, text in known.items() if name in sample and text in text_of]
    if not taken:
        raise EvaluationError(
            f"nothing to retrieve among {len(texts):,} utterances of {store.path}: {len(texts) - len(known):,} have no {data.target}, "
            f"{len(sample):,} one that is too long for the model; give another split or condition"
        )
    shown = {text_of[text]: text for text in reversed(fitting)}
    return Retrievable(
        taken,
        _speakers(store, taken),
        np.array([text_of[known[name]] for name in taken]),
        [shown[place] for place in range(len(number))],
        list(number),
        len(texts) - len(known),
        len(known) - len(sample),
        len(sample) - len(taken),
    )


def _room(model: AdapterModel, tokens: Sequence[Sequence[int]]) -> list[bool]:
    """Which texts the model's text side may be trained on."""
    over = torch.zeros(len(tokens), dtype=torch.bool)
    for beyond in model.excess("stc", torch.ones(len(tokens)), tokens).values():
        over |= beyond
    return (~over).tolist()


def _speakers(store: FeatureStore, ids: Sequence[str]) -> list[str | None]:
    if "speaker" not in store.column_names:
        return [None] * len(ids)
    return store.columns(["speaker"])["speaker"].take(pa.array(store.indices(ids))).to_pylist()
