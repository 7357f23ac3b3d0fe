"""Codebooks: the vectors that codes and units stand for, kept in the feature set as `codebooks/<output>.safetensors`."""

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.files import atomic_write
from encodeonce.store.objects import StorePath

FORMAT = "encodeonce codebooks"


@dataclass(frozen=True, slots=True, eq=False)
class Quantizer:
    """One codebook `[K, d]` float32, and where its vectors are projected, the matrix `[D, d]` and the bias `[D]`."""

    codebook: np.ndarray
    projection: np.ndarray | None = None
    bias: np.ndarray | None = None

    @property
    def width(self) -> int:
        """D, the width of the vectors."""
        return (self.codebook if self.projection is None else self.projection.T).shape[1]

    def vectors(self, codes: np.ndarray) -> np.ndarray:
        """The vectors `[T, D]` float32 of codes `[T]`."""
        found = self.codebook[codes]
        if self.projection is not None:
            found = found @ self.projection.T
        return found if self.bias is None else found + self.bias


@dataclass(frozen=True, slots=True, eq=False)
class Codebooks:
    """The quantizers of codes `[T, Q]`, in the order of their columns."""

    quantizers: tuple[Quantizer, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """K of each quantizer."""
        return tuple(len(quantizer.codebook) for quantizer in self.quantizers)

    @property
    def width(self) -> int:
        """D, the width of the vectors."""
        return self.quantizers[0].width

    @property
    def sha256(self) -> str:
        """Over the name, shape and float32 values of every array."""
        digest = hashlib.sha256()
        for name, array in sorted(self._arrays().items()):
            digest.update(f"{name} {list(array.shape)} ".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def only(self, quantizers: Sequence[int]) -> "Codebooks":
        """Some of the quantizers, by number from 0."""
        return Codebooks(tuple(self.quantizers[number] for number in quantizers))

    def vectors(self, codes: np.ndarray, columns: Sequence[int] | None = None) -> np.ndarray:
        """The sum `[T, D]` float32 of the vectors of codes `[T, Q]`, over some columns or all, in their order.

        That is what residual quantizers decode from: the latents.

        Raises:
            StoreError: codes of another number of columns, or beyond a codebook.
        """
        if codes.ndim != 2 or codes.shape[1] != len(self.quantizers):
            raise StoreError(f"codes of shape {list(codes.shape)} do not fit {len(self.quantizers)} codebooks")
        total: np.ndarray | None = None
        for column in range(len(self.quantizers)) if columns is None else columns:
            size = self.sizes[column]
            if len(codes) and int(codes[:, column].max()) >= size:
                raise StoreError(f"code {codes[:, column].max()} in column {column}: its codebook holds {size}")
            found = self.quantizers[column].vectors(codes[:, column])
            total = found if total is None else total + found
        if total is None:
            raise StoreError("no column of the codes was asked for; name one at least")
        return total

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            f"quantizer.{number}.{field}": np.ascontiguousarray(array, dtype="<f4")
            for number, quantizer in enumerate(self.quantizers)
            for field in Quantizer.__slots__
            for array in [getattr(quantizer, field)]
            if array is not None
        }

    def write(self, path: StorePath, scratch: StorePath | None = None) -> None:
        """Write them, whole or not at all."""
        from safetensors.numpy import save

        # One entry: safetensors writes several in any order, and the same codebooks shall be the same bytes.
        data = save(self._arrays(), {"encodeonce": json.dumps({"format": FORMAT, "sha256": self.sha256})})
        with atomic_write(path, scratch) as file:
            file.write(data)


def span_suffix(first: int, last: int) -> str:
    """What the name of an output gets for some quantizers: `-0` or `-1-7`."""
    return f"-{first}" if first == last else f"-{first}-{last}"


def read_codebooks(path: StorePath) -> Codebooks:
    """Read what `Codebooks.write` wrote.

    Raises:
        StoreError: not there, or something else. DamagedError: the values are not those that were written.
    """
    from safetensors.numpy import load

    try:
        data = path.read_bytes()
        arrays, said = load(data), _metadata(data)
    except FileNotFoundError as error:
        raise StoreError(
            f"{path} is not there, and codes cannot be turned into vectors without it: run the command that made them again, or copy "
            f"it from another copy"
        ) from error
    except Exception as error:  # safetensors' errors are of its own kind
        raise DamagedError(f"{path} cannot be read as codebooks: {error}") from error
    if said.get("format") != FORMAT:
        raise StoreError(f"{path} holds no codebooks, but {said.get('format') or 'something else'}")
    try:
        count = 1 + max(int(name.split(".")[1]) for name in arrays)
        by_number: list[dict[str, np.ndarray]] = [{} for _ in range(count)]
        for name, array in arrays.items():
            _, number, field = name.split(".")
            by_number[int(number)][field] = array
        found = Codebooks(tuple(Quantizer(**fields) for fields in by_number))
    except (ValueError, TypeError, IndexError) as error:
        raise DamagedError(f"{path} lacks codebooks: {error}") from error
    if found.sha256 != said.get("sha256"):
        raise DamagedError(f"{path}: its values have sha256 {found.sha256}, and it says {said.get('sha256')}")
    return found


def _metadata(data: bytes) -> dict[str, Any]:
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(json.loads(data[8 : 8 + size]).get("__metadata__", {}).get("encodeonce", "{}"))
