"""How a long run keeps little memory: one allocator for all, which gives back what was freed."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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


@contextmanager
def tidied() -> Iterator[None]:
    """Free what is left in cycles by what the block does, and by nothing else, which would take long to look through.

    Libraries leave frames in cycles while they load a model, and those would keep it when the run is over.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
        give_back()
