"""Where things lie in a store, and the small records beside the shards: feature-set.json, commits, group attributes."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Self

from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.files import read_json, write_json
from encodeonce.store.format import FORMAT_VERSION, chunk_frames
from encodeonce.store.identity import fingerprint
from encodeonce.store.locks import folder_lock
from encodeonce.store.objects import StorePath

SET_FILE = "feature-set.json"
TABLE_FILE = "utterances.parquet"
OUR_FOLDERS = {"plans", "commits", "features.zarr", "unfinished", "damaged", "stats", "codebooks", "transforms"}
ATTRIBUTES_KEY = "encodeonce"


@dataclass(frozen=True, slots=True)
class Output:
    """One array of a feature set: `what` says what it holds ("hidden_states[24]"), `dtype` how it is kept.

    `codebook_sizes` are those of codes and units, one a column. What was derived from stored outputs names them, and how.
    """

    name: str
    width: int
    dtype: str
    what: str
    derived_from: str | None = None
    codebook_sizes: tuple[int, ...] | None = None
    derivation: dict[str, Any] | None = field(default=None, hash=False)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """What `to_json` gave.

        Raises:
            TypeError: it is something else.
        """
        fields = dict(entry)
        if fields.get("codebook_sizes") is not None:
            fields["codebook_sizes"] = tuple(fields["codebook_sizes"])
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """The fields, without those that few outputs have."""
        entry = asdict(self)
        optional = {name: entry.pop(name) for name in ("codebook_sizes", "derivation")}
        sizes = optional["codebook_sizes"]
        optional["codebook_sizes"] = sizes and list(sizes)
        return entry | {name: value for name, value in optional.items() if value is not None}

    @property
    def affine_name(self) -> str | None:
        """The array of scales and offsets beside an int8 output."""
        return f"{self.name}-affine" if self.dtype == "int8" else None


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """One encoder, used in one way: the folder `<encoder>-<fingerprint, 8 hex>` of a store."""

    path: StorePath
    encoder: str
    identity: dict[str, Any]
    outputs: dict[str, Output]
    provenance: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """sha256 of the identity, 64 hex digits."""
        return fingerprint(self.identity)

    def splits(self) -> list[StorePath]:
        """The folders of its splits, by name."""
        return sorted(_splits_below(self.path), key=str)

    def split_folder(self, name: str) -> StorePath:
        """Where a split lies, there or not.

        Raises:
            StoreError: no name of a split, or it would lie inside another split.
        """
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or any(part.startswith(".") or part in OUR_FOLDERS for part in parts):
            raise StoreError(f"split {name!r} is no name of a split; give one such as train-clean-100")
        folder = self.path / name
        for other in self.splits():
            if other in folder.parents or folder in other.parents:
                raise StoreError(
                    f"split {name!r} and the split in {other} would lie inside each other; give another store folder"
                )
        return folder

    def codebooks(self, output: str) -> StorePath:
        """Where the vectors lie that an output's codes or units stand for (`codebooks.Codebooks`)."""
        return self.path / "codebooks" / f"{output}.safetensors"

    def list_outputs(self, outputs: Mapping[str, Output], scratch: StorePath) -> "FeatureSet":
        """Write feature-set.json, where it does not list the outputs already; another run's outputs stay listed."""
        with folder_lock(self.path):
            standing = read_feature_set(self.path) if (self.path / SET_FILE).exists() else None
            wanted = {**(standing.outputs if standing else {}), **outputs}
            listed = replace(standing or self, outputs=wanted)
            if standing is None or wanted != standing.outputs:
                listed.write(scratch)
        return listed

    def write(self, scratch: StorePath) -> None:
        """Write feature-set.json by way of a scratch folder of the same file system."""
        write_json(
            self.path / SET_FILE,
            {
                "format": "encodeonce feature set",
                "format_version": FORMAT_VERSION,
                "encoder": self.encoder,
                "fingerprint": self.fingerprint,
                "identity": self.identity,
                "outputs": {name: output.to_json() for name, output in sorted(self.outputs.items())},
                "provenance": self.provenance,
            },
            scratch,
        )


def _splits_below(folder: StorePath) -> Iterator[StorePath]:
    for child in folder.iterdir() if folder.is_dir() else ():
        if not child.name.startswith(".") and child.is_dir():
            if {"features.zarr", "plans", "commits", TABLE_FILE}.isdisjoint(entry.name for entry in child.iterdir()):
                yield from _splits_below(child)
            else:
                yield child


def read_feature_set(path: StorePath) -> FeatureSet:
    """Read a feature set's folder.

    Raises:
        StoreError: no feature set, or one of a newer format. DamagedError: the fingerprint is not that of the identity.
    """
    data = read_json(path / SET_FILE)
    check_version(data.get("format_version"), path)
    try:
        outputs = {name: Output.from_json(entry) for name, entry in data["outputs"].items()}
        found = FeatureSet(path, data["encoder"], data["identity"], outputs, data["provenance"])
        recorded = data["fingerprint"]
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path / SET_FILE} lacks a field: {error}") from error
    if found.fingerprint != recorded:
        raise DamagedError(f"{path / SET_FILE}: fingerprint {recorded}, but its identity gives {found.fingerprint}")
    return found


def check_version(version: Any, path: StorePath) -> None:
    """Refuse what a newer encodeonce wrote."""
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {version}; this encodeonce reads up to {FORMAT_VERSION}: upgrade it to read the store"
        )


def feature_sets(store: StorePath) -> Iterator[FeatureSet]:
    """The feature sets of a store, by name."""
    for path in sorted(store.glob(f"*/{SET_FILE}"), key=str):
        yield read_feature_set(path.parent)


def set_folder(store: StorePath, encoder: str, identity: Mapping[str, Any]) -> StorePath:
    """The folder a new feature set gets."""
    return store / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', encoder).strip('-.') or 'encoder'}-{fingerprint(identity)[:8]}"


@dataclass(frozen=True, slots=True)
class SplitPaths:
    """The files of a split. Members of a joint writing have scratch folders of their own."""

    root: StorePath
    scratch_name: str = ".tmp"

    @property
    def table(self) -> StorePath:
        """One row an utterance."""
        return self.root / TABLE_FILE

    @property
    def plans(self) -> StorePath:
        """The folder of the plans."""
        return self.root / "plans"

    @property
    def runs(self) -> StorePath:
        """The folder of what runs said of themselves when they had made something."""
        return self.root / "runs"

    @property
    def failures(self) -> StorePath:
        """What could not be encoded."""
        return self.root / "failures.jsonl"

    @property
    def group(self) -> StorePath:
        """The Zarr group."""
        return self.root / "features.zarr"

    @property
    def scratch(self) -> StorePath:
        """Where files lie until they are whole."""
        return self.root / self.scratch_name

    def commit(self, shard: int) -> StorePath:
        """The commit record of a shard."""
        return self.root / "commits" / f"{shard}.json"

    @property
    def unfinished(self) -> StorePath:
        """The arrays that lack shards: outside the group, so that plain readers see whole ones alone."""
        return self.root / "unfinished"

    def array(self, output: str) -> StorePath:
        """The folder of an output's array, as readers see it."""
        return self.group / output

    def standing(self, output: str) -> StorePath:
        """The folder of an array that readers may not see yet: in the group once every shard stands."""
        whole = self.array(output)
        return whole if (whole / "zarr.json").is_file() else self.unfinished / output

    def shard_folders(self, shard: int | None = None) -> Iterator[StorePath]:
        """Every folder of a shard, or of all, in every array, finished or not."""
        for root in (self.group, self.unfinished):
            yield from root.glob(f"*/c/{'*' if shard is None else shard}")

    def shard(self, output: str, shard: int) -> StorePath:
        """The shard file of an output, as readers see it."""
        return shard_file(self.array(output), shard)


def shard_file(array: StorePath, shard: int) -> StorePath:
    """The file of a shard in an output's array."""
    return array / "c" / str(shard) / "0"


def scales_file(array: StorePath, shard: int) -> StorePath:
    """The file of a shard in the array of an int8 output's scales, which has three dimensions."""
    return array / "c" / str(shard) / "0" / "0"


@dataclass(frozen=True, slots=True)
class SplitAttributes:
    """What a split's zarr.json says of it: everything a reader needs beside the table and the arrays."""

    fingerprint: str
    encoder: str
    split: str
    sample_rate: int
    samples_per_frame: int
    shard_frames: int
    outputs: tuple[str, ...] = ()
    """The arrays that readers see, so that nobody has to list the group; by name."""

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.samples_per_frame

    def chunk_frames(self, width: int) -> int:
        """Rows of an inner chunk of an output of this width."""
        return chunk_frames(width, self.frame_rate)

    def slots(self, width: int) -> int:
        """Inner chunks of a shard of an output of this width."""
        return self.shard_frames // self.chunk_frames(width)

    def to_json(self) -> dict[str, Any]:
        """The attributes of the Zarr group."""
        return {
            ATTRIBUTES_KEY: {"format_version": FORMAT_VERSION, **asdict(self), "frame_rate": self.frame_rate},
        }


def read_attributes(group: StorePath) -> SplitAttributes:
    """The attributes of a split's Zarr group."""
    data = read_json(group / "zarr.json")
    attributes = data.get("attributes")
    entry = attributes.get(ATTRIBUTES_KEY) if isinstance(attributes, dict) else None
    if not isinstance(entry, dict):
        raise StoreError(f"{group} is no split of a feature store: its zarr.json has no '{ATTRIBUTES_KEY}' attributes")
    check_version(entry.get("format_version"), group)
    try:
        found: dict[str, Any] = {name: entry[name] for name in SplitAttributes.__slots__ if name != "outputs"}
        return SplitAttributes(**found, outputs=tuple(entry.get("outputs", ())))
    except KeyError as error:
        raise DamagedError(f"{group / 'zarr.json'} lacks {error}") from error


def read_output(array: StorePath) -> Output:
    """The output that an array's zarr.json describes."""
    data = read_json(array / "zarr.json")
    try:
        return Output.from_json(data["attributes"][ATTRIBUTES_KEY])
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{array / 'zarr.json'} does not describe an output: {error}") from error


def published_outputs(paths: SplitPaths, attributes: SplitAttributes | None = None) -> dict[str, Output]:
    """The outputs that readers of a split see, by name: those that the group's attributes list."""
    names = (attributes or read_attributes(paths.group)).outputs
    return {name: read_output(paths.array(name)) for name in names}
