"""ArrayRecord, which Grain reads: a record an utterance, groups of one for random access, no compression."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from synthetic import Corpus

from peers import Fill, System, put


def build(corpus: Corpus, folder: Path) -> None:
    """The bytes of each utterance in order."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(folder / "features.array_record"), "group_size:1,uncompressed")
    for i in range(len(corpus)):
        writer.write(corpus[i].tobytes())
    writer.close()


def by_index(corpus: Corpus, folder: Path) -> Fill:
    """reader.read(indices), all of a batch at once."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(folder / "features.array_record"))

    def fill(batch: Sequence[int], out: np.ndarray) -> None:
        records = reader.read([int(i) for i in batch])
        for slot, record in zip(out, records, strict=True):
            put(slot, np.frombuffer(record, np.float16).reshape(-1, corpus.width))

    return fill


SYSTEMS = [System("ArrayRecord", "array_record", ("array_record",), build, by_index)]
