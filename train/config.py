"""The configuration of a training: frozen dataclasses, one section each; each component owns its own options."""

from dataclasses import dataclass, field
from typing import Literal

from encodeonce.train.adapters.base import AdapterConfig
from encodeonce.train.inputs import InputConfig
from encodeonce.train.llm.config import LLMConfig
from encodeonce.train.objectives.config import ObjectivesConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which stored features, which texts."""

    store: str = "features"
    """A store, a feature set or a split: a folder, s3://, gs://, https://."""
    encoder: str | None = None
    """Which feature set of a store that holds several."""
    train: tuple[str, ...] = ()
    """Splits to train on; none where `store` is one split."""
    dev: tuple[str, ...] = ()
    """Splits to validate on; none: those of `train`, with `dev_where`."""
    train_where: str | None = None
    """A condition on the table's columns, as in `FeatureStore.stream`: duration < 16 and speaker != '1088'."""
    dev_where: str | None = None
    outputs: tuple[str, ...] = ()
    """Outputs to read; several are mixed by learned weights. None: the store's first."""
    target: str = "text"
    """What is to be said: text, translation:de, metadata:intent, or any column of the table."""
    lower: bool = True
    """Put texts into lower case."""
    frames_per_batch: int = 40_000
    """Frames of a batch on one device, padding included."""
    max_batch: int | None = None
    """Utterances of a batch at most."""
    max_seconds: float | None = None
    """Leave out utterances longer than this; they are counted."""
    limit: int | None = None
    """Train on so many utterances, picked by the seed."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The vocabulary of the Q-Former's text side and of CTC."""

    tokenizer: str = "bert"
    """bert (that of the Q-Former's BERT), characters, words, bpe:N (learnt from the training texts), or a BERT folder."""
    max_tokens: int = 256
    """Longer texts are counted, named and left out of training."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a training with objectives and a length of its own, e.g. CTC pre-alignment before the LLM's loss."""

    objectives: dict[str, float]
    """Weights by name, in place of those of `objectives`."""
    steps: int
    learning_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How it is trained."""

    learning_rate: float = 1e-4
    schedule: Literal["cosine", "tri-stage", "constant"] = "cosine"
    warmup_steps: int = 0
    """Steps of a linear rise before the schedule; in tri-stage 0 is a tenth of all steps."""
    final_learning_rate: float = 0.0
    """Where the schedule ends, as a share of `learning_rate`; in tri-stage 0 is 0.01."""
    weight_decay: float = 0.05
    """Of matrices alone, queries and embeddings among them; vectors (biases, norms) have none."""
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is what is validated and kept."""
    max_steps: int | None = None
    """Optimiser steps. Either this or epochs."""
    epochs: int | None = None
    max_minutes: float | None = None
    """Stop, and keep the state, after so long; a later run goes on."""
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    eval_steps: int = 500
    """Validate every so many steps."""
    eval_utterances: int | None = 200
    """Utterances that are decoded for the word error rate, picked by the seed; the loss is that of all. None: all."""
    best: Literal["wer", "loss"] = "wer"
    """What the best checkpoint is best in."""
    patience: int | None = None
    """Stop after so many validations without a better one."""
    log_steps: int = 10
    tensorboard: bool = False
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""
    threads: int | None = None
    """CPU threads of torch. None: torch's own choice."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All of a training."""

    output_dir: str
    adapter: AdapterConfig
    objectives: ObjectivesConfig
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    input: InputConfig = field(default_factory=InputConfig)
    text: TextConfig = field(default_factory=TextConfig)
    llm: LLMConfig | None = None
    training: LoopConfig = field(default_factory=LoopConfig)
    phases: tuple[Phase, ...] = ()
    """Parts that come before the rest; the rest trains with `objectives`."""
    init_from: str | None = None
    """A checkpoint whose adapter (and what else fits by name and shape) this training begins with."""
    resume_from_checkpoint: str | None = None
    """auto: the last of `output_dir`, where there is one; or a checkpoint's folder."""
