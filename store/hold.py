"""Who may write a split: one process alone, or the members of a joint writing, each with shards of its own.

Everyone takes a lock of its own name and then looks for the living who must not be there: of two that come at once both may
be refused, never both let in. The members among themselves come in one after the other, by the lock of `alone`.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock

from encodeonce.store.errors import StoreError
from encodeonce.store.locks import LOCK, WRITER, clear, folder_lock, holder, lock, writer_lock
from encodeonce.store.objects import StorePath

JOINT = re.compile(r"\.writer-(\d+)-of-(\d+)")
LOOKS_IN_FLIGHT = 16


@dataclass(frozen=True, slots=True)
class Member:
    """One of the processes that write a split together; shard s is that of rank s mod world_size.

    Raises:
        StoreError: no such rank.
    """

    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise StoreError(
                f"rank {self.rank} of {self.world_size} processes: ranks go from 0 to the world size less one"
            )

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world_size}"

    def owns(self, shard: int) -> bool:
        """Whether a shard is this member's to write."""
        return shard % self.world_size == self.rank


class Hold:
    """A process's hold on a split: alone, or as a member."""

    def __init__(self, split: StorePath, member: Member | None = None) -> None:
        self.split, self.member = split, member
        self._inside, self._depth = RLock(), 0
        self._checks: list[Callable[[], None]] = []

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold the split as long as the block lasts.

        Raises:
            StoreError: another process writes there that this one must not meet; the message says which.
        """
        member = self.member
        if member and (who := holder(self._place(member))):
            raise StoreError(f"{self.split} is being written by {who} already; give every process a rank of its own")
        with lock(self._place(member), role=str(member)) if member else writer_lock(self.split) as check:
            self._refuse()
            self._checks.append(check)
            try:
                yield
            finally:
                self._checks.remove(check)

    def _refuse(self) -> None:
        if self.member and (who := holder(self.split / WRITER)):
            raise StoreError(
                f"{self.split} is being written by {who}; wait for it to end, then run the same command again"
            )
        for other, who in self._others().items():
            if self.member is None:
                raise StoreError(
                    f"{self.split} is being written by {who}; wait for it and the other ranks to end, "
                    f"then run the same command again"
                )
            if other.world_size != self.member.world_size:
                raise StoreError(
                    f"{self.split} is being written by {who}, and this would be {self.member}: all processes that write a "
                    f"split together have to be given the same world size"
                )

    def _place(self, member: Member) -> StorePath:
        return self.split / f"{WRITER}-{member.rank}-of-{member.world_size}"

    def _joint(self) -> dict[Member, StorePath]:
        """The locks of members, alive or dead, but for this one's."""
        found = {}
        for path in self.split.glob(f"{WRITER}-*"):
            if name := JOINT.fullmatch(path.name):
                found[Member(int(name[1]), int(name[2]))] = path
        return {member: path for member, path in found.items() if member != self.member}

    def _others(self) -> dict[Member, str]:
        """The living members beside this one, each in words."""
        places = self._joint()
        if not places:
            return {}
        with ThreadPoolExecutor(LOOKS_IN_FLIGHT, "look") as pool:
            living = zip(places, pool.map(holder, places.values()), strict=True)
            return {member: who for member, who in living if who}

    def others(self) -> set[Member]:
        """The living members beside this one."""
        return set(self._others()) if self.member else set()

    def clear(self) -> None:
        """Remove the locks that dead members left."""
        for path in self._joint().values():
            clear(path)
        if self.member is None and (self.split / LOCK).exists():
            clear(self.split / LOCK)

    def check(self) -> None:
        """Make sure that the hold is not lost.

        Raises:
            LeaseLostError: it is.
        """
        for check in list(self._checks):
            check()

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Keep the other members out as long as the block lasts, after waiting for the one inside; whether this came in just now."""
        if self.member is None:
            yield False
            return
        with self._inside:  # other threads of this process wait too
            if self._depth:
                yield False
                return
            with folder_lock(self.split) as check:
                self._checks.append(check)
                self._depth += 1
                try:
                    yield True
                finally:
                    self._depth -= 1
                    self._checks.remove(check)

    @property
    def is_alone(self) -> bool:
        """Whether no other process may write what is not its own: always, but for a member outside `alone`."""
        return self.member is None or self._depth > 0
