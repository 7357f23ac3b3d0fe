"""Manifests: JSON lines, CSV or TSV with one utterance a row, NeMo's key names included.

NeMo's format: https://docs.nvidia.com/nemo-framework/user-guide/latest/nemotoolkit/asr/datasets.html
"""

from pathlib import Path

from .base import CorpusError, Listing, Problem, Utterance
from .layout import Layout, file_names, make_listing, split_folder
from .rows import RowError, derived_ids, row_utterance
from .tables import csv_rows, json_rows, tsv_rows

_READERS = {".jsonl": json_rows, ".json": json_rows, ".csv": csv_rows, ".tsv": tsv_rows}
SUFFIXES = tuple(suffix + packed for suffix in _READERS for packed in ("", ".gz"))


def list_manifest(path: Path, split: str = "") -> Listing:
    """Rows in the order of the file. Relative audio paths are relative to the folder of the manifest."""
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind not in _READERS:
        raise CorpusError(f"{path} is no manifest: expected a name that ends in {', '.join(SUFFIXES)}")
    problems: list[Problem] = []
    rows = list(_READERS[kind](path, problems))
    nameless = [row for _, row in rows if "id" not in row]
    ids = iter(derived_ids(nameless))
    utterances: list[Utterance] = []
    folder = str(path.parent)
    for number, row in rows:
        where = f"{path.name}:{number}"
        id = None if "id" in row else next(ids)
        try:
            utterances.append(row_utterance(row, id, folder, where))
        except RowError as error:
            problems.append(Problem(id or "", str(error), where))
    return make_listing(LAYOUT.name, path, utterances, problems)


def _find(data: Path, split: str) -> Path | None:
    if data.is_file():
        return data if data.name.endswith(SUFFIXES) else None
    names = [data / f"{split}{suffix}" for suffix in SUFFIXES]
    folder = split_folder(data, split)
    if folder is not None:
        names += [folder / f"manifest{suffix}" for suffix in SUFFIXES]
    found = [path for path in names if path.is_file()]
    if len(found) > 1:
        raise CorpusError(
            f"split {split!r} has {len(found)} manifests: {', '.join(map(str, found))}; "
            "give the one you mean with --data FILE"
        )
    return found[0] if found else None


def _splits(data: Path) -> set[str]:
    stems = {name.removesuffix(".gz").rpartition(".")[0] for name in file_names(data) if name.endswith(SUFFIXES)}
    return stems - {"manifest"}


LAYOUT = Layout(
    name="manifest",
    marks=("{split}.jsonl (.csv, .tsv, .jsonl.gz)", "{split}/manifest.jsonl"),
    find=_find,
    splits=_splits,
    read=list_manifest,
)
