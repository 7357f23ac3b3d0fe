"""Taking outputs away: out of splits, and out of the feature set once no split holds them."""

from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from encodeonce.store.derive.chain import sources_of
from encodeonce.store.derive.transforms import transform_path
from encodeonce.store.errors import StoreError
from encodeonce.store.files import sizes_below
from encodeonce.store.find import splits_at
from encodeonce.store.layout import FeatureSet, SplitPaths, read_attributes, read_feature_set
from encodeonce.store.locks import folder_lock
from encodeonce.store.objects import StorePath, name_below
from encodeonce.store.writer import SplitWriter


@dataclass(frozen=True, slots=True)
class Dropped:
    """What was taken out of a split, and the bytes that its files had."""

    split: str
    path: str
    outputs: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class DropReport:
    """What was taken out of a feature set; `forgotten` are the outputs that it does not list any more."""

    feature_set: str
    splits: tuple[Dropped, ...]
    forgotten: tuple[str, ...]


def drop_outputs(path: StorePath, names: Collection[str]) -> DropReport:
    """Take outputs out of a split, of all splits of a feature set, or of the one feature set of a store that holds them.

    The rows of utterances.parquet stay. Killed in between, every split is readable and whole, and the same call finishes it.

    Raises:
        StoreError: no such output here; others are derived from it; it is the last of a split; several feature sets hold it;
            a split of the feature set is being written. Nothing is taken away then.
        DamagedError: a split at `path` is not what its records say.
    """
    wanted = set(names)
    feature_set, splits = _set_at(path, wanted)
    freed = {split: {name: _bytes_of(SplitPaths(split), name) for name in sorted(wanted)} for split in splits}
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                # Of the others only the lock and the records are needed: damage there does not matter here.
                SplitWriter(split, read_attributes(SplitPaths(split).group), mending=split not in splits)
            )
            for split in feature_set.splits()
        }
        feature_set = read_feature_set(feature_set.path)
        _check(path, feature_set, {split: writers[split] for split in splits}, writers.values(), wanted)
        for split in splits:
            _drop_statistics(feature_set, split, wanted)
            writers[split].drop(wanted)
        forgotten = wanted - _held(writers.values())
        _forget(feature_set, forgotten)
    dropped = [
        Dropped(
            name_below(split, feature_set.path), str(split), tuple(n for n in sizes if sizes[n]), sum(sizes.values())
        )
        for split, sizes in freed.items()
        if any(sizes.values())
    ]
    return DropReport(str(feature_set.path), tuple(dropped), tuple(sorted(forgotten)))


def _set_at(path: StorePath, names: set[str]) -> tuple[FeatureSet, list[StorePath]]:
    """The feature set at a path, of several the one that lists any of some outputs, and its splits there."""
    found: dict[str, tuple[FeatureSet, list[StorePath]]] = {}
    for feature_set, split in splits_at(path):
        found.setdefault(str(feature_set.path), (feature_set, []))[1].append(split)
    if not found:
        raise StoreError(f"{path} holds no split, so there is no output to drop")
    holding = [one for one in found.values() if len(found) == 1 or names & one[0].outputs.keys()]
    if len(holding) > 1:
        folders = ", ".join(str(feature_set.path) for feature_set, _ in holding)
        raise StoreError(
            f"{path}: several feature sets hold {', '.join(sorted(names))} ({folders}); give the folder of one"
        )
    if not holding:
        there = sorted({name for feature_set, _ in found.values() for name in feature_set.outputs})
        raise _unknown(path, names, there)
    return holding[0]


def _unknown(path: StorePath, names: Iterable[str], there: Iterable[str]) -> StoreError:
    return StoreError(
        f"{path} has no output {', '.join(sorted(names))}; there are {', '.join(sorted(there)) or 'none'}"
    )


def _check(
    path: StorePath,
    feature_set: FeatureSet,
    targets: Mapping[StorePath, SplitWriter],
    everywhere: Iterable[SplitWriter],
    names: set[str],
) -> None:
    """Refuse what would leave something that cannot be read or computed."""
    # What is listed and nowhere held: a derivation that failed before its first shard, or a drop that was killed.
    there = _held(targets.values()) | (feature_set.outputs.keys() - _held(everywhere))
    if unknown := names - there:
        raise _unknown(path, unknown, there)
    for name in sorted(there - names):
        if (spec := feature_set.outputs.get(name)) and (sources := names.intersection(sources_of(spec))):
            raise StoreError(
                f"{name} of {feature_set.path} is derived from {', '.join(sorted(sources))}; later utterances get it only "
                f"with that: drop it too, with --output {name}"
            )
    for split, writer in targets.items():
        if names & _held([writer]) and not writer.outputs.keys() - names:
            raise StoreError(
                f"{split} would have no output left without {', '.join(sorted(names & _held([writer])))}; "
                f"to be rid of the split, remove its folder"
            )


def _held(writers: Iterable[SplitWriter]) -> set[str]:
    """The outputs that splits hold, whether readers see them yet or not."""
    return {
        name
        for writer in writers
        for names in (writer.outputs, *(commit.outputs for commit in writer.commits.values()))
        for name in names
    }


def _bytes_of(paths: SplitPaths, name: str) -> int:
    """Bytes of every file of an output in a split, wherever a killed run left it."""
    arrays = [folder / array for folder in (paths.group, paths.unfinished) for array in (name, f"{name}-affine")]
    return sum(sum(sizes_below(array).values()) for array in arrays)


def _drop_statistics(feature_set: FeatureSet, split: StorePath, names: Iterable[str]) -> None:
    folder = feature_set.path / "stats" / name_below(split, feature_set.path)
    for name in names:
        (folder / f"{name}.json").unlink(missing_ok=True)


def _forget(feature_set: FeatureSet, names: Collection[str]) -> None:
    """Take outputs that no split holds out of feature-set.json, after what they were made with: a killed call finds them."""
    with folder_lock(feature_set.path):
        for name in names:
            for path in (feature_set.codebooks(name), transform_path(feature_set, name)):
                path.unlink(missing_ok=True)
        standing = read_feature_set(feature_set.path)
        left = {name: output for name, output in standing.outputs.items() if name not in names}
        if left != standing.outputs:
            replace(standing, outputs=left).write(standing.path)
