"""Shards that another process wrote: adopted, they are what the holder itself would have written."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import contents
from encodeonce.store.errors import StoreError
from encodeonce.store.format import ShardItem
from encodeonce.store.layout import Output, SplitAttributes
from encodeonce.store.objects import ObjectPath, StorePath
from encodeonce.store.plan import Place
from encodeonce.store.quantize import keep
from encodeonce.store.staging import Staged, stage
from encodeonce.store.table import record_of
from encodeonce.store.writer import SplitWriter

OUTPUTS = {
    "layer": Output("layer", 32, "float16", "hidden_states[1]"),
    "layer-int8": Output("layer-int8", 32, "int8", "hidden_states[1]"),
}
ATTRIBUTES = SplitAttributes("0" * 64, "toy", "dev", 16_000, 320, 256)
FRAMES = {f"utt-{number}": 40 + 17 * number for number in range(8)}
SAID = dict.fromkeys(("audio", "offset", "channel", "speaker", "language", "text")) | {
    "translations": {},
    "metadata": {},
}
MADE = {"by": "a test"}

Committer = Callable[[SplitWriter, int, int, dict[str, list[ShardItem]], dict[str, list[float]]], None]


def features(place: Place) -> tuple[dict[str, ShardItem], float]:
    """Every output of an utterance, and the noise of the int8 one."""
    values = np.random.default_rng(place.row).standard_normal((place.frames, 32)).astype(np.float32)
    record = record_of(place, "hash", 16_000, SAID)
    row, items, ratio = place.row % 256, {}, None
    for name, output in OUTPUTS.items():
        kept, affine, ratio = keep(values, output)
        items[name] = ShardItem(place.id, row, kept, record, affine)
    assert ratio is not None
    return items, ratio


def write(split: StorePath, commit: Committer) -> None:
    """A split of several shards, its shards committed by `commit`."""
    with SplitWriter(split, ATTRIBUTES) as writer:
        writer.begin(256)
        plan = writer.append_plan([(name, frames * 320, frames) for name, frames in FRAMES.items()], {})
        writer.open_outputs(OUTPUTS)
        assert len(writer.places) > 2
        for shard, places in writer.places.items():
            made = [features(place) for place in places]
            items = {name: [utterance[name] for utterance, _ in made] for name in OUTPUTS}
            commit(writer, shard, plan.number, items, {"layer-int8": [ratio for _, ratio in made]})
        writer.publish(OUTPUTS)


def committed(writer: SplitWriter, shard: int, plan: int, items: Any, noise: Any) -> None:
    writer.commit(shard, plan, [], items, OUTPUTS, noise, MADE)


def adopted(writer: SplitWriter, shard: int, plan: int, items: Any, noise: Any) -> None:
    folder = writer.paths.scratch / f"{shard}-attempt"
    staged: Staged = pickle.loads(pickle.dumps(stage(folder, shard, items, OUTPUTS, writer.attributes)))
    writer.adopt(folder, staged, plan, [], noise, MADE)
    assert not folder.exists()


def objects(split: ObjectPath) -> dict[str, bytes]:
    """Every object of a split but the records, which have their times."""
    found = {path.relative_to(split).as_posix(): path.read_bytes() for path in split.sizes_below()}
    return {name: data for name, data in found.items() if not name.startswith("commits/")}


def test_an_adopted_split_is_the_one_that_the_holder_itself_writes(tmp_path):
    write(tmp_path / "own", committed)
    write(tmp_path / "staged", adopted)
    assert contents(tmp_path / "staged") == contents(tmp_path / "own")
    assert any(name.startswith("features.zarr/layer-int8-affine/c/") for name in contents(tmp_path / "own"))


def test_an_adopted_split_in_an_object_store_too(memory):
    write(memory / "own", committed)
    write(memory / "staged", adopted)
    assert objects(memory / "staged") == objects(memory / "own")


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"cut")])
def test_what_is_not_as_it_was_staged_is_refused_and_nothing_counts(tmp_path, harm):
    def harmed(writer: SplitWriter, shard: int, plan: int, items: Any, noise: Any) -> None:
        folder = writer.paths.scratch / "attempt"
        staged = stage(folder, shard, items, OUTPUTS, writer.attributes)
        harm(folder / "layer-int8-affine" / "c" / str(shard) / "0" / "0")
        writer.adopt(folder, staged, plan, [], noise, MADE)

    with pytest.raises(StoreError, match="make the shard again"):
        write(tmp_path / "dev", harmed)
    assert not (tmp_path / "dev" / "commits").exists()
    assert not list((tmp_path / "dev" / "features.zarr").glob("*/c/*"))


def test_a_worker_that_is_late_harms_nothing(tmp_path):
    late: list[tuple[int, Any]] = []

    def twice(writer: SplitWriter, shard: int, plan: int, items: Any, noise: Any) -> None:
        adopted(writer, shard, plan, items, noise)
        late.append((shard, items))

    write(tmp_path / "own", committed)
    write(tmp_path / "dev", twice)
    for shard, items in late:
        stage(tmp_path / "dev" / ".tmp" / f"{shard}-late", shard, items, OUTPUTS, ATTRIBUTES)
    with SplitWriter(tmp_path / "dev", ATTRIBUTES) as writer:
        writer.publish(OUTPUTS)
    assert contents(tmp_path / "dev") == contents(tmp_path / "own")


def test_outputs_of_a_shard_that_do_not_have_the_same_utterances_are_refused_and_nothing_counts(tmp_path: Path):
    def commit(writer: SplitWriter, shard: int, plan: int, items: dict[str, list[ShardItem]], noise: Any) -> None:
        for wrong in ({**items, "layer": items["layer"][:-1]}, {}):
            with pytest.raises(ValueError, match="the same utterances"):
                writer.commit(shard, plan, [], wrong, OUTPUTS, noise, MADE)
            assert shard not in writer.commits
        writer.commit(shard, plan, [], items, OUTPUTS, noise, MADE)

    write(tmp_path / "dev", commit)
