"""huggingface: a dataset of the library datasets, with every column of the table and the frames as `features`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from encodeonce.store.exports.base import Export
from encodeonce.store.extras import extra
from encodeonce.store.identity import fingerprint
from encodeonce.store.stats import content_hash

BATCH_BYTES = 32 << 20
"""How much is held before it is written."""


def write(export: Export) -> list[str]:
    """Write what `datasets.load_from_disk` opens. Its numpy format gives float32 unless told: `with_format("numpy", dtype=...)`."""
    with extra("export"):
        import datasets

    store, width = export.store, export.output.width
    columns = datasets.Features.from_arrow_schema(store.table.schema)
    columns["features"] = datasets.Array2D((None, width), export.value_dtype.name)
    mean_bytes = int(store.frames.mean()) * width * export.value_dtype.itemsize + 1

    def examples() -> Iterator[dict[str, Any]]:
        for record, values in export.utterances():
            yield {**record, "features": values}

    building = export.folder / "building"
    with _quiet_bars():
        dataset: Any = datasets.Dataset.from_generator(
            examples,
            features=columns,
            cache_dir=str(building),
            fingerprint=_fingerprint(export),
            writer_batch_size=max(1, BATCH_BYTES // mean_bytes),
        )
        dataset.save_to_disk(str(export.folder))
    shutil.rmtree(building)
    return []


def _fingerprint(export: Export) -> str:
    """What datasets knows the rows by, so that what it caches of one export is not taken for another's."""
    contents = [content_hash(part) for part in export.store.parts]
    return fingerprint(
        {
            "set": export.store.fingerprint,
            "output": export.output.name,
            "over": contents,
            "dtype": export.value_dtype.name,
        }
    )[:16]


@contextmanager
def _quiet_bars() -> Iterator[None]:
    """No progress bars of datasets beside ours."""
    import datasets

    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            datasets.enable_progress_bars()
