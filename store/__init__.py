"""The feature store: one set of bytes that is a Zarr v3 array and a WebDataset at once."""

from typing import TYPE_CHECKING, Any

from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.layout import Output
from encodeonce.store.padded import Padded
from encodeonce.store.reader import FeatureStore
from encodeonce.store.utterance import StoredUtterance

if TYPE_CHECKING:
    from encodeonce.store.feature_writer import FeatureWriter
    from encodeonce.store.incoming import NewUtterance
    from encodeonce.store.streaming.batches import Batch
    from encodeonce.store.streaming.stream import Stream

__all__ = [
    "Batch",
    "DamagedError",
    "FeatureStore",
    "FeatureWriter",
    "NewUtterance",
    "Output",
    "Padded",
    "StoreError",
    "StoredUtterance",
    "Stream",
]

_MODULES = {
    "Batch": "streaming.batches",
    "FeatureWriter": "feature_writer",
    "NewUtterance": "incoming",
    "Stream": "streaming.stream",
}


def __getattr__(name: str) -> Any:
    """What reading does not need is imported when it is asked for."""
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
