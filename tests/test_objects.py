"""Object stores: paths, extraction to s3://, resuming, one writer, verify and repair, plain readers of what lies there."""

import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import object_server
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from commands import contents, extract, feature_store, write_corpus
from encodeonce.store import client as client_module
from encodeonce.store import files as files_module
from encodeonce.store import objects as objects_module
from encodeonce.store import ranges as ranges_module
from encodeonce.store.client import ConflictError, explained
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.files import move, remove_tree, sizes_below
from encodeonce.store.layout import SplitPaths, published_outputs
from encodeonce.store.objects import ObjectPath, delete, store_path
from encodeonce.store.ranges import joined
from encodeonce.store.reader import FeatureStore
from encodeonce.store.version import condition, is_same
from hypothesis import given, settings
from hypothesis import strategies as st
from object_server import objects
from plain_readers import read_both

LENGTHS = [0.4, 1.3, 0.7, 2.0, 0.55, 1.0]
SHARDS = ("--shard-frames", "256")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "data" / "dev", LENGTHS)
    (tmp_path / "data" / "dev" / "broken.wav").write_bytes(b"no audio")
    return tmp_path / "data"


def stored(place: ObjectPath) -> dict[str, bytes]:
    """Every object below a path, as `contents` gives files."""
    found = {}
    for path in place.sizes_below():
        if path.parent.name == "runs":
            continue
        data = path.read_bytes()
        if path.parent.name == "commits":
            record = json.loads(data)
            record["made"].pop("time")
            data = json.dumps(record).encode()
        found[path.relative_to(place).as_posix()] = data
    return found


def split_of(store: ObjectPath) -> ObjectPath:
    """The split dev in a store of one feature set."""
    (found,) = store.glob("*/feature-set.json")
    return found.parent / "dev"


@given(
    st.lists(st.text("ab.-_ #%ü[*", min_size=1).filter(lambda part: part not in (".", "..")), min_size=1, max_size=4)
)
def test_paths_behave_as_pathlib_has_it(parts):
    path, plain = ObjectPath("s3://bucket", "/".join(parts)), PurePosixPath("/", *parts)
    assert (path.name, path.stem, path.key) == (plain.name, plain.stem, str(plain)[1:])
    assert [parent.key for parent in path.parents] == [str(parent)[1:] for parent in plain.parents]
    assert store_path(str(path)) == path == pickle.loads(pickle.dumps(path))
    assert objects(str(ObjectPath("https://host:1", path.key))).key == path.key
    assert (path / "x" / "y.json").relative_to(path).as_posix() == "x/y.json"
    assert {path, ObjectPath("s3://bucket", path.key + "/")} == {path}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("features", Path("features")),
        ("file:///data/my%20features", Path("/data/my features")),
        ("s3a://b/x/", ObjectPath("s3://b", "x")),
        ("az://container/x", ObjectPath("az://container", "x")),
        ("https://host/a%20b/c", ObjectPath("https://host", "a b/c")),
    ],
)
def test_a_place_is_a_local_path_or_a_url(text, expected):
    assert store_path(text) == expected


@pytest.mark.parametrize("text", ["ftp://host/x", "s3:///x", "s3://b/../x", "https://host/x?signature=1"])
def test_a_place_that_means_nothing_is_refused(text):
    with pytest.raises(StoreError, match=r"give|write"):
        store_path(text)


@pytest.mark.parametrize("kind", ["bucket", "memory"])
def test_objects_are_written_listed_read_by_ranges_and_deleted(kind, request, monkeypatch):
    root: ObjectPath = request.getfixturevalue(kind) / "some prefix"
    (root / "a" / "c" / "10" / "0").put(bytes(range(100)))
    (root / "a" / "zarr.json").put([b"{", b"}"])
    (root / "ab.json").put(b"")
    assert sizes_below(root) == {"a/c/10/0": 100, "a/zarr.json": 2, "ab.json": 0}
    assert [path.name for path in root.iterdir()] == ["a", "ab.json"]
    assert list(root.glob("*/c/*")) == [root / "a" / "c" / "10"]
    assert list(root.glob("*/")) == [root / "a"]
    assert [path.name for path in root.glob("*.json")] == ["ab.json"]
    assert ((root / "a").is_dir(), (root / "a").is_file(), (root / "a").exists()) == (True, False, True)
    assert (root / "ab.json").is_file()
    assert not (root / "b").exists()
    shard = root / "a" / "c" / "10" / "0"
    assert (shard.size(), bytes(shard.read_range(98, 2)), bytes(shard.read_end(3))) == (100, b"bc", b"abc")
    assert bytes(shard.read_end(200)) == bytes(range(100)) == b"".join(shard.stream())
    monkeypatch.setattr(objects_module, "ONE_PUT_BYTES", 10)
    shard.put(bytes(range(100)))
    assert shard.size() == 100
    move(root / "a", root / "moved")
    assert sizes_below(root) == {"moved/c/10/0": 100, "moved/zarr.json": 2, "ab.json": 0}
    remove_tree(root / "moved")
    delete([root / "ab.json", root / "never there"])
    assert sizes_below(root) == {}
    with pytest.raises(FileNotFoundError, match="no such object"):
        shard.read_bytes()


@pytest.mark.parametrize("kind", ["bucket", "memory"])
def test_conditional_writes_tell_who_was_first(kind, request):
    path: ObjectPath = request.getfixturevalue(kind) / "lock"
    first = path.put(b"1", replacing="nothing")
    with pytest.raises(ConflictError):
        path.put(b"2", replacing="nothing")
    path.put(b"3", replacing=first)
    with pytest.raises(ConflictError):
        path.put(b"4", replacing=first)
    assert path.read_bytes() == b"3"


@pytest.fixture(params=["bucket", "memory", "web"])
def rewritable(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ObjectPath, Callable[[bytes], Any]]:
    """The path of an object, and what puts another one there; the web server tells no more than when it was modified."""
    if request.param != "web":
        path = request.getfixturevalue(request.param) / "x"
        return path, path.put
    seconds = itertools.count(1_000_000_000)

    def write(data: bytes) -> None:
        (tmp_path / "x").write_bytes(data)
        os.utime(tmp_path / "x", (now := next(seconds), now))

    return objects(request.getfixturevalue("web").url) / "x", write


@given(st.data())
@settings(max_examples=100)
def test_ranges_are_joined_into_requests_that_hold_them_all(data):
    limits = {"max_value": 3 * ranges_module.REQUEST_BYTES, "min_value": 0}
    pairs = data.draw(st.lists(st.tuples(st.integers(**limits), st.integers(0, 200_000)), max_size=30))
    requests = joined([start for start, _ in pairs], [length for _, length in pairs])
    members = [number for request in requests for number in request.members]
    assert sorted(members) == [number for number, (_, length) in enumerate(pairs) if length]
    for request in requests:
        held = [pairs[number] for number in request.members]
        assert request.start == min(start for start, _ in held)
        assert request.stop == max(start + length for start, length in held)
        assert request.stop - request.start <= ranges_module.REQUEST_BYTES
        read = {start for start, _ in held}
        reach = itertools.accumulate((start + length for start, length in sorted(held)), max)
        gaps = [later - end for later, end in zip(sorted(read)[1:], reach, strict=False)]
        assert len(read) < len(held) or all(gap <= ranges_module.GAP_BYTES for gap in gaps)
    for one, other in itertools.pairwise(requests):
        far = other.start > one.stop + ranges_module.GAP_BYTES
        assert far or other.stop - one.start > ranges_module.REQUEST_BYTES - 200_000


def test_ranges_come_as_they_were_asked_for(rewritable):
    path, write = rewritable
    data = np.random.default_rng(0).integers(0, 256, 500_000, np.uint8).tobytes()
    write(data)
    head = path.head()
    assert head.size == len(data)
    starts, lengths = [400_000, 7, 5, 0, 499_999, 250_000, 9], [10, 100, 10, 0, 1, 0, 200_000]
    for version in (None, head.version):
        parts = path.read_ranges(starts, lengths, version)
        assert [bytes(part) for part in parts] == [data[a : a + n] for a, n in zip(starts, lengths, strict=True)]
        assert path.read_ranges([], [], version) == []
        assert bytes(path.read_end(700_000, version)) == data
        assert (bytes(path.read_range(3, 0, version)), bytes(path.read_end(0, version))) == (b"", b"")


def test_a_version_is_a_condition_where_servers_can_mind_it():
    modified = datetime(2026, 1, 1, tzinfo=UTC)
    assert condition('"a"') == {"if_match": '"a"'}
    assert condition((modified, 5)) == {"if_unmodified_since": modified}
    assert condition(None) == condition('W/"a"') == {}
    assert is_same('W/"a"', '"a"')
    assert not any(is_same(found, (modified, 5)) for found in (None, '"a"', (modified, 6)))


@pytest.mark.parametrize("size", [200_000, 300_000, 100])
def test_what_was_rewritten_is_never_read_with_the_offsets_of_before(rewritable, size):
    path, write = rewritable
    write(bytes(200_000))
    version = path.head().version
    assert version is not None
    assert path.read_end(3, version) == bytes(3)
    write(b"x" * size)
    assert path.head().version != version
    for read in (
        lambda: path.read_range(10, 5, version),
        lambda: path.read_range(150_000, 5, version),
        lambda: path.read_end(3, version),
        lambda: path.read_ranges([0, 90_000, 199_000], [10, 10, 10], version),
    ):
        with pytest.raises(
            StoreError, match="/x was rewritten since the store was opened; open the store again"
        ) as caught:
            read()
        assert not isinstance(caught.value, DamagedError)
    assert bytes(path.read_range(10, 5, path.head().version)) == b"xxxxx"


def test_an_object_that_ends_early_and_one_that_is_gone(rewritable):
    path, write = rewritable
    write(bytes(100))
    for version in (None, path.head().version):
        for start, got in ((98, 2), (100, 0), (500, 0)):
            with pytest.raises(DamagedError, match=f"/x ends early: asked for 5 bytes from byte {start}, got {got}"):
                path.read_range(start, 5, version)
            with pytest.raises(DamagedError, match="/x ends early"):
                path.read_ranges([0, start + 400_000], [2, 5], version)
    for read in (lambda: (path.parent / "y").head(), lambda: (path.parent / "y").read_ranges([0, 300_000], [1, 1])):
        with pytest.raises(FileNotFoundError, match="no such object"):
            read()


def test_ranges_are_read_from_many_threads_that_are_all_taken(memory, web, tmp_path):
    (tmp_path / "x").write_bytes(bytes(range(256)) * 4000)
    path, starts = objects(web.url) / "x", list(range(0, 1_000_000, 100_000))
    with ThreadPoolExecutor(48) as pool:
        found = list(pool.map(lambda _: path.read_ranges(starts, [3] * 10), range(96), timeout=60))
    assert all([bytes(part) for part in parts] == [path.read_range(s, 3) for s in starts] for parts in found[:1])
    assert all(parts == found[0] for parts in found)


def test_a_server_that_stumbles_is_asked_again_and_one_that_fails_is_no_damage(web, tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(bytes(100))
    path, answer = objects(web.url) / "x", object_server._Handler.do_GET
    failures = [503, 500]

    def stumble(handler: Any) -> None:
        if failures:
            handler.send_error(failures.pop())
        else:
            answer(handler)

    monkeypatch.setattr(object_server._Handler, "do_GET", stumble)
    assert path.read_ranges([3], [4]) == [bytes(4)]
    failures = [403]
    with pytest.raises(StoreError, match="no permission") as refused:
        path.read_range(3, 4)
    monkeypatch.setattr(client_module, "MOST_RETRIES", 0)
    with pytest.raises(StoreError, match="cannot be reached") as unreached:
        objects("http://127.0.0.1:9/x").read_range(3, 4)
    assert {type(refused.value), type(unreached.value)} == {StoreError}


def test_a_client_that_breaks_down_is_an_error_of_the_store(memory):
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(StoreError, match=r"memory://.* broke down \(range start\); try again"), explained(memory):
        raise panic("range start")
    with pytest.raises(KeyboardInterrupt), explained(memory):
        raise KeyboardInterrupt


def test_a_moved_array_is_copied_at_once_with_its_metadata_last(memory, monkeypatch):
    for name in ("zarr.json", *(f"c/{number}/0" for number in range(40))):
        (memory / "from" / name).put(name.encode())
    copied, running, most, copy = [], 0, 0, ObjectPath.copy_to

    def slow(path: ObjectPath, target: ObjectPath) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        copy(path, target)
        running -= 1
        copied.append(path.name)

    monkeypatch.setattr(ObjectPath, "copy_to", slow)
    move(memory / "from", memory / "to" / "there")
    assert (copied.index("zarr.json"), len(copied)) == (40, 41)
    assert most >= 8
    found = {path.relative_to(memory).as_posix(): path.read_bytes() for path in memory.sizes_below()}
    names = ("zarr.json", *(f"c/{number}/0" for number in range(40)))
    assert found == {f"to/there/{name}": name.encode() for name in names}


def test_what_cannot_be_reached_is_said_with_the_way_out(s3_server, monkeypatch, data):
    for done in (feature_store("ls", "s3://no-such-bucket/x"), extract(data, "dev", objects("s3://no-such-bucket"))):
        assert done.status == 2
    done = feature_store("verify", "s3://no-such-bucket/x")
    assert (done.status, "there is no s3://no-such-bucket" in done.err) == (2, True)
    monkeypatch.setattr(client_module, "MOST_RETRIES", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    done = feature_store("info", "s3://out-of-reach/x")
    assert done.status == 2
    assert all(word in done.err for word in ("s3://out-of-reach", "cannot be reached", "AWS_ENDPOINT_URL"))
    assert "Traceback" not in done.err
    with pytest.raises(StoreError, match=r"http://127.0.0.1:9/x cannot be listed: http has no listing"):
        objects("http://127.0.0.1:9/x").is_dir()
    refused = extract(data, "dev", objects("https://127.0.0.1:9/x"))
    assert (refused.status, "is for reading" in refused.err) == (2, True)


def test_a_forked_process_is_told_how_to_be_started(memory):
    program = (
        "import os, sys\n"
        "from encodeonce.store.objects import store_path\n"
        "path = store_path('memory://here/x')\n"
        "path.put(b'1')\n"
        "if os.fork():\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
        "try: path.read_bytes()\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "spawn" in done.stdout


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_extraction_writes_there_what_it_writes_to_a_disk(data, tmp_path, bucket, dtype):
    local = extract(data, "dev", tmp_path / "local", *SHARDS, "--dtype", dtype)
    there = extract(data, "dev", bucket / "my" / "features", *SHARDS, "--dtype", dtype)
    assert there.counts() == local.counts() == (6, 0, 0, 1)
    assert stored(bucket / "my" / "features") == contents(tmp_path / "local")
    names = {name for name in sizes_below(bucket) if "/runs/" not in name}
    assert names == {f"my/features/{name}" for name in contents(tmp_path / "local")}


def test_a_shard_is_one_put_and_its_record_follows(data, bucket, monkeypatch):
    puts: list[str] = []
    put = ObjectPath.put

    def noted(path: ObjectPath, value: Any, replacing: Any = None) -> Any:
        puts.append(path.relative_to(bucket).as_posix().split("/dev/")[-1])
        return put(path, value, replacing)

    monkeypatch.setattr(ObjectPath, "put", noted)
    extract(data, "dev", bucket, *SHARDS)
    shards = [name for name in puts if "/c/" in name]
    assert sorted(shards) == sorted(f"features.zarr/fbank/c/{number}/0" for number in range(len(shards)))
    assert all(puts.index(name) < puts.index(f"commits/{name.split('/')[3]}.json") for name in shards)


def test_new_outputs_new_files_and_copies_between_splits(data, tmp_path, bucket):
    for store in (tmp_path / "local", bucket):
        extract(data, "dev", store, *SHARDS)
        extract(data, "dev", store, "--dtype", "int8")
    write_corpus(data / "dev", [0.5, 0.6], first=50)
    write_corpus(data / "test", LENGTHS[:3])
    for store in (tmp_path / "local", bucket):
        assert extract(data, "dev", store).counts() == (2, 0, 6, 1)
        assert extract(data, "test", store).counts() == (0, 3, 0, 0)
    assert stored(bucket) == contents(tmp_path / "local")
    assert published_outputs(SplitPaths(split_of(bucket))).keys() == {"fbank", "fbank-int8"}
    assert extract(data, "dev", bucket, "--dry-run").json["splits"][0]["to_encode"] == 0


def test_what_a_killed_move_into_the_group_left_is_removed_by_the_next_run(data, tmp_path, bucket, monkeypatch):
    for dtype in ("float16", "int8"):
        extract(data, "dev", tmp_path / "whole", *SHARDS, "--dtype", dtype)
    extract(data, "dev", bucket, *SHARDS)

    def cut(paths: Any) -> None:
        if list(paths):
            raise StoreError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(files_module, "delete", cut)
        assert extract(data, "dev", bucket, "--dtype", "int8").status == 2
    assert (split_of(bucket) / "unfinished").is_dir()
    assert feature_store("verify", "--read-data", bucket).status == 0
    assert extract(data, "dev", bucket, "--dtype", "int8").counts() == (0, 0, 6, 1)
    assert stored(bucket) == contents(tmp_path / "whole")


# Runs the command in children that kill themselves at one of their writes: before it where negative, never at 0.
DRIVER = """
import itertools, os, signal, sys, torch, torchaudio.compliance.kaldi
import encodeonce.extract.encode, encodeonce.extract.encoders.fbank, encodeonce.extract.pipeline, encodeonce.store.objects as objects
from encodeonce.extract.cli import main

def run_child(kill_at, before, dtype):
    numbers = itertools.count(1)  # threads write at once: each write has its own number
    def counting(work):
        def operation(self, *arguments, **options):
            number = 0 if self.name in (".writer", ".lock") else next(numbers)
            if before and number == kill_at > 0: os.kill(os.getpid(), signal.SIGKILL)
            result = work(self, *arguments, **options)
            if number == kill_at > 0: os.kill(os.getpid(), signal.SIGKILL)
            return result
        return operation
    for name in ("put", "copy_to"):
        setattr(objects.ObjectPath, name, counting(getattr(objects.ObjectPath, name)))
    main([*sys.argv[2:], "--dtype", dtype])

for point in sys.argv[1].split(","):
    number, dtype = point.split(":")
    child = os.fork()
    if not child:
        try: run_child(abs(int(number)), number.startswith("-"), dtype)
        except SystemExit as end: os._exit(end.code or 0)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def test_a_run_killed_at_any_write_and_run_again_equals_an_uninterrupted_one(data, tmp_path, bucket):
    for dtype in ("float16", "int8"):
        extract(data, "dev", tmp_path / "whole", *SHARDS, "--dtype", dtype)
    points = [f"{number}:float16" for number in (-2, 3, 4, -5, 3, -2, 0)]
    points += [f"{number}:int8" for number in (3, -6, 12, 9, -4, 2)]
    where = ["--data", str(data), "--split", "dev", "--store", str(bucket), *SHARDS]
    command = [sys.executable, "-c", DRIVER, ",".join(points), "--encoder", "fbank", *where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    ends = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    assert ends.count(signal.SIGKILL) >= 7, (ends, done.stderr)
    assert extract(data, "dev", bucket, "--dtype", "int8").status == 1
    assert stored(bucket) == contents(tmp_path / "whole")


def test_verify_finds_damage_and_repair_sets_it_aside(data, tmp_path, bucket):
    extract(data, "dev", tmp_path / "local", *SHARDS, "--dtype", "int8")
    extract(data, "dev", bucket, *SHARDS, "--dtype", "int8")
    split = split_of(bucket)
    assert feature_store("verify", "--read-data", bucket).status == 0
    victim = split / "features.zarr" / "fbank-int8" / "c" / "1" / "0"
    whole = victim.read_bytes()
    victim.put(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    assert feature_store("verify", bucket).status == 0
    found = feature_store("verify", "--read-data", split)
    assert (found.status, f"damaged: {victim}: expected sha256" in found.err) == (1, True)
    victim.put(whole[:-1] + b"x")
    assert "index whose checksum holds" in feature_store("verify", bucket).err
    victim.put(whole[:-1])
    assert f"{len(whole) - 1} bytes" in feature_store("verify", "--quick", bucket).err
    delete([victim])
    assert "no such object" in feature_store("verify", bucket).err
    refused = extract(data, "dev", bucket, "--dtype", "int8")
    assert (refused.status, "feature-store repair s3://" in refused.err) == (2, True)
    victim.put(whole[:-1])
    mended = feature_store("repair", bucket)
    assert (mended.status, "set 1 shards aside" in mended.out) == (0, True)
    assert (split / "damaged" / "1" / "fbank-int8" / "0").read_bytes() == whole[:-1]
    assert extract(data, "dev", bucket, "--dtype", "int8").split["encoded"] > 0
    remove_tree(split / "damaged")
    assert stored(bucket) == contents(tmp_path / "local")


def test_a_list_of_outputs_that_is_lost_or_stale_is_mended_by_the_next_run(data, tmp_path):
    extract(data, "dev", tmp_path / "s", *SHARDS)
    extract(data, "dev", tmp_path / "s", "--dtype", "int8")
    (path,) = (tmp_path / "s").glob("*/dev/features.zarr/zarr.json")
    whole = json.loads(path.read_text())
    assert whole["attributes"]["encodeonce"]["outputs"] == ["fbank", "fbank-int8"]
    for stale in (["fbank"], [], None):
        value = json.loads(path.read_text())
        value["attributes"]["encodeonce"]["outputs"] = stale
        if stale is None:
            del value["attributes"]["encodeonce"]["outputs"]
        path.write_text(json.dumps(value))
        found = feature_store("verify", "--read-data", tmp_path / "s")
        assert (found.status, "names of the outputs" in found.err) == ((0, False) if stale else (1, True))
        assert extract(data, "dev", tmp_path / "s").counts() == (0, 0, 6, 1)
        assert json.loads(path.read_text()) == whole


def test_plain_zarr_reads_it_there(data, tmp_path, bucket):
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    extract(data, "dev", tmp_path / "local", *SHARDS)
    extract(data, "dev", bucket, *SHARDS)
    split = split_of(bucket)
    expected = read_both(tmp_path / "local" / split.relative_to(bucket), "fbank")
    plain = S3Store(bucket.root.removeprefix("s3://"), prefix=(split / "features.zarr").key)
    group: Any = zarr.open_group(ObjectStore(plain, read_only=True), mode="r")
    rows = pq.read_table(pa.BufferReader((split / "utterances.parquet").read_bytes())).to_pylist()
    assert list(group.array_keys()) == ["fbank"]
    for row in rows:
        assert np.array_equal(group["fbank"][row["row"] : row["row"] + row["frames"]], expected[row["id"]])
    assert expected.keys() == {row["id"] for row in rows}


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_our_reader_reads_it_there(data, tmp_path, bucket, web, kind):
    extract(data, "dev", tmp_path / "local", *SHARDS)
    (local,) = (tmp_path / "local").glob("*/dev")
    if kind == "s3":
        extract(data, "dev", bucket, *SHARDS)
        store = FeatureStore(bucket)
    else:
        store = FeatureStore(objects(f"{web.url}/{local.relative_to(tmp_path).as_posix()}"))
    expected = read_both(local, "fbank")
    assert set(store.ids) == set(expected)
    assert all(np.array_equal(store[name].features, values) for name, values in expected.items())
    if kind == "http":
        listed = feature_store("ls", f"{web.url}/local")
        assert (listed.status, "cannot be listed" in listed.err) == (2, True)


def test_reading_local_stores_starts_no_client():
    program = (
        "import sys, encodeonce.store, encodeonce.store.cli\n"
        "sys.exit(', '.join({'obstore', 'moto', 'zarr'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
