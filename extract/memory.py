"""How a long run keeps little memory: one allocator for all, which gives back what was freed."""

import ctypes
from contextlib import suppress

import pyarrow as pa


def use_malloc() -> None:
    """Let Arrow take its memory from malloc in this process, from here on: its own allocator keeps pages for each thread, 10
    to 20 MB more whenever the table is written.
    """
    pa.set_memory_pool(pa.system_memory_pool())


def give_back() -> None:
    """Let glibc give back what was freed: it keeps what many threads freed in pieces otherwise, more of them with every hour.
    With another C library this does nothing.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
