"""What a training measures: lines of JSON always, TensorBoard on request."""

import json
import math
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from encodeonce.store.extras import extra
from encodeonce.store.files import atomic_write

METRICS_FILE = "metrics.jsonl"


class Metrics:
    """The lines of a training; one that goes on from a step drops what an earlier run wrote beyond it.

    A training line has step, epoch, part, loss (weighted), losses (by objective), learning_rate, gradient_norm,
    tokens_per_second, frames_per_second, wait_share, memory_bytes and seconds; a validation line dev (losses by objective),
    dev_loss, and wer and cer where text was written.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool = False) -> None:
        self.path = folder / METRICS_FILE
        kept = [line for line in read_metrics(folder) if line["step"] <= step] if step else []
        with atomic_write(self.path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        self._board: Any = None
        if tensorboard:
            with extra("tensorboard"):
                from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line; it has a step."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(line), ensure_ascii=False, allow_nan=False) + "\n")
        if self._board is not None:
            for name, value in _flat(line):
                self._board.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Nothing more comes."""
        if self._board is not None:
            self._board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training so far; one that was cut short by a power cut is left out."""
    path, lines = folder / METRICS_FILE, []
    if not path.is_file():
        return []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def memory_bytes(device: torch.device) -> int:
    """The most memory taken so far: by tensors on a GPU, by the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _finite(value: Any) -> Any:
    """What JSON can say: no NaN and no infinity, which a gradient scaler's skipped steps have."""
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(line: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield above + name, value
