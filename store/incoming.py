"""What a caller of FeatureWriter gives: utterances and outputs, checked, and as the columns of the table."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from encodeonce.store.errors import StoreError
from encodeonce.store.identity import canonical_json
from encodeonce.store.layout import Output
from encodeonce.store.plan import Place
from encodeonce.store.quantize import STORED_DTYPES
from encodeonce.store.table import TRANSLATION, metadata_text, record_of


@dataclass(frozen=True, slots=True)
class NewUtterance:
    """An utterance to store: its id, its number of frames T, and what is known of it.

    `samples` are at the writer's sample rate (by default frames * samples_per_frame). `audio_sha256` is
    `store.identity.audio_hash` of the audio; where it is not given the table says so, and no other audio counts as the same.
    """

    id: str
    frames: int
    samples: int | None = None
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    translations: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    audio: str | None = None
    offset: float | None = None
    channel: int | None = None
    audio_sha256: str | None = None


def by_id(utterances: Iterable[NewUtterance]) -> dict[str, NewUtterance]:
    """Utterances by id.

    Raises:
        StoreError: an id that is empty or comes twice, or a value that utterances.parquet cannot hold.
    """
    listed: dict[str, NewUtterance] = {}
    for utterance in utterances:
        _check(utterance)
        if utterance.id in listed:
            raise StoreError(
                f"utterance {utterance.id!r} comes twice; ids are what tells the utterances of a split apart"
            )
        listed[utterance.id] = utterance
    return listed


def _check(u: NewUtterance) -> None:
    if not isinstance(u.id, str) or not u.id:
        raise StoreError(f"{u.id!r} is no utterance id; give a text that is not empty")
    texts = {"text": u.text, "speaker": u.speaker, "language": u.language, "audio": u.audio}
    texts |= {f"translation {language!r}": text for language, text in u.translations.items()}
    wrong = next((name for name, value in texts.items() if not isinstance(value, str | None)), None)
    if wrong:
        raise StoreError(f"{wrong} of utterance {u.id!r} is {texts[wrong]!r}; expected a text or None")
    if u.audio_sha256 is not None and not re.fullmatch("[0-9a-f]{64}", u.audio_sha256):
        raise StoreError(f"audio_sha256 of utterance {u.id!r} is {u.audio_sha256!r}; expected 64 hex digits, or None")
    try:
        canonical_json([u.id, texts, dict(u.metadata)])
        int(u.frames), int(u.samples or 0), float(u.offset or 0), int(u.channel or 0)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"utterance {u.id!r} cannot be described: {error}; give texts, numbers and plain JSON"
        ) from error


def checked_outputs(outputs: Iterable[Output]) -> dict[str, Output]:
    """Outputs by name.

    Raises:
        StoreError: none, a name twice, or a name, width or dtype that a store cannot have.
    """
    found: dict[str, Output] = {}
    for output in outputs:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", output.name) or output.name.endswith("-affine"):
            raise StoreError(
                f"{output.name!r} is no name of an output: expected letters, digits, '.', '_' and '-', and no '-affine' at the end"
            )
        if output.dtype not in STORED_DTYPES:
            raise StoreError(f"output {output.name}: dtype {output.dtype!r} is none of {', '.join(STORED_DTYPES)}")
        if output.width < 1:
            raise StoreError(f"output {output.name}: width {output.width}; expected 1 or more values a frame")
        if output.name in found:
            raise StoreError(f"output {output.name!r} comes twice")
        found[output.name] = output
    if not found:
        raise StoreError(
            "no output was given; give at least one, e.g. Output('layer-9', 768, 'float16', 'hidden_states[9]')"
        )
    return found


UNKNOWN = "unknown:"
"""Begins what stands for the hash of audio that nobody named: the split and the id follow, so that it is no sha256 and is
equal to that of no other utterance."""


def same_audio(u: NewUtterance, stored: str) -> bool:
    """Whether an utterance may be the audio that a stored hash names; what is not known contradicts nothing."""
    return u.audio_sha256 is None or u.audio_sha256 == stored or stored.startswith(UNKNOWN)


def new_record(place: Place, u: NewUtterance, split: str, sample_rate: int) -> dict[str, Any]:
    """The record of an utterance; see `table.record_of`."""
    said = {
        "audio": u.audio,
        "offset": None if u.offset is None else float(u.offset),
        "channel": None if u.channel is None else int(u.channel),
        "speaker": u.speaker,
        "language": u.language,
        "text": u.text,
        "translations": u.translations,
        "metadata": u.metadata,
    }
    return record_of(place, u.audio_sha256 or f"{UNKNOWN}{split}/{u.id}", sample_rate, said)


def said_of(u: NewUtterance) -> dict[str, Any]:
    """The columns of the table that an utterance says something of; what it leaves out stays as it stands."""
    columns = {name: getattr(u, name) for name in ("audio", "offset", "channel", "speaker", "language", "text")}
    columns["metadata"] = metadata_text(u.metadata)
    columns |= {TRANSLATION + language: text for language, text in u.translations.items()}
    return {name: value for name, value in columns.items() if value is not None}
