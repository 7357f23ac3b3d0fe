"""A split decoded: JSON lines that a killed run goes on with, and at the end the utterances in the store's order."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from encodeonce.evaluate.decoding.batches import FeatureBatch, plan_batches, read_batches
from encodeonce.evaluate.decoding.flags import flags_of
from encodeonce.evaluate.decoding.lines import ABOUT, HypothesisLines, check_origin
from encodeonce.evaluate.decoding.options import DecodeOptions, Writer, choose_precision, choose_writer
from encodeonce.evaluate.decoding.transcriber import Transcriber, Written
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.store.files import explain, make_folder, sha256_of
from encodeonce.store.locks import lock
from encodeonce.store.reader import FeatureStore
from encodeonce.store.streaming.where import matching
from encodeonce.store.table import TRANSLATION
from encodeonce.train.checkpoint import ADAPTER, Checkpoint, check_fits
from encodeonce.train.corpus import targets
from encodeonce.train.llm.fingerprint import fingerprint
from encodeonce.train.model import AdapterModel, open_model
from encodeonce.train.pretrained import find_llm
from encodeonce.train.validation import pick_sample

BUSY = ".decoding"
"""Held in the folder that a run writes into."""
COLUMNS = ("id", "audio_sha256", "duration", "speaker", "language", "audio", "offset", "channel", "text", "metadata")


class Progress(Protocol):
    """Who is told how far a decoding is."""

    def say(self, line: str) -> None:
        """One line about what has happened."""
        ...

    def advance(self, done: int, total: int) -> None:
        """So many utterances are written."""
        ...


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded split.

    Attributes:
        path: the JSON lines.
        hypotheses: in the store's order.
        writer: the objective that wrote.
        audio_seconds: of all utterances.
        decode_seconds: from features read to text, of all utterances, whichever run wrote them.
        load_seconds: of the model, in this run.
        resumed: utterances that an earlier run had written.
    """

    path: Path
    hypotheses: list[Hypothesis]
    writer: Writer
    audio_seconds: float
    decode_seconds: float
    load_seconds: float
    resumed: int

    @property
    def real_time_factor(self) -> float:
        """Seconds of decoding a second of audio, loading apart."""
        return self.decode_seconds / self.audio_seconds


@dataclass(frozen=True)
class Selection:
    """The utterances of a store that are decoded, and what is known of each.

    Args:
        positions: in the store, `[N]`, ascending.
        rows: of the store's table, `[N]`.
        target: what they are compared with, `data.target`'s words for it.
        texts: that target's, `[N]`.
    """

    store: FeatureStore
    positions: np.ndarray
    rows: Sequence[Mapping[str, Any]]
    target: str
    texts: Sequence[str | None]

    @property
    def ids(self) -> list[str]:
        """Of the utterances, `[N]`."""
        return [row["id"] for row in self.rows]

    @property
    def seconds(self) -> list[float]:
        """Of audio, `[N]`."""
        return [row["duration"] for row in self.rows]

    def hypothesis(self, place: int, written: Written, seconds: float) -> Hypothesis:
        """A line: what was written of an utterance, and what its table says."""
        row, text = self.rows[place], self.texts[place]
        others = json.loads(row["metadata"]) if row.get("metadata") else {}
        others |= {"audio_filepath": row.get("audio"), "offset": row.get("offset"), "channel": row.get("channel")}
        others |= {name: value for name, value in row.items() if name.startswith(TRANSLATION)}
        language = row.get("language")
        if self.target.startswith("translation:"):
            others["source_language"], language = language, self.target.partition(":")[2]
        if self.target != "text":
            others["transcript"] = row.get("text")
        others["score"] = None if written.score is None else round(written.score, 4)
        return Hypothesis(
            id=row["id"],
            pred_text=written.text,
            text=text,
            duration=row["duration"],
            speaker=row.get("speaker"),
            language=language,
            seconds=round(seconds, 6),
            flags=flags_of(written.text, row["duration"], written.ended, language),
            metadata={name: value for name, value in others.items() if value is not None},
        )


def decode_split(
    checkpoint: Checkpoint,
    store: FeatureStore,
    output: Path,
    options: DecodeOptions | None = None,
    *,
    where: str | None = None,
    limit: int | None = None,
    text_column: str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    model: AdapterModel | None = None,
) -> Decoded:
    """Write texts of a store's utterances into `output`/hypotheses.jsonl, beside a hypotheses.json that says what they are of.

    A run that was killed goes on where it was; one that is done is read and not decoded again. It is `prepare`, and then `decode`.

    Args:
        output: a folder, made where it is not there.
        where: a condition on the table's columns, as in `FeatureStore.stream`; None: all utterances.
        limit: so many of them, picked by a hash of their ids: the same ones each time.
        text_column: what they are compared with: text, translation:de, metadata:intent ...; None: what was trained, `data.target`.
            The texts are the corpus's own, not lower-cased.
        device: cpu, cuda, cuda:N.
        model: that of the checkpoint, where it is loaded already.

    Raises:
        EvaluationError: nothing to decode, options that do not fit the checkpoint, too little memory, or a folder with hypotheses
            of something else; the message says what differs.
        TrainingError: a checkpoint of other features, no such text column, or no such language model. StoreError: no such output
            or column, a damaged shard, a place that cannot be written, or that another process writes into.
    """
    prepared = prepare(
        checkpoint, store, output, options, where=where, limit=limit, text_column=text_column, device=device
    )
    return prepared.decode(progress, model)


@dataclass(frozen=True)
class Prepared:
    """A split that can be decoded, as far as can be told before a model is loaded; made by `prepare`."""

    checkpoint: Checkpoint
    selection: Selection
    output: Path
    options: DecodeOptions
    writer: Writer
    device: str
    origin: Mapping[str, Any]

    def decode(self, progress: Progress | None = None, model: AdapterModel | None = None) -> Decoded:
        """Decode what is left of it; see `decode_split`."""
        selection, output = self.selection, self.output
        try:
            make_folder(output)
        except OSError as error:
            raise explain(error, output) from error
        with lock(output / BUSY):
            lines = HypothesisLines(output, self.origin)
            resumed, load_seconds = len(lines.done), 0.0
            todo = _unfinished(selection, self.options, lines.done)
            if todo:
                begun = time.perf_counter()
                model = open_model(self.checkpoint, selection.store, self.device) if model is None else model
                transcriber = Transcriber(model, self.options)
                load_seconds = time.perf_counter() - begun
                lines.begin()
                _decode(transcriber, selection, self.checkpoint.fingerprints.outputs, todo, lines, progress)
            written = lines.finish(selection.ids)
        # What was said may have been corrected in the table since.
        hypotheses = [replace(one, text=text) for one, text in zip(written, selection.texts, strict=True)]
        decode_seconds = sum(one.seconds or 0.0 for one in hypotheses)
        return Decoded(
            lines.path, hypotheses, self.writer, sum(selection.seconds), decode_seconds, load_seconds, resumed
        )


def prepare(
    checkpoint: Checkpoint,
    store: FeatureStore,
    output: Path,
    options: DecodeOptions | None = None,
    *,
    where: str | None = None,
    limit: int | None = None,
    text_column: str | None = None,
    device: str = "cpu",
) -> Prepared:
    """Look at everything that a decoding could be refused for, and load no model; arguments and errors are those of `decode_split`."""
    options = options or DecodeOptions()
    writer = choose_writer(options, checkpoint.config)
    check_fits(checkpoint, replace(checkpoint.fingerprints, encoder=store.encoder, features=store.fingerprint))
    selection = select(store, where, limit, text_column or checkpoint.config.data.target)
    origin = _origin(checkpoint, selection, options, writer, where, limit, device)
    check_origin(output, origin)
    return Prepared(checkpoint, selection, output, options, writer, device, origin)


def select(store: FeatureStore, where: str | None, limit: int | None, target: str) -> Selection:
    """The utterances of a store that are asked for.

    Raises:
        EvaluationError: there are none. TrainingError, StoreError: no such text or column.
    """
    positions = np.arange(len(store)) if where is None else np.sort(matching(store, where))
    if not len(positions):
        why = "it is empty" if where is None else f"none of its {len(store):,} utterances is one where {where}"
        raise EvaluationError(f"nothing to decode in {store.path}: {why}")
    if limit is not None:
        if limit < 1:
            raise EvaluationError(f"limit={limit}: take 1 or more")
        place = {store.id(position): position for position in positions.tolist()}
        positions = np.sort([place[name] for name in pick_sample(list(place), limit, 0)])
    said = targets(store, target)
    names = [name for name in store.column_names if name in COLUMNS or name.startswith(TRANSLATION)]
    rows = store.columns(names).take(pa.array(positions)).to_pylist()
    return Selection(store, positions, rows, target, [said[position] for position in positions.tolist()])


def _origin(
    checkpoint: Checkpoint,
    selection: Selection,
    options: DecodeOptions,
    writer: Writer,
    where: str | None,
    limit: int | None,
    device: str,
) -> dict[str, Any]:
    """What hypotheses are of: a run with any of it otherwise writes others; the last part is told along."""
    trained, store, language_model = checkpoint.fingerprints, selection.store, options.language_model
    return {
        "checkpoint": {
            "adapter_sha256": sha256_of(checkpoint.folder / ADAPTER),
            "step": checkpoint.step,
            "llm": trained.llm,
        },
        "features": {"encoder": trained.encoder, "fingerprint": trained.features, "outputs": list(trained.outputs)},
        "utterances": {
            "where": where,
            "limit": limit,
            "count": len(selection.rows),
            "ids_sha256": sha256("\n".join(selection.ids).encode()).hexdigest(),
            "audio_sha256": sha256("\n".join(row["audio_sha256"] for row in selection.rows).encode()).hexdigest(),
            "text": selection.target,
        },
        "decoding": {
            **options.to_json(),
            "writer": writer,
            "precision": choose_precision(options, checkpoint.config, device),
            "language_model_fingerprint": language_model and fingerprint(find_llm(language_model)),
        },
        ABOUT: {
            "checkpoint": str(checkpoint.folder),
            "store": str(store.path),
            "device": device,
            "encodeonce": version("encodeonce"),
        },
    }


def _unfinished(selection: Selection, options: DecodeOptions, done: Mapping[str, Hypothesis]) -> list[np.ndarray]:
    """Batches, by place in the selection, of which an utterance is not written yet: whole, so that a run that goes on computes the same."""
    ids, frames = selection.ids, selection.store.frames[selection.positions]
    batches = plan_batches(frames, options.frames_per_batch, options.utterances_per_batch)
    return [batch for batch in batches if any(ids[place] not in done for place in batch.tolist())]


def _decode(
    transcriber: Transcriber,
    selection: Selection,
    outputs: Sequence[str],
    batches: Sequence[np.ndarray],
    lines: HypothesisLines,
    progress: Progress | None,
) -> None:
    ids = selection.ids
    if lines.done and progress is not None:
        progress.say(f"going on: {len(lines.done):,} of {len(ids):,} utterances are written in {lines.path}")
    begun = time.perf_counter()
    read = read_batches(selection.store, outputs, [selection.positions[places] for places in batches])
    for places, batch in zip(batches, read, strict=True):
        written = _write(transcriber, selection, places.tolist(), batch)
        share = (time.perf_counter() - begun) / int(batch.lengths.sum())  # seconds a frame
        new = [
            selection.hypothesis(place, one, share * length)
            for place, one, length in zip(places.tolist(), written, batch.lengths.tolist(), strict=True)
            if ids[place] not in lines.done
        ]
        lines.append(new)
        if progress is not None:
            progress.advance(len(lines.done), len(ids))
        begun = time.perf_counter()


def _write(transcriber: Transcriber, selection: Selection, places: Sequence[int], batch: FeatureBatch) -> list[Written]:
    seconds = [selection.rows[place]["duration"] for place in places]
    return transcriber.write(batch.outputs, batch.lengths, seconds, [selection.rows[place]["id"] for place in places])
