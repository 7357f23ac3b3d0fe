"""Feature sets do not mix: what differs between two of them, said with both values."""

from encodeonce.store.errors import StoreError
from encodeonce.store.identity import describe_difference, differences
from encodeonce.store.layout import SET_FILE, FeatureSet, read_feature_set
from encodeonce.store.split import Split


def refuse_mixing(first: Split, second: Split) -> None:
    """Refuse two splits that are of different feature sets.

    Raises:
        StoreError: they are; the message has both values of what differs.
    """
    ours, theirs = first.attributes.fingerprint, second.attributes.fingerprint
    if ours == theirs:
        return
    one, other = _feature_set(first), _feature_set(second)
    found = [describe_difference(*d) for d in differences(one.identity, other.identity)] if one and other else []
    what = "; ".join(found) or f"fingerprint: {ours} against {theirs}"
    raise StoreError(f"{first.path} and {second.path} are of different feature sets and cannot be read as one: {what}")


def _feature_set(split: Split) -> FeatureSet | None:
    """The feature set a split lies in, where its file can be read."""
    try:
        return next((read_feature_set(p) for p in split.path.parents if (p / SET_FILE).is_file()), None)
    except StoreError:
        return None
