"""MuST-C: en-XX/data/SPLIT with txt/SPLIT.yaml, txt/SPLIT.en, txt/SPLIT.XX and wav/*.wav.

The corpus: Di Gangi et al. 2019, https://aclanthology.org/N19-1202; the files and the ids as fairseq reads them:
https://github.com/facebookresearch/fairseq/blob/main/examples/speech_to_text/prep_mustc_data.py
"""

import os
import re
from collections import defaultdict
from pathlib import Path

from .base import CorpusError, Listing, Problem, Utterance
from .layout import Layout, file_names, make_listing, split_folder, subfolders
from .rows import RowError, seconds_of
from .textfiles import NOT_UTF8, is_utf8, read_text

SOURCE = "en"
_PAIR = re.compile(r"[a-z]{2,3}-[a-z]{2,3}")
_PLAIN_ENTRY = re.compile(r"- \{([^\"'\[\]{}#&*!|>%@`\\]*)\}\s*")

Segment = dict[str, str]


def list_mustc(root: Path, split: str = "") -> Listing:
    """Segments in the order of the yaml file; `root` is the folder of the split (.../en-de/data/dev)."""
    name = Path(os.path.abspath(root)).name
    segments = read_segments(root / "txt" / f"{name}.yaml")
    texts = {
        language: _aligned(root / "txt" / f"{name}.{language}", len(segments)) for language in _languages(root, name)
    }
    not_utf8 = {index for lines in texts.values() for index, line in enumerate(lines) if not is_utf8(line)}
    source = texts.pop(SOURCE, [""] * len(segments))
    audio = {wav: Path(f"{root}/wav/{wav}") for wav in {segment.get("wav", "") for segment in segments}}
    problems: list[Problem] = []
    utterances: list[Utterance] = []
    ids = fairseq_ids(segments)
    for index, segment in enumerate(segments):
        where = f"{name}.yaml:{index + 1}"
        id = ids[index]
        try:
            offset, duration = (seconds_of(key, segment.get(key)) for key in ("offset", "duration"))
            if not id or offset is None or duration is None:
                raise RowError(f"{segment!r}: expected duration, offset and wav")
            if index in not_utf8 or not is_utf8(id):
                raise RowError(NOT_UTF8)
        except RowError as error:
            problems.append(Problem(id, str(error), where))
            continue
        utterances.append(
            Utterance(
                id=id,
                audio=audio[segment["wav"]],
                offset=offset,
                duration=duration,
                text=source[index] or None,
                speaker=segment.get("speaker_id") or None,
                language=SOURCE,
                translations={language: lines[index] for language, lines in texts.items() if lines[index]},
                metadata={key: value for key, value in segment.items() if key not in _USED},
                where=where,
            )
        )
    return make_listing(LAYOUT.name, root, utterances, problems)


_USED = frozenset({"duration", "offset", "speaker_id", "wav"})


def fairseq_ids(segments: list[Segment]) -> list[str]:
    """ "<wav stem>_<i>" as fairseq counts: i is the rank of the offset within the wav, compared as text.

    fairseq reads the yaml with BaseLoader, which leaves numbers as text, and sorts by it: "10.5" comes before "9.5".
    """
    by_wav: defaultdict[str, list[int]] = defaultdict(list)
    for index, segment in enumerate(segments):
        by_wav[segment.get("wav", "")].append(index)
    ids = [""] * len(segments)
    for wav, indices in by_wav.items():
        if wav:
            stem = os.path.splitext(os.path.basename(wav))[0]
            for rank, index in enumerate(sorted(indices, key=lambda index: segments[index].get("offset", ""))):
                ids[index] = f"{stem}_{rank}"
    return ids


def read_segments(path: Path) -> list[Segment]:
    """The yaml list with every value as text.

    A YAML parser takes 0.1 ms an entry, 25 s for MuST-C's train; the corpus writes "- {key: value, ...}" on each
    line, so those are split at their commas, and any other form goes to the parser.
    """
    text = read_text(path)
    entries = [_PLAIN_ENTRY.fullmatch(line) for line in text.split("\n") if line.strip()]
    if entries and all(entries):
        pairs = [[pair.partition(": ") for pair in entry[1].split(", ")] for entry in entries if entry]
        if all(middle and key and value.strip() for entry in pairs for key, middle, value in entry):
            return [{key.strip(): value.strip() for key, _, value in entry} for entry in pairs]
    return _parse_yaml(path, text)


def _parse_yaml(path: Path, text: str) -> list[Segment]:
    import yaml

    try:
        # Base loaders build text, lists and dictionaries and nothing else, so they are as safe as the safe ones.
        entries = yaml.load(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    except (yaml.YAMLError, UnicodeError) as error:
        raise CorpusError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CorpusError(f"{path}: expected a list of {{duration, offset, speaker_id, wav}}, one a segment")
    return [{str(key): str(value) for key, value in entry.items()} for entry in entries]


def _languages(root: Path, name: str) -> list[str]:
    endings = [file.removeprefix(f"{name}.") for file in file_names(root / "txt") if file.startswith(f"{name}.")]
    return [ending for ending in endings if re.fullmatch(r"[a-z]{2,3}", ending)]


def _aligned(path: Path, count: int) -> list[str]:
    """Lines stripped as fairseq does; one a segment, or nothing can be said about which belongs to which."""
    lines = read_text(path).removesuffix("\n").replace("\r\n", "\n").split("\n")
    if len(lines) != count:
        raise CorpusError(
            f"{path} has {len(lines)} lines and the yaml beside it {count} segments: "
            "they must align line by line; unpack the corpus again"
        )
    return [line.strip() for line in lines]


def _find(data: Path, split: str) -> Path | None:
    pair, _, name = split.rpartition("/")
    found = [folder for folder in _split_folders(data, name) if not pair or folder.parent.parent.name == pair]
    if not found and (folder := split_folder(data, split)) and (folder / "txt" / f"{split}.yaml").is_file():
        found = [folder]
    if len(found) > 1:
        pairs = [f"{folder.parent.parent.name}/{name}" for folder in found]
        if len(set(pairs)) == len(pairs):
            raise CorpusError(
                f"split {split!r} is there for {len(found)} language pairs: choose with --split {' or '.join(pairs)}"
            )
        raise CorpusError(
            f"split {split!r} is there more than once: {', '.join(map(str, found))}; "
            "choose with --data, up to the language pair"
        )
    return found[0] if found else None


def _pair_folders(data: Path) -> list[Path]:
    """The language pairs at DATA: DATA itself, folders in it, folders in those (MUSTC_v1.0/en-de)."""
    folders = [data] if (data / "data").is_dir() else []
    for name in subfolders(data):
        folders.append(data / name)
        if not _PAIR.fullmatch(name):
            folders += [data / name / inner for inner in subfolders(data / name) if _PAIR.fullmatch(inner)]
    return [folder for folder in folders if folder == data or _PAIR.fullmatch(folder.name)]


def _split_folders(data: Path, name: str) -> list[Path]:
    folders = [folder / "data" / name for folder in _pair_folders(data)]
    return [folder for folder in folders if (folder / "txt" / f"{name}.yaml").is_file()]


def _splits(data: Path) -> set[str]:
    pairs = _pair_folders(data)
    found = [(pair.name, name) for pair in pairs for name in subfolders(pair / "data") if _split_folders(pair, name)]
    return {name if len(pairs) == 1 else f"{pair}/{name}" for pair, name in found}


LAYOUT = Layout(
    name="mustc",
    marks=("en-XX/data/{split}/txt/{split}.yaml",),
    find=_find,
    splits=_splits,
    read=list_mustc,
)
