"""The table of utterances grows without being copied, and its file is what it would be if it were written at once."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import extract, write_corpus
from encodeonce.store.table import ROW_GROUP, concat, in_row_groups, table_from_records, write_table
from hypothesis import given, settings
from hypothesis import strategies as st


def addresses(table: pa.Table) -> list[int]:
    return [chunk.buffers()[1].address for chunk in table["x"].chunks]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 2 * ROW_GROUP), min_size=1, max_size=6))
def test_a_table_that_grows_keeps_its_full_row_groups_where_they_are(pieces):
    table, rows = pa.table({"x": pa.array([], pa.int64())}), 0
    for size in pieces:
        kept = addresses(table)[: rows // ROW_GROUP]
        table = in_row_groups(pa.concat_tables([table, pa.table({"x": range(rows, rows + size)})]))
        rows += size
        full, rest = divmod(rows, ROW_GROUP)
        assert [len(chunk) for chunk in table["x"].chunks] == [ROW_GROUP] * full + [rest] * bool(rest)
        assert addresses(table)[: len(kept)] == kept
    assert table["x"].to_pylist() == list(range(rows))


def records(first: int, count: int) -> list[dict[str, object]]:
    return [
        {
            "id": f"utterance-{i}",
            "shard": i // 70,
            "row": i * 1600,
            "frames": i % 1600 + 1,
            "samples": 160 * i,
            "duration": i / 100,
            "audio_sha256": f"{i * 7919:064x}",
            "text": f"word {i % 977} " * (i % 40) or None,
            "translations": {"de": f"Wort {i}"} if i > ROW_GROUP else {},
            "metadata": {"chapter": i % 9},
        }
        for i in range(first, first + count)
    ]


def test_the_file_of_a_table_that_grew_is_that_of_one_written_whole(tmp_path: Path):
    table, rows = concat([]), 0
    for count in (5000, 71, 6000, 70, 9000):
        table = in_row_groups(concat([table, table_from_records(records(rows, count))]))
        rows += count
    write_table(tmp_path / "grown.parquet", table, tmp_path / "scratch")
    whole = io.BytesIO()
    pq.write_table(table_from_records(records(0, rows)), whole, row_group_size=ROW_GROUP, compression="zstd")
    assert (tmp_path / "grown.parquet").read_bytes() == whole.getvalue()


def test_a_run_takes_the_memory_of_its_table_from_malloc(tmp_path: Path):
    others = [name for name in pa.supported_memory_backends() if name != "system"]
    if not others:
        pytest.skip("this pyarrow has no allocator of its own")
    before = pa.default_memory_pool()
    pa.set_memory_pool(getattr(pa, f"{others[0]}_memory_pool")())
    try:
        write_corpus(tmp_path / "data" / "dev", [0.5, 1.0])
        assert extract(tmp_path / "data", "dev", tmp_path / "store").status == 0
        assert pa.default_memory_pool().backend_name == "system"
    finally:
        pa.set_memory_pool(before)
