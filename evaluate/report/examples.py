"""Utterances on a page: the worst and the median ones word by word."""

from encodeonce.evaluate.evaluation import Scored, Task
from encodeonce.evaluate.report.aligned import MOST_PAIRS, aligned
from encodeonce.evaluate.report.analysis import SPOKEN, Analysis
from encodeonce.evaluate.report.audio import audio_of
from encodeonce.evaluate.report.document import (
    Block,
    Example,
    Examples,
    Paragraph,
    Section,
)
from encodeonce.evaluate.report.extras import Extras
from encodeonce.evaluate.report.wording import counted, duration, percent

WORD_CHARACTERS = 60
"""Of a word in an alignment."""


def examples(task: Task, analysis: Analysis, extras: Extras) -> Section | None:
    """The worst and the median utterances, word by word; None of labels."""
    if task == "labels":
        return None
    worst = "The worst" if task in SPOKEN else "Least like their references, word by word"
    chosen = [(worst, analysis.worst), ("In the middle", analysis.median)]
    shown = [one for _, some in chosen for one in some]
    if not shown:
        return None
    audio, silent = audio_of(shown, extras.audio)
    blocks: list[Block] = [
        Examples(title, [_example(task, one, audio.get(one.source.id)) for one in some])
        for title, some in chosen
        if some
    ]
    if silent:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in silent.items())
        blocks.append(Paragraph(f"Without a player: {reasons}.", quiet=True))
    return Section("examples", "Examples", blocks)


def _example(task: Task, one: Scored, audio: str | None) -> Example:
    source, words = one.source, counted(one.words.units, "word")
    facts = [f"{counted(one.words.errors, 'change')} to a reference of {words}"]
    if task in SPOKEN:
        facts = [f"{percent(one.wer)} WER", f"{counted(one.words.errors, 'error')} in {words}"]
    facts += [f"BERTScore F1 {percent(one.meaning)}"] if one.meaning is not None else []
    facts += [duration(source.duration)] if source.duration is not None else []
    facts += [f"speaker {source.speaker}"] if source.speaker is not None else []
    pairs = aligned(one.reference, one.hypothesis)
    shown = [pair.shortened(WORD_CHARACTERS) for pair in pairs[:MOST_PAIRS]]
    return Example(source.id, [*facts, *source.flags], shown, len(pairs) - len(shown), audio)
