"""Which device a command computes on."""

import re

from encodeonce.store.errors import StoreError


def check_device(word: str) -> None:
    """Refuse what is no name of a device.

    Raises:
        StoreError: it is none of auto, cpu, cuda, cuda:N.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", word):
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
