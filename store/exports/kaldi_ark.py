"""kaldi: feats.ark and feats.scp, text, utt2spk, spk2utt, utt2num_frames, utt2dur, sorted as Kaldi sorts (bytes).

Kaldi's matrices are float32; codes of one codebook are int32 vectors. Its names hold no white space: there it is percent-encoded.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
from encodeonce.store.errors import StoreError
from encodeonce.store.exports.base import Export
from encodeonce.store.extras import extra


def write(export: Export) -> list[str]:
    """Write a Kaldi data folder; feats.scp names the archive by its full path."""
    codes = export.output.dtype == "uint16"
    if export.dtype == np.float16:
        raise StoreError("Kaldi has no float16; leave the dtype out, and float32 is written")
    if codes and export.output.width > 1:
        raise StoreError(
            f"Kaldi has no integer matrices for the {export.output.width} codebooks of {export.output.name}; export npy"
        )
    with extra("export"):
        import kaldiio

    places, frames, durations, texts, speakers = {}, {}, {}, {}, {}
    encoded = 0
    with open(export.folder / "feats.ark", "wb") as archive:
        for record, values in export.utterances():
            key = kaldi_name(record["id"])
            encoded += key != record["id"]
            places[key] = f"{export.target / 'feats.ark'}:{archive.tell() + len(key.encode()) + 1}"
            kaldiio.save_ark(archive, {key: values[:, 0].astype(np.int32) if codes else values.astype(np.float32)})
            frames[key], durations[key] = record["frames"], round(record["duration"], 6)
            speakers[key] = kaldi_name(record["speaker"] or record["id"])
            if record["text"] is not None:
                texts[key] = " ".join(record["text"].split())
    tables = {"feats.scp": places, "utt2num_frames": frames, "utt2dur": durations, "utt2spk": speakers, "text": texts}
    for name, table in tables.items():
        if table:
            _write_table(export.folder / name, table)
    spoken = defaultdict(list)
    for key in sorted(speakers, key=str.encode):
        spoken[speakers[key]].append(key)
    _write_table(export.folder / "spk2utt", {speaker: " ".join(keys) for speaker, keys in spoken.items()})
    return _notes(encoded, speakers)


def kaldi_name(name: str) -> str:
    """An id without white space: that and '%' percent-encoded."""
    return re.sub(r"[\s%]", lambda found: quote(found[0], safe=""), name)


def _write_table(path: Path, table: Mapping[str, object]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for key in sorted(table, key=str.encode):
            file.write(f"{key} {table[key]}".rstrip() + "\n")


def _notes(encoded: int, speakers: Mapping[str, str]) -> list[str]:
    """What Kaldi's user should know of names."""
    notes = []
    if encoded:
        notes.append(f"white space and '%' in ids are percent-encoded in Kaldi's tables (here in {encoded} of them)")
    in_order = [speakers[key].encode() for key in sorted(speakers, key=str.encode)]
    if in_order != sorted(in_order):
        notes.append(
            "ids do not begin with their speakers, so utils/validate_data_dir.sh complains of the order of utt2spk"
        )
    return notes
