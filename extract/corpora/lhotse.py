"""Lhotse manifests: cuts, or recordings with supervisions, as JSON lines; read without importing lhotse.

The fields: https://lhotse.readthedocs.io/en/latest/cuts.html and .../corpus.html
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .base import CorpusError, Listing, Problem, Scalar, Utterance
from .layout import Layout, file_names, make_listing, split_folder
from .rows import Row, RowError, pop_translations, scalar_of, seconds_of, text_of
from .tables import json_rows
from .textfiles import audio_path, first_lines

_ENDS = (".jsonl", ".jsonl.gz")
_PLAIN_CUTS = ("MonoCut", "MultiCut")


def list_lhotse(path: Path, split: str = "") -> Listing:
    """One utterance a cut, or one a supervision; a recording that no supervision names is one utterance.

    `path` is a manifest of cuts, or of recordings: the supervisions are then in the file of the same name with
    "supervisions" for "recordings".
    """
    problems: list[Problem] = []
    if _kind(path) == "recordings":
        utterances = _from_recordings(path, problems)
    else:
        utterances = []
        for number, row in json_rows(path, problems):
            where = f"{path.name}:{number}"
            try:
                utterances.append(_from_cut(row, path.parent, where))
            except RowError as error:
                problems.append(Problem(str(row.get("id", "")), str(error), where))
    return make_listing(LAYOUT.name, path, utterances, problems)


def _from_cut(cut: Row, folder: Path, where: str) -> Utterance:
    kind = cut.get("type", "MonoCut")
    if kind not in _PLAIN_CUTS:
        raise RowError(
            f"a {kind} is mixed or padded when it is loaded: save plain cuts of its audio first "
            "(CutSet.save_audios, then CutSet.to_file)"
        )
    supervisions = [item for item in _list(cut.get("supervisions")) if isinstance(item, dict)]
    recording = cut.get("recording")
    if not isinstance(recording, dict):
        raise RowError("the cut has no recording, so there is no audio: attach the recordings and save it again")
    audio, channel = _source(recording, cut.get("channel", 0), folder)
    return _utterance(
        str(cut.get("id", "")),
        audio,
        channel,
        seconds_of("start", cut.get("start")) or 0.0,
        seconds_of("duration", cut.get("duration")),
        supervisions,
        _dict(cut.get("custom")),
        where,
    )


def _from_recordings(path: Path, problems: list[Problem]) -> list[Utterance]:
    recordings = {str(row.get("id", "")): (number, row) for number, row in json_rows(path, problems)}
    beside = path.with_name(path.name.replace("recordings", "supervisions"))
    segments: list[tuple[str, str, list[Row]]] = []
    if beside != path and beside.is_file():
        for number, row in json_rows(beside, problems):
            segments.append((f"{beside.name}:{number}", str(row.get("recording_id", "")), [row]))
    supervised = {recording for _, recording, _ in segments}
    segments += [(f"{path.name}:{number}", id, []) for id, (number, _) in recordings.items() if id not in supervised]

    utterances: list[Utterance] = []
    for where, recording_id, rows in segments:
        row: Row = rows[0] if rows else {"id": recording_id}
        id = str(row.get("id", ""))
        try:
            if recording_id not in recordings:
                raise RowError(f"recording {recording_id!r} does not stand in {path.name}")
            recording = recordings[recording_id][1]
            start, duration = (seconds_of(key, row.get(key)) for key in ("start", "duration"))
            channels = row.get("channel", 0) if rows else _channels_of(recording)
            audio, channel = _source(recording, channels, path.parent)
            utterances.append(_utterance(id, audio, channel, start or 0.0, duration, rows, {}, where))
        except RowError as error:
            problems.append(Problem(id, str(error), where))
    return utterances


def _utterance(
    id: str,
    audio: Path,
    channel: int | None,
    offset: float,
    duration: float | None,
    supervisions: Sequence[Row],
    custom: Row,
    where: str,
) -> Utterance:
    """Texts are joined; speaker and language only where all agree; custom fields are metadata or translations."""
    texts = [text for item in supervisions if (text := text_of("text", item.get("text")))]
    fields: Row = dict(custom)
    if len(supervisions) == 1:
        fields = _dict(supervisions[0].get("custom")) | fields
        if supervisions[0].get("gender") is not None:
            fields["gender"] = supervisions[0]["gender"]
    translations = pop_translations(fields)
    metadata: dict[str, Scalar] = {key: scalar_of(value) for key, value in fields.items()}
    return Utterance(
        id=id,
        audio=audio,
        offset=offset,
        duration=duration,
        channel=channel,
        text=" ".join(texts) or None,
        speaker=_agreed("speaker", supervisions),
        language=_agreed("language", supervisions),
        translations=translations,
        metadata=metadata,
        where=where,
    )


def _agreed(name: str, supervisions: Sequence[Row]) -> str | None:
    values = {text_of(name, item.get(name)) for item in supervisions}
    return values.pop() if len(values) == 1 else None


def _source(recording: Mapping[str, Any], channels: object, folder: Path) -> tuple[Path, int | None]:
    """The file that holds the wanted channels, and the channel in it: None for all that it has."""
    if recording.get("transforms"):
        names = [_dict(item).get("name", "a transform") for item in _list(recording["transforms"])]
        raise RowError(
            f"the recording is changed when it is loaded ({', '.join(map(str, names))}): "
            "save its audio first (CutSet.save_audios, then CutSet.to_file)"
        )
    wanted = channels if isinstance(channels, list) else [channels]
    for source in map(_dict, _list(recording.get("sources"))):
        held = _list(source.get("channels"))
        if not held or not set(map(str, wanted)) <= set(map(str, held)):
            continue
        name = source.get("source")
        if source.get("type") != "file" or not isinstance(name, str):
            raise RowError(
                f"the audio is of type {source.get('type')!r}: only files are read; "
                "save it to files first (CutSet.save_audios, then CutSet.to_file)"
            )
        if len(wanted) == len(held):
            return audio_path(name, folder), None
        if len(wanted) == 1:
            return audio_path(name, folder), list(map(str, held)).index(str(wanted[0]))
        raise RowError(f"channels {wanted} of the {len(held)} in {name!r}: take one channel or all of them")
    raise RowError(f"no one file of the recording holds channel {channels!r}: save one cut a file")


def _channels_of(recording: Mapping[str, Any]) -> list[object]:
    return [channel for source in _list(recording.get("sources")) for channel in _list(_dict(source).get("channels"))]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _kind(path: Path) -> str | None:
    """What the first line of a file says that it holds."""
    if not path.name.endswith(_ENDS):
        return None
    try:
        row = _dict(json.loads("".join(first_lines(path))))
    except ValueError:
        return None
    if str(row.get("type", "")).endswith("Cut") or {"recording", "start"} <= row.keys():
        return "cuts"
    return "recordings" if {"sources", "sampling_rate"} <= row.keys() else None


def _find(data: Path, split: str) -> Path | None:
    if data.is_file():
        return data if _kind(data) else None
    base = data / split
    places = [(base.parent, base.name, f"_{base.name}"), (base.parent, base.name, f"-{base.name}")]
    folder = split_folder(data, split)
    if folder is not None:
        places.append((folder, "", ""))
    names = [
        [parent / name for parent, whole, end in places for name in _named(parent, whole, f"cuts{end}")],
        [parent / name for parent, _, end in places for name in _named(parent, "", f"recordings{end}")],
    ]
    for group, kind in zip(names, ("cuts", "recordings"), strict=True):
        found = sorted({path for path in group if _kind(path) == kind})
        if len(found) > 1:
            raise CorpusError(
                f"split {split!r} has {len(found)} manifests of {kind}: {', '.join(map(str, found))}; "
                "give the one you mean with --data FILE"
            )
        if found:
            return found[0]
    return None


def _named(folder: Path, whole: str, end: str) -> list[str]:
    """Files called WHOLE.jsonl, or whose name before .jsonl ends in END."""
    stems = {name: name.removesuffix(".gz").removesuffix(".jsonl") for name in file_names(folder)}
    fitting = {name for name, stem in stems.items() if (whole and stem == whole) or stem.endswith(end)}
    return sorted(name for name in fitting if name.endswith(_ENDS))


def _splits(data: Path) -> set[str]:
    found = set()
    for name in file_names(data):
        if name.endswith(_ENDS):
            stem = name.removesuffix(".gz").removesuffix(".jsonl")
            for part in ("cuts", "recordings"):
                _, middle, end = stem.partition(part)
                if middle and end[:1] in ("_", "-"):
                    found.add(end[1:])
    return found


LAYOUT = Layout(
    name="lhotse",
    marks=("*cuts_{split}.jsonl.gz", "*recordings_{split}.jsonl.gz"),
    find=_find,
    splits=_splits,
    read=list_lhotse,
)
