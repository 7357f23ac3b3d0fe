"""Ranges of one object: which of them are fetched in one request, and the threads that have several requests in flight."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

GAP_BYTES = 64 * 1024
"""Ranges nearer than this are fetched together: neighbours in a shard lie 1.5 KB apart, and what a request costs a server
and this process is about what the 64 KB in between do."""

REQUEST_BYTES = 16 * 1024 * 1024
"""No request grows beyond this by joining ranges: several connections are faster than one, and a slow one is not timed out."""

IN_FLIGHT = 32


@dataclass
class Request:
    """The bytes from `start` up to `stop`, and which of the ranges lie in them."""

    start: int
    stop: int
    members: list[int]


def joined(offsets: Sequence[int], lengths: Sequence[int]) -> list[Request]:
    """The requests that bring all ranges, in any order and overlapping as they may; empty ranges need none."""
    requests: list[Request] = []
    for number in sorted((n for n, length in enumerate(lengths) if length), key=offsets.__getitem__):
        start = int(offsets[number])
        stop = start + int(lengths[number])
        last = requests[-1] if requests else None
        if last and start <= last.stop + GAP_BYTES and (stop <= last.stop or stop - last.start <= REQUEST_BYTES):
            last.members.append(number)
            last.stop = max(last.stop, stop)
        else:
            requests.append(Request(start, stop, [number]))
    return requests


def threads() -> ThreadPoolExecutor:
    """This process's threads for requests. What they run waits for nothing but the network, so whoever waits for them may."""
    return _threads_of(os.getpid())


@cache
def _threads_of(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(IN_FLIGHT, "ranges")
