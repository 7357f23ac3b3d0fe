"""Which audio file an utterance is in, for a report that plays it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.extract.corpora import list_corpus
from encodeonce.extract.corpora.base import Utterance

PATH, OFFSET = "audio_filepath", "offset"
"""NeMo's keys."""


def corpus_audio(data: Path, split: str) -> dict[str, Utterance]:
    """The utterances of a split of a corpus by id; no audio file is opened.

    Raises:
        CorpusError: there is no such split; the message says the way out.
    """
    return {utterance.id: utterance for utterance in list_corpus(data, split).utterances}


def with_audio(hypotheses: Sequence[Hypothesis], corpus: Mapping[str, Utterance], data: Path) -> list[Hypothesis]:
    """The same hypotheses with the file of each and where in it the utterance begins, as NeMo's manifests say it.

    Raises:
        EvaluationError: not one of them is in the corpus.
    """
    check_corpus([one.id for one in hypotheses], corpus, data)
    return [_placed(one, corpus[one.id]) if one.id in corpus else one for one in hypotheses]


def check_corpus(ids: Sequence[str], corpus: Mapping[str, Utterance], data: Path) -> None:
    """Refuse a corpus of other utterances.

    Raises:
        EvaluationError: not one of them is in it.
    """
    if ids and not any(name in corpus for name in ids):
        raise EvaluationError(f"no utterance of {data} has an id such as {ids[0]}; give the corpus that was encoded")


def audio_files(hypotheses: Iterable[Hypothesis]) -> dict[str, Path]:
    """The file of each utterance that names one that is there."""
    named = {one.id: Path(path) for one in hypotheses if isinstance(path := one.metadata.get(PATH), str)}
    return {name: path for name, path in named.items() if path.is_file()}


def _placed(one: Hypothesis, utterance: Utterance) -> Hypothesis:
    place = {PATH: str(utterance.audio), OFFSET: utterance.offset}
    return replace(one, metadata={**one.metadata, **place}, duration=one.duration or utterance.duration)
