"""Checkpoints in transformers' format: which files hold the weights, and the digest that goes into the identity."""

import hashlib
import json
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from encodeonce.extract.cache import FileCache
from encodeonce.extract.encoders.base import EncoderError, first_line
from encodeonce.store.identity import canonical_json

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load the weights from, in its order of preference.

    Raises:
        EncoderError: the folder holds none.
    """
    for name in (SAFETENSORS, TORCH):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise EncoderError(f"{index} is no index of weights: {error!r}; copy it again") from None
            missing = [part for part in parts if not (folder / part).is_file()]
            if missing:
                raise EncoderError(
                    f"{folder} lacks {', '.join(missing)}, which {index.name} names; copy the whole checkpoint"
                )
            return [folder / part for part in parts]
    raise EncoderError(
        f"{folder} holds no weights: neither {SAFETENSORS} nor {TORCH} is there; copy the whole checkpoint"
    )


def weights_digest(folder: Path, cache: FileCache) -> str:
    """`tensors_digest` of the files that transformers would load."""
    return tensors_digest(weight_files(folder), cache)


def tensors_digest(paths: Sequence[Path], cache: FileCache) -> str:
    """sha256 over the name, dtype, shape and bytes of every tensor, sorted by name; the file format is not in it."""
    tensors: dict[str, list] = {}
    for path in paths:
        digests = cache.fact(path, "tensors")
        if digests is None:
            digests = _safetensors_digests(path) if path.suffix == ".safetensors" else _torch_digests(path)
            cache.keep_fact(path, "tensors", digests)
        tensors.update(digests)
    return hashlib.sha256(canonical_json(tensors)).hexdigest()


def file_digest(path: Path, cache: FileCache) -> str:
    """sha256 of a file's bytes."""
    digest = cache.fact(path, "sha256")
    if digest is None:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        cache.keep_fact(path, "sha256", digest)
    return digest


DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""safetensors' names of dtypes -> torch's."""


def _safetensors_digests(path: Path) -> dict[str, list]:
    digests: dict[str, list] = {}
    try:
        with open(path, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if 8 + size > path.stat().st_size:
                raise EncoderError(f"{path} is truncated or no safetensors file: its header would be {size} bytes")
            header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                begin, end = entry["data_offsets"]
                file.seek(8 + size + begin)
                digest, left = hashlib.sha256(), end - begin
                while left:
                    block = file.read(min(left, 1 << 22))
                    if not block:
                        raise EncoderError(f"{path} is truncated: it ends inside {name}; copy it again")
                    digest.update(block)
                    left -= len(block)
                dtype = DTYPES.get(entry["dtype"], entry["dtype"])
                digests[name] = [dtype, entry["shape"], digest.hexdigest()]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EncoderError(f"{path} is no safetensors file: {error}; copy it again") from error
    return digests


def load_tensors(path: Path) -> dict[str, Any]:
    """What a file of torch holds, by name: plain tensors alone, for anything else in it could run code.

    Raises:
        EncoderError: it is damaged, or holds other objects.
    """
    import torch

    try:
        # Checkpoints of before torch 1.6 are no zip archives and cannot be mapped.
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)))
    except UnpicklingError as error:
        raise EncoderError(
            f"{path} cannot be loaded: it holds more than plain weights, or is no file of torch; what else is pickled in it is never "
            f"run here: save the state dict alone, as safetensors, where you trust it"
        ) from error
    except Exception as error:
        reason = first_line(error)
        raise EncoderError(f"{path} cannot be loaded as plain weights: {reason}; copy it again") from error


def _torch_digests(path: Path) -> dict[str, list]:
    import torch

    state, digests = load_tensors(path), {}
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor):
            raw = tensor.contiguous().view(-1).view(torch.uint8).numpy()
            dtype = str(tensor.dtype).removeprefix("torch.")
            digests[name] = [dtype, list(tensor.shape), hashlib.sha256(raw.data).hexdigest()]
    return digests
