"""LitData: chunks of 64 MB made by `optimize`, read by index through StreamingDataset in this process."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import Corpus

from peers import Fill, System, put


def sample(corpus: Corpus, i: int) -> dict[str, Any]:
    """What is stored of an utterance."""
    return {"features": np.array(corpus[i])}


def build(corpus: Corpus, folder: Path) -> None:
    """The samples in order, by one worker."""
    import litdata

    litdata.optimize(
        fn=partial(sample, corpus),
        inputs=list(range(len(corpus))),
        output_dir=str(folder),
        num_workers=1,
        chunk_bytes="64MB",
        mode="overwrite",
    )


def by_index(corpus: Corpus, folder: Path) -> Fill:
    """dataset[i]."""
    import litdata

    dataset = litdata.StreamingDataset(str(folder), shuffle=False)

    def fill(batch: Sequence[int], out: np.ndarray) -> None:
        for slot, i in zip(out, batch, strict=True):
            put(slot, dataset[int(i)]["features"])

    return fill


SYSTEMS = [System("LitData", "litdata", ("litdata",), build, by_index)]
