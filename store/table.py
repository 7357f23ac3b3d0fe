"""utterances.parquet: one row an utterance, made of the same records that stand in the shards."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from encodeonce.store.errors import DamagedError, MissingError
from encodeonce.store.files import atomic_write
from encodeonce.store.objects import StorePath
from encodeonce.store.plan import Place

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("samples", pa.int64(), nullable=False),
        pa.field("duration", pa.float64(), nullable=False),
        pa.field("audio_sha256", pa.string(), nullable=False),
        pa.field("audio", pa.string()),
        pa.field("offset", pa.float64()),
        pa.field("channel", pa.int32()),
        pa.field("speaker", pa.string()),
        pa.field("language", pa.string()),
        pa.field("text", pa.string()),
        pa.field("metadata", pa.string()),
    ]
)
"""`row` is the global first row of the Zarr arrays, `samples` are at the encoder's rate, `duration` is in seconds,
`metadata` is a JSON object; translations follow as columns translation_<language>."""

TRANSLATION = "translation_"
DESCRIPTIVE = ("audio", "offset", "channel", "speaker", "language", "text", "metadata")
"""Columns that a corrected corpus may change without encoding anything; the translations are too."""


ROW_GROUP = 8192
"""Rows that are written at a time: few enough for a long run not to grow with its table."""
_EMPTY = pa.Table.from_batches([], SCHEMA)


def table_from_records(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The table of utterance records, in their order. A record is a row whose `translations` and `metadata` are objects."""
    columns: dict[str, Any] = {
        name: [record.get(name) for record in records] for name in SCHEMA.names if name != "metadata"
    }
    columns["metadata"] = [metadata_text(record.get("metadata")) for record in records]
    arrays = [pa.array(columns[field.name], field.type) for field in SCHEMA]
    table = pa.Table.from_arrays(arrays, schema=SCHEMA)
    for language in sorted({language for record in records for language in record.get("translations") or {}}):
        values = [(record.get("translations") or {}).get(language) for record in records]
        table = table.append_column(TRANSLATION + language, pa.array(values, pa.string()))
    return table


def record_of(place: Place, audio_sha256: str, sample_rate: int, said: Mapping[str, Any]) -> dict[str, Any]:
    """What is written of an utterance beside its features: the row of the table, and the JSON member of the shard.

    `said` is what its corpus says: the descriptive columns, `translations` and `metadata` as objects.
    """
    return {
        "id": place.id,
        "shard": place.shard,
        "row": place.row,
        "frames": place.frames,
        "samples": place.samples,
        "duration": place.samples / sample_rate,
        "audio_sha256": audio_sha256,
        **said,
        "translations": dict(sorted(said["translations"].items())),
        "metadata": dict(sorted(said["metadata"].items())),
    }


def metadata_text(metadata: Mapping[str, Any] | None) -> str | None:
    """A metadata object as the column keeps it; nothing for an empty one."""
    return json.dumps(metadata, ensure_ascii=False, sort_keys=True) if metadata else None


def concat(tables: Iterable[pa.Table]) -> pa.Table:
    """Tables one after the other, translations in alphabetical order, missing values null."""
    joined = pa.concat_tables([_EMPTY, *tables], promote_options="default")
    extra = sorted(name for name in joined.column_names if name.startswith(TRANSLATION))
    return joined.select([*SCHEMA.names, *extra])


def in_row_groups(table: pa.Table) -> pa.Table:
    """The table in chunks of a row group each, so that one that has grown shares all of its memory but the last with what it was."""
    groups = [table.slice(at, ROW_GROUP).combine_chunks() for at in range(0, table.num_rows, ROW_GROUP)]
    return pa.concat_tables(groups) if groups else table


def shards_of(table: pa.Table) -> Iterator[tuple[str, int]]:
    """Id and shard of each row, without all of them as Python objects at once."""
    for batch in table.select(["id", "shard"]).to_batches(max_chunksize=ROW_GROUP):
        yield from zip(batch["id"].to_pylist(), batch["shard"].to_pylist(), strict=True)


def write_table(path: StorePath, table: pa.Table, scratch: StorePath) -> None:
    """Write utterances.parquet atomically."""
    with atomic_write(path, scratch) as file:
        pq.write_table(table.replace_schema_metadata(None), file, row_group_size=ROW_GROUP, compression="zstd")


def open_table(path: StorePath) -> pq.ParquetFile:
    """Open utterances.parquet: held open where it is local, so that what is read later is of the same file.

    Raises:
        MissingError: it is not there. DamagedError: it cannot be read, or lacks a column.
    """
    try:
        source = pa.OSFile(str(path)) if isinstance(path, Path) else pa.BufferReader(path.read_bytes())
        file = pq.ParquetFile(source)
    except FileNotFoundError as error:
        raise MissingError(
            f"{path} is not there: no shard was shown to readers yet; run extract-features again"
        ) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DamagedError(f"{path} cannot be read ({error}); take it away, and the next run makes it again") from error
    missing = [name for name in SCHEMA.names if name not in file.schema_arrow.names]
    if missing:
        raise DamagedError(f"{path} lacks the columns {', '.join(missing)}")
    return file


def read_table(path: StorePath) -> pa.Table:
    """Read utterances.parquet; see `open_table`."""
    return open_table(path).read()
