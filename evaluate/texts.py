"""An evaluation of texts that somebody else's system wrote."""

from dataclasses import dataclass, replace
from pathlib import Path

from encodeonce.evaluate.audio import audio_files, corpus_audio, with_audio
from encodeonce.evaluate.decoding.flags import flags_of
from encodeonce.evaluate.decoding.lines import ORIGIN
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.finish import Finished, Wanted, check_ids, finish
from encodeonce.evaluate.formats.find import Texts, read_texts
from encodeonce.evaluate.formats.pairing import MISSING, Paired, alone, named, pair
from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.evaluate.progress import EvaluationProgress
from encodeonce.evaluate.report.extras import Extras
from encodeonce.evaluate.scoring import score


@dataclass(frozen=True, slots=True, kw_only=True)
class TextsRequest:
    """Texts to score.

    Attributes:
        references: None where the hypotheses' file has them.
        format: of both files; None: told by name and content.
        split: the name of the test set, for the report and to find its audio.
        output: None: beside the hypotheses.
    """

    hypotheses: Path
    references: Path | None = None
    format: str | None = None
    allow_missing: bool = False
    allow_extra: bool = False
    split: str | None = None
    audio: Path | None = None
    output: Path | None = None


def evaluate_texts(request: TextsRequest, wanted: Wanted, progress: EvaluationProgress) -> dict[str, Finished]:
    """Score a file of hypotheses; one test set, by its name.

    Raises:
        EvaluationError: a file that cannot be read, or ids that do not fit; the message names file, line and ids.
    """
    name = request.split or request.hypotheses.stem
    folder = request.output or request.hypotheses.with_name(f"{request.hypotheses.stem}-evaluation")
    if (folder / ORIGIN).exists():
        raise EvaluationError(f"{folder} holds what a checkpoint wrote: give another folder with --output")
    found = _read(request, progress)
    check_ids(wanted, name, [one.id for one in found.hypotheses if one.text is not None])
    hypotheses = [_flagged(one, wanted.scoring.language or one.language) for one in found.hypotheses]
    if request.audio is not None:
        hypotheses = with_audio(hypotheses, corpus_audio(request.audio, name), request.audio)
    if found.missing:
        one = len(found.missing) == 1
        what = "missing hypothesis counts" if one else "missing hypotheses count"
        progress.say(f"{len(found.missing):,} {what} as empty: {named(found.missing)}")
    if found.extra:
        progress.say(f"Left out without a reference: {len(found.extra):,} of the hypotheses ({named(found.extra)})")
    config = {
        "hypotheses": str(request.hypotheses),
        "references": str(request.references or request.hypotheses),
        "split": request.split,
        "missing": len(found.missing),
        "extra": len(found.extra),
    }
    title = f"{request.hypotheses.name}{f' on {request.split}' if request.split else ''}"
    evaluation = score(hypotheses, wanted.scoring, title, config, folder=folder, progress=progress)
    return {name: finish(name, evaluation, folder, wanted, Extras(audio=audio_files(hypotheses)))}


def _flagged(one: Hypothesis, language: str | None) -> Hypothesis:
    """With what is suspicious about its text, beside what the file says of it."""
    if MISSING in one.flags:
        return one
    found = flags_of(one.pred_text, one.duration, ended=True, language=language)
    return replace(one, flags=tuple(dict.fromkeys([*one.flags, *found])))


def _read(request: TextsRequest, progress: EvaluationProgress) -> Paired:
    written = read_texts(request.hypotheses, "pred_text", request.format)
    progress.say(str(written))
    if request.references is None:
        return alone(written)
    said = read_texts(request.references, "text", request.format)
    progress.say(str(said))
    if request.format is None:
        _refuse_ids_without_digits(written, said)
    return pair(written, said, request.allow_missing, request.allow_extra)


def _refuse_ids_without_digits(written: Texts, said: Texts) -> None:
    """Lines that all begin with another word, the same words in both files but in another order, have ids in front of them."""
    if written.has_ids or said.has_ids:
        return
    firsts = [[one.line.text.partition(" ")[0] for one in texts.entries] for texts in (written, said)]
    if firsts[0] != firsts[1] and sorted(firsts[0]) == sorted(firsts[1]) and len(set(firsts[0])) == len(firsts[0]):
        raise EvaluationError(
            f"the lines of {written.path} and {said.path} begin with the same words ({named(firsts[0])}) in different order: "
            "give --format kaldi if these are ids, or --format plain if they are not, and lines belong together by their number"
        )
