"""Utterances on a page: the worst and the median ones word by word, pictures of some, and all of them in a table."""

import random
from base64 import b64encode
from collections.abc import Sequence

from encodeonce.evaluate.evaluation import Evaluation, Scored
from encodeonce.evaluate.report.aligned import MOST_PAIRS, aligned
from encodeonce.evaluate.report.analysis import Analysis
from encodeonce.evaluate.report.audio import audio_of
from encodeonce.evaluate.report.document import (
    Block,
    Cell,
    Column,
    Example,
    Examples,
    Paragraph,
    Photograph,
    Section,
    Table,
)
from encodeonce.evaluate.report.extras import Extras, Picture
from encodeonce.evaluate.report.wording import counted, duration, percent, rate, whole

LISTED = 2_000
"""Utterances in the table of all; of more, half are those with the highest WER and half are drawn from the others."""
SHOWN_CHARACTERS = 600
"""Of a text in that table."""
WORD_CHARACTERS = 60
"""Of a word in an alignment."""
PICTURE_BYTES = 6_000_000
"""Of all pictures together."""


def examples(analysis: Analysis, extras: Extras) -> Section | None:
    """The worst and the median utterances."""
    chosen = [("The worst", analysis.worst), ("In the middle", analysis.median)]
    shown = [one for _, some in chosen for one in some]
    if not shown:
        return None
    audio, silent = audio_of(shown, extras.audio)
    blocks: list[Block] = [
        Examples(title, [_example(one, audio.get(one.source.id)) for one in some]) for title, some in chosen if some
    ]
    if silent:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in silent.items())
        blocks.append(Paragraph(f"Without a player: {reasons}.", quiet=True))
    return Section("examples", "Examples", blocks)


def _example(one: Scored, audio: str | None) -> Example:
    source = one.source
    facts = [percent(one.wer) + " WER", f"{counted(one.words.errors, 'error')} in {counted(one.words.units, 'word')}"]
    facts += [f"BERTScore F1 {percent(one.meaning)}"] if one.meaning is not None else []
    facts += [duration(source.duration)] if source.duration is not None else []
    facts += [f"speaker {source.speaker}"] if source.speaker is not None else []
    pairs = aligned(one.reference, one.hypothesis)
    shown = [pair.shortened(WORD_CHARACTERS) for pair in pairs[:MOST_PAIRS]]
    return Example(source.id, [*facts, *source.flags], shown, len(pairs) - len(shown), audio)


def pictures(found: Sequence[Picture]) -> Section | None:
    """Pictures of utterances, such as what the queries attend to; one that cannot be read is named."""
    blocks: list[Block] = []
    left = PICTURE_BYTES
    for picture in found:
        try:
            content = picture.path.read_bytes()
        except OSError as error:
            blocks.append(Paragraph(f"{picture.title}: cannot read {picture.path}: {error.strerror}", quiet=True))
            continue
        if len(content) > left:
            blocks.append(Paragraph(f"{picture.title}: see {picture.path}; this page is full.", quiet=True))
            continue
        left -= len(content)
        source = "data:image/png;base64," + b64encode(content).decode("ascii")
        of = "" if picture.utterance is None or picture.utterance in picture.caption else f" ({picture.utterance})"
        blocks.append(Photograph(source, picture.title, picture.caption + of))
    return Section("attention", "Attention", blocks) if blocks else None


def every_utterance(evaluation: Evaluation) -> Section | None:
    """A table of all utterances, or of some with a sentence about which."""
    everything = evaluation.utterances
    if not everything:
        return None
    rows = _some(everything)
    said = "All utterances, the worst first; samples.jsonl has them with everything that is known of them."
    if len(rows) < len(everything):
        said = (
            f"{len(rows):,} of {len(everything):,} utterances: the {LISTED // 2:,} with the highest WER, and others drawn at "
            "random, always the same. samples.jsonl has all."
        )
    with_meaning = any(one.meaning is not None for one in rows)
    with_speaker = any(one.source.speaker is not None for one in rows)
    with_flags = any(one.source.flags for one in rows)
    columns = [Column("Utterance", "code")]
    columns += [Column("Speaker")] if with_speaker else []
    columns += [Column(name, "number") for name in ("Seconds", "Words", "Errors", "WER")]
    columns += [Column("BERTScore F1", "number")] if with_meaning else []
    columns += [Column("Flags")] if with_flags else []
    columns += [Column("Reference", "prose"), Column("Hypothesis", "prose")]
    cells = [_row(one, with_speaker, with_meaning, with_flags) for one in rows]
    table = Table("Utterances", columns, cells, said, long=True)
    return Section("utterances", "All utterances", [table])


def _some(everything: Sequence[Scored]) -> list[Scored]:
    worst_first = sorted(everything, key=lambda one: (-one.wer, -one.words.errors))
    if len(worst_first) <= LISTED:
        return worst_first
    worst, rest = worst_first[: LISTED // 2], worst_first[LISTED // 2 :]
    drawn = sorted(random.Random(0).sample(range(len(rest)), LISTED - len(worst)))
    return [*worst, *(rest[i] for i in drawn)]


def _row(one: Scored, with_speaker: bool, with_meaning: bool, with_flags: bool) -> list[Cell]:
    source, seconds = one.source, one.source.duration
    return [
        Cell(source.id),
        *([Cell(source.speaker or "")] if with_speaker else []),
        Cell("" if seconds is None else f"{seconds:.1f}", seconds),
        whole(one.words.units),
        whole(one.words.errors),
        rate(one.wer),
        *([rate(one.meaning)] if with_meaning else []),
        *([Cell(", ".join(source.flags))] if with_flags else []),
        *(Cell(_shortened(text)) for text in (one.reference, one.hypothesis)),
    ]


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} … ({len(text):,} characters)"
