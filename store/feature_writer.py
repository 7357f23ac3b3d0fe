"""FeatureWriter: a store of features that somebody else's code makes, with the guarantees that extraction gives."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from encodeonce.store.errors import StoreError
from encodeonce.store.filling import Features, Filling, WriteReport, versions
from encodeonce.store.format import FORMAT_VERSION
from encodeonce.store.identity import canonical_json
from encodeonce.store.incoming import NewUtterance, by_id, checked_outputs
from encodeonce.store.layout import SET_FILE, FeatureSet, Output, SplitAttributes, read_feature_set, set_folder
from encodeonce.store.objects import StorePath, store_path
from encodeonce.store.plan import aligned, shard_frames_for
from encodeonce.store.writer import SplitWriter

LEAST_SHARD_SECONDS = 600
"""A shard has room for at least this much audio, so that later, longer utterances fit."""


class FeatureWriter:
    """Writes one split of a feature set. What stands is kept, what a killed run left is finished, what is new is appended.

    Args:
        store: the folder of the store, or its URL.
        encoder: the name of what made the features; part of the identity, and how readers find them.
        split: the name of the split.
        outputs: what every utterance has, all with the same frames; dtypes float16, float32, int8 or uint16.
        identity: whatever decides the values (weights, code, options), as JSON. Another identity is another feature set.
        sample_rate: samples a second of the audio that the encoder saw.
        samples_per_frame: sample_rate / samples_per_frame is the frame rate.
        shard_frames: rows of a shard of a new split, rounded up to a multiple of 64; by default about 128 MB.
        provenance: what a new feature set shall say of where it is from, as JSON; no part of the identity.

    Raises:
        StoreError: a name, dtype or identity that cannot be stored, or an output that stands in the set and differs.
    """

    def __init__(
        self,
        store: str | StorePath,
        encoder: str,
        split: str,
        outputs: Iterable[Output],
        identity: Mapping[str, Any],
        sample_rate: int,
        samples_per_frame: int,
        shard_frames: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.outputs = checked_outputs(outputs)
        whole = {
            "format_version": FORMAT_VERSION,
            "encoder": encoder,
            "sample_rate": sample_rate,
            "samples_per_frame": samples_per_frame,
            "identity": dict(identity),
        }
        try:
            whole = json.loads(canonical_json(whole))
        except (TypeError, ValueError) as error:
            raise StoreError(f"identity of {encoder!r} is no plain JSON: {error}; give texts and numbers") from error
        if sample_rate < 1 or samples_per_frame < 1:
            raise StoreError(f"sample_rate {sample_rate}, samples_per_frame {samples_per_frame}: take 1 or more")
        folder = set_folder(store_path(store), encoder, whole)
        said = {"written_by": "FeatureWriter", **(provenance or {}), "versions": versions()}
        standing = read_feature_set(folder) if (folder / SET_FILE).exists() else None
        self.feature_set = standing or FeatureSet(folder, encoder, whole, {}, said)
        for name, output in self.outputs.items():
            if (there := self.feature_set.outputs.get(name, output)) != output:
                raise StoreError(f"{folder} has {there}, which is not {output}; give the output another name")
        self.path = self.feature_set.split_folder(split)
        self._least, self._wanted = LEAST_SHARD_SECONDS * sample_rate // samples_per_frame, shard_frames
        self.attributes = SplitAttributes(
            self.feature_set.fingerprint, encoder, split, sample_rate, samples_per_frame, self.shard_frames([1])
        )

    def shard_frames(self, frames: list[int]) -> int:
        """Rows of the shards of a new split, given the frames of the utterances it begins with."""
        if self._wanted is not None:
            return max(aligned(self._wanted), *map(aligned, frames))
        row_bytes = max(output.width * np.dtype(output.dtype).itemsize for output in self.outputs.values())
        return shard_frames_for(row_bytes, frames, self._least)

    def write(self, utterances: Iterable[NewUtterance], features: Features, replace: bool = False) -> WriteReport:
        """Bring the split up to date with the utterances; `features(id)` is asked for what is missing, shard by shard.

        It is asked in the order of the plan, and memory holds a shard. An utterance whose features cannot be stored (NaN,
        beyond the dtype's range, another number of frames) is a named failure in the report and in failures.jsonl, tried
        again by the next call; an exception from `features` ends the call, and every finished shard is kept.

        Args:
            utterances: what the split shall hold; utterances that stand and are not among them stay.
            replace: store anew what stands with other frames or other audio; by default that is a named failure.

        Raises:
            StoreError: an id twice, features of the wrong width or dtype, an output of the split that is not written.
        """
        listed = by_id(utterances)
        with SplitWriter(self.path, self.attributes) as writer:
            return Filling(writer, self.feature_set, self.outputs, self.shard_frames, listed, features, replace).run()
