"""What a sweep asks for is looked at before anything is trained: options, metrics, splits, texts and conditions."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import click
import numpy as np
from encodeonce.evaluate.attention.references import read_word_times
from encodeonce.evaluate.audio import check_corpus, corpus_audio
from encodeonce.evaluate.cli import DECODING, check_kind, evaluate_adapter, wanted_of
from encodeonce.evaluate.decoding.options import DecodeOptions, choose_writer
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.finish import Wanted, check_ids
from encodeonce.evaluate.formats.lines import read_lines
from encodeonce.evaluate.metrics.berts import find_source
from encodeonce.evaluate.normalise import code_of
from encodeonce.evaluate.run import check_comparison, open_split, retrieves
from encodeonce.evaluate.scoring import Task, task_of
from encodeonce.evaluate.sweep.expand import Run
from encodeonce.evaluate.sweep.grid import Evaluate
from encodeonce.evaluate.sweep.metrics import known, metrics_of
from encodeonce.evaluate.sweep.plan import flags
from encodeonce.extract.corpora import CorpusError
from encodeonce.store.errors import StoreError
from encodeonce.store.objects import store_path
from encodeonce.store.reader import FeatureStore
from encodeonce.store.streaming.where import matching
from encodeonce.train.checkpoint import check_fits
from encodeonce.train.checks import check_config, writers_of
from encodeonce.train.configure import near
from encodeonce.train.corpus import open_corpus, targets
from encodeonce.train.errors import TrainingError

REFUSED = (EvaluationError, TrainingError, StoreError, CorpusError)


class Checker:
    """Refuses what cannot be; what several runs share is opened once."""

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._read: dict[str, Mapping[str, Any]] = {}
        self._made: dict[tuple[str, Task], Wanted] = {}
        self._found: dict[object, str | None] = {}

    def check_metrics(self, runs: Sequence[Run]) -> None:
        """Refuse columns that stay empty whatever is trained.

        Raises:
            EvaluationError: options of a run are not what evaluate-adapter takes, there is no such metric, or none of the runs is
                measured by it.
        """
        given = dict.fromkeys(name for run in runs for name in self._metrics(run))
        for name in self._evaluate.metrics:
            if name in given:
                continue
            there = f"there are {', '.join(given)}"
            if name not in known():
                raise EvaluationError(f"evaluate.metrics: no metric {name}{near(name, known())}; {there}")
            raise EvaluationError(
                f"evaluate.metrics: no run is measured by {name}, with its objectives and target, and evaluate.options; {there}"
            )

    def check(self, run: Run) -> None:
        """Refuse a run that cannot be trained, or evaluated as the grid says.

        Raises:
            EvaluationError: the run is named.
        """
        config = run.config
        with _said_of(f"run {run.name}"):
            self._check_decoding(run)
            with _said_of(self._place(run)):
                check_comparison(self._wanted(run), config)
            if run.checkpoint is None:
                check_config(config)
                self._once((config.data, config.data.limit and config.seed), lambda: open_corpus(config))
            features = run.identity if run.checkpoint else config.data.encoder
            for split in self._evaluate.splits:
                key = config.data.store, features, split, self._target(run), _key(run)
                self._once(key, partial(self._check_split, run, split))

    def _once(self, key: object, look: Callable[[], object]) -> None:
        """Look at something, unless another run had it looked at; what was wrong with it is wrong again."""
        if key not in self._found:
            try:
                look()
                self._found[key] = None
            except REFUSED as error:
                self._found[key] = str(error)
        if (wrong := self._found[key]) is not None:
            raise EvaluationError(wrong)

    def _options(self, run: Run) -> Mapping[str, Any]:
        """As evaluate-adapter reads them."""
        if (key := _key(run)) not in self._read:
            with _said_of(self._place(run)):
                self._read[key] = _read(run.options)
        return self._read[key]

    def _place(self, run: Run) -> str:
        """The grid's key that a run's options are of."""
        return "evaluate.options" if run.options == self._evaluate.options else "evaluate"

    def _target(self, run: Run) -> str:
        return self._options(run)["target"] or run.config.data.target

    def _wanted(self, run: Run) -> Wanted:
        """What evaluate-adapter makes of them."""
        options = self._options(run)
        key = _key(run), options["task"] or task_of(self._target(run))
        if key not in self._made:
            with _said_of(self._place(run)):
                self._made[key] = wanted_of(options, key[1])
        return self._made[key]

    def _metrics(self, run: Run) -> list[str]:
        with _said_of(f"run {run.name}"):
            scoring = self._wanted(run).scoring
            return metrics_of(run.config, scoring.task, scoring.leave_out)

    def _check_decoding(self, run: Run) -> None:
        config, options = run.config, self._options(run)
        if writers_of(config) or not retrieves(config):
            with _said_of(self._place(run)):
                choose_writer(_decoding(options), config)

    def _check_split(self, run: Run, split: str) -> None:
        """Whether a split is there, and has something to evaluate on."""
        where, target, options = self._evaluate.where, self._target(run), self._options(run)
        store = _open(run, split)
        with _said_of("evaluate.where" if where else None):
            positions = np.arange(len(store)) if where is None else matching(store, where)
        if not len(positions):
            why = (
                "it is empty"
                if where is None
                else f"evaluate.where={where} chooses none of its {len(store):,} utterances"
            )
            raise EvaluationError(f"nothing to evaluate in {store.path}: {why}")
        with _said_of(self._place(run) if options["target"] else None):
            texts = targets(store, target)
        if not any(texts[position] for position in positions.tolist()):
            raise EvaluationError(
                f"none of the {len(positions):,} utterances of {store.path} has a {target.replace(':', ' ')} to compare with: "
                f"take another split, or evaluate.options: {{target: ...}}"
            )
        self._check_bert(run, store, target)
        ids = [store.id(position) for position in positions.tolist() if texts[position] is not None]
        with _said_of(self._place(run)):
            check_ids(self._wanted(run), split, ids)
            if options["audio"] is not None:
                check_corpus(ids, corpus_audio(options["audio"], split), options["audio"])
            if options["word_times"] is not None:
                read_word_times(options["word_times"], ids)

    def _check_bert(self, run: Run, store: FeatureStore, target: str) -> None:
        """Whether there is a BERT, where a column needs one."""
        name = next((name for name in self._evaluate.metrics if name.startswith("bertscore")), None)
        if name is None:
            return
        options = self._options(run)
        language = options["language"] or _language(store, target)
        with _said_of(f"evaluate.metrics: {name}, with bert of {self._place(run)}"):
            find_source(options["bert"], "others" if language is None else code_of(language))


def _key(run: Run) -> str:
    return json.dumps(run.options, sort_keys=True)


def _open(run: Run, split: str) -> FeatureStore:
    """A split of the features that are trained on, or that a checkpoint was trained on.

    Raises:
        StoreError: no such store, feature set or split. TrainingError: the checkpoint was trained on others.
    """
    path, checkpoint = store_path(run.config.data.store), run.checkpoint
    if checkpoint is None:
        return FeatureStore(path, run.config.data.encoder, split)
    store = open_split(checkpoint, path, None, split)
    check_fits(checkpoint, replace(checkpoint.fingerprints, encoder=store.encoder, features=store.fingerprint))
    return store


def _read(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options of evaluate-adapter, as it reads them.

    Raises:
        EvaluationError: what it says of them.
    """
    words = [".", "--store", ".", "--split", "any", "--output", "any", *flags(given)]
    try:
        context = evaluate_adapter.make_context("evaluate-adapter", words)
    except click.ClickException as error:
        raise EvaluationError(error.format_message()) from error
    check_kind(context, context.params)
    _decoding(context.params)
    return context.params


@contextmanager
def _said_of(place: str | None) -> Iterator[None]:
    """What is wrong is told with the grid's key that it is of."""
    try:
        yield
    except REFUSED as error:
        raise EvaluationError(f"{place}: {error}" if place else str(error)) from error


def _decoding(options: Mapping[str, Any]) -> DecodeOptions:
    prompt = options["prompt"]
    lines = () if prompt is None else tuple(line.text for line in read_lines(prompt))
    return DecodeOptions(prompt=lines, **{name: options[name] for name in DECODING})


def _language(store: FeatureStore, target: str) -> str | None:
    """Of the texts; None where the table has none, or several."""
    kind, _, language = target.partition(":")
    if kind == "translation":
        return language
    if "language" not in store.column_names:
        return None
    found = {code_of(one) for one in store.columns(["language"])["language"].unique().to_pylist() if one is not None}
    return found.pop() if len(found) == 1 else None
