"""Smaller forms of features than the store's, for comparison: each gives the values it would restore, and its bits a value."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from encodeonce.store.quantize import quantize, restore

SUBVECTOR_CODES = 256

Restore = Callable[[np.ndarray], np.ndarray]
"""`[T, D]` float32 -> what is restored of it."""


@dataclass(frozen=True, slots=True)
class Form:
    """A way to keep features: `restored` of one utterance, and the bytes it takes, `[T, D]` -> bytes."""

    name: str
    restored: Restore
    bytes: Callable[[np.ndarray], float]


def forms() -> list[Form]:
    """The dtypes of the store, and what one more bit-saving step would be."""
    return [
        Form("float32", lambda x: x, lambda x: 4.0 * x.size),
        Form("float16", lambda x: x.astype(np.float16).astype(np.float32), lambda x: 2.0 * x.size),
        Form("bfloat16", bfloat16, lambda x: 2.0 * x.size),
        Form("int8", lambda x: restore(*quantize(x)), lambda x: x.size + 8.0 * x.shape[1]),
        Form("int8, scale alone", symmetric, lambda x: x.size + 4.0 * x.shape[1]),
        Form("int4", lambda x: affine(x, 16), lambda x: x.size / 2 + 8.0 * x.shape[1]),
        Form("int4, scales every 64 frames", blocks_of_64, lambda x: x.size / 2 + 8.0 * x.shape[1] * -(-len(x) // 64)),
    ]


def learnt_forms(frames: np.ndarray, seed: int = 0) -> list[Form]:
    """Forms whose scales or codebooks are learnt on other frames, `[N, D]`."""
    scales = np.abs(frames).max(0) / 127
    return [
        Form(
            "int8, scales of other audio",
            lambda x: np.clip(np.rint(x / scales), -127, 127) * scales,
            lambda x: float(x.size),
        ),
        product(frames, 4, seed),
        product(frames, 8, seed),
    ]


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest bfloat16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def affine(values: np.ndarray, levels: int) -> np.ndarray:
    """Each channel on `levels` levels between its least and greatest value."""
    low, high = values.min(0), values.max(0)
    step = np.where(high > low, (high - low) / (levels - 1), 1)
    return np.rint((values - low) / step) * step + low


def symmetric(values: np.ndarray) -> np.ndarray:
    """int8 with a scale by channel and no offset."""
    scale = np.abs(values).max(0) / 127
    return np.rint(values / np.where(scale > 0, scale, 1)) * scale


def blocks_of_64(values: np.ndarray) -> np.ndarray:
    """int4 whose scales and offsets hold for 64 frames."""
    return np.concatenate([affine(values[i : i + 64], 16) for i in range(0, len(values), 64)])


def product(frames: np.ndarray, width: int, seed: int) -> Form:
    """Product quantisation (Jegou et al. 2011): one of 256 centres for every `width` values next to each other."""
    from sklearn.cluster import MiniBatchKMeans

    columns = [slice(first, first + width) for first in range(0, frames.shape[1], width)]
    learnt = [
        MiniBatchKMeans(SUBVECTOR_CODES, batch_size=4096, n_init=1, max_iter=20, random_state=seed).fit(frames[:, some])
        for some in columns
    ]

    def restored(values: np.ndarray) -> np.ndarray:
        parts = [
            books.cluster_centers_[books.predict(np.ascontiguousarray(values[:, some]))]
            for books, some in zip(learnt, columns, strict=True)
        ]
        return np.concatenate(parts, 1).astype(np.float32)

    return Form(f"product, {width} values a byte", restored, lambda x: x.size / width)
