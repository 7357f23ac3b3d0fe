"""A score that is the mean of what utterances have."""

from collections.abc import Mapping

import numpy as np
from encodeonce.evaluate.evaluation import Score
from encodeonce.evaluate.metrics.intervals import Bootstrap


def mean_score(
    name: str,
    values: np.ndarray,
    signature: str,
    bootstrap: Bootstrap | None = None,
    counts: Mapping[str, float] | None = None,
) -> Score:
    """The mean of `[N]`, a fraction, more being better; where no counts are given, N are counted as `utterances`."""
    return Score(
        name,
        float(values.mean()),
        "fraction",
        signature,
        None if bootstrap is None else bootstrap.mean(values),
        {"utterances": len(values)} if counts is None else counts,
        lower_is_better=False,
    )
