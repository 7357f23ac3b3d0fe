"""The feature store: one set of bytes that is a Zarr v3 array and a WebDataset at once."""

from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.reader import FeatureStore, StoredUtterance

__all__ = ["DamagedError", "FeatureStore", "StoreError", "StoredUtterance"]
