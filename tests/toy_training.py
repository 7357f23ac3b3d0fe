"""A small model and small data with the interfaces of the real ones, to train in a second."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from encodeonce.store import FeatureStore
from encodeonce.train.adapters.concat import ConcatConfig
from encodeonce.train.batch import FeatureIdentity, TrainBatch
from encodeonce.train.config import LoopConfig, Phase, TrainConfig
from encodeonce.train.loop import Trainer
from encodeonce.train.objectives.base import Tokens
from encodeonce.train.objectives.config import CTCConfig, GenerationConfig, ObjectivesConfig
from encodeonce.train.optimiser import trainable_parameters
from encodeonce.train.ranks import Ranks
from torch import Tensor, nn
from torch.nn import functional as F

WORDS = ("zero", "one", "two", "three", "four")
WIDTH = 32


def words_of(name: str) -> list[int]:
    """What is said in an utterance: as many words as its number's digits say."""
    number = int(name.rsplit("-", 1)[1])
    return [number % len(WORDS), *[(number + i) % len(WORDS) for i in range(number % 3)]]


def text_of(name: str) -> str:
    """The same, spelt."""
    return " ".join(WORDS[word] for word in words_of(name))


class Words(nn.Module):
    """Cross-entropy of an utterance's words, each from its mean frame and the word's place; counted by words."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(4, WIDTH)
        self.head = nn.Linear(WIDTH, len(WORDS))

    def forward(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        logits = self.logits(hidden, tokens.ids.shape[1])
        losses = F.cross_entropy(logits.flatten(0, 1), tokens.ids.flatten(), reduction="none").view_as(tokens.ids)
        inside = torch.arange(losses.shape[1], device=losses.device) < tokens.lengths[:, None]
        return (losses.float() * inside).sum()

    def logits(self, hidden: Tensor, places: int) -> Tensor:
        return self.head(hidden[:, None] + self.places.weight[:places])

    def count(self, tokens: Tokens) -> int:
        return int(tokens.lengths.sum())


class First(nn.Module):
    """Cross-entropy of the first word, counted by utterances."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, len(WORDS))

    def forward(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        return F.cross_entropy(self.head(hidden).float(), tokens.ids[:, 0], reduction="sum")

    def count(self, tokens: Tokens) -> int:
        return len(tokens)


class ToyModel(nn.Module):
    """A linear adapter behind a frozen map, and two objectives of different counts: ctc (words) and stg (the first one)."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.entry = nn.Linear(WIDTH, WIDTH)
        self.rest = nn.Sequential(nn.LayerNorm(WIDTH), nn.Dropout(dropout), nn.GELU())
        self.words = Words()
        self.objectives = nn.ModuleDict({"ctc": self.words, "stg": First()})
        self.llm, self.writes = None, "ctc"
        self.steps_left: int | None = None
        """Forward passes until something happens."""
        self.event: Any = None

    def forward(
        self, outputs: Sequence[Tensor], lengths: Tensor, tokens: Mapping[str, Tokens], active: Sequence[str]
    ) -> dict[str, Tensor]:
        if self.training and self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0 and self.event:
                event, self.event = self.event, None
                event()
        hidden = self.hidden(outputs, lengths)
        return {name: self.objectives[name](hidden, tokens[name]) for name in active}

    def hidden(self, outputs: Sequence[Tensor], lengths: Tensor) -> Tensor:
        inside = torch.arange(outputs[0].shape[1], device=lengths.device) < lengths[:, None]
        mean = (outputs[0] * inside[:, :, None]).sum(1) / lengths[:, None]
        return self.rest(self.entry(self.frozen(3 * mean)))

    def transcribe(self, outputs: Sequence[Tensor], lengths: Tensor) -> list[str]:
        found = self.words.logits(self.hidden(outputs, lengths), 1).argmax(2)
        return [" ".join(WORDS[int(word)] for word in words) for words in found]

    def trainable(self) -> Mapping[str, Tensor]:
        return trainable_parameters(self)

    def save_beside(self, folder: Path) -> None:
        """There is nothing beside its weights."""


def toy_model(dropout: float = 0.1) -> Any:
    """One, for those who take an AdapterModel."""
    return ToyModel(dropout)


class ToyStream:
    """A store's stream with the words that are said."""

    def __init__(self, store: FeatureStore, **options: Any) -> None:
        self.stream = store.stream(frames_per_batch=700, dtype="float32", columns=(), **options)

    @property
    def epoch(self) -> int:
        return self.stream.epoch

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[TrainBatch]:
        for batch in self.stream:
            assert isinstance(batch.features, Tensor)
            assert isinstance(batch.lengths, Tensor)
            tokens = Tokens.of([words_of(name) for name in batch.ids])
            texts = [text_of(name) for name in batch.ids]
            yield TrainBatch(
                batch.ids,
                [batch.features],
                batch.lengths,
                {"ctc": tokens, "stg": tokens},
                int(batch.lengths.sum()),
                texts,
            )

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)


class ToyData:
    """Batches of two splits of a store."""

    def __init__(self, train: FeatureStore, dev: FeatureStore | None = None, seed: int = 0) -> None:
        self.identity = FeatureIdentity(train.encoder, train.fingerprint, tuple(train.outputs))
        self.train = ToyStream(train, seed=seed)
        self._dev = dev

    @property
    def dev(self) -> Iterator[TrainBatch]:
        return iter(() if self._dev is None else ToyStream(self._dev, shuffle="none"))

    @property
    def dev_ids(self) -> Sequence[str]:
        return [] if self._dev is None else self._dev.ids


def toy_config(folder: Path, phases: tuple[Phase, ...] = (), resume: str | None = None, **loop: Any) -> TrainConfig:
    """A training of both objectives, with small steps."""
    given: dict[str, Any] = {
        "learning_rate": 3e-3,
        "max_steps": 12,
        "eval_steps": 5,
        "log_steps": 1,
        "device": "cpu",
        **loop,
    }
    return TrainConfig(
        output_dir=str(folder),
        adapter=ConcatConfig(),
        objectives=ObjectivesConfig(ctc=CTCConfig(), stg=GenerationConfig(weight=0.5)),
        training=LoopConfig(**given),
        phases=phases,
        resume_from_checkpoint=resume,
    )


def ranks_of(config: TrainConfig) -> Ranks:
    """What a trainer of this configuration takes."""
    return Ranks(config.training)


def train_on_a_rank(rank: int, port: int, folder: str, train: str, phases: tuple[Phase, ...]) -> None:
    """One of two processes of a training, by torchrun's environment."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    stores = FeatureStore(train), FeatureStore(str(Path(train).with_name("dev")))
    config = toy_config(Path(folder) / "two", phases)
    ranks = ranks_of(config)
    torch.manual_seed(rank)
    report = Trainer(config, toy_model(dropout=0), ToyData(*stores), ranks).train()
    assert report.steps == 16
    torch.distributed.destroy_process_group()
