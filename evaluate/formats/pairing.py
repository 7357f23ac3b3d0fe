"""Hypotheses and references from files, brought together by id or line by line."""

from collections.abc import Sequence
from dataclasses import dataclass

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.formats.find import Texts
from encodeonce.evaluate.formats.lines import Entry
from encodeonce.evaluate.hypotheses import Hypothesis

NAMED = 3
"""Ids that are named where some are missing."""
MISSING = "missing"
"""The flag of an utterance for which there is no hypothesis: it counts as if nothing had been written."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Utterances in the references' order, and the ids that only one side has."""

    hypotheses: Sequence[Hypothesis]
    missing: Sequence[str] = ()
    extra: Sequence[str] = ()


def alone(texts: Texts) -> Paired:
    """A file that holds both sides.

    Raises:
        EvaluationError: it holds no reference.
    """
    if all(entry.text is None for entry in texts.entries):
        raise EvaluationError(f"{texts.path} holds no references; give them with --references")
    return Paired([_joined(entry, entry, texts) for entry in texts.entries])


def pair(hypotheses: Texts, references: Texts, allow_missing: bool = False, allow_extra: bool = False) -> Paired:
    """Two files; what a references file says of an utterance goes before what the other one does.

    Args:
        allow_missing: a reference without a hypothesis counts as one of no words, with the flag `missing`.
        allow_extra: a hypothesis without a reference is left out.

    Raises:
        EvaluationError: ids that only one side has and that are not allowed; different numbers of lines; ids on one side alone.
    """
    if hypotheses.has_ids != references.has_ids:
        lacking = references if hypotheses.has_ids else hypotheses
        raise EvaluationError(
            f"{hypotheses}; {references}; {lacking.path} has no ids to pair by: give another --format, or a file with ids"
        )
    if not hypotheses.has_ids:
        if len(hypotheses.entries) != len(references.entries):
            raise EvaluationError(
                f"{hypotheses.path} has {len(hypotheses.entries):,} lines, {references.path} {len(references.entries):,}; "
                f"without ids each hypothesis has to stand in the line of its reference"
            )
        both = zip(hypotheses.entries, references.entries, strict=True)
        return Paired([_joined(ours, theirs, references) for ours, theirs in both])
    written = {entry.id: entry for entry in hypotheses.entries}
    known = {entry.id for entry in references.entries}
    missing = [str(entry.id) for entry in references.entries if entry.id not in written]
    extra = [str(name) for name in written if name not in known]
    if len(missing) == len(known):
        raise EvaluationError(
            f"{hypotheses.path} and {references.path} have no id in common: {named(extra)} against {named(missing)}"
        )
    problems = []
    if missing and not allow_missing:
        problems.append(
            f"{hypotheses.path} lacks {len(missing):,} of the {len(known):,} utterances of {references.path} "
            f"({named(missing)}): complete it, or count them as empty hypotheses by --allow-missing"
        )
    if extra and not allow_extra:
        problems.append(
            f"{hypotheses.path} has {len(extra):,} utterances that {references.path} lacks ({named(extra)}): "
            f"leave them out by --allow-extra"
        )
    if problems:
        raise EvaluationError("; ".join(problems))
    return Paired([_joined(written.get(one.id), one, references) for one in references.entries], missing, extra)


def named(ids: Sequence[str]) -> str:
    """A few of them."""
    return f"{', '.join(ids[:NAMED])}{', ...' if len(ids) > NAMED else ''}"


def _joined(written: Entry | None, said: Entry, texts: Texts) -> Hypothesis:
    if said.text is None and written is not said:
        raise said.line.wrong("the reference has no text")
    values = {**(written.values if written else {}), **said.values}
    flags = [*values.pop("flags", ()), *([] if written else [MISSING])]
    name = said.id if said.id is not None else f"line-{said.line.number}"
    pred_text = "" if written is None else written.pred_text
    assert pred_text is not None, "a file of hypotheses has one in each line"
    return Hypothesis.from_json({**values, "id": name, "text": said.text, "pred_text": pred_text, "flags": flags})
