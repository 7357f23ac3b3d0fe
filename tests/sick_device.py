"""A worker process whose device fails, for tests of those who take its shards over; small, since it is imported there."""

from pathlib import Path
from typing import Any

from encodeonce.extract import processes
from encodeonce.extract.worker import Order, ShardWorker


def sick_work(pipe: Any, order: Order, sharing: int) -> None:
    """What a worker process does; the device of the first one fails."""
    import torch

    def begin(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore of it")

    def load(self: ShardWorker) -> Any:
        encoder: Any = healthy(self)
        encoder.device, encoder.begin = "cuda:7", begin
        return encoder

    healthy, place = ShardWorker.load, Path(str(order.request.store))
    try:
        (place.parent / "sick").touch(exist_ok=False)
        ShardWorker.load = load
    except FileExistsError:
        pass
    processes.work(pipe, order, sharing)
