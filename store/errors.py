"""The errors a store raises: each names the thing, the value and the way out."""


class StoreError(Exception):
    """A store, feature set or split that is not there, not whole, or not what was asked for."""


class MissingError(StoreError):
    """A file of a store that is not there."""


class DamagedError(StoreError):
    """Bytes of a store that are not what its records say."""
