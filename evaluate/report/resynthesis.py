"""What codecs keep of the words: rates that evaluate-resynthesis measured, in its own report and beside an adapter's."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.evaluation import RESYNTHESIS, Evaluation, Scored
from encodeonce.evaluate.report.document import Cell, Column, Paragraph, Section, Table
from encodeonce.evaluate.report.results import RESULTS
from encodeonce.evaluate.report.wording import listed, name_of, rate, whole
from encodeonce.store.errors import StoreError
from encodeonce.store.files import read_json

RATES = ("wer_raw", "wer_caseless", "wer", "cer")
ORIGINAL = "original_"
"""Before the name of a score of the original audio."""
ORIGINAL_TEXT = "original_pred_text"
"""The key of a hypothesis for what was heard in the original audio."""
WHOLE_TABLE = 50
"""So many utterances are all in the table of texts; of more, half as many of the worst and as many others at random."""
INTRODUCTION = (
    "Stored codes or latents became audio again, and a recogniser transcribed it. Its own errors are in these rates: what it makes "
    "of the original audio, where that was asked for, tells how many. The thesis's figures are under Published."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecRates:
    """The rates of one resynthesis, fractions by the names of `RATES`; one that cannot be computed is left out.

    Attributes:
        decoded: which output, and which quantizers of it.
        original: empty where the original audio was not transcribed.
        signature: what WER was counted by.
    """

    codec: str
    decoded: str
    recogniser: str
    split: str
    utterances: int
    resynthesised: Mapping[str, float]
    original: Mapping[str, float]
    signature: str


def rates_of(evaluation: Evaluation) -> CodecRates:
    """The rates of an evaluation whose task is `resynthesis`."""
    config, scores = evaluation.config, evaluation.scores
    rates = [
        {name: scores[prefix + name].value for name in RATES if prefix + name in scores} for prefix in ("", ORIGINAL)
    ]
    return CodecRates(
        codec=config["codec"],
        decoded=config["decoded"],
        recogniser=config["asr"],
        split=config["split"],
        utterances=len(evaluation.utterances),
        resynthesised=rates[0],
        original=rates[1],
        signature=scores["wer"].signature if "wer" in scores else "",
    )


def read_rates(folder: Path) -> CodecRates:
    """The rates that evaluate-resynthesis left in a folder.

    Raises:
        EvaluationError: it left none there.
    """
    path = folder / RESULTS
    try:
        results = read_json(path)
        (title,) = results["configs"]
        if results["configs"][title]["task"] != RESYNTHESIS:
            raise EvaluationError("it is of another task")
        (entry,) = results["details"][title][RESYNTHESIS]
        found = CodecRates(**entry)
        resynthesis([found])  # what cannot be shown is refused here
        return found
    except (StoreError, EvaluationError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        why = f": {error}" if isinstance(error, StoreError | EvaluationError) else ""
        raise EvaluationError(
            f"{path} holds no rates of a codec{why}; give the folder that evaluate-resynthesis wrote with --to, or run it again"
        ) from error


def resynthesis(found: Sequence[CodecRates]) -> Section | None:
    """Each codec's rates, those of the original audio above them."""
    if not found:
        return None
    columns = [Column("Audio"), *(Column(name_of(name), "number") for name in RATES)]
    columns += [Column("Utterances", "number"), Column("Split"), Column("Recogniser")]
    rows = list(dict.fromkeys(row for one in found for row in _rows(one)))
    note = "WER and CER without a further word are of normalised texts."
    signatures = sorted({one.signature for one in found if one.signature})
    if len(signatures) > 1:
        note += f" Not all rows compare: WER was counted by {listed(signatures)}."
    table = Table("Through a codec and back", columns, rows, note)
    return Section(RESYNTHESIS, "Codec resynthesis", [Paragraph(INTRODUCTION), table])


def _rows(one: CodecRates) -> list[tuple[Cell, ...]]:
    audio = [("Original", one.original)] if one.original else []
    audio.append((f"{one.codec}, {one.decoded}", one.resynthesised))
    heard = whole(one.utterances), Cell(one.split), Cell(one.recogniser)
    return [(Cell(name), *(rate(rates.get(key)) for key in RATES), *heard) for name, rates in audio]


def targets(evaluation: Evaluation) -> Section | None:
    """Targets and predictions of a resynthesis as they are, as in the thesis's table 4.1: all, or the worst and some at random."""
    everything = evaluation.utterances
    if evaluation.task != RESYNTHESIS or not everything:
        return None
    if len(everything) <= WHOLE_TABLE:
        tables = [_texts("All utterances, as they were heard", everything)]
    else:
        worst = sorted(everything, key=lambda one: (-one.wer, -one.words.errors, one.source.id))[: WHOLE_TABLE // 2]
        bad = {one.source.id for one in worst}
        others = [one for one in everything if one.source.id not in bad]
        some = random.Random(0).sample(others, min(len(others), WHOLE_TABLE // 2))
        tables = [
            _texts(f"The {len(worst)} of {len(everything):,} utterances with the most errors a word", worst),
            _texts(f"{len(some)} others at random, always the same", some),
        ]
    return Section("targets", "Targets and predictions", tables)


def _texts(caption: str, chosen: Sequence[Scored]) -> Table:
    original = any(ORIGINAL_TEXT in one.source.metadata for one in chosen)
    columns = [Column("No.", "number"), Column("Target", "prose"), Column("Prediction", "prose")]
    columns += [Column("Of the original audio", "prose")] if original else []
    columns += [Column("Errors", "number"), Column("Words", "number"), Column("Utterance", "code")]
    rows = [
        [
            Cell(f"({number})", number),
            Cell(one.source.text or ""),
            Cell(one.source.pred_text),
            *([Cell(one.source.metadata.get(ORIGINAL_TEXT, ""))] if original else []),
            whole(one.words.errors),
            whole(one.words.units),
            Cell(one.source.id),
        ]
        for number, one in enumerate(chosen, 1)
    ]
    return Table(caption, columns, rows, "Errors are counted in the normalised texts.", long=True)
