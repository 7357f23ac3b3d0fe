"""How well what was heard agrees with what was said: in the resynthesised audio, and in the original beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from encodeonce.evaluate.decoding.flags import flags_of
from encodeonce.evaluate.evaluation import RESYNTHESIS, Evaluation, Score
from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.evaluate.metrics.word_errors import signature_of
from encodeonce.evaluate.normalise import Normaliser
from encodeonce.evaluate.report.resynthesis import ORIGINAL, ORIGINAL_TEXT, RATES, rates_of
from encodeonce.evaluate.scoring import METRICS, ScoreOptions, score

CASELESS = Normaliser("lower", lambda text: " ".join(text.lower().split()))
"""For corpora whose texts are all in capitals, where the raw rate counts nothing but that."""


def score_audio(
    samples: Sequence[Hypothesis], language: str, title: str, config: Mapping[str, Any]
) -> dict[str, Evaluation]:
    """Evaluations of the `original` audio, where it was transcribed, and of the `resynthesised`; of the same utterances."""
    originals = [
        replace(one, pred_text=one.metadata[ORIGINAL_TEXT]) for one in samples if ORIGINAL_TEXT in one.metadata
    ]
    found = {"original": _evaluate(originals, language, "the original audio", config)} if originals else {}
    return {**found, "resynthesised": _evaluate(samples, language, title, config)}


def together(found: Mapping[str, Evaluation]) -> Evaluation:
    """The evaluation of the resynthesised audio, with the rates of the original among its scores and those of both in its details."""
    evaluation = found["resynthesised"]
    if "original" in found:
        scores = found["original"].scores
        beside = {ORIGINAL + name: replace(scores[name], name=ORIGINAL + name) for name in RATES if name in scores}
        evaluation = replace(evaluation, scores={**evaluation.scores, **beside})
    return replace(evaluation, details={RESYNTHESIS: [rates_of(evaluation)]})


def _evaluate(samples: Sequence[Hypothesis], language: str, title: str, config: Mapping[str, Any]) -> Evaluation:
    if not samples:
        return Evaluation(title, {}, [], task=RESYNTHESIS, config=config)
    flagged = [
        replace(one, flags=flags_of(one.pred_text, one.duration, ended=True, language=language)) for one in samples
    ]
    evaluation = score(flagged, ScoreOptions(language=language, leave_out=("bertscore",)), title, config)
    scores: dict[str, Score] = {}
    for name, one in evaluation.scores.items():
        scores |= {name: one} if name != "wer_raw" else {name: one, "wer_caseless": _caseless(flagged, language)}
    return replace(evaluation, task=RESYNTHESIS, scores=scores)


def _caseless(samples: Sequence[Hypothesis], language: str) -> Score:
    """WER of the texts in lower case; they have a word."""
    lower = [replace(one, text=CASELESS(one.text or ""), pred_text=CASELESS(one.pred_text)) for one in samples]
    rest = tuple(name for name in METRICS["recognition"] if name != "wer_raw")
    found = score(lower, ScoreOptions(language=language, leave_out=rest)).scores["wer_raw"]
    return replace(found, name="wer_caseless", signature=signature_of("word", CASELESS))
