"""Audio that another split of the feature set holds already: its stored features are copied, not computed."""

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
from encodeonce.extract.progress import Progress
from encodeonce.store.commits import Commit, read_commits
from encodeonce.store.derive.chain import Stored
from encodeonce.store.errors import StoreError
from encodeonce.store.health import check_shard
from encodeonce.store.layout import Output, SplitPaths
from encodeonce.store.noise import Snr, of_shard
from encodeonce.store.objects import StorePath
from encodeonce.store.reader import FeatureStore


class Copies:
    """Looks audio up in the splits that stood when a plan was made. Several threads may ask at the same time."""

    def __init__(self, feature_set: StorePath, copy_from: Mapping[int, Mapping[str, int]], progress: Progress) -> None:
        self._set, self._copy_from, self._progress = feature_set, copy_from, progress
        self._stores: dict[str, tuple[FeatureStore | None, dict[str, dict[str, Any]]]] = {}
        self._sounds: dict[tuple[str, int, str], bool] = {}
        self._records: dict[tuple[str, int], Commit] = {}
        self._lock = Lock()

    def find(self, digest: str, plan: int, outputs: Sequence[Output]) -> Mapping[str, Stored] | None:
        """The stored features of the same audio, as an encoder gave them, in a split that stood when the plan was made.

        Their signal-to-noise ratio is that of the shard they lie in: utterance by utterance it is not kept.
        """
        for split, shards in self._copy_from[plan].items():
            store, rows = self._source(split)
            row = rows.get(digest)
            if store is None or row is None or row["shard"] >= shards:
                continue
            at = np.array([row["index"]])
            if all(
                output.name in store.outputs and self._sound(split, row["shard"], output.name) for output in outputs
            ):
                return {
                    o.name: (
                        store.views(at, o.name)[0],
                        store.affines(at, o.name)[0] if o.dtype == "int8" else None,
                        self._snr(split, row["shard"], o.name),
                    )
                    for o in outputs
                }
        return None

    def _sound(self, split: str, shard: int, output: str) -> bool:
        """Whether a shard of another split holds an output, every byte as recorded: damage is not copied."""
        with self._lock:
            key = (split, shard, output)
            if key not in self._sounds:
                path = self._set / split
                findings = check_shard(SplitPaths(path), shard, output)
                self._sounds[key] = findings is not None and not findings
                for finding in findings or ():
                    self._progress.say(
                        f"Not copied from {finding.path}: expected {finding.expected}, found {finding.found}"
                    )
            return self._sounds[key]

    def _snr(self, split: str, shard: int, output: str) -> Snr | None:
        with self._lock:
            key = (split, shard)
            if key not in self._records:
                self._records[key] = read_commits(SplitPaths(self._set / split), [shard])[shard]
            snr = of_shard(self._records[key], output)
            return snr and snr.of_one

    def _source(self, split: str) -> tuple[FeatureStore | None, dict[str, dict[str, Any]]]:
        with self._lock:
            if split not in self._stores:
                rows: dict[str, dict[str, Any]] = {}
                try:
                    store = FeatureStore(self._set / split)
                except StoreError as error:
                    self._progress.say(f"Nothing is copied from {split}: {error}")
                    store = None
                else:
                    for index, row in enumerate(store.table.select(["audio_sha256", "shard"]).to_pylist()):
                        # The first stays: later ones may be newer than the plan.
                        rows.setdefault(row["audio_sha256"], {"index": index, "shard": row["shard"]})
                self._stores[split] = store, rows
            return self._stores[split]
