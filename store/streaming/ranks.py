"""Which taker of the sequence of batches a process is."""

import os
import sys

from encodeonce.store.errors import StoreError


def find_ranks(rank: int | None, world_size: int | None) -> tuple[int, int, bool]:
    """Which taker of the sequence this is, of how many: as given, as torch.distributed says, or as torchrun says; and
    whether torch.distributed connects them."""
    distributed = sys.modules.get("torch.distributed")
    running = distributed is not None and distributed.is_available() and distributed.is_initialized()
    theirs = (distributed.get_rank(), distributed.get_world_size()) if running and distributed else None
    if rank is None and world_size is None:
        rank, world_size = theirs or _torchrun_ranks()
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise StoreError(f"rank={rank} of world_size={world_size}: give both, with rank from 0 to world_size - 1")
    return rank, world_size, theirs == (rank, world_size) and world_size > 1


def _torchrun_ranks() -> tuple[int, int]:
    given = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if given == (None, None):
        return 0, 1
    if not all(text and text.isdigit() for text in given) or int(given[0] or 0) >= int(given[1] or 0):
        raise StoreError(
            f"the environment has RANK={given[0]} and WORLD_SIZE={given[1]}: set both as torchrun does, or give rank= and world_size="
        )
    return int(given[0] or 0), int(given[1] or 1)
