"""The published tables as Markdown, marks as notes below each."""

from encodeonce.evaluate.published.tables import Column, PublishedTable, published_tables

DASH = "\N{EN DASH}"

_METRICS = {
    "wer": "WER",
    "wer_raw": "WER raw",
    "cer": "CER",
    "bertscore": "BERTScore",
    "bertscore_precision": "precision",
    "bertscore_recall": "recall",
    "bertscore_f1": "F1",
    "rtfx": "RTFx",
}

_INTRODUCTION = """\
# Published figures

What the thesis and others have published, as printed: `103.56` stays `103.56` and `2.5` stays `2.5`. A letter in brackets marks a
figure that cannot be right or that says less than it seems to, with the reason below the table; the figure itself is not corrected.
The data lie in `evaluate/published/*.json`; this page is written from them by `python -m encodeonce.evaluate.published`.

A report of `evaluate-adapter` has these tables too. Ours stand beside a published figure only in a column whose test set was
evaluated whole: the split has its name and its number of utterances (2,703 for dev-clean). Everything else is in a table of its own,
"Measured here on another test set". For MuST-C no number of utterances is kept, because the thesis does not say which release it used:
no translation of ours stands beside those columns.

None of our numbers is a like-for-like comparison with the thesis so far. The [demo](training.md)'s corpus is synthesised.
Our LibriSpeech trainings test on two speakers of train-clean-5, another test set than the thesis's dev-clean and dev-other, and read the
features of Moonshine, which was trained for recognition; HuBERT and SpeechTokenizer were not.

Arithmetic finds most of the marks, without knowing where to look: mean F1 cannot exceed (P + R) / 2 of the mean precision and recall,
two test sets do not agree in every figure, a system does not stand in a table twice with the same figure, and a quoted figure has to be
in the table that it is quoted from. It also finds a cell that may be right in principle: F1 lies below (P + R) / 2 by the mean over
utterances of (P - R)² / (2 (P + R)), so that a large gap says how far precision and recall of an utterance have to be apart.
"""


def document() -> str:
    """docs/published.md."""
    return "\n".join([_INTRODUCTION, *map(to_markdown, published_tables())])


def to_markdown(table: PublishedTable) -> str:
    """A heading, the table, its marks, and where it is from."""
    notes = list(dict.fromkeys(cell.mark for row in table.rows for cell in row.cells if cell.mark))
    letters = {note: chr(ord("a") + number) for number, note in enumerate(notes)}
    sources = any(row.source for row in table.rows)
    head = [*table.headings, *map(_name, table.columns), *(["read in"] if sources else [])]
    lines = [f"## {table.title}", "", _line(head), _line(["---"] * len(table.headings) + ["---:"] * len(table.columns))]
    lines[-1] += " --- |" if sources else ""
    for row in table.rows:
        cells = [f"{cell.printed or DASH}{f' [{letters[cell.mark]}]' if cell.mark else ''}" for cell in row.cells]
        lines.append(_line([*row.labels, *cells, *([row.source or ""] if sources else [])]))
    lines += ["", *(f"- [{letters[note]}] {note[:1].upper()}{note[1:]}." for note in notes), *([""] if notes else [])]
    about = [f"In {table.unit}.", table.note or "", "" if sources else f"Source: {table.source}."]
    return "\n".join([*lines, " ".join(filter(None, about)), ""])


def _name(column: Column) -> str:
    return f"{_METRICS[column.metric]}, {column.test_set}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
