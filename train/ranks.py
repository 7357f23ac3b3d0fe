"""The processes that train together: which one this is, on which device, and what they tell each other on the host."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from encodeonce.store.devices import find_device
from encodeonce.train.config import LoopConfig


class Ranks:
    """This process among those that torchrun or accelerate started, or the only one; make it before data and model.

    Numbers are reduced over gloo, also beside NCCL: nobody waits for a GPU to learn how many tokens a step has.
    """

    def __init__(self, config: LoopConfig) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        device = find_device(config.device)
        if ":" in device:
            torch.cuda.set_device(device)
        AcceleratorState._reset_state()  # precision may be another one than that of an earlier training of this process
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=device == "cpu")
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        self._group: Any = None
        if self.world_size > 1 and distributed.get_backend() != "gloo":
            self._group = distributed.new_group(backend="gloo")

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums of numbers over all ranks; NaN and infinity come through."""
        if self.world_size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(sums, group=self._group)
        return sums.tolist()

    def total_of(self, named: Mapping[str, float]) -> dict[str, float]:
        """The same of numbers with names, which are the same on every rank."""
        return dict(zip(named, self.total(list(named.values())), strict=True))

    def gather(self, value: Any) -> list[Any]:
        """Something of every rank, in their order, on all of them."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        distributed.all_gather_object(gathered, value, group=self._group)
        return gathered

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.world_size > 1:
            distributed.barrier(group=self._group)


def leave(status: int) -> None:
    """End this process at once where it trained with others; return where it was alone.

    Gloo's threads let go of the last tensors after those who waited have gone on, and letting go of one while Python
    ends aborts the process (pytorch's issue 190489). They outlive their group: DistributedDataParallel keeps it.
    """
    if distributed.is_initialized():
        if status == 0:  # else others may wait for this one, and destroying would wait for them
            distributed.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
