"""BLEU and chrF of a corpus, by sacrebleu."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.evaluation import Score
from encodeonce.evaluate.metrics.intervals import Bootstrap
from encodeonce.evaluate.normalise import CHINESE, code_of
from encodeonce.store.extras import extra


def bleu(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    language: str = "en",
    bootstrap: Bootstrap | None = None,
) -> Score:
    """BLEU (Papineni et al. 2002) of texts as they are written: neither lowercased nor normalised, as sacrebleu means it.

    Args:
        language: of the texts, by its code. Chinese is cut into characters, Japanese and Korean into words by MeCab, all others by
            mteval's 13a.
        bootstrap: of these utterances; None: no interval.

    Raises:
        EvaluationError: no texts, not one hypothesis for each reference, or the language's tokenizer is not installed.
        StoreError: sacrebleu is not installed; the message says how to install it.
    """
    with extra("evaluate"):
        from sacrebleu.metrics import BLEU
    code = code_of(language)
    try:
        metric = BLEU(trg_lang="zh" if code in CHINESE else code)
    except (ImportError, RuntimeError) as error:
        raise EvaluationError(
            f'BLEU in {language!r} needs a tokenizer that is not installed: pip install "sacrebleu[{code}]"; chrF needs none'
        ) from error
    return _score("bleu", metric, references, hypotheses, bootstrap)


def chrf(references: Sequence[str], hypotheses: Sequence[str], *, bootstrap: Bootstrap | None = None) -> Score:
    """chrF2 (Popović 2015), the same for every language. Raises as `bleu`."""
    with extra("evaluate"):
        from sacrebleu.metrics import CHRF
    return _score("chrf", CHRF(), references, hypotheses, bootstrap)


def _score(
    name: str,
    metric: Any,
    references: Sequence[str],
    hypotheses: Sequence[str],
    bootstrap: Bootstrap | None,
) -> Score:
    if not references or len(references) != len(hypotheses):
        raise EvaluationError(
            f"{len(references)} references and {len(hypotheses)} hypotheses: give one hypothesis for each reference, and at least one"
        )
    # As sacrebleu's own significance tests do: counts of n-grams by utterance, which a corpus's score is the function of a sum of.
    counts = np.array(metric._extract_corpus_statistics(hypotheses, [references]), np.int64)  # [N, K]
    compute = metric._compute_score_from_stats
    value, interval = compute(counts.sum(0).tolist()), None
    if bootstrap is not None:
        interval = bootstrap.interval(np.array([compute(row).score for row in bootstrap.sums(counts).tolist()]))
    return Score(
        name,
        value.score,
        "points",
        str(metric.get_signature()),
        interval,
        _counts(value, len(references)),
        lower_is_better=False,
    )


def _counts(value: Any, utterances: int) -> dict[str, float]:
    lengths = {}
    if hasattr(value, "bp"):
        lengths = {"brevity_penalty": value.bp, "hypothesis_words": value.sys_len, "reference_words": value.ref_len}
    return {"utterances": utterances, **lengths}
