"""The form that a stream gives features in: numpy arrays, or tensors on a device; and their dtype."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from encodeonce.store.errors import StoreError


@dataclass(frozen=True)
class Form:
    """`device` as torch spells it, None for numpy arrays; `dtype` of floating features by name, None for the stored one."""

    device: str | None
    dtype: str | None

    @classmethod
    def of(cls, device: Any, dtype: Any) -> "Form":
        """What a caller asked for: names, or torch's and numpy's own objects.

        Raises:
            StoreError: there is no such device here, or it is no floating dtype.
        """
        if device is None:
            return cls(None, None if dtype is None else _numpy_dtype(dtype))
        return cls(_torch_device(device), None if dtype is None else _torch_dtype(dtype))

    @property
    def itemsize(self) -> int:
        """Bytes of a value that is made for torch; 0 where values stay as they are stored, and of numpy arrays."""
        if self.device is None or self.dtype is None:
            return 0
        import torch

        return getattr(torch, self.dtype).itemsize

    @property
    def on_gpu(self) -> bool:
        """Whether tensors go to a CUDA device."""
        return self.device is not None and self.device.split(":")[0] == "cuda"


def _numpy_dtype(dtype: Any) -> str:
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        raise StoreError(f"dtype={dtype!r}: numpy has no such dtype; take float16 or float32, or a device") from error
    if found.kind != "f":
        raise StoreError(f"dtype={dtype!r}: take a floating one, such as float16 or float32; codes stay as they are")
    return found.name


def _torch_device(device: Any) -> str:
    import torch

    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise StoreError(f"device={device!r}: torch knows no such device; take cpu, cuda, cuda:1 ...") from error
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise StoreError(
                f"device={device!r}: torch sees {count} CUDA GPUs here; take cpu, or copy batches yourself"
            )
    return str(found)


def _torch_dtype(dtype: Any) -> str:
    import torch

    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise StoreError(
            f"dtype={dtype!r}: take a floating one of torch's: float16, bfloat16, float32; codes stay int32"
        )
    return str(found).removeprefix("torch.")
