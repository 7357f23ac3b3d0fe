"""The bytes of a shard: one file that is a tar of .npy members and a Zarr shard."""

import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from encodeonce.store.errors import DamagedError
from encodeonce.store.files import write_json
from encodeonce.store.format import (
    ROW_ALIGNMENT,
    ShardItem,
    _tar_header,
    array_metadata,
    chunk_frames,
    index_bytes,
    pack_shard,
    read_index,
    read_items,
)
from encodeonce.store.identity import fingerprint, member_key, utterance_id
from encodeonce.store.plan import aligned
from hypothesis import given, settings
from hypothesis import strategies as st

WIDTHS = st.sampled_from([1, 8, 80, 256, 288])
DTYPES = st.sampled_from(["float16", "float32", "int8", "uint16"])


def make_items(lengths: list[int], width: int, dtype: str) -> tuple[list[ShardItem], int]:
    """Items one after the other, and the rows they take."""
    generator = np.random.default_rng(width)
    items, row = [], 0
    for number, frames in enumerate(lengths):
        values = generator.integers(-100, 100, (frames, width)).astype(dtype)
        affine = generator.standard_normal((2, width)).astype("<f4") if dtype == "int8" else None
        items.append(
            ShardItem(f"a/b.{number}", row, values, {"id": f"a/b.{number}", "row": row, "frames": frames}, affine)
        )
        row += aligned(frames)
    return items, row


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=6),
    width=WIDTHS,
    dtype=DTYPES,
    spare=st.integers(0, 3),
    frame_rate=st.sampled_from([50.0, 12.5, 3.0]),
)
def test_shard_is_read_by_zarr_and_by_tar(tmp_path_factory, lengths, width, dtype, spare, frame_rate):
    items, rows = make_items(lengths, width, dtype)
    shard_frames = rows + spare * ROW_ALIGNMENT
    folder = tmp_path_factory.mktemp("shard")
    path = folder / "x" / "c" / "0" / "0"
    path.parent.mkdir(parents=True)
    chunk = chunk_frames(width, frame_rate)
    path.write_bytes(b"".join(pack_shard(items, shard_frames, chunk)))
    write_json(folder / "x" / "zarr.json", array_metadata("x", 1, shard_frames, chunk, width, dtype, {}))

    array = zarr.open_array(str(folder / "x"), mode="r")
    expected = np.zeros((shard_frames, width), dtype)
    for item in items:
        expected[item.row : item.row + len(item.values)] = item.values
    assert np.array_equal(array[:], expected)

    back = read_items(str(path), shard_frames)
    assert [(item.id, item.row) for item in back] == [(item.id, item.row) for item in items]
    for ours, theirs in zip(items, back, strict=True):
        assert np.array_equal(ours.values, theirs.values)
        assert (ours.affine is None) == (theirs.affine is None)

    listing = subprocess.run(["tar", "tf", str(path)], capture_output=True, text=True)
    assert (listing.returncode, listing.stderr) == (0, "")
    assert len(listing.stdout.splitlines()) == len(items) * (3 if dtype == "int8" else 2)


@given(width=st.integers(1, 4096), frame_rate=st.floats(0.5, 200))
def test_a_chunk_fits_the_alignment_and_is_short_in_time(width, frame_rate):
    chunk = chunk_frames(width, frame_rate)
    assert ROW_ALIGNMENT % chunk == 0
    assert chunk / (1 if width >= 256 else 4) <= max(1, 0.4 * frame_rate)
    if frame_rate >= 40:
        assert chunk == (16 if width >= 256 else 64)


def test_full_chunks_lie_inside_the_members_so_that_nothing_is_kept_twice():
    items, rows = make_items([100, 16, 37], 256, "float16")
    data = b"".join(pack_shard(items, rows, 16))
    raw = sum(item.values.nbytes for item in items)
    tails = 2 * 16 * 256 * 2  # 100 and 37 leave a rest, 16 does not
    headers = len(items) * 5 * 512
    assert len(data) <= raw + tails + headers + index_bytes(rows // 16)


def test_a_flipped_byte_in_the_index_is_noticed():
    items, rows = make_items([40], 8, "float16")
    data = bytearray(b"".join(pack_shard(items, rows, 64)))
    read_index(memoryview(bytes(data)), rows // 64, "here")
    data[-10] ^= 1
    with pytest.raises(DamagedError, match="here has a damaged index"):
        read_index(memoryview(bytes(data)), rows // 64, "here")
    with pytest.raises(DamagedError, match="truncated"):
        read_index(memoryview(bytes(data[-7:])), rows // 64, "here")


@given(st.text(min_size=1, max_size=200))
def test_any_id_becomes_a_safe_member_name_and_comes_back(name):
    key = member_key(name)
    assert utterance_id(key) == name
    assert key.isascii()
    assert not set(key) & set("./\\ \n\0")


def test_a_long_id_keeps_its_name_in_every_tar_reader(tmp_path: Path):
    name = "ü" * 200
    item = ShardItem(name, 0, np.ones((3, 8), "float16"), {"id": name, "row": 0, "frames": 3})
    (tmp_path / "0").write_bytes(b"".join(pack_shard([item], 64, 64)))
    listing = subprocess.run(["tar", "tf", str(tmp_path / "0")], capture_output=True, text=True, check=True)
    assert listing.stdout.split() == [f"{member_key(name)}.npy", f"{member_key(name)}.json"]
    assert listing.stderr == ""


@given(st.text("aZ09-_%~", min_size=1, max_size=120), st.integers(0, 8**11 + 8**4) | st.integers(8**11 - 9, 8**11 + 9))
def test_tar_headers_are_those_of_tarfile(name, size):
    member = tarfile.TarInfo(name)
    member.size = size
    large = len(name) > 100 or size >= 8**11
    assert _tar_header(name, size) == member.tobuf(tarfile.PAX_FORMAT if large else tarfile.USTAR_FORMAT)


def test_fingerprint_is_the_sha256_of_canonical_json():
    # printf '{"a":{"b":1.5,"c":"ü"},"d":null}' | sha256sum
    value = {"d": None, "a": {"c": "ü", "b": 1.5}}
    assert fingerprint(value) == fingerprint({"a": {"b": 1.5, "c": "ü"}, "d": None})
    import hashlib

    assert fingerprint(value) == hashlib.sha256('{"a":{"b":1.5,"c":"ü"},"d":null}'.encode()).hexdigest()
