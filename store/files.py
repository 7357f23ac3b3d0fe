"""The one way files come into a store: written to a temporary name, fsynced, renamed, the folder fsynced."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from encodeonce.store.errors import DamagedError, StoreError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFullError(StoreError):
    """There is no room left where the store is."""


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_write(target: Path, scratch: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file that appears under `target` whole, or not at all.

    `scratch` is a folder of the same file system for the temporary name (by default the target's own). An error
    removes the temporary file and leaves an older target as it was.

    Raises:
        DiskFullError: no space, quota or file-size limit left.
        StoreError: the place cannot be written.
    """
    temporary = (scratch or target.parent) / f"{target.parent.name}-{target.name}.{os.getpid()}.tmp"
    try:
        make_folder(target.parent)
        make_folder(temporary.parent)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        fsync_folder(target.parent)
    except OSError as error:
        raise explain(error, target) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, each new name fsynced in the folder that holds it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
        fsync_folder(folder.parent)


def explain(error: OSError, target: Path) -> StoreError:
    """An operating-system error at a place of the store, said so that one knows what to do."""
    if error.errno in FULL:
        return DiskFullError(
            f"no room left for {target} ({error.strerror}); everything finished so far is kept: "
            f"free space, or give another --store, and run the same command again"
        )
    return StoreError(f"cannot write {target}: {error.strerror or error}; give a --store folder that can be written")


def write_json(target: Path, value: Any, scratch: Path | None = None) -> None:
    """Write a JSON file atomically, indented, keys in the order given."""
    with atomic_write(target, scratch) as file:
        file.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a store.

    Raises:
        StoreError: it is not there. DamagedError: it is no JSON.
    """
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("no object")
        return value
    except FileNotFoundError as error:
        raise StoreError(f"{path} is not there") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path} is no JSON object: {error}") from error


@contextmanager
def writer_lock(split: Path) -> Iterator[None]:
    """Hold a split for writing. The lock dies with its process, so a killed run leaves nothing to clean by hand.

    Raises:
        StoreError: another process is writing the split; the message says which.
    """
    path = split / ".writer"
    with _lock_file(path, split):
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for a moment, waiting for whoever holds it; nothing is left behind."""
    try:
        make_folder(folder)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise explain(error, folder) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lock_file(path: Path, split: Path) -> TextIO:
    while True:
        try:
            make_folder(split)
            file = open(path, "a+")  # noqa: SIM115 (held open for as long as the lock)
        except OSError as error:
            raise explain(error, path) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
                return file
        except BlockingIOError:
            file.seek(0)
            writer = file.read().strip() or "another process"
            file.close()
            raise StoreError(
                f"{split} is being written by {writer}; wait for it to end, then run the same command again"
            ) from None
        except FileNotFoundError:
            pass  # its last holder removed it between our open and our lock: try again
        except OSError as error:
            raise explain(error, path) from error
        file.close()
