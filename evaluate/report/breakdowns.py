"""Where a system fails, as sections of a page: charts, and the numbers under them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from encodeonce.evaluate.evaluation import Score
from encodeonce.evaluate.report.analysis import Analysis
from encodeonce.evaluate.report.bands import Band, LengthRatio, MeaningBand
from encodeonce.evaluate.report.charts import band_chart, meaning_chart, ratio_chart
from encodeonce.evaluate.report.confusions import WordError
from encodeonce.evaluate.report.document import Block, Cell, Column, Figure, Paragraph, Section, Table
from encodeonce.evaluate.report.wording import NONE, counted, percent, rate, unbroken, whole

DRAWN_SPEAKERS = 24
DRAWN_CHARACTERS = 24
LISTED_SPEAKERS = 200
HOW = "of a ratio, by Student's t; those of the scores above are resampled"
"""Made intervals of bands."""


def by_band(analysis: Analysis) -> Section | None:
    """WER by duration, speaker and reference length."""
    over = analysis.intervals_over
    blocks = [
        *_bands("duration", "WER by duration", "Audio", analysis.by_duration, over),
        *_bands("speaker", "WER by speaker", "Speaker", analysis.by_speaker, "utterances"),
        *_bands("length", "WER by words in the reference", "Words said", analysis.by_length, over),
    ]
    return Section("bands", "Where it fails", blocks, beside_each_other=True) if blocks else None


def _bands(key: str, title: str, heading: str, every: Sequence[Band], over: str) -> list[Block]:
    if not any(band.words for band in every):
        return []
    bands, total = every[:LISTED_SPEAKERS], len(every)
    drawn = [replace(band, label=_drawable(band.label)) for band in every[:DRAWN_SPEAKERS]]
    names = ("Utterances", "Words", "Errors", "WER", "95\u00a0% interval")
    columns = [Column(heading), *(Column(name, "number") for name in names)]
    rows = [
        [
            Cell(unbroken(band.label)),
            whole(band.utterances),
            whole(band.words),
            whole(band.errors),
            rate(band.wer),
            Cell(_interval(band.interval), None if band.interval is None else band.interval[0]),
        ]
        for band in bands
    ]
    some = "" if len(drawn) == total else f" The {len(drawn)} worst of {total:,}."
    caption = f"Bars are error rates, lines their 95\u00a0% intervals, over {over} ({HOW}).{some}"
    listed = "" if len(bands) == total else f"The {len(bands)} worst of {total:,}; samples.jsonl has all utterances."
    table = Table(f"{title}, in numbers", columns, rows, listed, long=len(rows) > DRAWN_SPEAKERS)
    return [Figure(band_chart(drawn, title, key), caption), table]


def _drawable(label: str) -> str:
    """Short, and without what fonts cannot draw: half of a surrogate pair, control characters."""
    clean = "".join(character if character.isprintable() else "\ufffd" for character in label)
    return clean if len(clean) <= DRAWN_CHARACTERS else f"{clean[: DRAWN_CHARACTERS - 1]}…"


def _interval(interval: tuple[float, float] | None) -> str:
    return NONE if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def meaning_by_errors(bands: Sequence[MeaningBand] | None) -> Section | None:
    """Semantic similarity by band of WER: meaning may survive where words do not."""
    if not bands:
        return None
    columns = [Column("WER"), *(Column(name, "number") for name in ("Utterances", "Mean", "Median"))]
    columns += [Column("25 to 75\u00a0%", "number"), Column("5 to 95\u00a0%", "number")]
    rows = [
        [
            Cell(unbroken(band.label)),
            whole(band.utterances),
            rate(band.mean),
            rate(band.quartiles[1]),
            Cell(_interval((band.quartiles[0], band.quartiles[2])), band.quartiles[0]),
            Cell(_interval((band.low, band.high)), band.low),
        ]
        for band in bands
    ]
    caption = (
        "BERTScore F1 of utterances by their WER: what of the meaning is left where words are wrong. "
        "Not rescaled: unrelated sentences do not get 0, so differences count and not the height."
    )
    table = Table("BERTScore F1 by WER, in numbers", columns, rows)
    return Section("meaning", "Meaning", [Figure(meaning_chart(bands), caption), table], beside_each_other=True)


def word_errors(analysis: Analysis) -> Section | None:
    """The most frequent confusions, deletions and insertions."""
    found = analysis.confusions
    tables = [
        _errors("Confusions", found.substitutions, ("Said", "Written")),
        _errors("Deletions", found.deletions, ("Said, not written",)),
        _errors("Insertions", found.insertions, ("Written, not said",)),
    ]
    blocks: list[Block] = [table for table in tables if table is not None]
    if not blocks:
        return None
    if found.aligned < analysis.erroneous:
        said = f"Counted in {found.aligned:,} of the {analysis.erroneous:,} utterances with an error."
        blocks.append(Paragraph(said, quiet=True))
    return Section("words", "Words", blocks, beside_each_other=True)


def _errors(title: str, errors: Sequence[WordError], headings: Sequence[str]) -> Table | None:
    if not errors:
        return None
    columns = [*(Column(heading) for heading in headings), Column("Count", "number"), Column("Times said", "number")]
    rows = [
        [
            *(Cell(word) for word in (one.reference, one.hypothesis) if word is not None),
            whole(one.count),
            whole(one.occurrences),
        ]
        for one in errors
    ]
    return Table(title, columns, rows)


def length_ratio(ratio: LengthRatio | None) -> Section | None:
    """Words written over words said."""
    if ratio is None:
        return None
    caption = (
        f"Words written over words said, by utterance; {ratio.total:.3f} over all. Below 1 the system leaves words out, "
        "above it makes words up."
    )
    columns = [Column("Percentile", "number"), Column("Words written over words said", "number")]
    rows = [[Cell(str(at), at), Cell(f"{value:.2f}", value)] for at, value in sorted(ratio.quantiles.items())]
    table = Table("Percentiles of the length ratio", columns, rows)
    return Section("ratio", "Lengths", [Figure(ratio_chart(ratio), caption), table], beside_each_other=True)


def suspicious(analysis: Analysis, scores: Mapping[str, Score]) -> Section | None:
    """Repetitions and other flags, where somebody looked for any; nothing flagged was removed."""
    if not analysis.flags and "flagged" not in scores:
        return None
    total = analysis.utterances
    said = (
        f"Flagged as repeating themselves: {percent(analysis.repetition_rate)} of {counted(total, 'utterance')}. "
        "What is flagged counts in every number here; nothing was removed."
    )
    blocks: list[Block] = [Paragraph(said)]
    if analysis.flags:
        columns = [Column("Flag"), Column("Utterances", "number"), Column("Share", "number")]
        rows = [[Cell(flag), whole(count), rate(count / max(total, 1))] for flag, count in analysis.flags.items()]
        blocks.append(Table("Flags", columns, rows))
    return Section("flags", "Flags", blocks)
