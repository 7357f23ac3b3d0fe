"""Paths in object stores, with the part of pathlib's interface that a feature store needs; the client is obstore.

`store_path` takes what a user names: a local path, file://, s3://, gs://, az://, http(s):// or memory://. Credentials and
endpoints come from the environment, as docs/object-stores.md says.
"""

import fnmatch
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from encodeonce.store.client import VARIABLES, PastEndError, client_of, explained, rewritten
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.ranges import REQUEST_BYTES, joined, threads
from encodeonce.store.version import ObjectHead, Version, condition, head_of, is_same

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, SuffixRange

SCHEMES = (*VARIABLES, "http", "https", "memory")
ONE_PUT_BYTES = 5 * 10**9
"""S3 takes no more in one PUT; larger objects go up in parts."""
Buffer = bytes | bytearray | memoryview


class ObjectPath:
    """A path in an object store. Folders are prefixes: they are there when an object lies below them.

    Args:
        root: what a client is made for: "s3://bucket", "https://host".
        key: the rest of the URL, without a slash at either end.
    """

    __slots__ = ("key", "root")

    def __init__(self, root: str, key: str = "") -> None:
        parts = [part for part in key.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise StoreError(f"{root}/{key}: '..' has no meaning in an object store; write the URL without it")
        self.root, self.key = root, "/".join(parts)

    def __reduce__(self) -> tuple[type["ObjectPath"], tuple[str, str]]:
        return ObjectPath, (self.root, self.key)

    def __str__(self) -> str:
        key = quote(self.key) if self.scheme in ("http", "https") else self.key
        return f"{self.root}/{key}" if key else self.root

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and (self.root, self.key) == (other.root, other.key)

    def __hash__(self) -> int:
        return hash((self.root, self.key))

    def __lt__(self, other: "ObjectPath") -> bool:
        return (self.root, self.key.split("/")) < (other.root, other.key.split("/"))

    def __truediv__(self, name: str | PurePosixPath) -> "ObjectPath":
        return ObjectPath(self.root, f"{self.key}/{name}")

    @property
    def scheme(self) -> str:
        """s3, gs, az, http, https or memory."""
        return self.root.partition(":")[0]

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> "ObjectPath":
        """The path above; the root's is itself."""
        return ObjectPath(self.root, self.key.rpartition("/")[0])

    @property
    def parents(self) -> tuple["ObjectPath", ...]:
        """The paths above, nearest first."""
        parts = self.key.split("/") if self.key else []
        return tuple(ObjectPath(self.root, "/".join(parts[:count])) for count in range(len(parts) - 1, -1, -1))

    def with_name(self, name: str) -> "ObjectPath":
        """The path beside this one."""
        return self.parent / name

    def relative_to(self, other: "ObjectPath") -> PurePosixPath:
        """What follows a path above this one."""
        if self.root != other.root:
            raise ValueError(f"{self} does not lie below {other}")
        return PurePosixPath("/" + self.key).relative_to("/" + other.key)

    def resolve(self) -> "ObjectPath":
        """Itself: an object store has no links."""
        return self

    def is_file(self) -> bool:
        """Whether an object lies here."""
        try:
            self._head()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether objects lie below."""
        self._needs_listing()
        with explained(self):
            return any(client_of(self.root).list(self.key or None, chunk_size=1))

    def exists(self) -> bool:
        """Whether an object lies here, or below; over http(s) here alone."""
        return self.is_file() or (self.scheme not in ("http", "https") and self.is_dir())

    def iterdir(self) -> Iterator["ObjectPath"]:
        """The objects and folders right below; none where nothing is."""
        folders, files = self._children()
        yield from folders
        yield from files

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Paths that match, level by level, with nothing listed below what matches; '**' is not known."""
        first, _, rest = pattern.partition("/")
        folders, files = self._children()
        for folder in folders:
            if fnmatch.fnmatchcase(folder.name, first):
                yield from folder.glob(rest) if rest else (folder,)
        if first == pattern:
            yield from (file for file in files if fnmatch.fnmatchcase(file.name, first))

    def _children(self) -> tuple[list["ObjectPath"], list["ObjectPath"]]:
        self._needs_listing()
        with explained(self):
            found = client_of(self.root).list_with_delimiter(self.key or None)
        folders = [ObjectPath(self.root, prefix) for prefix in found["common_prefixes"]]
        return folders, [ObjectPath(self.root, entry["path"]) for entry in found["objects"]]

    def sizes_below(self) -> dict["ObjectPath", int]:
        """The size in bytes of every object below."""
        self._needs_listing()
        with explained(self):
            pages = client_of(self.root).list(self.key or None, chunk_size=1000)
            return {ObjectPath(self.root, entry["path"]): entry["size"] for page in pages for entry in page}

    def versions_in(self) -> dict["ObjectPath", Any]:
        """What `version` gives of the objects right below, a request for a thousand."""
        self._needs_listing()
        with explained(self):
            found = client_of(self.root).list_with_delimiter(self.key or None)
        return {ObjectPath(self.root, entry["path"]): _written_version(entry) for entry in found["objects"]}

    def size(self) -> int:
        """Bytes of the object."""
        return self.head().size

    def _head(self) -> Any:
        with explained(self):
            return client_of(self.root).head(self.key)

    def read_bytes(self) -> bytes:
        """The whole object."""
        with explained(self):
            return bytes(self._get().bytes())

    def stream(self) -> Iterator[memoryview]:
        """The whole object, piece by piece."""
        result = self._get()
        with explained(self):
            yield from map(memoryview, result.stream())

    def _get(self) -> "GetResult":
        with explained(self):
            return client_of(self.root, patient=True).get(self.key)

    def head(self) -> ObjectHead:
        """Size and version, in one request; give the version to what reads, and all of it comes from this very object."""
        return head_of(self._head())

    def read_range(self, offset: int, length: int, version: Version | None = None) -> memoryview:
        """`length` bytes from an offset.

        Raises:
            DamagedError: the object ends before. StoreError: it is another than that of `version`.
            FileNotFoundError: it is gone.
        """
        if not length:
            return memoryview(b"")
        try:
            found, _ = self._read((offset, offset + length), version, patient=length > REQUEST_BYTES)
        except PastEndError:
            found = memoryview(b"")
        if len(found) < length:
            raise self._ends_early(f"{length} bytes from byte {offset}", len(found), version)
        return found

    def read_end(self, length: int, version: Version | None = None) -> memoryview:
        """The last bytes: `length` of them, or all that there are. Raises what `read_range` does."""
        if not length:
            return memoryview(b"")
        if self.scheme == "az":  # Azure knows no ranges from the end
            size = self.head().size
            return self.read_range(max(0, size - length), min(length, size), version)
        found, size = self._read({"suffix": length}, version)
        if len(found) < min(length, size):
            raise self._ends_early(f"the last {length} bytes of {size}", len(found), version)
        return found

    def read_ranges(
        self, offsets: Sequence[int], lengths: Sequence[int], version: Version | None = None
    ) -> list[memoryview]:
        """Ranges of bytes: near ones fetched together, several requests in flight. Raises what `read_range` does."""
        requests = joined(offsets, lengths)
        wanted = [(request.start, request.stop - request.start, version) for request in requests]
        pending = [threads().submit(self.read_range, *arguments) for arguments in wanted[1:]]
        parts = [memoryview(b"")] * len(offsets)
        try:
            for number, request in enumerate(requests):
                data = pending[number - 1].result() if number else self.read_range(*wanted[0])
                for member in request.members:
                    first = int(offsets[member]) - request.start
                    parts[member] = data[first : first + int(lengths[member])]
        finally:
            for future in pending:
                future.cancel()
        return parts

    def _read(
        self, wanted: "tuple[int, int] | SuffixRange", version: Version | None, patient: bool = False
    ) -> tuple[memoryview, int]:
        """Bytes of a range, and how many the whole object has."""
        options: GetOptions = {"range": wanted, **condition(version)}
        with explained(self):
            result = client_of(self.root, patient).get(self.key, options=options)
            head = head_of(result.meta)
            if version is not None and not is_same(head.version, version):
                raise rewritten(self)
            return memoryview(result.bytes()), head.size

    def _ends_early(self, asked: str, got: int, version: Version | None) -> StoreError:
        if version is not None and not is_same(self.head().version, version):
            return rewritten(self)
        return DamagedError(f"{self} ends early: asked for {asked}, got {got}; run feature-store verify")

    def put(self, data: Buffer | Iterable[Buffer], replacing: Any = None) -> Any:
        """Write the object in one PUT: it appears whole or not at all. Returns its version.

        Args:
            replacing: by default whatever is there; "nothing", or a version that `put` or `version` gave.

        Raises:
            ConflictError: another thing is there than `replacing` says.
        """
        self.check_writable()
        whole = data if isinstance(data, Buffer) else b"".join(data)
        mode = "overwrite" if replacing is None else "create" if replacing == "nothing" else replacing
        with explained(self, writing=True):
            parts = memoryview(whole).nbytes > ONE_PUT_BYTES
            size = 512 * 1024 * 1024 if parts else 5 * 1024 * 1024
            client = client_of(self.root, patient=True)
            return _written_version(client.put(self.key, whole, mode=mode, use_multipart=parts, chunk_size=size))

    def version(self) -> Any:
        """What makes writing conditional on the object that is there now."""
        return _written_version(self._head())

    def copy_to(self, target: "ObjectPath") -> None:
        """Copy the object to another path of the same root, in the server."""
        self.check_writable()
        with explained(self, writing=True):
            client_of(self.root, patient=True).copy(self.key, target.key)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object. `missing_ok` is for pathlib's sake: most stores do not tell."""
        delete([self])

    def _needs_listing(self) -> None:
        if self.scheme in ("http", "https"):
            raise StoreError(
                f"{self} cannot be listed: {self.scheme} has no listing; name a split by its own URL, "
                f".../<feature set>/<split>"
            )

    def check_writable(self) -> None:
        """Refuse what is for reading only.

        Raises:
            StoreError: http and https.
        """
        if self.scheme in ("http", "https"):
            raise StoreError(f"{self} cannot be written: {self.scheme} is for reading; write to s3://, gs:// or az://")


def _written_version(found: Any) -> dict[str, str]:
    return {name: found[name] for name in ("e_tag", "version") if found[name] is not None}


StorePath = Path | ObjectPath


def store_path(place: "str | os.PathLike[str] | ObjectPath") -> StorePath:
    """The path that a user named: local, or the URL of an object store.

    Raises:
        StoreError: a URL of a kind that is not known.
    """
    if isinstance(place, ObjectPath):
        return place
    text = os.fspath(place)
    if "://" not in text:
        return Path(text)
    parts = urlsplit(text, allow_fragments=False)
    scheme = "s3" if parts.scheme == "s3a" else parts.scheme
    if scheme == "file":
        return Path(url2pathname(parts.path))
    if scheme not in SCHEMES or not parts.netloc:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise StoreError(
            f"{text} is no place that is known: give a local path, or a URL with {known} and a name behind it"
        )
    if scheme in ("http", "https"):
        if parts.query:
            raise StoreError(
                f"{text} has a query ('?...'): a store is many objects, so give the plain URL of its folder"
            )
        return ObjectPath(f"{scheme}://{parts.netloc}", unquote(parts.path))
    return ObjectPath(f"{scheme}://{parts.netloc}", text.partition("://")[2].partition("/")[2])


def name_below(path: StorePath, above: StorePath) -> str:
    """What follows a path above this one, with slashes: the name of a split in its feature set."""
    if isinstance(path, ObjectPath) and isinstance(above, ObjectPath):
        return path.relative_to(above).as_posix()
    assert isinstance(path, Path)
    assert isinstance(above, Path)
    return path.relative_to(above).as_posix()


def delete(paths: Iterable[ObjectPath]) -> None:
    """Delete objects, many in a request; one that is not there is no error."""
    by_root: dict[str, list[ObjectPath]] = {}
    for path in paths:
        path.check_writable()
        by_root.setdefault(path.root, []).append(path)
    for root, some in by_root.items():
        with explained(some[0], writing=True):
            try:
                client_of(root).delete([path.key for path in some])
            except FileNotFoundError:
                for path in some:  # the stores that tell stop at the first that is missing
                    try:
                        client_of(root).delete(path.key)
                    except FileNotFoundError:
                        continue
