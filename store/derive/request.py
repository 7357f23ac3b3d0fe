"""What a derivation is about in one feature set: the spec of its output, fitted and listed before any shard is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from encodeonce.store.derive.operations import Operation
from encodeonce.store.derive.sources import SourceSplit, holders, source
from encodeonce.store.derive.transforms import Transform, transform_path
from encodeonce.store.errors import StoreError
from encodeonce.store.incoming import checked_outputs
from encodeonce.store.layout import FeatureSet, Output, read_feature_set
from encodeonce.store.locks import folder_lock
from encodeonce.store.objects import StorePath, name_below
from encodeonce.store.walk import by_shard

FITTED_FIELDS = ("transform_sha256", "fitted_on")
"""What fitting adds to a derivation."""


@dataclass(frozen=True, slots=True)
class Derivation:
    """An output to be derived from others of a feature set, on some of its splits."""

    feature_set: FeatureSet
    output: Output
    sources: tuple[Output, ...]
    splits: tuple[StorePath, ...]
    said: dict[str, str]
    """What the fit says of itself, where there was one now."""


def request(
    feature_set: FeatureSet,
    splits: Sequence[StorePath],
    operation: Operation,
    names: Sequence[str],
    called: str | None = None,
    fit: Sequence[str] = (),
) -> Derivation:
    """Check what is asked, fit what has to be fitted, and list the output in the feature set.

    Args:
        splits: where it is to be derived; those that lack a source are left out.
        names: the outputs it is derived from.
        called: its name, where it is not the usual one.
        fit: the splits it is fitted on; by default all of `splits`.

    Raises:
        StoreError: sources that are not there or of the wrong kind; a name that stands for something else.
    """
    splits = holders(feature_set, splits, names)
    sources = [source(feature_set, name) for name in names]
    wanted = operation.output(feature_set, sources)
    wanted = replace(wanted, name=called or wanted.name)
    checked_outputs([wanted])
    standing = feature_set.outputs.get(wanted.name)
    said: dict[str, str] = {}
    if standing is not None:
        _check_same(feature_set, standing, wanted, fit)
        wanted = standing
        if operation.codebooks is not None and not (books := feature_set.codebooks(wanted.name)).exists():
            operation.codebooks.write(books)
    else:
        transform = None
        if operation.fitted:
            fit_on = [_fitting_split(feature_set, name, names) for name in sorted(set(fit))] or splits
            for split in fit_on:
                _check_sound(split, sources)
            transform = operation.fit(fit_on, sources[0])
            wanted, said = _with_fit(feature_set, wanted, fit_on, transform), transform.said
        feature_set = _list(feature_set, wanted, transform, operation)
    return Derivation(feature_set, wanted, tuple(sources), tuple(splits), said)


def _check_sound(split: StorePath, sources: Sequence[Output]) -> None:
    checked = SourceSplit(split, sources)
    for indices in by_shard(checked.split):
        checked.check(int(checked.split.shards[indices[0]]))


def _fitting_split(feature_set: FeatureSet, name: str, names: Sequence[str]) -> StorePath:
    folder = next((split for split in feature_set.splits() if name_below(split, feature_set.path) == name), None)
    if folder is None:
        there = ", ".join(name_below(split, feature_set.path) for split in feature_set.splits())
        raise StoreError(f"--fit {name}: no such split in {feature_set.path}; there are {there or 'none'}")
    holders(feature_set, [folder], names)
    return folder


def _with_fit(feature_set: FeatureSet, output: Output, splits: Sequence[StorePath], transform: Transform) -> Output:
    names = sorted(name_below(split, feature_set.path) for split in splits)
    fitted = {"transform_sha256": transform.sha256, "fitted_on": names}
    return replace(output, derivation={**(output.derivation or {}), **fitted})


def _check_same(feature_set: FeatureSet, standing: Output, wanted: Output, fit: Sequence[str]) -> None:
    """Refuse a name that stands for something else."""
    how = standing.derivation or {}
    plain = replace(standing, derivation={name: value for name, value in how.items() if name not in FITTED_FIELDS})
    if standing.derivation is None or plain != wanted:
        made = f"derived from {standing.derived_from} by {how['operation']}" if how else "extracted"
        raise StoreError(
            f"{feature_set.path} has an output {standing.name} already ({standing.what}, [{standing.width}] {standing.dtype}, "
            f"{made}), and this would be another; give it a name with --name"
        )
    if fit and sorted(set(fit)) != how.get("fitted_on"):
        raise StoreError(
            f"{standing.name} of {feature_set.path} was fitted on {', '.join(how.get('fitted_on', []))}, not on "
            f"{', '.join(sorted(set(fit)))}; leave --fit out to use that, or give another --name"
        )


def _list(feature_set: FeatureSet, output: Output, transform: Transform | None, operation: Operation) -> FeatureSet:
    """Keep what the output is made with, then list it: what is listed can be computed."""
    with folder_lock(feature_set.path):
        feature_set = read_feature_set(feature_set.path)
        if feature_set.outputs.get(output.name, output) != output:
            raise StoreError(
                f"another process made an output {output.name} of {feature_set.path} meanwhile; run the same command again"
            )
        if transform is not None:
            transform.write(transform_path(feature_set, output.name))
        if operation.codebooks is not None:
            operation.codebooks.write(feature_set.codebooks(output.name))
        listed = replace(feature_set, outputs={**feature_set.outputs, output.name: output})
        listed.write(listed.path)
    return listed
