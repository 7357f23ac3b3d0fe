"""Operations that change the number of frames: each makes a feature set of its own, written by FeatureWriter."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from encodeonce.store.codebooks import read_codebooks
from encodeonce.store.derive.operations import base_name, kept_name
from encodeonce.store.derive.shards import DeriveReport, stored_record
from encodeonce.store.derive.sources import SourceSplit, need_codes, need_features, source, values_of
from encodeonce.store.errors import StoreError
from encodeonce.store.feature_writer import FeatureWriter
from encodeonce.store.incoming import UNKNOWN, NewUtterance
from encodeonce.store.layout import FeatureSet, Output, SplitPaths
from encodeonce.store.objects import StorePath, name_below
from encodeonce.store.table import read_table

COPIED = ("audio", "offset", "channel", "speaker", "language", "text", "translations", "metadata")
"""What the parent's table says of an utterance."""
LONGEST_RUN = 65_535
"""Durations are uint16: a longer run is several."""


@dataclass(frozen=True, slots=True)
class FrameOperation(ABC):
    """What is made of one output whose frames do not stay."""

    dtype: str = "float16"
    name: ClassVar[str]

    @property
    @abstractmethod
    def label(self) -> str:
        """What the encoder's name gets behind it: `stack4`."""

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The part of the identity that says what is done, beside the operation's name."""

    @abstractmethod
    def outputs(self, source: Output) -> list[Output]:
        """What it makes.

        Raises:
            StoreError: a source that it cannot be made of.
        """

    @abstractmethod
    def apply(self, values: np.ndarray, outputs: Sequence[Output]) -> dict[str, np.ndarray]:
        """The frames of the outputs `[T', D']`, by name, of the source's `[T, D]`."""

    def samples_per_frame(self, parent: int) -> int:
        """Samples from one frame to the next."""
        return parent

    def frames(self, parent: int) -> int | None:
        """T' of T, where that is known without the values."""
        return None


@dataclass(frozen=True, slots=True)
class Stack(FrameOperation):
    """Several frames side by side; the last stack is filled with zeros, so that no frame is lost."""

    count: int = 4
    name = "stack"

    @property
    def label(self) -> str:
        """`stack4`."""
        return f"stack{self.count}"

    @property
    def parameters(self) -> dict[str, Any]:
        """How many frames, and what fills the last stack."""
        return {"frames": self.count, "padding": "zeros"}

    def outputs(self, source: Output) -> list[Output]:
        """As wide as the frames together."""
        need_features(source, self.name)
        if self.count < 2:
            raise StoreError(f"stack --frames {self.count}: take 2 or more")
        what = f"stack({source.what}, {self.count})"
        return [Output(kept_name(base_name(source), self.dtype), self.count * source.width, self.dtype, what)]

    def apply(self, values: np.ndarray, outputs: Sequence[Output]) -> dict[str, np.ndarray]:
        """`[ceil(T / n), n D]`."""
        frames, width = values.shape
        stacked = np.zeros((-(-frames // self.count) * self.count, width), values.dtype)
        stacked[:frames] = values
        return {outputs[0].name: stacked.reshape(-1, self.count * width)}

    def samples_per_frame(self, parent: int) -> int:
        """n times the parent's."""
        return self.count * parent

    def frames(self, parent: int) -> int:
        """ceil(T / n)."""
        return -(-parent // self.count)


@dataclass(frozen=True, slots=True)
class Stride(FrameOperation):
    """Every n-th frame, beginning with the first."""

    by: int = 2
    name = "stride"

    @property
    def label(self) -> str:
        """`stride2`."""
        return f"stride{self.by}"

    @property
    def parameters(self) -> dict[str, Any]:
        """The n."""
        return {"by": self.by}

    def outputs(self, source: Output) -> list[Output]:
        """As wide as the source; codes stay codes."""
        if self.by < 2:
            raise StoreError(f"stride --by {self.by}: take 2 or more")
        dtype = "uint16" if source.dtype == "uint16" else self.dtype
        name, what = kept_name(base_name(source), dtype), f"stride({source.what}, {self.by})"
        return [Output(name, source.width, dtype, what, codebook_sizes=source.codebook_sizes)]

    def apply(self, values: np.ndarray, outputs: Sequence[Output]) -> dict[str, np.ndarray]:
        """`[ceil(T / n), D]`."""
        return {outputs[0].name: values[:: self.by]}

    def samples_per_frame(self, parent: int) -> int:
        """n times the parent's."""
        return self.by * parent

    def frames(self, parent: int) -> int:
        """ceil(T / n)."""
        return -(-parent // self.by)


@dataclass(frozen=True, slots=True)
class Dedup(FrameOperation):
    """Runs of equal units as one, with their lengths in frames of the parent."""

    name = "dedup"

    @property
    def label(self) -> str:
        """`dedup`."""
        return self.name

    @property
    def parameters(self) -> dict[str, Any]:
        """The longest run."""
        return {"longest_run": LONGEST_RUN}

    def outputs(self, source: Output) -> list[Output]:
        """The units, and `durations`."""
        need_codes(source, self.name)
        if source.width != 1:
            raise StoreError(
                f"dedup takes units or codes of one column, and {source.name} has {source.width}; frames of several codes do not "
                f"come in runs: derive from units, or extract one quantizer (--outputs codes:0)"
            )
        units = Output("units", 1, "uint16", f"runs({source.what})", codebook_sizes=source.codebook_sizes)
        return [units, Output("durations", 1, "uint16", f"durations({source.what})")]

    def apply(self, values: np.ndarray, outputs: Sequence[Output]) -> dict[str, np.ndarray]:
        """`[T', 1]` each; the durations add up to T."""
        units, durations = runs(values[:, 0])
        return {"units": units[:, None], "durations": durations[:, None]}


def runs(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The unit and the length of each run `[R]` uint16, in units `[T]`; runs over `LONGEST_RUN` are cut."""
    starts = np.flatnonzero(np.diff(units, prepend=units[:1] + 1))
    lengths = np.diff(starts, append=len(units))
    pieces = -(-lengths // LONGEST_RUN)
    durations = np.full(int(pieces.sum()), LONGEST_RUN, np.uint16)
    durations[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * LONGEST_RUN
    return np.repeat(units[starts], pieces), durations


def derive_frames(
    feature_set: FeatureSet, split: StorePath, operation: FrameOperation, name: str, called: str | None = None
) -> DeriveReport:
    """Bring a split of the derived feature set up to date with its parent: what is new or has other audio is derived.

    Args:
        name: the output of the parent.
        called: the name of the derived encoder, where it is not `<encoder>-<operation>`.

    Raises:
        DamagedError: the parent is not what its records say.
        StoreError: a source of the wrong kind; another process writes the split; values that do not fit the dtype.
    """
    begun = time.perf_counter()
    origin = source(feature_set, name)
    outputs = operation.outputs(origin)
    parent = SourceSplit(split, [origin])
    attributes = parent.split.attributes
    folder = name_below(split, feature_set.path)
    hop = operation.samples_per_frame(attributes.samples_per_frame)
    said = {"operation": operation.name, **operation.parameters}
    identity = {"parent": feature_set.fingerprint, "output": origin.to_json(), "derivation": said}
    provenance = {
        "source": f"{name} of {feature_set.path.name} by {operation.name}",
        "parent": feature_set.path.name,
        "command": _options(operation, name, called),
    }
    encoder = called or f"{feature_set.encoder}-{operation.label}"
    store = feature_set.path.parent
    writer = FeatureWriter(
        store, encoder, folder, outputs, identity, attributes.sample_rate, hop, provenance=provenance
    )
    books = feature_set.codebooks(name)
    if (
        origin.codebook_sizes
        and books.is_file()
        and not (kept := writer.feature_set.codebooks(outputs[0].name)).exists()
    ):
        read_codebooks(books).write(kept)
    computing = _Parent(parent, operation, outputs, writer.path)
    report = writer.write(computing.utterances(), computing.features, replace=True)
    if report.failed:
        first, reason = next(iter(report.failed.items()))
        raise StoreError(
            f"{len(report.failed)} utterances of {split} cannot be derived, e.g. {first!r}: {reason}; the others are kept"
        )
    names = ", ".join(output.name for output in outputs)
    spent = round(time.perf_counter() - begun, 3)
    return DeriveReport(
        folder, report.path, names, report.utterances, report.written, report.frames, report.bytes, spent
    )


class _Parent:
    """The utterances of the parent's split, as those of the derived split at `path`."""

    def __init__(
        self, parent: SourceSplit, operation: FrameOperation, outputs: Sequence[Output], path: StorePath
    ) -> None:
        self.parent, self.operation, self.outputs, self.path = parent, operation, outputs, path
        self.index = {name: i for i, name in enumerate(parent.split.ids.to_pylist())}

    def utterances(self) -> Iterator[NewUtterance]:
        """What the parent's table says of each, with the frames that it gets."""
        standing = self._standing()
        for row in self.parent.split.table.to_pylist():
            audio = row["audio_sha256"]
            known = standing.get((row["id"], audio, row["samples"]))
            frames = known or self.operation.frames(row["frames"]) or self._count(row["id"])
            record = stored_record(row, self.parent.split.attributes.sample_rate)
            yield NewUtterance(
                row["id"],
                frames,
                row["samples"],
                **{name: record[name] for name in COPIED},
                audio_sha256=None if audio.startswith(UNKNOWN) else audio,
            )

    def features(self, name: str) -> dict[str, np.ndarray]:
        """The frames of an utterance's outputs, its source checked first."""
        at = self.index[name]
        self.parent.check(int(self.parent.split.shards[at]))
        (stored,) = self.parent.stored(np.array([at]))
        return self.operation.apply(values_of(*stored[0]), self.outputs)

    def _count(self, name: str) -> int:
        return len(next(iter(self.features(name).values())))

    def _standing(self) -> dict[tuple[str, str, int], int]:
        """The frames of what stands, by id, audio and samples: nothing has to be read again for these."""
        table = SplitPaths(self.path).table
        if not table.is_file():
            return {}
        rows = read_table(table).select(["id", "audio_sha256", "samples", "frames"]).to_pylist()
        return {(row["id"], row["audio_sha256"], row["samples"]): row["frames"] for row in rows}


def _options(operation: FrameOperation, name: str, called: str | None) -> list[str]:
    """The words of the command behind the operation's path."""
    words = ["--output", name]
    match operation:
        case Stack(count=count):
            words += ["--frames", str(count)]
        case Stride(by=by):
            words += ["--by", str(by)]
    if not isinstance(operation, Dedup):
        words += ["--dtype", operation.dtype]
    return [operation.name, *words, *(["--name", called] if called else [])]
