"""The lock of an object store: an object that its holder renews, and that others may take over when it was not renewed."""

import json
import os
import socket
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

from encodeonce.store.client import ConflictError
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.objects import ObjectPath

RENEW_SECONDS = 20.0
HOLD_SECONDS = 120.0
"""A holder that could not renew for this long counts itself out."""

TAKE_SECONDS = 180.0
"""Others wait this long since the last renewal. What lies between the two is for clocks that differ."""


class LeaseLostError(StoreError):
    """Another writer has taken over."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who wrote a lease, and when: `age` is in seconds."""

    who: str
    token: str
    age: float
    dead: bool
    """Whether it was a process of this machine, and runs no more."""

    @property
    def lives(self) -> bool:
        """Whether it has to be taken for alive."""
        return not self.dead and self.age <= TAKE_SECONDS


def read_holder(path: ObjectPath) -> Holder:
    """The holder of a lease that stands.

    Raises:
        FileNotFoundError: there is none. DamagedError: the object is no lease.
    """
    try:
        value = json.loads(path.read_bytes())
        age = time.time() - datetime.fromisoformat(value["renewed"]).timestamp()
        role = f" as {value['role']}" if value.get("role") else ""
        who = f"process {value.get('process')} on {value.get('host')}{role}"
        dead = value.get("machine") == machine() and not _is_alive(value.get("process", 0))
        return Holder(who, value["holder"], age, dead)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} is no lease of ours; take it away when nobody writes there") from error


class Lease:
    """A hold on a place of an object store, for as long as the `with` block lasts.

    Made by a write that succeeds only where nothing is, renewed and taken over by writes that succeed only over the version
    that was seen: of two takers one wins. A store without such conditional writes cannot keep writers apart.

    Args:
        path: the object, e.g. ".writer" in a split.
        wait: for whoever holds it, instead of an error.
        role: what the holder is there, for those who are refused: "rank 1 of 3".

    Raises:
        StoreError: another process holds it; the message says which, and for how long yet.
    """

    def __init__(self, path: ObjectPath, wait: bool = False, role: str = "") -> None:
        self.path, self._wait, self._role = path, wait, role
        self._token, self._count = uuid.uuid4().hex, 0
        self._version: Any = None
        self._renewed = 0.0
        self._lost, self._end = False, Event()

    def __enter__(self) -> Self:
        while not self._taken():
            time.sleep(0.2)
        self._thread = Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join(1)
        answering = time.monotonic() - self._renewed < 2 * RENEW_SECONDS
        try:
            if answering and not self._lost and self._is_ours():
                self.path.unlink()
        except (StoreError, OSError):
            pass  # it runs out by itself

    def check(self) -> None:
        """Make sure that the place is still ours.

        Raises:
            LeaseLostError: it is not, or it could not be renewed for too long to know.
        """
        if self._lost or time.monotonic() - self._renewed > HOLD_SECONDS:
            raise LeaseLostError(
                f"{self.path.parent} is not ours to write any more: {self.path.name} could not be renewed for "
                f"{time.monotonic() - self._renewed:.0f} s, or another run took it over; what is committed is kept: when no "
                f"other run is writing there, run the same command again"
            )

    def _taken(self) -> bool:
        try:
            return self._put("nothing")
        except ConflictError:
            pass
        try:
            version, holder = self.path.version(), read_holder(self.path)
        except FileNotFoundError:
            return False  # let go meanwhile: try again at once
        if not holder.lives:
            try:
                return self._put(version)
            except ConflictError:
                return False
        if self._wait:
            return False
        raise StoreError(
            f"{self.path.parent} is being written by {holder.who}, heard of {holder.age:.0f} s ago; wait for it to end, "
            f"then run the same command again (if it was killed, in {TAKE_SECONDS - holder.age:.0f} s)"
        )

    def _put(self, replacing: Any) -> bool:
        """Write the lease over nothing, or over a version; whether it is ours then."""
        self._count += 1
        begun = time.monotonic()
        value = {
            "holder": self._token,
            "process": os.getpid(),
            "host": socket.gethostname(),
            "role": self._role,
            "machine": machine(),
            "renewed": datetime.now(UTC).isoformat(),
            "count": self._count,
        }
        try:
            self._version = self.path.put(json.dumps(value).encode(), replacing)
        except ConflictError:
            if not self._is_ours():  # else our own write, repeated because its answer was lost
                raise
        self._renewed = begun
        return True

    def _is_ours(self) -> bool:
        try:
            version, holder = self.path.version(), read_holder(self.path)
        except (FileNotFoundError, DamagedError):
            return False
        if holder.token != self._token:
            return False
        self._version = version
        return True

    def _renew(self) -> None:
        while not self._end.wait(RENEW_SECONDS):
            try:
                self._put(self._version)
            except ConflictError:
                self._lost = True
                return
            except (StoreError, OSError):
                continue  # `check` tells when this lasts too long


def machine() -> str:
    """What processes see each other by their ids: a boot of a host, and the container in it; empty where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _is_alive(process: int) -> bool:
    """Whether a process of this machine still runs; where machines cannot be told apart, it is taken to."""
    if not machine():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
