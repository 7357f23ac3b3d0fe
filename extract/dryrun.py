"""What a run would do, how large it would get, how long it would take and what that costs, without writing anything."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from encodeonce.extract.batching import batches
from encodeonce.extract.corpora import list_corpus
from encodeonce.extract.run import Run
from encodeonce.extract.survey import Survey, describe, survey
from encodeonce.store.derive.chain import chain_of
from encodeonce.store.format import BLOCK, index_bytes
from encodeonce.store.layout import Output, SplitAttributes
from encodeonce.store.plan import Place, deal
from encodeonce.store.table import record_of
from encodeonce.store.writer import SplitWriter

NPY_HEADER = 128
"""Bytes of the header of a .npy member."""


@dataclass
class Estimate:
    """What --dry-run foretells for a split. Bytes are those of the shards that would be added, hours and hours_to_encode
    are of audio, expected_hours of the run; cost is that of these, where the price of an hour was given."""

    split: str
    store: str
    utterances: int
    hours: float
    to_encode: int
    hours_to_encode: float
    bytes: int
    expected_seconds: float
    expected_hours: float
    failed: int
    cost: float | None = None


@dataclass(frozen=True)
class ShardToMake:
    """A shard that the run would make, or that it would add outputs to."""

    places: Sequence[Place]
    outputs: Sequence[Output]


def estimate(run: Run, split: str, price: float | None = None) -> Estimate:
    """Survey a split, and time the encoder on a sample of what it would encode.

    Args:
        price: of an hour of what one rank computes on.
    """
    listing = list_corpus(run.request.data, split, run.request.corpus)
    path = run.split_folder(split)
    writer = SplitWriter.look(path, run.attributes(split))
    found = survey(run, listing, writer)
    rate = run.encoder.sample_rate
    attributes, shards = shards_to_make(run, found, writer)
    root = listing.root if listing.root.is_dir() else listing.root.parent
    described = {name: describe(utterance, root) for name, utterance in found.utterances.items()}
    todo = {place.id: place.samples for shard in shards for place in shard.places if place.id in found.utterances}
    known = {p.id: p.samples for plan in writer.plans for p in plan.places} | {name: n for name, n, _ in found.new}
    size = 0
    for shard in shards:
        places = [place for place in shard.places if place.id in described]
        records = [_json_bytes(record_of(place, "0" * 64, rate, described[place.id])) for place in places]
        size += sum(shard_bytes(output, [p.frames for p in places], records, attributes) for output in shard.outputs)
    ranks = run.member.world_size if run.member else 1
    seconds = expected_seconds(run, found, shards) / ranks if todo else 0.0
    return Estimate(
        split=split,
        store=str(path),
        utterances=len(found.considered) + len(found.problems),
        hours=round(sum(known.get(name, 0) for name in found.considered) / rate / 3600, 4),
        to_encode=len(todo),
        hours_to_encode=round(sum(todo.values()) / rate / 3600, 4),
        bytes=size,
        expected_seconds=round(seconds, 1),
        expected_hours=round(seconds / 3600, 4),
        failed=len(found.failed) + len(found.problems),
        cost=None if price is None else round(seconds / 3600 * ranks * price, 6),
    )


def shards_to_make(run: Run, found: Survey, writer: SplitWriter) -> tuple[SplitAttributes, list[ShardToMake]]:
    """The shards that a run would make or add to, and the attributes of the split by then; nothing is written."""
    outputs = {**writer.outputs, **run.outputs}
    attributes = writer.attributes
    if found.new and not writer.plans:
        attributes = replace(attributes, shard_frames=run.shard_frames([frames for _, _, frames in found.new]))
    shards = []
    for shard, places in sorted(writer.places.items()):
        commit = writer.commits.get(shard)
        lacking = [output for name, output in outputs.items() if commit is None or name not in commit.outputs]
        present = places if commit is None else writer.present(shard, places)
        if present and lacking:
            shards.append(ShardToMake(present, lacking))
    number = writer.plans[-1].number + 1 if writer.plans else 0
    first = max((place.shard for plan in writer.plans for place in plan.places), default=-1) + 1
    fitting = [one for one in found.new if one[2] <= attributes.shard_frames]
    dealt: dict[int, list[Place]] = {}
    for place in deal(fitting, attributes.shard_frames, first, number):
        dealt.setdefault(place.shard, []).append(place)
    return attributes, [*shards, *(ShardToMake(places, list(outputs.values())) for places in dealt.values())]


def shard_bytes(output: Output, frames: Sequence[int], records: Sequence[int], attributes: SplitAttributes) -> int:
    """The size of one shard of an output, its scales included, as `store.format.pack_shard` lays it out.

    Args:
        frames: of each utterance.
        records: bytes of the JSON member of each.
    """
    if not frames:
        return 0
    chunk = attributes.chunk_frames(output.width)
    frame_bytes = output.width * np.dtype(output.dtype).itemsize
    index = index_bytes(attributes.shard_frames // chunk)
    size = sum(_member(NPY_HEADER + n * frame_bytes) for n in frames) + sum(map(_member, records)) + 2 * BLOCK + index
    size += sum(chunk * frame_bytes for n in frames if n % chunk)
    if output.dtype == "int8":
        scales = 2 * output.width * 4
        size += len(frames) * (_member(NPY_HEADER + scales) + scales) + index
    return size


def _member(size: int) -> int:
    """What a file of so many bytes takes up in a tar."""
    return BLOCK + -(-size // BLOCK) * BLOCK


def _json_bytes(record: dict) -> int:
    return len(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode())


def expected_seconds(run: Run, found: Survey, shards: Iterable[ShardToMake]) -> float:
    """Seconds that all of it would take here, by the speed on some of its own batches; 0 where they hold no audio."""
    from encodeonce.extract.calibrate import times_real_time

    limit, pads_to, mixes = run.batch_samples(), run.encoder.pads_to, run.encoder.mixes_lengths
    groups: list[list[str]] = []
    samples, outputs = 0, {}
    for shard in shards:
        places = [place for place in shard.places if place.id in found.utterances]
        samples += sum(place.samples for place in places)
        outputs |= {output.name: output for output in shard.outputs}
        lengths = [max(place.samples, pads_to) for place in places]
        groups += [[places[i].id for i in positions] for positions in batches(lengths, limit, mixes)]
    given = {output.what: output for output in chain_of(run.feature_set, outputs.values()).given}
    speed = times_real_time(run, list(given.values()), groups, found.utterances)
    return samples / run.encoder.sample_rate / speed if speed else 0.0
