"""How far an error rate may be from what more utterances would give."""

from collections.abc import Sequence

import numpy as np
from encodeonce.evaluate.errors import EvaluationError


def bootstrap_interval(
    edits: Sequence[int], units: Sequence[int], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of a corpus's error rate, over utterances (Bisani and Ney 2004).

    Utterances of one speaker are not independent, so that the interval says nothing of other speakers.

    Args:
        edits, units: of each utterance, `[N]`; the rate is the sum of edits over the sum of reference units.
        level: the share of resampled rates inside.

    Raises:
        EvaluationError: no utterance, or none with a reference unit.
    """
    errors, sizes = np.asarray(edits, np.int64), np.asarray(units, np.int64)
    if len(errors) != len(sizes) or not sizes.sum():
        raise EvaluationError(
            f"no interval from {len(errors)} counts of edits over {int(sizes.sum())} reference units: give utterances with texts"
        )
    random = np.random.default_rng(seed)
    rates = []
    for _ in range(resamples):
        drawn = random.integers(len(errors), size=len(errors))
        if total := sizes[drawn].sum():
            rates.append(errors[drawn].sum() / total)
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
