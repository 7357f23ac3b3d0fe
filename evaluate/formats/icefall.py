"""icefall's recogs-NAME.txt, and its errs-NAME.txt, which a person can read and grep."""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, zip_longest
from pathlib import Path

from encodeonce.evaluate.formats.lines import Entry, Line, Role
from encodeonce.evaluate.metrics.word_errors import Aligned, align
from encodeonce.store.files import atomic_write

UTTERANCE = re.compile(r"(.+):\t(ref|hyp)=(\[.*\])\s*")
NOTHING = "*"
"""Stands where a word was put in or left out."""

Pair = tuple[str, str]
"""A word of the reference and one of the hypothesis."""


def is_recogs(path: Path, lines: Sequence[Line]) -> bool:
    """Whether the first line is one of icefall's."""
    return UTTERANCE.fullmatch(lines[0].text) is not None


def read_recogs(lines: Sequence[Line], role: Role) -> Iterator[Entry]:
    """Two lines an utterance, `id:<tab>ref=[...]` and `id:<tab>hyp=[...]`, each a Python list of words."""
    told = [line for line in lines if line.text.strip()]
    for ref, hyp in zip(told[::2], [*told[1::2], None], strict=False):
        (name, said), (other, written) = _words(ref, "ref"), (None, "") if hyp is None else _words(hyp, "hyp")
        if other != name:
            raise ref.wrong(f"no hyp= of {name!r} in the line after it")
        yield Entry(ref, name, said, written)


def write_recogs(path: Path, texts: Iterable[tuple[str, str, str]]) -> None:
    """Write (id, reference, hypothesis), two lines each."""
    with atomic_write(path) as file:
        for name, said, written in texts:
            file.write(f"{name}:\tref={said.split()}\n{name}:\thyp={written.split()}\n".encode("utf-8", "replace"))


def write_errs(path: Path, texts: Sequence[tuple[str, str, str]]) -> None:
    """Write errs-NAME.txt of (id, reference, hypothesis), in the sections of icefall's write_error_stats."""
    aligned = {name: align(said, written) for name, said, written in texts}
    with atomic_write(path) as file:
        for line in _errs(aligned):
            file.write(f"{line}\n".encode("utf-8", "replace"))


def _errs(aligned: Mapping[str, Sequence[Aligned]]) -> Iterator[str]:
    counted = {kind: Counter[Pair]() for kind in ("hit", "substitution", "deletion", "insertion")}
    for runs in aligned.values():
        for run in runs:
            counted[run.kind].update(zip_longest(run.reference, run.hypothesis, fillvalue=NOTHING))
    right, wrong, left_out, put_in = (kind.total() for kind in counted.values())
    words, edits = right + wrong + left_out, wrong + left_out + put_in
    yield f"%WER = {100 * edits / words:.2f}" if words else "%WER = none"
    yield (
        f"Errors: {put_in} insertions, {left_out} deletions, {wrong} substitutions, "
        f"over {words} reference words ({right} correct)"
    )
    yield "Search below for sections starting with PER-UTT DETAILS:, SUBSTITUTIONS:, DELETIONS:, INSERTIONS:, PER-WORD STATS:"
    yield from ["", "PER-UTT DETAILS: corr or (ref->hyp)  "]
    yield from (f"{name}:\t{' '.join(_shown(runs))}" for name, runs in aligned.items())
    yield from ["", "SUBSTITUTIONS: count ref -> hyp"]
    yield from (f"{count}   {ref} -> {hyp}" for (ref, hyp), count in _most(counted["substitution"]))
    yield from ["", "DELETIONS: count ref"]
    yield from (f"{count}   {ref}" for (ref, _), count in _most(counted["deletion"]))
    yield from ["", "INSERTIONS: count hyp"]
    yield from (f"{count}   {hyp}" for (_, hyp), count in _most(counted["insertion"]))
    yield from ["", "PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp"]
    yield from _by_word(counted)


def _by_word(counted: Mapping[str, Counter[Pair]]) -> Iterator[str]:
    correct, in_ref, in_hyp = Counter[str](), Counter[str](), Counter[str]()
    for kind, pairs in counted.items():
        for (ref, hyp), count in pairs.items():
            correct[ref] += count * (kind == "hit")
            in_ref[ref] += count * (kind != "insertion")
            in_hyp[hyp] += count * (kind != "deletion")
    words = sorted(word for word, count in (in_ref + in_hyp).items() if count)
    for word in sorted(words, key=lambda word: 2 * correct[word] - in_ref[word] - in_hyp[word]):
        errors = in_ref[word] + in_hyp[word] - 2 * correct[word]
        yield f"{word}   {correct[word]} {errors} {in_ref[word]} {in_hyp[word]}"


def _words(line: Line, wanted: str) -> tuple[str, str]:
    found = UTTERANCE.fullmatch(line.text)
    if found is None or found[2] != wanted:
        raise line.wrong(f"it is no `id:<tab>{wanted}=[...]`, which alternates in icefall's recogs files")
    try:
        words = ast.literal_eval(found[3])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise line.wrong(f"{found[3][:40]} is no list of words")
    return found[1], " ".join(words)


def _shown(runs: Iterable[Aligned]) -> Iterator[str]:
    """Words that are right as they are, errors that follow each other as one."""
    for right, group in groupby(runs, key=lambda run: run.kind == "hit"):
        ref, hyp = zip(*((run.reference, run.hypothesis) for run in group), strict=True)
        said, written = (" ".join(chain.from_iterable(side)) for side in (ref, hyp))
        yield said if right else f"({said or NOTHING}->{written or NOTHING})"


def _most(counted: Counter[Pair]) -> list[tuple[Pair, int]]:
    return sorted(counted.items(), key=lambda item: (-item[1], item[0]))
