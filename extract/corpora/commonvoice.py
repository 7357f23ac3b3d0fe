"""Common Voice (SPLIT.tsv beside clips/) and CoVoST 2 (covost_v2.SRC_TGT.SPLIT.tsv beside the same clips/).

Common Voice writes plain tab-separated cells without quoting (https://github.com/common-voice/cv-dataset). CoVoST 2
escapes with a backslash, as in its get_covost_splits.py (https://github.com/facebookresearch/covost).
"""

import csv
import os
import re
from pathlib import Path
from typing import NamedTuple

from .base import CorpusError, Listing, Problem, Scalar, Utterance
from .layout import Layout, file_names, make_listing, subfolders
from .textfiles import first_lines, read_lines

_COVOST = re.compile(r"covost(?:_v\d+)?\.(?P<source>[A-Za-z-]+)_(?P<target>[A-Za-z-]+)(?:\.(?P<split>.+))?\.tsv")
_COVOST_SPLITS = ("train", "dev", "test")
_USED = frozenset({"path", "client_id", "sentence", "locale", "translation"})


class _Table(NamedTuple):
    header: list[str]
    rows: list[tuple[str, dict[str, str]]]
    problems: list[Problem]


def list_commonvoice(path: Path, split: str = "") -> Listing:
    """Clips in the order of the TSV file `path`; `split` chooses in a CoVoST file that holds them all."""
    covost = _COVOST.fullmatch(path.name)
    table = _read_table(path, escaped=covost is not None)
    sentences: dict[str, dict[str, str]] | None = None
    if covost and not covost["split"] and "sentence" not in table.header:
        sentences = _sentences(path.with_name("validated.tsv"))
    utterances: list[Utterance] = []
    problems = table.problems
    for where, row in table.rows:
        if covost and not covost["split"] and not _in_split(row.get("split", ""), split):
            continue
        clip = row.get("path", "")
        id = os.path.splitext(clip)[0]
        if sentences is not None:
            if clip not in sentences:
                problems.append(Problem(id, f"clip {clip!r} does not stand in validated.tsv beside {path.name}", where))
                continue
            row = sentences[clip] | row
        if not clip:
            problems.append(Problem("", "no clip: the column 'path' is empty", where))
            continue
        metadata: dict[str, Scalar] = {key: value or None for key, value in row.items() if key not in _USED}
        translation = row.get("translation", "").strip()
        utterances.append(
            Utterance(
                id=id,
                # The first releases wrote clip names without their extension.
                audio=Path(f"{path.parent}/clips/{clip if id != clip else clip + '.mp3'}"),
                text=row.get("sentence", "").strip() or None,
                speaker=row.get("client_id") or None,
                language=row.get("locale") or (covost["source"] if covost else None),
                translations={covost["target"]: translation} if covost and translation else {},
                metadata=metadata,
                where=where,
            )
        )
    return make_listing(LAYOUT.name, path, utterances, problems)


def _in_split(value: str, split: str) -> bool:
    """CoVoST's own rule: its train is Common Voice's train and the clips that CoVoST added to it."""
    wanted = split.rpartition("/")[2]
    return value == wanted or (wanted == "train" and value == "train_covost")


def _sentences(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        raise CorpusError(
            f"no {path}: CoVoST's own file has translations only; put Common Voice's validated.tsv beside it, "
            "or make the files of the splits with CoVoST's get_covost_splits.py"
        )
    keys = ("sentence", "client_id")
    rows = _read_table(path, escaped=True).rows
    return {row["path"]: {key: row.get(key, "") for key in keys} for _, row in rows if row.get("path")}


def _read_table(path: Path, escaped: bool) -> _Table:
    problems: list[Problem] = []
    header: list[str] = []
    rows: list[tuple[str, dict[str, str]]] = []
    for number, line in read_lines(path, problems):
        where = f"{path.name}:{number}"
        cells = line.split("\t")
        if escaped and "\\" in line:
            cells = next(csv.reader([line], delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\"))
        if not header:
            header = cells
            if "path" not in header:
                raise CorpusError(f"{path}: no column 'path' in the header; found {', '.join(map(repr, header))}")
        elif len(cells) == len(header):
            rows.append((where, dict(zip(header, cells, strict=True))))
        else:
            problems.append(Problem("", f"{len(cells)} columns where the header has {len(header)}", where))
    return _Table(header, rows, problems)


def _is_table(path: Path) -> bool:
    if path.suffix != ".tsv":
        return False
    columns = set("".join(first_lines(path)).split("\t"))
    if _COVOST.fullmatch(path.name):
        return {"path", "translation"} <= columns
    return {"client_id", "path", "sentence"} <= columns


def _find(data: Path, split: str) -> Path | None:
    if data.is_file():
        return data if _is_table(data) else None
    found = _tables(data, split)
    if not found and "/" not in split:
        found = [path for name in _languages(data) for path in _tables(data / name, split)]
    if len(found) > 1:
        names = [str(path.relative_to(data).with_suffix("")) for path in found]
        way_out = f"choose with --split {' or '.join(names)}"
        if any(match and not match["split"] for match in map(_COVOST.fullmatch, (path.name for path in found))):
            way_out = "give the file you mean with --data FILE"
        raise CorpusError(f"split {split!r} is in {len(found)} tables: {', '.join(map(str, found))}; {way_out}")
    return found[0] if found else None


def _languages(data: Path) -> list[str]:
    """Folders of a release that holds several languages, each with its clips."""
    return [name for name in subfolders(data) if (data / name / "clips").is_dir()]


def _tables(data: Path, split: str) -> list[Path]:
    """SPLIT.tsv itself, or else CoVoST's files of that split, or else CoVoST's files of all splits."""
    exact = data / f"{split}.tsv"
    if exact.is_file():
        return [exact] if _is_table(exact) else []
    folder, name = exact.parent, exact.name.removesuffix(".tsv")
    matches = [match for match in map(_COVOST.fullmatch, file_names(folder)) if match]
    named = [match for match in matches if match["split"] == name]
    whole = [match for match in matches if match["split"] is None and name in _COVOST_SPLITS]
    return [folder / match[0] for match in named or whole if _is_table(folder / match[0])]


def _splits(data: Path) -> set[str]:
    found = set()
    for inside in ("", *(f"{name}/" for name in _languages(data))):
        names = [name for name in file_names(data / inside) if name.endswith(".tsv")]
        found |= {inside + name.removesuffix(".tsv") for name in names if _is_table(data / inside / name)}
    return found


LAYOUT = Layout(
    name="commonvoice",
    marks=("{split}.tsv (client_id, path, sentence)", "covost_v2.SRC_TGT.{split}.tsv"),
    find=_find,
    splits=_splits,
    read=list_commonvoice,
)
