"""What a run has to do for a split: every utterance of the corpus is new, known, changed, pending or unusable."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from encodeonce.extract.audio import AudioError, count_samples, decode, resampled_length
from encodeonce.extract.cache import AudioFacts, FileCache
from encodeonce.extract.corpora.base import Listing, Utterance
from encodeonce.extract.encoders.base import Encoder
from encodeonce.extract.run import Run
from encodeonce.store.describe import redescribe
from encodeonce.store.failures import read_failures
from encodeonce.store.table import TRANSLATION, metadata_text
from encodeonce.store.writer import SplitWriter

KEEP_EVERY = 2000
"""Utterances after which what was learnt is kept, so that an interrupted survey goes on where it was."""
CHANGED = "its audio changed since it was stored; run again with --replace to encode it anew"


@dataclass
class Survey:
    """The utterances of a corpus, sorted by what has to be done with them."""

    utterances: dict[str, Utterance]
    """Everything that the corpus lists, by id."""
    considered: list[str]
    """The ids that this run is about: all, or the first few where there is a limit."""
    problems: list[dict[str, str]]
    """Entries of the corpus that are no utterance."""
    new: list[tuple[str, int, int]] = field(default_factory=list)
    """(id, samples, frames) of what has no place yet."""
    pending: set[str] = field(default_factory=set)
    """Ids with a place in a shard that is not committed yet."""
    reused: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    not_storable: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Entries of failures.jsonl whose features could not be stored: the audio's hash and the outputs are in them."""
    gone: int = 0
    """Stored utterances that the corpus does not list any more; they are kept."""
    plans: int = 0
    """The plans of the split that it knows of."""


def survey(run: Run, listing: Listing, writer: SplitWriter) -> Survey:
    """Sort a corpus into new, pending, reused and failed, decoding only what is not known yet and has to be."""
    encoder, cache, outputs = run.encoder, run.cache, {*writer.outputs, *run.outputs}
    wanted = listing.utterances[: run.request.limit]
    found = Survey(
        {utterance.id: utterance for utterance in listing.utterances},
        [utterance.id for utterance in wanted],
        [{"id": problem.id, "reason": _located(problem.reason, problem.where)} for problem in listing.problems],
        plans=len(writer.plans),
    )
    stored = dict(zip(*(writer.table[name].to_pylist() for name in ("id", "audio_sha256")), strict=True))
    pending = {p.id: p for plan in writer.plans for p in plan.places if p.shard not in writer.commits}
    rate = encoder.sample_rate
    facts = dict(zip(found.considered, cache.audio(wanted, rate), strict=True))
    earlier_failures = {entry["id"]: entry for entry in read_failures(writer.paths)}

    doubtful, uncounted, retried = [], [], []
    for name in found.considered:
        utterance, fact = found.utterances[name], facts[name]
        if name in pending:
            found.pending.add(name)
        elif name in stored:
            if fact and fact.sha256 and fact.sha256 == stored[name]:
                found.reused.add(name)
            else:
                doubtful.append(utterance)
        elif name in earlier_failures:
            retried.append(utterance)
        elif fact is None:
            uncounted.append(utterance)
        else:
            _give_place(found, encoder, name, fact.samples)
    found.gone = len(stored.keys() - found.utterances.keys())

    with ThreadPoolExecutor(run.workers, "survey") as pool:
        learn = partial(_learn, pool, found, cache, rate)
        for utterance, fact in learn(uncounted, lambda u: AudioFacts(count_samples(u, rate), None)):
            _give_place(found, encoder, utterance.id, fact.samples)
        for utterance, fact in learn(retried, lambda u: _decoded(u, rate)):
            entry = earlier_failures[utterance.id]
            if fact.sha256 == entry.get("audio_sha256") and set(entry["outputs"]) <= outputs:
                found.failed[utterance.id] = entry["reason"]  # what the encoder made of it cannot be stored, again
                found.not_storable[utterance.id] = entry
            else:
                _give_place(found, encoder, utterance.id, fact.samples)
        for utterance, fact in learn(doubtful, lambda u: _decoded(u, rate)):
            if fact.sha256 == stored[utterance.id]:
                found.reused.add(utterance.id)
            elif run.request.replace:
                _give_place(found, encoder, utterance.id, fact.samples)
            else:
                found.failed[utterance.id] = f"{utterance.audio}: {CHANGED}"
    return found


def _learn(
    pool: ThreadPoolExecutor,
    found: Survey,
    cache: FileCache,
    rate: int,
    utterances: Sequence[Utterance],
    work: Callable[[Utterance], AudioFacts],
) -> Iterator[tuple[Utterance, AudioFacts]]:
    """Facts of utterances in order, kept in the cache as they come; those whose audio cannot be used become failures."""

    def attempt(utterance: Utterance) -> AudioFacts | AudioError:
        try:
            return work(utterance)
        except AudioError as error:
            return error

    for first in range(0, len(utterances), KEEP_EVERY):
        some = utterances[first : first + KEEP_EVERY]
        learnt = []
        for utterance, result in zip(some, pool.map(attempt, some), strict=True):
            if isinstance(result, AudioError):
                found.failed[utterance.id] = str(result)
            else:
                learnt.append((utterance, result))
        cache.keep_audio(learnt, rate)
        yield from learnt


def _decoded(utterance: Utterance, rate: int) -> AudioFacts:
    decoded = decode(utterance)
    return AudioFacts(resampled_length(len(decoded.samples), decoded.rate, rate), decoded.sha256(rate))


def _give_place(found: Survey, encoder: Encoder, name: str, samples: int) -> None:
    frames = encoder.frames(samples)
    if frames > 0:
        found.new.append((name, samples, frames))
        return
    rate, least = encoder.sample_rate, encoder.receptive_field
    found.failed[name] = (
        f"{found.utterances[name].audio}: too short: {samples} samples ({1000 * samples / rate:.0f} ms) give no frame; "
        f"{encoder.name} needs {least} ({1000 * least / rate:.0f} ms)"
    )


def _located(reason: str, where: str) -> str:
    return f"{where}: {reason}" if where and where not in reason else reason


def describe(utterance: Utterance, root: Path) -> dict[str, Any]:
    """The part of a record that the corpus says and a corrected corpus may change."""
    audio = utterance.audio
    segmented = utterance.offset or utterance.duration is not None
    return {
        "audio": _relative(str(audio), str(root)),
        "offset": float(utterance.offset) if segmented else None,
        "channel": utterance.channel,
        "speaker": utterance.speaker,
        "language": utterance.language,
        "text": utterance.text,
        "translations": utterance.translations,
        "metadata": utterance.metadata,
    }


def _relative(path: str, root: str) -> str:
    """A path below a root without it; what is no Unicode is spelt out."""
    inside = path.startswith(root.rstrip("/") + "/")
    return (path[len(root.rstrip("/")) + 1 :] if inside else path).encode("utf-8", "backslashreplace").decode()


def updated_table(table: pa.Table, utterances: dict[str, Utterance], root: Path) -> tuple[pa.Table, int]:
    """The table with what the corpus says now of its utterances, and how many rows that changed."""
    languages = {name.removeprefix(TRANSLATION) for name in table.column_names if name.startswith(TRANSLATION)}
    languages.update(*(utterance.translations for utterance in utterances.values()))

    def columns(utterance: Utterance) -> dict[str, Any]:
        said = describe(utterance, root)
        translations = said.pop("translations")
        said["metadata"] = metadata_text(said["metadata"])
        return said | {TRANSLATION + language: translations.get(language) for language in languages}

    stored = (name for name in table["id"].to_pylist() if name in utterances)
    return redescribe(table, {name: columns(utterances[name]) for name in stored})
