"""lhotse: cuts with supervisions and features, without recordings; the features as lhotse's own numpy files.

A cut lasts frames x frame_shift, as lhotse demands of features; the length of the audio is in its field `audio_duration`.
"""

import numpy as np
from encodeonce.store.exports.base import Export, descriptions, file_stem
from encodeonce.store.extras import extra


def write(export: Export) -> list[str]:
    """Write `cuts.jsonl.gz` and `features/`; the cuts name the features by their full path."""
    with extra("export"):
        from lhotse import CutSet, Features, MonoCut, SupervisionSegment
        from lhotse.features.io import NumpyFilesWriter

    attributes = export.store.parts[0].attributes
    frame_shift = attributes.samples_per_frame / attributes.sample_rate
    storage = NumpyFilesWriter(export.folder / "features")
    with CutSet.open_writer(export.folder / "cuts.jsonl.gz") as cuts:
        for record, values in export.utterances():
            name, frames, width = record["id"], *values.shape
            duration = round(frames * frame_shift, 8)  # as many digits as lhotse keeps
            features = Features(
                type=export.output.name,
                num_frames=frames,
                num_features=width,
                frame_shift=frame_shift,
                sampling_rate=attributes.sample_rate,
                start=0.0,
                duration=duration,
                storage_type=storage.name,
                storage_path=str(export.target / "features"),
                storage_key=storage.write(file_stem(name), np.ascontiguousarray(values)),
                recording_id=name,
                channels=0,
            )
            supervision = SupervisionSegment(
                id=name,
                recording_id=name,
                start=0.0,
                duration=duration,
                channel=0,
                text=record["text"],
                language=record["language"],
                speaker=record["speaker"],
            )
            facts = {"audio": record["audio"], "audio_duration": record["duration"], **descriptions(record)}
            cuts.write(
                MonoCut(
                    id=name,
                    start=0.0,
                    duration=duration,
                    channel=0,
                    supervisions=[supervision],
                    features=features,
                    custom={k: v for k, v in facts.items() if v is not None and k not in ("speaker", "language")},
                )
            )
    return []
