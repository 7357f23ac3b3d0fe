"""Finding a split: by its own folder, its feature set, or its store."""

from collections.abc import Iterator

from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.layout import SET_FILE, TABLE_FILE, FeatureSet, feature_sets, read_attributes, read_feature_set
from encodeonce.store.objects import StorePath, name_below


def find_split(path: StorePath, encoder: str | None = None, split: str | None = None) -> StorePath:
    """The folder of a split, given by itself, by its feature set, or by its store.

    Raises:
        StoreError: nothing there, or more than one thing; the message lists what there is.
    """
    if (path / "features.zarr" / "zarr.json").is_file():
        attributes = read_attributes(path / "features.zarr")
        folders = [folder.name for folder in path.parents]
        for what, asked, fitting in (
            ("encoder", encoder, [attributes.encoder, *folders]),
            ("split", split, [attributes.split, path.name]),
        ):
            if asked is not None and asked not in fitting:
                raise StoreError(
                    f"{path} is a split whose {what} is {fitting[0]!r}, not {asked!r}; leave {what} out, or give the store"
                )
        return path
    if (path / SET_FILE).is_file():
        found = read_feature_set(path)
        if encoder not in (None, found.encoder, path.name):
            raise StoreError(
                f"{path} is a feature set of {found.encoder!r}, not of {encoder!r}; give the store, or leave it out"
            )
        if split is not None and (path / split / "features.zarr" / "zarr.json").is_file():
            return path / split
    elif (path / TABLE_FILE).is_file():
        raise DamagedError(
            f"{path / 'features.zarr' / 'zarr.json'} is missing; it says how the split is laid out: restore it"
        )
    elif path.is_dir():
        found = find_set(path, encoder)
    else:
        raise StoreError(f"{path} is no folder; give a store, a feature set or a split")
    splits = {name_below(folder, found.path): folder for folder in found.splits()}
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        problem = f"no split {split!r}" if split else "several splits, and none was named" if splits else "no split yet"
        raise StoreError(f"{found.path} has {problem}; there are: {', '.join(splits) or 'none'}")
    return splits[split]


def find_set(store: StorePath, encoder: str | None) -> FeatureSet:
    """The feature set of an encoder in a store, by the encoder's or the folder's name."""
    sets = list(feature_sets(store))
    names = ", ".join(found.path.name for found in sets) or "none"
    if not sets:
        raise StoreError(f"{store} holds no feature set; extract-features --store {store} makes one")
    matching = [found for found in sets if encoder in (None, found.encoder, found.path.name)]
    if not matching:
        raise StoreError(f"{store} has no feature set of {encoder!r}; there are: {names}")
    if len(matching) > 1:
        both = ", ".join(found.path.name for found in matching)
        raise StoreError(f"{store} has several feature sets that fit ({both}); name one of them by its folder")
    return matching[0]


def splits_at(path: StorePath) -> Iterator[tuple[FeatureSet, StorePath]]:
    """Every split of a store, of a feature set, or the one that a path is."""
    if (path / SET_FILE).is_file():
        sets = [read_feature_set(path)]
    elif (path / "features.zarr" / "zarr.json").is_file() or (path / "commits").is_dir():
        path = path.resolve()
        owner = next((parent for parent in path.parents if (parent / SET_FILE).is_file()), None)
        if owner is None:
            raise StoreError(f"{path} lies in no feature set: no {SET_FILE} above it")
        yield read_feature_set(owner), path
        return
    else:
        sets = list(feature_sets(path))
    if not sets:
        raise StoreError(f"{path} holds no feature set; give a store, a feature set or a split")
    for feature_set in sets:
        for split in feature_set.splits():
            yield feature_set, split
