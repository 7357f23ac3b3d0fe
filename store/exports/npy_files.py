"""npy: a .npy file an utterance, and utterances.jsonl with NeMo's keys (audio_filepath, duration, text)."""

import json

import numpy as np
from encodeonce.store.exports.base import Export, descriptions, file_stem


def write(export: Export) -> list[str]:
    """Write `<stem>.npy` `[T, D]` for each utterance, and the manifest; `features` in it is relative to it."""
    with open(export.folder / "utterances.jsonl", "w", encoding="utf-8") as manifest:
        for record, values in export.utterances():
            name = f"{file_stem(record['id'])}.npy"
            np.save(export.folder / name, values, allow_pickle=False)
            line = {
                "audio_filepath": record["audio"],
                "duration": record["duration"],
                "text": record["text"],
                "id": record["id"],
                "features": name,
                "frames": record["frames"],
                **descriptions(record),
            }
            manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
    return []
