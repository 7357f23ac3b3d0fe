"""Which device a command computes on."""

import re

from encodeonce.store.errors import StoreError

DEVICE = r"auto|cpu|cuda(:\d+)?"


def check_device(word: str) -> None:
    """Refuse what is no name of a device.

    Raises:
        StoreError: it is none of auto, cpu, cuda, cuda:N.
    """
    if not re.fullmatch(DEVICE, word):
        raise StoreError(f"device {word!r}: take auto, cpu, cuda or cuda:N")


def find_device(word: str) -> str:
    """The device that a word means; auto is a GPU where torch sees one.

    Raises:
        StoreError: no name of a device, or no such GPU here.
    """
    check_device(word)
    import torch

    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if word == "auto":
        return "cuda" if have else "cpu"
    if word != "cpu" and int(word.partition(":")[2] or 0) >= have:
        raise StoreError(f"device {word!r}: torch sees {have} CUDA GPUs here, numbered from 0; take cpu or another")
    return word


def check_devices(words: str) -> None:
    """Refuse what is neither a device nor several.

    Raises:
        StoreError: it is none of auto, all, cpu, cuda, cuda:N, or a list of these with commas.
    """
    if words == "all":
        return
    for word in words.split(","):
        if not re.fullmatch(DEVICE, word) or (word == "auto" and words != "auto"):
            raise StoreError(f"device {words!r}: take auto, cpu, cuda, cuda:N, several such as cuda:0,cuda:1, or all")


def find_devices(words: str, local_rank: int | None = None) -> list[str]:
    """The devices that some words mean: `all` is every GPU that torch sees, or else the processor.

    A device twice is two processes on it. Where a job manager runs several processes on a machine, `local_rank` is the number
    of this one, and `auto` and `cuda` take the GPU of that number.

    Raises:
        StoreError: no name of a device, or no such GPU here.
    """
    check_devices(words)
    import torch

    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if words == "all":
        return [f"cuda:{number}" for number in range(have)] or ["cpu"]
    if words in ("auto", "cuda") and local_rank is not None and have:
        return [f"cuda:{local_rank % have}"]
    return [find_device(word) for word in words.split(",")]
