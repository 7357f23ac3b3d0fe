"""A small store of every dtype, written by our public writer, and its features as plain arrays."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from encodeonce.store import FeatureStore
from encodeonce.store.feature_writer import FeatureWriter
from encodeonce.store.incoming import NewUtterance
from encodeonce.store.layout import Output

OUTPUTS = [
    Output("layer-9", 32, "float16", "hidden_states[9]"),
    Output("layer-9-float32", 32, "float32", "hidden_states[9]"),
    Output("layer-9-int8", 32, "int8", "hidden_states[9]"),
    Output("codes", 4, "uint16", "codes of 4 quantizers"),
    Output("units", 1, "uint16", "k-means"),
]
NAMES = {f"anna-{i:02d}": 20 + 13 * i for i in range(6)} | {"bert/a b.c": 64, "bert-ü": 1, "bert-3": 150}
"""Utterances and their frames."""
CONSTANT = 5
"""A dimension that never changes."""


def features(name: str, frames: int) -> dict[str, np.ndarray]:
    """Every output of an utterance: a function of its name."""
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]))
    values = generator.standard_normal((frames, 32)).astype(np.float32) * np.arange(1, 33, dtype=np.float32) + 3
    values[:, CONSTANT] = 0.25
    codes = generator.integers(0, 40, (frames, 4)).astype(np.uint16)
    floats = {output.name: values for output in OUTPUTS[:3]}
    return {**floats, "codes": codes, "units": codes[:, :1]}


def with_another_split(store: FeatureStore) -> FeatureStore:
    """A store and another split of its feature set, as one."""
    return FeatureStore.concat([store, write_store(Path(str(store.path)).parents[1], "test", prefix="test-")])


def write_store(folder: Path, split: str = "dev", names: Mapping[str, int] = NAMES, prefix: str = "") -> FeatureStore:
    """A store of several shards, the default output layer-9 float16."""
    writer = FeatureWriter(folder, "toy", split, OUTPUTS, {"weights": "1"}, 16_000, 320, shard_frames=256)
    lengths = {prefix + name: frames for name, frames in names.items()}
    utterances = [
        NewUtterance(
            name,
            frames,
            samples=frames * 320 + 170,
            text=None if name.endswith("3") else f"words of\n{name}",
            speaker=name.removeprefix(prefix)[:4],
            language="en",
            translations={"de": f"Worte von {name}"},
            metadata={"number": frames},
        )
        for name, frames in lengths.items()
    ]
    report = writer.write(utterances, lambda name: features(name, lengths[name]))
    assert not report.failed
    return FeatureStore(writer.path)
