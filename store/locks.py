"""Locks: flock on a file, which dies with its process; in an object store a lease. Nothing is left behind but by a kill."""

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from encodeonce.store.errors import StoreError
from encodeonce.store.files import explain, make_folder
from encodeonce.store.lease import Lease, read_holder
from encodeonce.store.objects import ObjectPath, StorePath

WRITER = ".writer"
LOCK = ".lock"
ATTEMPTS = 5
ATTEMPT_SECONDS = 0.02
"""Who looks whether a lock is held holds it for a moment."""


def writer_lock(folder: StorePath) -> AbstractContextManager[Callable[[], None]]:
    """Hold a folder for writing; see `lock`."""
    return lock(folder / WRITER)


def folder_lock(folder: StorePath) -> AbstractContextManager[Callable[[], None]]:
    """Hold a folder for a moment, waiting for whoever holds it; see `lock`."""
    return lock(folder / LOCK, wait=True)


@contextmanager
def lock(path: StorePath, wait: bool = False, role: str = "") -> Iterator[Callable[[], None]]:
    """Hold a lock as long as the block lasts; what it gives raises where the hold has been lost since.

    Args:
        wait: for whoever holds it, instead of an error.
        role: what the holder is there, for those who are refused: "rank 1 of 3".

    Raises:
        StoreError: another process holds it; the message says which.
    """
    if isinstance(path, ObjectPath):
        with Lease(path, wait, role) as lease:
            yield lease.check
        return
    with _lock_file(path, wait, role):
        try:
            yield lambda: None
        finally:
            with suppress(OSError):
                path.unlink()


def holder(path: StorePath) -> str | None:
    """The living process that holds a lock, in words; None where nobody does."""
    if isinstance(path, ObjectPath):
        try:
            found = read_holder(path)
        except FileNotFoundError:
            return None
        return f"{found.who}, heard of {found.age:.0f} s ago" if found.lives else None
    try:
        with open(path, "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return _said_in(file)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise explain(error, path) from error
    return None


def clear(path: StorePath) -> None:
    """Remove what a killed holder left of its lock; one that is held stays."""
    with suppress(StoreError), lock(path):
        pass


def _lock_file(path: Path, wait: bool, role: str) -> TextIO:
    attempts = ATTEMPTS
    while True:
        try:
            make_folder(path.parent)
            file = open(path, "a+")  # noqa: SIM115 (held open for as long as the lock)
        except OSError as error:
            raise explain(error, path) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}{f' as {role}' if role else ''}\n")
                file.flush()
                return file
        except BlockingIOError:
            attempts -= 1
            if not attempts:
                raise StoreError(
                    f"{path.parent} is being written by {_said_in(file)}; wait for it to end, then run the same command again"
                ) from None
            time.sleep(ATTEMPT_SECONDS)
        except FileNotFoundError:
            pass  # its last holder removed it between our open and our lock: try again
        except OSError as error:
            raise explain(error, path) from error
        file.close()


def _said_in(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "another process"
