"""Memory that was freed, given back to the system."""

import ctypes
from contextlib import suppress

import pyarrow as pa


def give_back() -> None:
    """Let Arrow's pool, and glibc, give back what was freed: glibc keeps what many threads freed in pieces otherwise, more of them
    with every hour. With another C library that part does nothing.
    """
    pa.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
