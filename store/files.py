"""The one way files come into a store, and go: written to a temporary name, fsynced, renamed, the folder fsynced.

In an object store it is one PUT: an object appears whole or not at all, and needs no temporary name.
"""

import ctypes
import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from encodeonce.store.errors import DamagedError, MissingError, StoreError
from encodeonce.store.objects import ObjectPath, StorePath, delete

COPIES_IN_FLIGHT = 16
NUMBERS = count()
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFullError(StoreError):
    """There is no room left where the store is."""


def fsync_path(path: Path) -> None:
    """Make what a file holds, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_write(target: StorePath, scratch: StorePath | None = None) -> Iterator[BinaryIO]:
    """Open a file that appears under `target` whole, or not at all.

    `scratch` is a folder of the same file system for the temporary name (by default the target's own). An error
    removes the temporary file and leaves an older target as it was. What goes to an object store is gathered in memory.

    Raises:
        DiskFullError: no space, quota or file-size limit left.
        StoreError: the place cannot be written.
    """
    if isinstance(target, ObjectPath):
        gathered = io.BytesIO()
        yield gathered
        target.put(gathered.getvalue())
        return
    assert not isinstance(scratch, ObjectPath)
    # The number keeps threads apart: they may write files of the same name in folders of the same name.
    temporary = (scratch or target.parent) / f"{target.parent.name}-{target.name}.{os.getpid()}.{next(NUMBERS)}.tmp"
    try:
        make_folder(target.parent)
        make_folder(temporary.parent)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        fsync_path(target.parent)
    except OSError as error:
        raise explain(error, target) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)  # of Linux
if _sync_file_range:
    _sync_file_range.argtypes = ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint
SYNC_FILE_RANGE_WRITE = 2


def begin_to_disk(file: BinaryIO, offset: int, size: int) -> None:
    """Have Linux begin to bring a part of a file to the disk, so that fsync finds less to wait for; a hint, elsewhere nothing."""
    if _sync_file_range and not isinstance(file, io.BytesIO):
        _sync_file_range(file.fileno(), offset, size, SYNC_FILE_RANGE_WRITE)


def make_folder(folder: StorePath) -> None:
    """Create a folder and its parents, each new name fsynced in the folder that holds it; object stores have none."""
    if isinstance(folder, ObjectPath) or folder.is_dir():
        return
    make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
        fsync_path(folder.parent)


def move(source: StorePath, target: StorePath) -> None:
    """Give a file or a folder another place in its store. Objects are copied in the server, each zarr.json after the
    rest, and removed, each zarr.json before the rest: an array that has one is whole."""
    if isinstance(source, ObjectPath):
        assert isinstance(target, ObjectPath)
        objects = [source] if source.is_file() else sorted(source.sizes_below())
        to = {path: target / path.relative_to(source) for path in objects}
        with ThreadPoolExecutor(COPIES_IN_FLIGHT, "copy") as pool:
            for last in (False, True):
                some = [path for path in objects if (path.name == "zarr.json") == last]
                list(pool.map(lambda path: path.copy_to(to[path]), some))
        for first in (True, False):
            delete([path for path in objects if (path.name == "zarr.json") == first])
        return
    assert isinstance(target, Path)
    make_folder(target.parent)
    source.replace(target)
    fsync_path(target.parent)
    if source.parent != target.parent:
        fsync_path(source.parent)


def remove_tree(folder: StorePath) -> None:
    """Remove a folder with all that is in it, there or not."""
    if isinstance(folder, ObjectPath):
        delete(folder.sizes_below())
    else:
        shutil.rmtree(folder, ignore_errors=True)


def size_of(path: StorePath) -> int:
    """Bytes of a file; FileNotFoundError where there is none."""
    return path.size() if isinstance(path, ObjectPath) else path.stat().st_size


def sizes_below(folder: StorePath) -> dict[str, int]:
    """Bytes of every file below a folder, by its path from there; in an object store a request for a thousand."""
    if isinstance(folder, ObjectPath):
        return {path.relative_to(folder).as_posix(): size for path, size in folder.sizes_below().items()}
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def version_of(path: StorePath) -> Any:
    """What another file of the same name differs in; None where there is none."""
    try:
        return path.version() if isinstance(path, ObjectPath) else _version(path.stat())
    except FileNotFoundError:
        return None


def versions_in(folder: StorePath) -> dict[str, Any]:
    """What `version_of` tells of every file right in a folder, by name, without reading any; nothing where there is no folder."""
    if isinstance(folder, ObjectPath):
        return {path.name: version for path, version in folder.versions_in().items()}
    try:
        with os.scandir(folder) as entries:
            return {entry.name: _version(entry.stat()) for entry in entries if entry.is_file()}
    except FileNotFoundError:
        return {}


def _version(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_size


def open_file(path: StorePath) -> BinaryIO:
    """A file open for reading; an object is held in memory."""
    return io.BytesIO(path.read_bytes()) if isinstance(path, ObjectPath) else open(path, "rb")


def sha256_of(path: StorePath) -> str:
    """The sha256 of a file, 64 hex digits, without holding all of it."""
    if isinstance(path, ObjectPath):
        digest = hashlib.sha256()
        for piece in path.stream():
            digest.update(piece)
        return digest.hexdigest()
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def explain(error: OSError, target: Path) -> StoreError:
    """An operating-system error at a place of the store, said so that one knows what to do."""
    if error.errno in FULL:
        return DiskFullError(
            f"no room left for {target} ({error.strerror}); everything finished so far is kept: "
            f"free space, or give another --store, and run the same command again"
        )
    return StoreError(f"cannot write {target}: {error.strerror or error}; give a folder that can be written")


def write_json(target: StorePath, value: Any, scratch: StorePath | None = None) -> None:
    """Write a JSON file atomically, indented, keys in the order given."""
    with atomic_write(target, scratch) as file:
        file.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: StorePath) -> dict[str, Any]:
    """Read a JSON object of a store.

    Raises:
        MissingError: it is not there. DamagedError: it is no JSON.
    """
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("no object")
        return value
    except FileNotFoundError as error:
        raise MissingError(f"{path} is not there") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path} is no JSON object: {error}") from error
