"""Whole shards of object stores on local disk, under a limit: checked against their commit records, oldest use out first."""

import errno
import fcntl
import hashlib
import os
import re
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.objects import ObjectPath

PIECE_BYTES = 8 * 1024 * 1024
PIECES_AHEAD = 8
"""Pieces of a download that are in flight or wait in memory."""

OURS = re.compile(r"[0-9a-f]{64}(\.part)?")
"""The names of our files. Whatever else lies in the folder is somebody's own."""

GRACE_SECONDS = 0.5
"""A shard stays this long after its last use: whoever asked for it opens it meanwhile."""


def cache_folder() -> Path:
    """The cache folder: ENCODEONCE_CACHE, or the platform's own place for caches."""
    return Path(os.environ.get("ENCODEONCE_CACHE") or platformdirs.user_cache_path("encodeonce"))


class ShardCache:
    """Shard files under their sha256. Threads and processes may share a folder; nothing is fetched twice at a time.

    A file that is evicted while somebody reads it stays readable until it is closed. The least limit among those who
    share a folder counts. Other files in the folder are left alone and do not count.

    Args:
        folder: where the files lie.
        limit_bytes: what the files may take up together.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    def fetch(self, source: ObjectPath, size: int, sha256: str) -> Path:
        """The local copy of a shard of so many bytes, downloaded when it is not there. Open it soon.

        Raises:
            DamagedError: what is there is not what the commit record says.
            StoreError: larger than the limit, no room on the disk, or the source cannot be read.
        """
        if size > self.limit_bytes:
            raise StoreError(
                f"{source} has {size} bytes, and the shard cache in {self.folder} may hold {self.limit_bytes}: "
                f"give it a limit of at least a few shards"
            )
        target = self.folder / sha256
        try:
            while not _used(target, size):
                self.folder.mkdir(parents=True, exist_ok=True)
                with _held(target.with_name(f"{sha256}.part")) as part:
                    if part is not None and not _used(target, size):
                        self._make_room(part, size)
                        _download(source, part, size, sha256)
                        with _folder_lock(self.folder):  # whoever counts sees it under one name or the other
                            os.replace(target.with_name(f"{sha256}.part"), target)
        except OSError as error:
            raise self._explained(error) from error
        return target

    def _explained(self, error: OSError) -> StoreError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return StoreError(
                f"no room left in the shard cache {self.folder} ({error.strerror}): free space, give it a smaller limit, or "
                f"another folder with ENCODEONCE_CACHE"
            )
        return StoreError(
            f"the shard cache in {self.folder} cannot be used: {error.strerror or error}; name another folder with cache="
        )

    def _make_room(self, part: int, size: int) -> None:
        """Let a part have its size, and evict what was used longest ago until everything fits."""
        os.ftruncate(part, 0)
        while not self._evicted_for(part, size):
            time.sleep(GRACE_SECONDS / 10)  # until other downloads are whole, and what was just used has been opened
        os.posix_fallocate(part, 0, size)

    def _evicted_for(self, part: int, size: int) -> bool:
        with _folder_lock(self.folder):
            files, total = [], size
            for entry in os.scandir(self.folder):
                if not OURS.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                    continue
                with suppress(FileNotFoundError):
                    if entry.name.endswith(".part") and _removed_leftover(entry.path):
                        continue
                    status = entry.stat()
                    total += status.st_size
                    if not entry.name.endswith(".part"):
                        files.append((status.st_mtime, status.st_size, entry.path))
            for used, length, path in sorted(files):
                if total <= self.limit_bytes or time.time() - used < GRACE_SECONDS:
                    break
                with suppress(FileNotFoundError):
                    os.unlink(path)
                total -= length
            if total <= self.limit_bytes:
                os.ftruncate(part, size)  # from here on it counts
            return total <= self.limit_bytes


def _used(path: Path, size: int) -> bool:
    """Whether a whole copy is there; if so it counts as used now."""
    try:
        if path.stat().st_size != size:
            return False
        with suppress(PermissionError):  # somebody else's, which this process may read
            os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _download(source: ObjectPath, part: int, size: int, sha256: str) -> None:
    """Fill a part from an object and compare it with its record."""
    try:
        found = _filled(source, part, size)
    except FileNotFoundError as error:
        raise DamagedError(f"{source} is not there, though its commit record is; run feature-store verify") from error
    if found != sha256:
        raise DamagedError(f"{source} has sha256 {found}, its commit record says {sha256}; run feature-store verify")
    os.fsync(part)


def _filled(source: ObjectPath, part: int, size: int) -> str:
    """Fill a part from an object, in pieces that are read side by side; the sha256 of what came."""
    head = source.head()
    if head.size != size:
        raise DamagedError(f"{source} has {head.size} bytes, its commit record says {size}; run feature-store verify")
    digest, pending = hashlib.sha256(), deque()

    def take() -> None:
        offset, future = pending.popleft()
        piece = future.result()
        digest.update(piece)
        os.pwrite(part, piece, offset)

    with ThreadPoolExecutor(PIECES_AHEAD, "download") as pool:
        for offset in range(0, size, PIECE_BYTES):
            length = min(PIECE_BYTES, size - offset)
            pending.append((offset, pool.submit(source.read_range, offset, length, head.version)))
            if len(pending) == PIECES_AHEAD:
                take()
        while pending:
            take()
    return digest.hexdigest()


@contextmanager
def _held(path: Path) -> Iterator[int | None]:
    """A part opened and locked, waiting for whoever fills it; None when it was taken away meanwhile. Left behind it is removed."""
    part = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(part, fcntl.LOCK_EX)
        try:
            yield part if _is_named(part, path) else None
        finally:
            if _is_named(part, path):
                os.unlink(path)
    finally:
        os.close(part)


def _is_named(file: int, path: Path | str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _removed_leftover(path: str) -> bool:
    """Remove a part that nobody is filling: a killed process's."""
    part = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_named(part, path):
            os.unlink(path)
    except BlockingIOError:
        return False
    finally:
        os.close(part)
    return True


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
