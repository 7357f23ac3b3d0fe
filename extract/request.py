"""What the command line asks for, and whether that can mean anything."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from encodeonce.extract.batching import CONTEXT_SECONDS, CUT_SECONDS
from encodeonce.extract.encoders.base import PRECISIONS
from encodeonce.extract.ranks import RankError, member_of
from encodeonce.store.devices import check_devices
from encodeonce.store.hold import Member
from encodeonce.store.layout import SET_FILE, TABLE_FILE
from encodeonce.store.objects import ObjectPath, StorePath

DTYPES = ("float16", "float32", "int8")


class RequestError(Exception):
    """The request itself is wrong; the message says what and how to mend it."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    encoder: str
    splits: tuple[str, ...]
    data: Path = Path("data")
    corpus: str = "auto"
    store: StorePath = Path("features")
    layers: str | None = None
    dtype: str = "float16"
    precision: str = "auto"
    device: str = "auto"
    batch_seconds: float | None = None
    cut_seconds: float = CUT_SECONDS
    context_seconds: float = CONTEXT_SECONDS
    shard_frames: int | None = None
    limit: int | None = None
    replace: bool = False
    drop_gone: bool = False
    workers: int = 0
    base_encoder: str | None = None
    dask: str | None = None
    rank: str | None = None
    world_size: int | None = None

    def at_home(self, **changed: Any) -> "Request":
        """The request as another process is given it, which has another working directory: it makes what it is told to make."""
        store = self.store.absolute() if isinstance(self.store, Path) else self.store
        settled = {"data": self.data.absolute(), "store": store, "dask": None, "rank": None, "world_size": None}
        return replace(self, **settled, **changed)


def asked_member(request: Request) -> Member | None:
    """Whose share of the shards a request is for; None for all of them."""
    try:
        return member_of(request.rank, request.world_size)
    except RankError as error:
        raise RequestError(str(error)) from None


def check_request(request: Request) -> None:
    """Refuse values that cannot mean anything."""
    if isinstance(request.store, ObjectPath):
        request.store.check_writable()
    for what, mark in (("a feature set", SET_FILE), ("a split", TABLE_FILE)):
        if (request.store / mark).is_file():
            raise RequestError(f"--store {request.store} is {what}; give the store that holds it")
    if request.dtype not in DTYPES:
        raise RequestError(f"--dtype {request.dtype!r}: take one of {', '.join(DTYPES)}")
    if request.precision not in ("auto", *PRECISIONS):
        raise RequestError(f"--precision {request.precision!r}: take auto or one of {', '.join(PRECISIONS)}")
    check_devices(request.device)
    if request.dask is not None and request.rank is not None:
        raise RequestError("--dask deals the shards, and --rank shares them out: give one of the two")
    if request.dask is not None and "," in request.device:
        raise RequestError(
            f"--device {request.device} with --dask: each worker of the cluster has one device; start one for each GPU"
        )
    if request.limit is not None and request.limit < 1:
        raise RequestError(f"--limit {request.limit}: take 1 or more")
    if request.shard_frames is not None and request.shard_frames < 1:
        raise RequestError(f"--shard-frames {request.shard_frames}: take 1 or more")
    if request.workers < 0:
        raise RequestError(f"--workers {request.workers}: take 0 (by the number of cores) or more")
    if request.batch_seconds is not None and not 0 <= request.batch_seconds < math.inf:
        raise RequestError(f"--batch-seconds {request.batch_seconds:g}: take 0 (one utterance at a time) or more")
    if not 0 <= 2 * request.context_seconds <= 0.9 * request.cut_seconds < math.inf:
        raise RequestError(
            f"--cut-seconds {request.cut_seconds:g} with {request.context_seconds:g} s of context on each side leaves "
            f"nothing to keep; take a longer cut, of a finite length"
        )
