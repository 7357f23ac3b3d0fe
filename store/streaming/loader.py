"""A stream inside torch's DataLoader, for those who insist: threads do the same without copies between processes."""

from collections.abc import Iterator

import torch
from encodeonce.store.streaming.batches import Batch
from encodeonce.store.streaming.stream import Stream
from torch.utils.data import IterableDataset, get_worker_info


class StreamDataset(IterableDataset):
    """A stream's batches as a dataset: `DataLoader(stream.dataset(), batch_size=None, num_workers=2)`.

    The loader gives them in the stream's order, whatever the number of workers. Every iteration begins where `set_epoch`
    says, also in workers that persist; to resume, give it `batch.place.taken` of the last batch.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        state = stream.state_dict()
        self._begin = torch.tensor([state["epoch"], state["batch"]]).share_memory_()

    def set_epoch(self, epoch: int, batch: int = 0) -> None:
        """Begin the next iteration at an epoch, after so many batches of its global sequence."""
        self.stream.seek(epoch, batch)
        self._begin.copy_(torch.tensor([epoch, batch]))

    def __iter__(self) -> Iterator[Batch]:
        self.stream.seek(*self._begin.tolist())
        worker = get_worker_info()
        return self.stream.batches() if worker is None else self.stream.batches(worker.id, worker.num_workers)

    def __len__(self) -> int:
        return len(self.stream)
