"""A stream inside torch's DataLoader, for those who insist: threads do the same without copies between processes."""

from collections.abc import Iterator

from encodeonce.store.streaming.batches import Batch
from encodeonce.store.streaming.stream import Stream
from torch.utils.data import IterableDataset, get_worker_info


class StreamDataset(IterableDataset):
    """A stream's batches as a dataset: `DataLoader(stream.dataset(), batch_size=None, num_workers=2)`.

    The loader gives them in the stream's order, whatever the number of workers. Each iteration is an epoch; the main
    process's stream does not move, so call `set_epoch` before each, and keep your own count of batches to resume from.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def set_epoch(self, epoch: int, batch: int = 0) -> None:
        """Begin the next iteration at an epoch, after so many batches of its global sequence."""
        self.stream.seek(epoch, batch)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        return self.stream.batches() if worker is None else self.stream.batches(worker.id, worker.num_workers)

    def __len__(self) -> int:
        return len(self.stream)
