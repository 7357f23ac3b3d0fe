"""The bytes of a shard: a tar of .npy members whose payloads are the chunks of a Zarr v3 shard.

    tar members     for each utterance <key>.npy [T, D], for int8 <key>.affine.npy [2, D], <key>.json
    two zero blocks every tar reader stops here
    tail chunks     for each T that is no multiple of C: its last T mod C frames once more, zero-padded to C rows
    index           Zarr `sharding_indexed`, index_location end: (offset, nbytes) uint64 pairs, crc32c

An utterance's full inner chunks point inside its .npy payload, its last one at its tail chunk, unused chunks are absent.
See docs/format.md. Everything here is a pure function of its arguments.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from encodeonce.store.errors import DamagedError
from encodeonce.store.identity import member_key

FORMAT_VERSION = 1
BLOCK = 512
ABSENT = np.uint64(2**64 - 1)
ROW_ALIGNMENT = 64
"""Utterances start at multiples of this many rows: the largest inner chunk, so that outputs of any width fit later."""


LONGEST_CHUNK_SECONDS = 0.4
"""Of an inner chunk of 16 rows: an utterance's last frames are kept twice, padded to a chunk."""


def chunk_frames(width: int, frame_rate: float) -> int:
    """Rows C of an inner chunk for an output of `width` values a frame: 16 where it is 256 or more, else 64.

    Half of that, or a quarter and so on, where frames are so slow that 16 last longer than 0.4 s (40 a second are enough).
    """
    wide = 16
    while wide > 1 and wide > LONGEST_CHUNK_SECONDS * frame_rate:
        wide //= 2
    return wide if width >= 256 else 4 * wide


@dataclass(frozen=True, slots=True)
class ShardItem:
    """One utterance of a shard: `row` is its first row within the shard, `values` [T, D], `affine` [2, D] for int8."""

    id: str
    row: int
    values: np.ndarray
    record: dict[str, Any]
    affine: np.ndarray | None = None


def pack_shard(items: Iterable[ShardItem], shard_frames: int, chunk: int) -> Iterator[bytes | memoryview]:
    """The bytes of a shard file, piece by piece, for utterances in the order of their rows; `chunk` is C.

    Each utterance is asked for when what was before it is taken: the next one may lie in the same memory.
    """
    index = np.full((shard_frames // chunk, 2), ABSENT, dtype="<u8")
    tails: list[tuple[int, bytes]] = []
    position, between = 0, b""
    for item in items:
        key = member_key(item.id)
        frames, width = item.values.shape
        first, full, rest = item.row // chunk, *divmod(frames, chunk)
        chunk_bytes = chunk * width * item.values.dtype.itemsize
        for suffix, array in ((".npy", item.values), (".affine.npy", item.affine)):
            if array is None:
                continue
            head = _npy_header(array)
            head = between + _tar_header(key + suffix, len(head) + array.nbytes) + head
            yield head
            position += len(head)
            if suffix == ".npy":
                index[first : first + full, 0] = position + np.arange(full, dtype="<u8") * chunk_bytes
                index[first : first + full, 1] = chunk_bytes
                if rest:
                    tails.append((first + full, array[frames - rest :].tobytes().ljust(chunk_bytes, b"\0")))
            yield np.ascontiguousarray(array).data.cast("B")
            position += array.nbytes
            between = bytes(-position % BLOCK)
        text = json.dumps(item.record, ensure_ascii=False, separators=(",", ":")).encode()
        between += _tar_header(f"{key}.json", len(text)) + text
        between += bytes(-(position + len(between)) % BLOCK)
    between += bytes(2 * BLOCK)
    yield between
    position += len(between)
    for slot, tail in tails:
        index[slot] = position, len(tail)
        yield tail
        position += len(tail)
    yield _seal_index(index)


def pack_affine_shard(
    affines: Iterable[tuple[int, np.ndarray]], shard_frames: int, chunk: int
) -> Iterator[bytes | memoryview]:
    """The Zarr shard of an int8 output's scales: at slot `row // C` the `[2, D]` scale and offset of the utterance of a row."""
    index = np.full((shard_frames // chunk, 2), ABSENT, dtype="<u8")
    position = 0
    for row, affine in affines:
        index[row // chunk] = position, affine.nbytes
        yield affine.astype("<f4").tobytes()
        position += affine.nbytes
    yield _seal_index(index)


def read_index(data: memoryview | np.ndarray, slots: int, where: str) -> np.ndarray:
    """The chunk index `[slots, 2]` (offset, nbytes) of a shard's bytes, its checksum verified.

    Raises:
        DamagedError: too short, or the checksum does not hold.
    """
    size = index_bytes(slots)
    if len(data) < size:
        raise DamagedError(f"{where} is truncated: {len(data)} bytes, its index alone takes {size}")
    raw = bytes(data[-size:])
    found, stored = google_crc32c.value(raw[:-4]), int.from_bytes(raw[-4:], "little")
    if found != stored:
        raise DamagedError(f"{where} has a damaged index: crc32c {found:08x}, recorded {stored:08x}")
    return np.frombuffer(raw[:-4], "<u8").reshape(slots, 2)


def index_bytes(slots: int) -> int:
    """The size of a shard's index."""
    return slots * 16 + 4


def read_records(file: str | BinaryIO, where: str = "") -> Iterator[dict[str, Any]]:
    """The JSON member of every utterance of a shard file, in the order of their rows; `where` is for messages."""
    try:
        with _open_tar(file) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    content = tar.extractfile(member)
                    assert content is not None
                    yield json.loads(content.read())
    except (tarfile.TarError, ValueError) as error:
        raise DamagedError(f"{where or file} cannot be read as a tar of utterances: {error}") from error


def read_items(file: str | BinaryIO, shard_frames: int, where: str = "") -> list[ShardItem]:
    """Every utterance of a shard file, read from its tar members; `where` is for messages."""
    items: list[ShardItem] = []
    arrays: dict[str, np.ndarray] = {}
    try:
        with _open_tar(file) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                suffix = member.name.partition(".")[2]
                if suffix == "json":
                    record = json.loads(content.read())
                    row = record["row"] % shard_frames
                    items.append(ShardItem(record["id"], row, arrays["npy"], record, arrays.get("affine.npy")))
                    arrays = {}
                else:
                    arrays[suffix] = np.lib.format.read_array(io.BytesIO(content.read()), allow_pickle=False)
    except (tarfile.TarError, ValueError, KeyError) as error:
        raise DamagedError(f"{where or file} cannot be read as a tar of utterances: {error!r}") from error
    return items


def _open_tar(file: str | BinaryIO) -> tarfile.TarFile:
    return tarfile.open(file, "r:") if isinstance(file, str) else tarfile.open(fileobj=file, mode="r:")


def group_metadata(attributes: dict[str, Any]) -> dict[str, Any]:
    """zarr.json of a split's group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def array_metadata(
    name: str, shards: int, shard_frames: int, chunk: int, width: int, dtype: str, attributes: dict[str, Any]
) -> dict[str, Any]:
    """zarr.json of an output: `[shards * shard_frames, width]`, one shard file a chunk of the grid."""
    shape, grid, inner = [shards * shard_frames, width], [shard_frames, width], [chunk, width]
    return _sharded_array(shape, grid, inner, dtype, ["frame", f"feature_{name}"], attributes)


def affine_metadata(name: str, shards: int, slots: int, width: int, attributes: dict[str, Any]) -> dict[str, Any]:
    """zarr.json of an int8 output's scales: `[shards * slots, 2, width]` float32, `slots` chunks of the values a shard."""
    shape, grid, inner = [shards * slots, 2, width], [slots, 2, width], [1, 2, width]
    return _sharded_array(shape, grid, inner, "float32", [f"slot_{name}", "affine", f"feature_{name}"], attributes)


def _sharded_array(
    shape: list[int], grid: list[int], inner: list[int], dtype: str, names: list[str], attributes: dict[str, Any]
) -> dict[str, Any]:
    little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    values = {"name": "bytes"} if np.dtype(dtype).itemsize == 1 else little
    return {
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": grid}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if np.dtype(dtype).kind == "f" else 0,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": inner,
                    "codecs": [values],
                    "index_codecs": [little, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
        "attributes": attributes,
        "dimension_names": names,
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _seal_index(index: np.ndarray) -> bytes:
    raw = index.tobytes()
    return raw + google_crc32c.value(raw).to_bytes(4, "little")


def _npy_header(array: np.ndarray) -> bytes:
    return _npy_header_of(array.dtype.newbyteorder("<").str, array.shape)


@lru_cache(256)
def _npy_header_of(descr: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


NAME, SIZE, CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
"""Fields of a tar header."""
LARGEST = 8**11
"""Sizes below it fit their field."""


def _tar_header(name: str, size: int) -> bytes:
    """What tarfile gives for a member, at a third of its time: every utterance takes two or three."""
    if len(name) > NAME.stop or size >= LARGEST:
        return _tar_header_of(name, size)
    header = bytearray(_nameless_tar_header())
    header[NAME] = name.encode("ascii").ljust(NAME.stop, b"\0")
    header[SIZE] = b"%011o\0" % size
    header[CHECKSUM] = b" " * 8
    header[CHECKSUM] = b"%06o\0 " % sum(header)
    return bytes(header)


@lru_cache(1)
def _nameless_tar_header() -> bytes:
    return _tar_header_of("", 0)


def _tar_header_of(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT if len(name) > 100 or size >= LARGEST else tarfile.USTAR_FORMAT)
