"""Exports: a store's features as other tools keep theirs, one file a format."""

from encodeonce.store.exports.run import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]
