"""When words are said, from where it is known: CTM and TextGrid files, a corpus's own column, or CTC's forced alignment."""

import json
import math
import re
from collections.abc import Callable, Collection, Sequence, Set
from pathlib import Path

import numpy as np
import torch
from encodeonce.evaluate.attention.alignment import Word
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.store.utterance import StoredUtterance
from encodeonce.train.objectives.ctc import BLANK

INTERVAL = re.compile(r'xmin\s*=\s*(\S+)\s+xmax\s*=\s*(\S+)\s+text\s*=\s*"((?:[^"]|"")*)"')
"""Of a TextGrid in Praat's long form."""
TEXT_GRID, CTM = ".textgrid", ".ctm"
SILENCES = {"", "sil", "sp", "spn", "<eps>", "<unk>"}


def read_word_times(path: Path, ids: Collection[str]) -> dict[str, list[Word]]:
    """Words of utterances, in seconds from their beginning, from a CTM file, a TextGrid, or a folder of such files at any depth.

    A CTM file names its utterances itself. A TextGrid (of the Montreal Forced Aligner) is of the utterance that it is called
    after: by its path below the folder, else by its name alone.

    Args:
        ids: of the utterances that are wanted; others are passed over.

    Raises:
        EvaluationError: there are no such files, none of them is of these utterances, two are of the same one, or one is
            damaged; the message names the line.
    """
    files = [path]
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in (TEXT_GRID, CTM) and file.is_file()]
        if not files:
            raise EvaluationError(f"{path} holds no .TextGrid and no .ctm file; give a folder that does, or a CTM file")
    wanted, others = set(ids), dict[str, None]()
    found: dict[str, list[Word]] = {}
    source: dict[str, Path] = {}
    for file in files:
        read = (
            _text_grids(file, path, wanted, others) if file.suffix.lower() == TEXT_GRID else _ctm(file, wanted, others)
        )
        for name, words in read.items():
            if name in found:
                raise EvaluationError(f"{source[name]} and {file} both have the words of {name}; leave one of them out")
            found[name], source[name] = words, file
    if not found:
        named = f"those of {next(iter(others))}" if others else "nothing"
        looked = f"such as {next(iter(ids))}" if ids else "for there is none"
        raise EvaluationError(
            f"{path} has the word times of no utterance that is evaluated, {looked}, but {named}; name them by the utterances' ids"
        )
    return found


def own_word_times(utterance: StoredUtterance) -> list[Word]:
    """Words of an utterance whose corpus has a column `words`: a list of `{"word", "start", "end"}`, or its JSON; else none.

    Raises:
        EvaluationError: the column holds something else.
    """
    words = utterance.metadata.get("words")
    try:
        words = json.loads(words) if isinstance(words, str) else words
        return [_word(str(one["word"]), float(one["start"]), float(one["end"])) for one in words or ()]
    except (ValueError, KeyError, TypeError):
        raise EvaluationError(
            f'utterance {utterance.id}: the column words is no list of {{"word": ..., "start": ..., "end": ...}} in seconds'
        ) from None


def load_aligner() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """torchaudio's forced alignment.

    Raises:
        EvaluationError: torchaudio does not load, as beside a torch that it was not built for.
    """
    try:
        from torchaudio.functional import forced_align
    except (ImportError, OSError) as error:
        raise EvaluationError(
            f"times of words are told by torchaudio, which does not load: {error}; "
            f"install the torchaudio that was built for torch {torch.__version__}"
        ) from error
    return forced_align


def force_align(log_posteriors: np.ndarray, alphabet: Sequence[str], text: str, frame_seconds: float) -> list[Word]:
    """When the words of a text are said, by a CTC that tells characters (Kürzinger et al. 2020, "CTC-segmentation").

    A word lasts from its first character's first frame to its last character's last; CTC tells a character in a frame or two
    of it, so the middle is better known than the ends.

    Args:
        log_posteriors: `[T, C]`, nats.
        alphabet: the character of each class; see `decoding.posteriors.Posteriors`.
        frame_seconds: from one row to the next.

    Raises:
        EvaluationError: a character that CTC does not know, more text than frames, or no torchaudio.
    """
    forced_align = load_aligner()
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


def _ctm(path: Path, wanted: Set[str], others: dict[str, None]) -> dict[str, list[Word]]:
    found: dict[str, list[Word]] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip() or line.startswith(";;"):
            continue
        try:
            name, _, start, length, text = line.split()[:5]
            word = _word(text, float(start), float(start) + float(length))
        except ValueError:
            raise EvaluationError(
                f"{path}, line {number}: {line.strip()[:80]!r} is no line of a CTM file: utterance channel start length word"
            ) from None
        if name not in wanted:
            others[name] = None
        elif text.lower() not in SILENCES:
            found.setdefault(name, []).append(word)
    return {name: sorted(words, key=lambda word: word.start) for name, words in found.items()}


def _text_grids(path: Path, folder: Path, wanted: Set[str], others: dict[str, None]) -> dict[str, list[Word]]:
    """The one TextGrid of a file, by the id of its utterance; empty where that is not wanted."""
    inside = path.stem if path == folder else path.relative_to(folder).with_suffix("").as_posix()
    name = inside if inside in wanted else path.stem
    if name in wanted:
        return {name: _text_grid(path)}
    others[inside] = None
    return {}


def _text_grid(path: Path) -> list[Word]:
    tiers = re.split(r"item\s*\[\d+\]\s*:", "\n".join(_lines(path)))[1:]
    words = [tier for tier in tiers if re.search(r'name\s*=\s*"words?"', tier)]
    if not words:
        raise EvaluationError(f'{path} has no tier "words" in Praat\'s long form; export it so, or give a CTM file')
    told, found = re.search(r"intervals:\s*size\s*=\s*(\d+)", words[0]), INTERVAL.findall(words[0])
    if told and int(told[1]) != len(found):
        raise EvaluationError(f"{path} has {len(found)} intervals of words, and says {told[1]}; write it again")
    try:
        intervals = [_word(text.replace('""', '"'), float(a), float(b)) for a, b, text in found]
    except ValueError:
        raise EvaluationError(
            f"{path}: an interval's times are no seconds from the beginning, one after the other"
        ) from None
    return [word for word in intervals if word.word.strip().lower() not in SILENCES]


def _word(text: str, start: float, end: float) -> Word:
    """A word. Raises: ValueError: it ends before it begins, or begins before the utterance."""
    if not 0 <= start <= end < math.inf:
        raise ValueError
    return Word(text, start, end)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise EvaluationError(f"{path} is no text in UTF-8; give word times as CTM or TextGrid files") from None
