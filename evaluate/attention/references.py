"""When words are said, from where it is known: CTM and TextGrid files, a corpus's own column, or CTC's forced alignment."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from encodeonce.evaluate.attention.alignment import Word
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.store.utterance import StoredUtterance
from encodeonce.train.objectives.ctc import BLANK

INTERVAL = re.compile(r'xmin\s*=\s*(\S+)\s+xmax\s*=\s*(\S+)\s+text\s*=\s*"((?:[^"]|"")*)"')
"""Of a TextGrid in Praat's long form."""
SILENCES = {"", "sil", "sp", "spn", "<eps>", "<unk>"}


def read_word_times(path: Path) -> dict[str, list[Word]]:
    """Words by utterance id, from a CTM file, or a folder of `<id>.TextGrid` files (of the Montreal Forced Aligner).

    Raises:
        EvaluationError: there is neither, or one is damaged; the message names the line.
    """
    if path.is_dir():
        found = {file.stem: _text_grid(file) for file in sorted(path.rglob("*.TextGrid"))}
        if not found:
            raise EvaluationError(f"{path} holds no .TextGrid file; give a folder that does, or a CTM file")
        return found
    return _ctm(path)


def own_word_times(utterance: StoredUtterance) -> list[Word]:
    """Words of an utterance whose corpus has a column `words`: a list of `{"word", "start", "end"}`, or its JSON; else none.

    Raises:
        EvaluationError: the column holds something else.
    """
    words = utterance.metadata.get("words")
    try:
        words = json.loads(words) if isinstance(words, str) else words
        return [Word(str(one["word"]), float(one["start"]), float(one["end"])) for one in words or ()]
    except (ValueError, KeyError, TypeError):
        raise EvaluationError(
            f'utterance {utterance.id}: the column words is no list of {{"word": ..., "start": ..., "end": ...}} in seconds'
        ) from None


def force_align(log_posteriors: np.ndarray, alphabet: Sequence[str], text: str, frame_seconds: float) -> list[Word]:
    """When the words of a text are said, by a CTC that tells characters (Kürzinger et al. 2020, "CTC-segmentation").

    A word lasts from its first character's first frame to its last character's last; CTC tells a character in a frame or two
    of it, so the middle is better known than the ends.

    Args:
        log_posteriors: `[T, C]`, nats.
        alphabet: the character of each class; see `decoding.posteriors.Posteriors`.
        frame_seconds: from one row to the next.

    Raises:
        EvaluationError: a character that CTC does not know, or more text than frames.
    """
    from torchaudio.functional import forced_align

    classes = {character: number for number, character in enumerate(alphabet) if character}
    words = text.split()
    spelt = " ".join(words)
    if unknown := sorted(set(spelt) - set(classes)):
        raise EvaluationError(f"the text has {unknown[0]!r}, which CTC does not know; normalise it as for training")
    if not words:
        return []
    targets = torch.tensor([[classes[character] for character in spelt]], dtype=torch.int32)
    try:
        told, _ = forced_align(torch.from_numpy(log_posteriors)[None], targets, blank=BLANK)
    except RuntimeError:
        raise EvaluationError(
            f"{len(spelt)} characters do not fit into {len(log_posteriors)} frames of CTC; is it this utterance's text?"
        ) from None
    path = told[0].numpy()
    begins = np.flatnonzero((path != BLANK) & (path != np.concatenate(([BLANK], path[:-1]))))
    ends = np.flatnonzero((path != BLANK) & (path != np.concatenate((path[1:], [BLANK])))) + 1
    made, at = [], 0
    for word in words:
        last = at + len(word) - 1
        made.append(Word(word, float(begins[at] * frame_seconds), float(ends[last] * frame_seconds)))
        at = last + 2  # the space after it
    return made


def _ctm(path: Path) -> dict[str, list[Word]]:
    found: dict[str, list[Word]] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip() or line.startswith(";;"):
            continue
        try:
            name, _, start, length, word = line.split()[:5]
            begin, end = float(start), float(start) + float(length)
        except ValueError:
            raise EvaluationError(
                f"{path}, line {number}: {line.strip()[:80]!r} is no line of a CTM file: utterance channel start length word"
            ) from None
        if word.lower() not in SILENCES:
            found.setdefault(name, []).append(Word(word, begin, end))
    return {name: sorted(words, key=lambda word: word.start) for name, words in found.items()}


def _text_grid(path: Path) -> list[Word]:
    tiers = re.split(r"item\s*\[\d+\]\s*:", "\n".join(_lines(path)))[1:]
    words = [tier for tier in tiers if re.search(r'name\s*=\s*"words?"', tier)]
    if not words:
        raise EvaluationError(f'{path} has no tier "words" in Praat\'s long form; export it so, or give a CTM file')
    try:
        intervals = [(float(a), float(b), text.replace('""', '"')) for a, b, text in INTERVAL.findall(words[0])]
    except ValueError:
        raise EvaluationError(f"{path}: an interval's time is no number of seconds") from None
    return [Word(text, a, b) for a, b, text in intervals if text.strip().lower() not in SILENCES]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise EvaluationError(f"{path} is no text in UTF-8; give word times as CTM or TextGrid files") from None
