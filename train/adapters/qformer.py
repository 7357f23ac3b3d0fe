"""Q-Formers: queries of the whole utterance (BLIP-2), of short windows (SALMONN), of segments.

Li et al. 2023, "BLIP-2"; Tang et al. 2023, "SALMONN: towards generic hearing abilities for large language models";
Yu et al. 2023, "Connecting speech encoder and large language model for ASR".
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from encodeonce.train.adapters.base import AdapterConfig
from encodeonce.train.adapters.checks import check_counts, check_dropout
from encodeonce.train.errors import TrainingError
from encodeonce.train.qformer import Body, QFormer, QFormerSizes, Windows
from encodeonce.train.qformer_weights import bert_body, bert_vocabulary, load_bert


@dataclass(frozen=True, kw_only=True)
class QFormerOptions(AdapterConfig):
    """What all Q-Formers are told."""

    has_text: ClassVar[bool] = True
    bert: str | None = None
    """The BERT that it begins with and is as large as: minilm-l6, bert-base-uncased, a hub id or a folder. None: drawn at random."""
    hidden: int | None = None
    """Width where there is no BERT. None: 256."""
    layers: int | None = None
    """Layers where there is no BERT. None: 2."""
    heads: int | None = None
    """Heads where there is no BERT. None: 4."""
    cross_every: int = 2
    """The first layer looks at the frames, and every so many after it."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_counts(self, "cross_every")
        check_dropout(self)
        sizes = {option: getattr(self, option) for option in ("hidden", "layers", "heads")}
        given = {option: size for option, size in sizes.items() if size is not None}
        check_counts(self, *given)
        if self.bert is not None and given:
            raise TrainingError(
                f"adapter {self.name}: {', '.join(given)} given, but bert {self.bert} has its own; leave one out"
            )
        body = self._drawn_body()
        if body.hidden % body.heads:
            raise TrainingError(f"adapter {self.name}: {body.heads} heads do not divide a width of {body.hidden}")

    def build(self, width: int, vocabulary: int | None = None) -> QFormer:
        folder = self._bert_folder(vocabulary)
        model = self._drawn(width, vocabulary, self._drawn_body() if folder is None else bert_body(folder))
        if folder is not None:
            load_bert(model, folder)
        return model

    def rebuild(self, width: int, vocabulary: int | None, sizes: Mapping[str, Any]) -> QFormer:
        return self._drawn(width, vocabulary, Body(**sizes))

    def _drawn(self, width: int, vocabulary: int | None, body: Body) -> QFormer:
        queries, windows = self._queries()
        sizes = QFormerSizes(
            body=body,
            features=width,
            queries=queries,
            cross_every=self.cross_every,
            dropout=self.dropout,
            vocabulary=vocabulary,
            windows=windows,
        )
        return QFormer(sizes)

    @abstractmethod
    def _queries(self) -> tuple[int, Windows | None]:
        """How many, and of what."""

    def _drawn_body(self) -> Body:
        hidden = self.hidden or 256
        return Body(hidden=hidden, layers=self.layers or 2, heads=self.heads or 4, feed_forward=4 * hidden)

    def _bert_folder(self, vocabulary: int | None) -> Path | None:
        if self.bert is None:
            return None
        from encodeonce.train.pretrained import find_bert

        folder = find_bert(self.bert)
        known = bert_vocabulary(folder)
        if vocabulary not in (None, known + 1):
            raise TrainingError(
                f"adapter {self.name}: bert {self.bert} and [DEC] have {known + 1} tokens, the text side has {vocabulary};"
                " give text.tokenizer bert, or leave bert out"
            )
        return folder


@dataclass(frozen=True, kw_only=True)
class QFormerConfig(QFormerOptions):
    """A fixed number of queries, however long the utterance (BLIP-2's has 32, with bert-base-uncased)."""

    name: ClassVar[str] = "qformer"
    ordered: ClassVar[bool] = False
    queries: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "queries")

    def _queries(self) -> tuple[int, Windows | None]:
        return self.queries, None


@dataclass(frozen=True, kw_only=True)
class WindowQFormerConfig(QFormerOptions):
    """A few queries for each window of frames (SALMONN's: one for 17 frames of 20 ms, two layers, cross_every 1)."""

    name: ClassVar[str] = "window-qformer"
    rate_options: ClassVar[tuple[str, ...]] = ("window_frames", "stride_frames", "queries_per_window")
    window_frames: int = 17
    stride_frames: int | None = None
    """From the beginning of a window to that of the next. None: a window, so that none overlap."""
    queries_per_window: int = 1
    self_attention: Literal["local", "global"] = "local"
    """Queries see those of their window, or all of the utterance."""
    positions: Literal["none", "sinusoidal", "learned"] = "none"
    """Of the windows, added to their queries."""
    learned_positions: int = 64
    """Windows with a learned position of their own; later ones share the last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "window_frames", "queries_per_window", "learned_positions")
        stride = self._stride()
        if not 1 <= stride <= self.window_frames:
            raise TrainingError(
                f"adapter {self.name}: stride_frames is {stride}; give 1 to window_frames, {self.window_frames}, or frames are left out"
            )

    def _stride(self) -> int:
        return self.window_frames if self.stride_frames is None else self.stride_frames

    def _queries(self) -> tuple[int, Windows | None]:
        windows = Windows(
            frames=self.window_frames,
            stride=self._stride(),
            self_attention=self.self_attention,
            positions=self.positions,
            learned=self.learned_positions,
        )
        return self.queries_per_window, windows


@dataclass(frozen=True, kw_only=True)
class SegmentQFormerConfig(WindowQFormerConfig):
    """A Q-Former for each segment of some seconds, with a learned position for each, so that speech may be long (Yu et al. 2023)."""

    name: ClassVar[str] = "segment-qformer"
    window_frames: int = 200
    queries_per_window: int = 16
    positions: Literal["none", "sinusoidal", "learned"] = "learned"
