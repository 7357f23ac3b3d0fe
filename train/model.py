"""A model to train: stored outputs, adapter, objectives and frozen language model, put together as a configuration says."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from encodeonce.store.files import read_json
from encodeonce.store.layout import Output
from encodeonce.store.reader import FeatureStore
from encodeonce.train.adapters.base import Adapter, AdapterConfig
from encodeonce.train.adapters.compressed import CompressedConfig
from encodeonce.train.checkpoint import SIZES, TOKENIZER, Checkpoint, check_fits, load_trainable
from encodeonce.train.checks import writers_of
from encodeonce.train.config import TrainConfig
from encodeonce.train.errors import TrainingError
from encodeonce.train.inputs import FeatureInput
from encodeonce.train.objectives.base import Objective, Spoken, Tokens
from encodeonce.train.objectives.contrastive import Contrastive, queries_of
from encodeonce.train.objectives.ctc import BLANK, CTC, RowHead, UnitHead, least_frames
from encodeonce.train.objectives.generation import Generation, generate
from encodeonce.train.objectives.language_model import LanguageModelObjective, SoftPrompt
from encodeonce.train.objectives.matching import Matching
from encodeonce.train.qformer import QFormer
from encodeonce.train.tokenizer import Tokenizer
from encodeonce.train.vocabularies import Vocabulary, load_tokenizer, make_tokenizer
from numpy.typing import ArrayLike
from torch import Tensor, nn

if TYPE_CHECKING:
    from encodeonce.train.llm.frozen import FrozenLLM
    from encodeonce.train.llm.words import Words

Kind = TypeVar("Kind", bound=Objective)
Thing = TypeVar("Thing")
READ = ("stc", "stm", "stg")
"""Objectives of a Q-Former's text side."""
TEXT, CTC_UNITS, ROWS_FILE = "text", "ctc", "llm-tokens.json"


@dataclass(frozen=True)
class Vocabularies:
    """What texts are read with.

    Args:
        text: of the Q-Former's text side, and of CTC where its units are text's.
        ctc: characters of CTC, where its units are those.
        rows: tokens of the language model that the training texts hold, where CTC tells those.
    """

    text: Tokenizer | None = None
    ctc: Tokenizer | None = None
    rows: tuple[int, ...] | None = None

    @classmethod
    def learn(cls, config: TrainConfig, texts: Sequence[str], words: "Words | None" = None) -> "Vocabularies":
        """Those that a configuration asks for, from the training texts.

        Args:
            words: the language model's tokenizer, where there is one.
        """
        ctc = config.objectives.ctc
        units = None if ctc is None else ctc.units
        text = _text_tokenizer(config, texts) if reads_text(config) or units == "text" else None
        characters = make_tokenizer("characters", texts) if units == "characters" else None
        rows = None
        if units == "llm" and words is not None:
            rows = tuple(sorted({number for said in texts for number in words.encode(said)}))
        return cls(text, characters, rows)

    def say(self, texts: Sequence[str], words: "Words | None" = None) -> bool:
        """Whether there are some, and they have all that is in texts."""
        learnt = [tokenizer for tokenizer in (self.text, self.ctc) if isinstance(tokenizer, Vocabulary)]
        if not learnt and self.rows is None:
            return False
        known = all(tokenizer.unknown not in tokenizer.encode(text) for tokenizer in learnt for text in texts)
        if self.rows is None or words is None:
            return known
        return known and set(self.rows).issuperset(number for text in texts for number in words.encode(text))

    def save(self, folder: Path) -> None:
        """Write what `load` reads; nothing where there is no vocabulary."""
        for name, tokenizer in ((TEXT, self.text), (CTC_UNITS, self.ctc)):
            if tokenizer is not None:
                tokenizer.save(folder / name)
        if self.rows is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ROWS_FILE).write_text(json.dumps({"ids": self.rows}) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Vocabularies":
        """What `save` wrote."""
        text, ctc = (load_tokenizer(folder / name) if (folder / name).is_dir() else None for name in (TEXT, CTC_UNITS))
        rows = tuple(read_json(folder / ROWS_FILE)["ids"]) if (folder / ROWS_FILE).is_file() else None
        return cls(text, ctc, rows)


class AdapterModel(nn.Module):
    """Features in, losses or text out.

    Attributes:
        input: layer mixing, code embeddings, masks.
        adapter: what is trained.
        objectives: by name, in the order in which they are computed.
        llm: the frozen language model, where the training has one; no part of it but a LoRA is trained, or kept in a checkpoint.
        projection: from the adapter's embeddings to the language model's; objectives share it.
        vocabularies: what texts are read with.
        config: what it was trained with.
    """

    def __init__(
        self,
        config: TrainConfig,
        features: FeatureInput,
        adapter: Adapter,
        objectives: Mapping[str, Objective],
        vocabularies: Vocabularies,
        llm: "FrozenLLM | None" = None,
        projection: SoftPrompt | None = None,
    ) -> None:
        super().__init__()
        self.input, self.adapter, self.projection, self.llm = features, adapter, projection, llm
        self.objectives = nn.ModuleDict(objectives)
        self.vocabularies, self.config = vocabularies, config

    def forward(
        self, outputs: Sequence[Tensor], lengths: Tensor, tokens: Mapping[str, Tokens], active: Sequence[str]
    ) -> dict[str, Tensor]:
        """The summed loss of each objective of `active`, 0-dimensional float32; what one is divided by is its `count`.

        Args:
            outputs: `[B, T, D]` features or `[B, T, K]` codes, one tensor a stored output.
            lengths: `[B]` frames.
            tokens: by objective.
        """
        spoken = self.hear(outputs, lengths)
        return {
            name: self.objectives[name](self.adapter, spoken, tokens[name])
            for name in self.objectives
            if name in active
        }

    def hear(self, outputs: Sequence[Tensor], lengths: Tensor) -> Spoken:
        """What the adapter reads and makes of utterances."""
        features, lengths = self.input(outputs, lengths)
        return Spoken(features, lengths, self.adapter(features, lengths))

    @torch.no_grad()
    def transcribe(self, outputs: Sequence[Tensor], lengths: Tensor) -> list[str]:
        """Texts of utterances, greedily: by the language model where it is trained for, else by generation, else by CTC (`writes`).

        Raises:
            TrainingError: it is trained for none of them.
        """
        adapted = self.hear(outputs, lengths).adapted
        name = self.writes
        if name == "llm":
            return self._objective(LanguageModelObjective, name).generate(adapted)
        if name == "stg":
            text = _there(self.vocabularies.text)
            return [text.decode(ids) for ids in generate(self.adapter, adapted, text, self.most_text)]
        if name == "ctc":
            head = self._objective(CTC, name)
            return [self.spell(head, units) for units in head.decode(adapted)]
        raise TrainingError("this model writes no text: it is trained for none of llm, stg, ctc")

    @property
    def text(self) -> Tokenizer | None:
        """The vocabulary of the Q-Former's text side, and of CTC where its units are text's."""
        return self.vocabularies.text

    @property
    def writes(self) -> str | None:
        """The objective that writes text: one that is trained to the end, where there is one."""
        return next(iter(writers_of(self.config)), None)

    def trainable(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the weights that are trained, and the buffers beside them."""
        trained = {name: weight for name, weight in self.named_parameters() if weight.requires_grad}
        kept = {name for name in self.state_dict() if not name.startswith("llm.")}
        return {**trained, **{name: value for name, value in self.named_buffers() if name in kept}}

    def save_beside(self, folder: Path) -> None:
        """Write what `restore_model` builds by into a checkpoint's folder: vocabularies, and the sizes that a BERT gave."""
        self.vocabularies.save(folder / TOKENIZER)
        if sizes := self.adapter.body_sizes:
            (folder / SIZES).write_text(json.dumps(sizes, indent=1) + "\n")

    def encoders(self) -> dict[str, Callable[[str], list[int]]]:
        """For each objective: from a text to its ids. Objectives of one vocabulary give the same function."""
        text = self.vocabularies.text
        read = None if text is None else text.encode
        encoders: dict[str, Callable[[str], list[int]]] = {}
        for name in self.objectives:
            if name == "ctc":
                encoders[name] = self._ctc_encoder(read)
            else:
                encoders[name] = _there(self.llm).words.encode if name == "llm" else _there(read)
        return encoders

    def excess(self, objective: str, frames: Tensor, texts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Which of `[N]` utterances of so many frames an objective cannot be trained on: `[N]` bool, by the limit that is passed."""
        tokens = torch.tensor([len(text) for text in texts], dtype=torch.int64)
        if objective in READ:
            return {f"more than {self.most_text} tokens": tokens > self.most_text}
        embeddings = self.adapter.output_lengths(self.input.output_lengths(frames))
        if objective == "ctc":
            least = torch.tensor([least_frames(text) for text in texts], dtype=torch.int64)
            emissions = embeddings * self._objective(CTC, objective).emissions
            return {f"more text than CTC has emissions for, by {self._emission_options}": least > emissions}
        llm, most = _there(self.llm), _there(self.config.llm).max_tokens
        full = [not llm.room(n, length) for n, length in zip(embeddings.tolist(), tokens.tolist(), strict=True)]
        return {
            f"more than {most} tokens": tokens > most,
            "more than the language model has positions for": torch.tensor(full, dtype=torch.bool),
        }

    @property
    def most_text(self) -> int:
        """Tokens of a text at most: what the configuration says, and what the Q-Former has positions for beside the special ones."""
        most = self.config.text.max_tokens
        return min(most, self.adapter.sizes.body.positions - 2) if isinstance(self.adapter, QFormer) else most

    @property
    def _emission_options(self) -> str:
        """What tells how many emissions CTC has for an utterance, with the values."""
        adapter, ctc = self.config.adapter, self.config.objectives.ctc
        told = [f"adapter.{name}={_shown(getattr(adapter, name))}" for name in adapter.rate_options]
        if ctc and ctc.units != "llm" and not isinstance(adapter, CompressedConfig):
            told.append(f"objectives.ctc.emissions={ctc.emissions}")
        return " and ".join(told) or f"adapter {adapter.name}"

    def _ctc_encoder(self, read: Callable[[str], list[int]] | None) -> Callable[[str], list[int]]:
        head = self._objective(CTC, "ctc").head
        if isinstance(head, RowHead):
            words = _there(self.llm).words
            return lambda text: head.encode(words.encode(text))
        return self.vocabularies.ctc.encode if self.vocabularies.ctc is not None else _there(read)

    def spell(self, objective: CTC, units: list[int]) -> str:
        """The text of units that CTC told."""
        if isinstance(objective.head, RowHead):
            return _there(self.llm).words.decode(objective.head.decode(units))
        return _there(self.vocabularies.ctc or self.vocabularies.text).decode(units)

    def _objective(self, kind: type[Kind], name: str) -> Kind:
        found = self.objectives[name]
        assert isinstance(found, kind)
        return found


def reads_text(config: TrainConfig) -> bool:
    """Whether an objective needs the Q-Former's text side."""
    return any(getattr(config.objectives, name) is not None for name in READ)


def build_model(
    config: TrainConfig,
    outputs: Sequence[Output],
    texts: Sequence[str],
    moments: Sequence[tuple[ArrayLike, ArrayLike]] | None = None,
    device: torch.device | str = "cpu",
    kept: Vocabularies | None = None,
) -> AdapterModel:
    """The model of a configuration on a device, its weights drawn from torch's generator, or BERT's.

    Args:
        outputs: of the store, in the order in which they are read.
        texts: to train on; vocabularies are learnt from them.
        moments: mean and variance `[D]` of each output, for `input.normalise=moments`.
        kept: vocabularies of the training that this one goes on with; taken instead where they have all that is in `texts`, which may
            be others by now.

    Raises:
        TrainingError: options that contradict each other or the store, or a pretrained model that is not to be had.
    """
    llm = _load_llm(config, device)
    words = None if llm is None else llm.words
    vocabularies = kept if kept and kept.say(texts, words) else Vocabularies.learn(config, texts, words)
    features = FeatureInput(config.input, outputs, moments)
    adapter = config.adapter.build(features.width, _classes(config, vocabularies))
    return _assemble(config, features, adapter, vocabularies, llm).to(device)


def restore_model(
    checkpoint: Checkpoint, outputs: Sequence[Output], device: torch.device | str = "cpu"
) -> AdapterModel:
    """The model of a checkpoint with its weights, in evaluation mode; of pretrained models its language model alone is loaded.

    Args:
        outputs: of the store, in the order in which they are read: `checkpoint.fingerprints.outputs`.

    Raises:
        TrainingError: as `build_model`; or the checkpoint is damaged, or was trained with another language model.
        StoreError: a file of it is missing or damaged.
    """
    config, vocabularies = checkpoint.config, Vocabularies.load(checkpoint.folder / TOKENIZER)
    features = FeatureInput(config.input, outputs)
    sizes = read_json(file) if (file := checkpoint.folder / SIZES).is_file() else {}
    try:
        adapter = config.adapter.rebuild(features.width, _classes(config, vocabularies), sizes)
    except TypeError as error:
        raise TrainingError(f"{file} is damaged: {error}; take another checkpoint") from None
    model = _assemble(config, features, adapter, vocabularies, _load_llm(config, device))
    check_fits(checkpoint, replace(checkpoint.fingerprints, llm=None if model.llm is None else model.llm.fingerprint))
    load_trainable(model, checkpoint.tensors())
    return model.to(device).eval()


def open_model(checkpoint: Checkpoint, store: FeatureStore, device: torch.device | str = "cpu") -> AdapterModel:
    """The model of a checkpoint, for a store of the features that it was trained on; see `restore_model`.

    Raises:
        TrainingError: the store holds other features, or as `restore_model`. StoreError: it lacks an output, or as there.
    """
    trained = checkpoint.fingerprints
    check_fits(checkpoint, replace(trained, encoder=store.encoder, features=store.fingerprint))
    return restore_model(checkpoint, [store.spec(name) for name in trained.outputs], device)


def _load_llm(config: TrainConfig, device: torch.device | str) -> "FrozenLLM | None":
    if config.llm is None:
        return None
    from encodeonce.train.llm.load import load_llm

    return load_llm(config.llm, device)


def _assemble(
    config: TrainConfig,
    features: FeatureInput,
    adapter: Adapter,
    vocabularies: Vocabularies,
    llm: "FrozenLLM | None",
) -> AdapterModel:
    adapter.checkpointing = config.training.gradient_checkpointing
    if llm is not None:
        llm.checkpointing = config.training.gradient_checkpointing
    # Cosines leave the length of what CTC brings near the language model's rows free: the soft prompt takes that of the rows.
    rows = vocabularies.rows is not None
    projection = None if llm is None else SoftPrompt(adapter.width, llm, as_long_as_rows=rows)
    objectives = _objectives(config, adapter, vocabularies, llm, projection)
    for weight in adapter.unread(objectives):
        weight.requires_grad_(False)
    return AdapterModel(config, features, adapter, objectives, vocabularies, llm, projection)


def _classes(config: TrainConfig, vocabularies: Vocabularies) -> int | None:
    """What an adapter is told of its vocabulary: the text side's size; CTC's classes where it merges by those."""
    if isinstance(config.adapter, CompressedConfig):
        units = vocabularies.ctc or vocabularies.text
        return None if units is None else units.size
    return vocabularies.text.size if vocabularies.text is not None and reads_text(config) else None


def _objectives(
    config: TrainConfig,
    adapter: Adapter,
    vocabularies: Vocabularies,
    llm: "FrozenLLM | None",
    projection: SoftPrompt | None,
) -> dict[str, Objective]:
    """In the order in which they are computed: matching takes its negatives from the contrast before it."""
    given, width, contrast = config.objectives, adapter.width, None
    made: dict[str, Objective] = {}
    if given.stc is not None:
        made["stc"] = contrast = Contrastive(width, _there(vocabularies.text), given.stc, queries_of(adapter))
    if given.stm is not None:
        similarities = None if contrast is None else contrast.similarities
        made["stm"] = Matching(width, _there(vocabularies.text), similarities)
    if given.stg is not None:
        made["stg"] = Generation(_there(vocabularies.text), given.stg)
    if given.ctc is not None:
        made["ctc"] = CTC(_head(config, width, vocabularies, llm, projection))
    if given.llm is not None:
        made["llm"] = LanguageModelObjective(_there(projection), _there(llm))
    return made


def _head(
    config: TrainConfig,
    width: int,
    vocabularies: Vocabularies,
    llm: "FrozenLLM | None",
    projection: SoftPrompt | None,
) -> UnitHead | RowHead | None:
    """What tells CTC's units; None: the adapter does itself."""
    text = vocabularies.ctc or vocabularies.text
    if vocabularies.rows is None and _there(text).pad != BLANK:
        raise TrainingError(
            f"objectives.ctc.units=text: CTC's blank is token {BLANK}, and of this vocabulary [PAD] is token {_there(text).pad}; "
            f"take objectives.ctc.units=characters"
        )
    if isinstance(config.adapter, CompressedConfig):
        return None
    if vocabularies.rows is not None:
        rows = _there(llm).weight.detach()[list(vocabularies.rows)]
        return RowHead(_there(projection), rows, vocabularies.rows)
    return UnitHead(width, _there(text).size, _there(config.objectives.ctc).emissions)


def _text_tokenizer(config: TrainConfig, texts: Sequence[str]) -> Tokenizer:
    bert = getattr(config.adapter, "bert", None)
    folder = None
    if bert is not None:
        from encodeonce.train.pretrained import find_bert

        folder = find_bert(bert)
    return make_tokenizer(config.text.tokenizer, texts, folder)


def _shown(value: object) -> str:
    """An option's value as one writes it."""
    if isinstance(value, AdapterConfig):
        return value.name
    return str(list(value)) if isinstance(value, tuple) else "null" if value is None else str(value)


def _there(thing: Thing | None) -> Thing:
    assert thing is not None, "checked before anything is built"
    return thing
