"""Which object it is that lies at a path of an object store, so that nothing of another one is taken for it."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta

Version = str | tuple[datetime, int]
"""An object's e_tag, else when it was last modified (to the second) and its bytes."""


@dataclass(frozen=True)
class ObjectHead:
    """What a store says of an object: its bytes, and its version, another one once it is rewritten (None: not told)."""

    size: int
    version: Version | None


def head_of(found: "ObjectMeta") -> ObjectHead:
    """Size and version, as the client tells them."""
    modified, size = found["last_modified"], found["size"]
    told = modified.timestamp() > 0  # the client says 1970 where the server says nothing
    return ObjectHead(size, found["e_tag"] or ((modified, size) if told else None))


def condition(version: Version | None) -> "GetOptions":
    """What lets a server answer for this version alone. Not every server minds it: look at the answer too."""
    if isinstance(version, tuple):
        return {"if_unmodified_since": version[0]}
    return {"if_match": version} if version and not version.startswith("W/") else {}  # a weak e_tag matches nothing


def is_same(found: Version | None, version: Version) -> bool:
    """Whether an answer is of this version; a server may call an e_tag weak in one answer and not in another."""
    return _bare(found) == _bare(version)


def _bare(version: Version | None) -> Version | None:
    return version.removeprefix("W/") if isinstance(version, str) else version
