"""The data of a training: features from the stream, token ids that were made once, at the start."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc
import torch
from encodeonce.store.streaming.batches import Batch
from encodeonce.store.streaming.stream import Stream
from encodeonce.train.batch import FeatureIdentity, TrainBatch
from encodeonce.train.config import TrainConfig
from encodeonce.train.corpus import Corpus, LeftOut, Part
from encodeonce.train.errors import TrainingError
from encodeonce.train.objectives.base import Tokens

Encoder = Callable[[str], list[int]]


class Reading(Protocol):
    """What data have to know of a model: how it reads texts, and how long they may be."""

    def encoders(self) -> Mapping[str, Encoder]:
        """For each objective: from a text to its ids. Objectives of one vocabulary give the same encoder."""
        ...

    def excess(
        self, objective: str, frames: torch.Tensor, texts: Sequence[Sequence[int]]
    ) -> Mapping[str, torch.Tensor]:
        """Which of `[N]` utterances of so many frames an objective cannot be trained on: `[N]` bool, by the limit that is passed."""
        ...


class TokenTable:
    """Token ids of utterances, one after the other: `ids` int32, those of utterance i from `starts[i]` to `starts[i + 1]`."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.starts = np.cumsum([0, *map(len, texts)])
        self.ids = np.fromiter((number for text in texts for number in text), np.int32, int(self.starts[-1]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.ids[self.starts[row] : self.starts[row + 1]]


class Tokenised:
    """A part of a corpus with the ids of its texts, by encoder; what no objective could be trained on whole is left out."""

    def __init__(self, part: Part, model: Reading) -> None:
        encoders = model.encoders()
        ids = {encoder: [encoder(text) for text in part.texts] for encoder in dict.fromkeys(encoders.values())}
        kept, frames = np.arange(len(part)), torch.from_numpy(part.frames.astype(np.int64))
        for objective, encoder in encoders.items():
            for why, over in model.excess(objective, frames, ids[encoder]).items():
                fits = ~over.numpy()[kept]
                part, kept = part.only(fits, f"have {why}"), kept[fits]
        self.part = part
        self._rows = {name: row for row, name in enumerate(part.ids)}
        self._tables = {encoder: TokenTable([rows[i] for i in kept.tolist()]) for encoder, rows in ids.items()}
        self._frames, self._encoders = part.frames, encoders

    def batch(self, batch: Batch) -> TrainBatch:
        """The utterances of a stream's batch, with what is said in them."""
        rows = [self._rows[name] for name in batch.ids]
        tokens = {encoder: Tokens.of([table[row] for row in rows]) for encoder, table in self._tables.items()}
        return TrainBatch(
            ids=batch.ids,
            outputs=[torch.as_tensor(values) for values, _ in batch.outputs.values()],
            lengths=torch.as_tensor(batch.lengths),
            tokens={objective: tokens[encoder] for objective, encoder in self._encoders.items()},
            frames=int(self._frames[rows].sum()),
            texts=[self.part.texts[row] for row in rows],
        )


class TokenStream:
    """A stream of a store whose batches bring token ids along; it stands where the stream stands."""

    def __init__(self, stream: Stream, tokenised: Tokenised) -> None:
        self._stream, self._tokenised = stream, tokenised

    @property
    def epoch(self) -> int:
        """That the next batch is of."""
        return self._stream.epoch

    @property
    def wait_seconds(self) -> float:
        """How long the loop has waited for features, in all."""
        return self._stream.wait_seconds

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[TrainBatch]:
        """The rest of the epoch; the next one begins to be read before it ends."""
        return self._stream.batches(go_on=True, then=self._tokenised.batch)

    def state_dict(self) -> dict[str, Any]:
        """Where it stands; see `Stream.state_dict`."""
        return self._stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there; see `Stream.load_state_dict`."""
        self._stream.load_state_dict(state)


class DevSet:
    """The dev set, this rank's part of it, from the shortest utterance to the longest: the same batches every time."""

    def __init__(self, stream: Stream, tokenised: Tokenised) -> None:
        self._stream, self._tokenised = stream, tokenised

    def __len__(self) -> int:
        return self._stream.steps(0)

    def __iter__(self) -> Iterator[TrainBatch]:
        self._stream.seek(0)
        return map(self._tokenised.batch, self._stream)


class TrainingData:
    """All data of a training, as `Batches` says; rank and number of ranks come from torch.distributed or torchrun.

    Args:
        corpus: what `open_corpus` chose.
        model: how texts are read, and how long they may be.
        device: where batches go.

    Raises:
        TrainingError: no text fits what the model can be trained on.
    """

    def __init__(self, config: TrainConfig, corpus: Corpus, model: Reading, device: torch.device | str = "cpu") -> None:
        store = corpus.train.store
        self.identity = FeatureIdentity(store.encoder, store.fingerprint, tuple(corpus.outputs))
        learnt = _tokenise(corpus.train, model, "train on")
        self.learnt = learnt.part
        """What is trained on."""
        self.train = TokenStream(open_stream(config, corpus, learnt.part, device, "auto"), learnt)
        self.held_out: Part | None = None
        """What is validated with."""
        self.dev: Sequence[TrainBatch] | DevSet = ()
        if corpus.dev is not None:
            held = _tokenise(corpus.dev, model, "validate with")
            self.held_out, self.dev = held.part, DevSet(open_stream(config, corpus, held.part, device, "none"), held)

    @property
    def dev_ids(self) -> Sequence[str]:
        """All utterances of the dev set, on all ranks."""
        return [] if self.held_out is None else self.held_out.ids

    @property
    def left_out(self) -> dict[str, Sequence[LeftOut]]:
        """What is not used of the splits of each part."""
        parts = {"train": self.learnt, "dev": self.held_out}
        return {name: part.left_out for name, part in parts.items() if part is not None and part.left_out}


def _tokenise(part: Part, model: Reading, to_do: str) -> Tokenised:
    found = Tokenised(part, model)
    if len(found.part) == 0:
        raise TrainingError(
            f"nothing is left to {to_do}: of the utterances of {part.store.path} {', '.join(map(str, found.part.left_out))}"
        )
    return found


def open_stream(
    config: TrainConfig, corpus: Corpus, part: Part, device: torch.device | str | None, shuffle: str
) -> Stream:
    """The stream of a part; without a device it gives numpy arrays."""
    data, longest = config.data, int(part.frames.max())
    return part.store.stream(
        frames_per_batch=max(data.frames_per_batch, longest),
        max_batch=data.max_batch,
        seed=config.seed,
        outputs=list(corpus.outputs),
        where=pc.field("id").isin(part.ids),
        columns=(),
        shuffle=shuffle,
        device=None if device is None else str(device),
        dtype="float32",
    )
