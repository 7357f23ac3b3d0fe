"""One row of a manifest, whatever file it came from, as an utterance; pure functions."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from .base import Scalar, Utterance

Row = dict[str, object]

# Tuples, because `int | float` inside a function is built anew at every call, and these run for every cell.
_NUMBER = (int, float)
_NUMERIC = (int, float, str)


class RowError(ValueError):
    """The row is no utterance; the message is the reason for the user."""


def row_utterance(row: Row, id: str | None, folder: str, where: str) -> Utterance:
    """Take the known columns out of `row`; what is left is metadata.

    `audio_filepath` and `lang` are NeMo's names of `audio` and `language`. `id` replaces a missing id column.
    """
    audio = row.pop("audio") if "audio" in row else row.pop("audio_filepath", None)
    if audio is None or audio == "":
        raise RowError("no audio file: expected a path in 'audio' (or NeMo's 'audio_filepath')")
    if not isinstance(audio, str):
        raise RowError(f"audio is {_shown(audio)}: expected a path as text")
    if "\x00" in audio:
        raise RowError(f"audio {audio!r} holds a NUL character, which no path does")
    if "://" in audio:
        raise RowError(f"audio {audio!r} is an address: copy the file to a disk and name it there")
    name = text_of("id", row.pop("id")) if "id" in row else id
    language = text_of("language", row.pop("language", None))
    if language is None and "lang" in row:
        language = text_of("lang", row.pop("lang"))
    return Utterance(
        id=name or "",
        audio=Path(audio if os.path.isabs(audio) else f"{folder}/{audio}"),
        offset=seconds_of("offset", row.pop("offset", None)) or 0.0,
        duration=seconds_of("duration", row.pop("duration", None)),
        channel=channel_of(row.pop("channel", None)),
        text=text_of("text", row.pop("text", None)),
        speaker=text_of("speaker", row.pop("speaker", None)),
        language=language,
        translations=pop_translations(row),
        metadata={key: scalar_of(value) for key, value in row.items()},
        where=where,
    )


def pop_translations(row: Row) -> dict[str, str]:
    """`translations` (an object, or its JSON text in a cell) together with columns such as `translation_de`."""
    keys = [key for key in row if key.startswith("translation")]
    if not keys:
        return {}
    found: dict[str, str] = {}
    whole = row.pop("translations", None)
    if isinstance(whole, str) and whole:
        try:
            whole = json.loads(whole)
        except ValueError:
            raise RowError(f"translations {_shown(whole)}: expected a JSON object such as {{'de': '...'}}") from None
    if isinstance(whole, Mapping):
        pairs = list(whole.items())
    elif whole is None or whole == "":
        pairs = []
    else:
        raise RowError(f"translations {_shown(whole)}: expected an object of texts by language")
    pairs += [(key[12:], row.pop(key)) for key in keys if key.startswith("translation_") and len(key) > 12]
    for language, value in pairs:
        text = text_of(f"translation {language!r}", value)
        if text is not None:
            found[language] = text
    return found


def text_of(name: str, value: object) -> str | None:
    """Text as it is, None for nothing or blanks alone; numbers are taken as their text (speaker 1034)."""
    if value is None:
        return None
    if isinstance(value, str):
        return value if value and not value.isspace() else None
    if isinstance(value, _NUMBER) and not isinstance(value, bool):
        return str(value)
    raise RowError(f"{name} is {_shown(value)}: expected text")


def seconds_of(name: str, value: object) -> float | None:
    """A cell as seconds; None where it is empty, RowError where it is no number."""
    if value is None or value == "":
        return None
    if isinstance(value, _NUMERIC) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise RowError(f"{name} {_shown(value)}: expected seconds as a number")


def channel_of(value: object) -> int | None:
    """A cell as the number of a channel, from 0; None where it is empty, RowError where it is none."""
    if value is None or value == "":
        return None
    if isinstance(value, _NUMERIC) and not isinstance(value, bool):
        try:
            number = float(value)
            if number >= 0 and number == int(number):
                return int(number)
        except (ValueError, OverflowError):
            pass
    raise RowError(f"channel {_shown(value)}: expected a whole number from 0")


def scalar_of(value: object) -> Scalar:
    """Metadata as it was; lists and objects as their JSON text."""
    if value is None or isinstance(value, _NUMERIC):
        return value
    return json.dumps(value, ensure_ascii=False)


def derived_ids(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Ids for rows that bring none, as in NeMo: a function of the rows' contents, not of their order.

    The file's name without extension; the path where two files share that name; with "-OFFSET" where the row
    starts inside the file or the file has several rows, and with the duration and channel too where rows share
    file and offset.
    """
    keys = [
        (str(row.get("audio", row.get("audio_filepath"))), _offset_name(row.get("offset")), row.get("duration"), row)
        for row in rows
    ]
    files: defaultdict[str, set[str]] = defaultdict(set)
    for audio, *_ in keys:
        files[_stem(audio)].add(audio)
    rows_of = Counter(audio for audio, *_ in keys)
    starts = Counter((audio, offset) for audio, offset, *_ in keys)
    ids = []
    for audio, offset, duration, row in keys:
        id = _stem(audio)
        if len(files[id]) > 1:
            id = os.path.splitext(audio)[0]
        if offset != "0.0" or rows_of[audio] > 1:
            id += f"-{offset}"
        if starts[audio, offset] > 1:
            id += "".join(f"-{part}" for part in (duration, row.get("channel")) if part not in (None, ""))
        ids.append(id)
    return ids


def _stem(audio: str) -> str:
    return os.path.splitext(os.path.basename(audio))[0]


def _offset_name(value: object) -> str:
    try:
        return str(seconds_of("offset", value) or 0.0)
    except RowError:
        return str(value)


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
