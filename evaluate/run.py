"""An evaluation of a checkpoint, from stored features to its report."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from encodeonce.evaluate.attention.alignment import Word
from encodeonce.evaluate.attention.capture import why_no_attention
from encodeonce.evaluate.attention.pictures import attention_pictures
from encodeonce.evaluate.attention.references import read_word_times
from encodeonce.evaluate.attention.timing import summed_up
from encodeonce.evaluate.audio import audio_files, check_corpus, corpus_audio, with_audio
from encodeonce.evaluate.decoding.flags import flagged_anew
from encodeonce.evaluate.decoding.options import DecodeOptions, choose_precision
from encodeonce.evaluate.decoding.run import Decoded, Prepared, Selection, prepare, select
from encodeonce.evaluate.embeddings import MOST, retrieval_scores
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.evaluation import Evaluation
from encodeonce.evaluate.finish import Finished, Wanted, check_ids, finish
from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.evaluate.progress import EvaluationProgress
from encodeonce.evaluate.report.attention import WORD_CENTRES, sentence
from encodeonce.evaluate.report.extras import Extras, Picture
from encodeonce.evaluate.scoring import score
from encodeonce.extract.corpora.base import Utterance
from encodeonce.store.devices import find_device
from encodeonce.store.errors import StoreError
from encodeonce.store.layout import feature_sets
from encodeonce.store.objects import StorePath, store_path
from encodeonce.store.reader import FeatureStore
from encodeonce.train.checkpoint import Checkpoint, load_checkpoint
from encodeonce.train.checks import writers_of
from encodeonce.train.config import TrainConfig
from encodeonce.train.corpus import cleaned
from encodeonce.train.model import AdapterModel, open_model
from encodeonce.train.progress import span

FOLDER, ATTENTION, METRICS_FILE = "evaluation", "attention", "metrics.jsonl"
SOME = 3
"""Utterances whose attention is drawn unless told."""
NAMED = 5
"""Of utterances to which the same happened, those whose ids are told."""
NO_TEXT = "this checkpoint writes no text: it was trained for none of llm, stg, ctc"
RETRIEVED = ("stc", "stm")
"""Objectives that are worth something without a text being written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRequest:
    """What to evaluate.

    Attributes:
        checkpoint: its folder, or a training's, of which the best one is taken, else the last.
        store: None: the one it was trained on.
        encoder: which feature set of a store; None: the one whose fingerprint the checkpoint has.
        splits: none where the store is one split.
        where: a condition on the table's columns.
        limit: utterances of each split; the same ones every time.
        target: what is compared with; None: what was trained.
        attention: utterances whose attention is drawn, at most; None: a few, and not a word where there is none to draw.
        word_times: when words are said: a CTM file, a TextGrid, or a folder of such files; what is drawn is held against them.
        audio: where the corpora are.
        output: None: evaluation/CHECKPOINT/SPLIT beside the checkpoint. Of several splits each has a folder in it.
    """

    checkpoint: Path
    store: StorePath | None = None
    encoder: str | None = None
    splits: tuple[str, ...] = ()
    where: str | None = None
    limit: int | None = None
    target: str | None = None
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    device: str = "auto"
    attention: int | None = 0
    word_times: Path | None = None
    audio: Path | None = None
    output: Path | None = None


@dataclass(frozen=True)
class Opened:
    """A split that is evaluated.

    Attributes:
        decoding: None where the checkpoint writes no text.
        corpus: where the audio is, by id; None where nobody asks.
    """

    name: str
    folder: Path
    selection: Selection
    decoding: Prepared | None
    corpus: Mapping[str, Utterance] | None

    @property
    def store(self) -> FeatureStore:
        """Its features."""
        return self.selection.store


def evaluate_checkpoint(
    request: CheckpointRequest, wanted: Wanted, progress: EvaluationProgress
) -> dict[str, Finished]:
    """Decode, score and report the splits of a request, by their names.

    What can be told without the model is refused before it is loaded.

    Raises:
        EvaluationError: options that do not fit the checkpoint, a split without utterances or references, a folder with hypotheses of
            something else, or an earlier evaluation, audio or word times of other utterances.
        TrainingError: no checkpoint, or one of other features. StoreError: no such store, split or column. CorpusError: no such audio.
    """
    checkpoint, device = load_checkpoint(request.checkpoint), find_device(request.device)
    check_comparison(wanted, checkpoint.config)
    sets = [_open(request, wanted, checkpoint, device, split) for split in request.splits or (None,)]
    words = None
    if request.word_times is not None:
        words = read_word_times(request.word_times, [name for one in sets for name in one.selection.ids])
    begun = time.perf_counter()
    model = open_model(checkpoint, sets[0].store, device)
    progress.say(
        f"Opened {checkpoint.folder.name} of {checkpoint.folder.parent} in {time.perf_counter() - begun:.1f} s"
    )
    work = Evaluator(request, wanted, progress, checkpoint, model, device, words)
    return {one.name: work.evaluate(one) for one in sets}


def retrieves(config: TrainConfig) -> bool:
    """Whether a training has an objective that retrieval or matching shows."""
    return any(getattr(config.objectives, name) is not None for name in RETRIEVED)


def check_comparison(wanted: Wanted, config: TrainConfig) -> None:
    """Refuse a comparison of what a training without text writes.

    Raises:
        EvaluationError: it is asked for.
    """
    if wanted.compare is not None and not writers_of(config):
        raise EvaluationError(f"--compare tests word error rates, and {NO_TEXT}; leave it out")


def open_split(checkpoint: Checkpoint, store: StorePath | None, encoder: str | None, split: str | None) -> FeatureStore:
    """A split of the features that a checkpoint was trained on, where the store has them.

    Raises:
        StoreError: no such store, feature set or split.
    """
    path = store_path(checkpoint.config.data.store) if store is None else store
    if encoder is None:
        fitting = (found for found in feature_sets(path) if found.fingerprint == checkpoint.fingerprints.features)
        encoder = next((found.path.name for found in fitting), None)
    return FeatureStore(path, encoder, split)


def _open(request: CheckpointRequest, wanted: Wanted, checkpoint: Checkpoint, device: str, split: str | None) -> Opened:
    store = open_split(checkpoint, request.store, request.encoder, split)
    name = split or store.parts[0].attributes.split
    folder = request.output
    if folder is None:
        folder = checkpoint.folder.parent / FOLDER / checkpoint.folder.name / name
    elif len(request.splits) > 1:
        folder = folder / name
    where, limit, target = request.where, request.limit, request.target or checkpoint.config.data.target
    decoding = None
    if writers_of(checkpoint.config) or not retrieves(checkpoint.config):
        decoding = prepare(
            checkpoint, store, folder, request.decoding, where=where, limit=limit, text_column=target, device=device
        )
    # What only retrieves draws its sample among utterances that have a text.
    selection = select(store, where, None, target) if decoding is None else decoding.selection
    ids = [name for name, text in zip(selection.ids, selection.texts, strict=True) if text is not None]
    if not ids:
        raise EvaluationError(
            f"none of the {len(selection.rows):,} utterances of {store.path} that are asked for has a {target.replace(':', ' ')} "
            "to compare with: take another split, or --target"
        )
    check_ids(wanted, name, ids)
    corpus = None
    if request.audio is not None:
        corpus = corpus_audio(request.audio, name)
        check_corpus(ids, corpus, request.audio)
    return Opened(name, folder, selection, decoding, corpus)


@dataclass(frozen=True)
class Evaluator:
    """What evaluates one split after the other."""

    request: CheckpointRequest
    wanted: Wanted
    progress: EvaluationProgress
    checkpoint: Checkpoint
    model: AdapterModel
    device: str
    words: Mapping[str, Sequence[Word]] | None = None

    def evaluate(self, test: Opened) -> Finished:
        """Decode, score, retrieve, draw and write."""
        hypotheses, config = self._decode(test)
        title = f"{self.checkpoint.folder.parent.name} on {test.name}"
        if hypotheses is None:
            evaluation = Evaluation(title, {}, [], skipped={"wer": NO_TEXT}, config=config)
        else:
            evaluation = score(
                hypotheses, self.wanted.scoring, title, config, folder=test.folder, progress=self.progress
            )
        if retrieves(self.checkpoint.config):
            evaluation = self._retrieve(test, evaluation)
        audio = audio_files(hypotheses or ())
        pictures: Sequence[Picture] = ()
        if self.wanted.report:
            pictures, evaluation = self._draw(test, evaluation, audio)
        training = self.checkpoint.folder.parent
        curves = training if (training / METRICS_FILE).is_file() else None
        return finish(test.name, evaluation, test.folder, self.wanted, Extras(curves, pictures, audio))

    def _decode(self, test: Opened) -> tuple[list[Hypothesis] | None, dict[str, Any]]:
        """What the model writes, where it writes; and the configuration of the run."""
        request = self.request
        config: dict[str, Any] = {
            "checkpoint": str(self.checkpoint.folder),
            "step": self.checkpoint.step,
            "encoder": test.store.encoder,
            "store": str(test.store.path),
            "split": test.name,
            "where": request.where,
            "limit": request.limit,
            "target": request.target or self.checkpoint.config.data.target,
            "device": self.device,
        }
        if test.decoding is None:
            return None, config
        decoded = test.decoding.decode(self.progress, self.model)
        self._tell(decoded, test.name)
        hypotheses = decoded.hypotheses
        if (language := self.wanted.scoring.language) is not None:
            hypotheses = [flagged_anew(one, language) for one in hypotheses]
        if request.audio is not None and test.corpus is not None:
            hypotheses = with_audio(hypotheses, test.corpus, request.audio)
        decoding = {
            **request.decoding.to_json(),
            "writer": decoded.writer,
            "precision": choose_precision(request.decoding, self.checkpoint.config, self.device),
        }
        return hypotheses, {**config, "decoding": decoding}

    def _tell(self, decoded: Decoded, name: str) -> None:
        count, before = len(decoded.hypotheses), decoded.resumed
        told = f"{count:,} utterance{'s' * (count != 1)}"
        if before == count:
            self.progress.say(f"Read {told} of {name}, decoded before, from {decoded.path}")
            return
        known = f", {before:,} of them before" if before else ""
        took = f"{span(decoded.decode_seconds)}, {decoded.real_time_factor:.3g} of the audio's length"
        self.progress.say(f"Decoded {told} of {name}{known}: {took}, by {decoded.writer}")

    def _retrieve(self, test: Opened, evaluation: Evaluation) -> Evaluation:
        data = self.checkpoint.config.data
        scores, details = retrieval_scores(
            self.model,
            test.store,
            self.checkpoint.fingerprints.outputs,
            self.request.where,
            data=replace(data, target=self.request.target or data.target),
            device=self.device,
            most=min(self.request.limit or MOST, MOST),
        )
        return replace(evaluation, scores={**evaluation.scores, **scores}, details={**evaluation.details, **details})

    def _draw(
        self, test: Opened, evaluation: Evaluation, audio: Mapping[str, Path]
    ) -> tuple[Sequence[Picture], Evaluation]:
        """The attention of some utterances, from the one with the fewest errors to the one with the most; or nothing, and why.

        The evaluation comes back with how attention does as a clock, where word times are known.
        """
        asked = self.request.attention
        most = SOME if asked is None else asked
        why = why_no_attention(self.model)
        if why and (asked or self.words is not None):
            self.progress.say(why)
        if why or not most:
            return (), evaluation
        ordered = sorted(evaluation.utterances, key=lambda one: (one.wer, one.source.id))
        known = [one.source.id for one in ordered] or test.selection.ids
        places = np.linspace(0, len(known) - 1, min(most, len(known))).round().astype(int)
        ids = [known[place] for place in places.tolist()]
        lower = self.checkpoint.config.data.lower
        try:
            drawn = attention_pictures(
                self.model,
                test.store,
                self.checkpoint.fingerprints.outputs,
                ids,
                test.folder / ATTENTION,
                audio=audio,
                hypotheses={one.source.id: one.source.pred_text for one in ordered},
                words=self.words,
                texts={one.source.id: cleaned(one.source.text, lower) for one in ordered},
            )
        except (EvaluationError, StoreError, ImportError, OSError) as error:
            return (), evaluation.without(ATTENTION, error)  # a night of decoding is worth more than its pictures
        if not drawn.timings and not drawn.left_out:
            return drawn.pictures, evaluation
        source = "the corpus's column words" if self.words is None else str(self.request.word_times)
        centres = summed_up(source, drawn.timings, drawn.left_out)
        self.progress.say(sentence(centres))
        for reason in dict.fromkeys(centres.left_out.values()):
            names = [name for name, why in centres.left_out.items() if why == reason]
            told = f"{', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''}"
            self.progress.say(f"Not held against word times: {len(names)} of {len(ids)} drawn ({told}): {reason}")
        return drawn.pictures, replace(evaluation, details={**evaluation.details, WORD_CENTRES: centres})
