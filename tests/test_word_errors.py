"""Edits are those of jiwer, and as many as an independent aligner finds, on texts of every kind; an alignment adds up to them."""

import random
import unicodedata
from dataclasses import astuple

import jiwer
import kaldialign
import pytest
from encodeonce.evaluate.evaluation import Edits
from encodeonce.evaluate.metrics import counts
from encodeonce.evaluate.metrics.counts import count_pairs
from encodeonce.evaluate.metrics.word_errors import align, character_errors, count_edits, word_errors
from encodeonce.evaluate.normalise import RAW, find_normaliser
from hypothesis import given, settings
from hypothesis import strategies as st

VOCABULARY = [
    "a",
    "a",
    "the",
    "The",
    "cat",
    "cats",
    "ran",
    "no",
    "no.",
    "é",
    "e\u0301",
    "ß",
    "ss",
    "ﬁ",
    "日本",
    "日",
    "👩‍👩‍👧",
    "א",
    "1",
    "0",
]
NORMALISERS = {language: find_normaliser(language) for language in ("en", "de", "ja", None)}
TEXTS = st.lists(st.sampled_from(VOCABULARY), max_size=8).map(" ".join)


def adversarial_pairs(count: int) -> list[tuple[str, str]]:
    """Random pairs and mean ones: empty sides, combining marks in another order or form, repeated, shifted and reversed words."""
    draw = random.Random(7)
    pairs = [
        ("", ""),
        ("", "a b"),
        ("a b", ""),
        ("e\u0301", "é"),
        ("a\u0301\u0323", "a\u0323\u0301"),
        ("a " * 200, "a " * 3),
    ]
    while len(pairs) < count:
        said = draw.choices(VOCABULARY, k=draw.choice((0, 1, 2, 5, 12)))
        written = draw.choice(
            (
                draw.choices(VOCABULARY, k=draw.choice((0, 1, 3, 12))),
                [draw.choice(VOCABULARY) if draw.random() < 0.2 else word for word in said if draw.random() > 0.1],
                said[1:] + said[:1],
                said[::-1],
                said * 2,
                [word for word in said for _ in range(draw.choice((1, 1, 1, 8)))],
                [unicodedata.normalize("NFD", word) for word in said],
            )
        )
        pairs.append((" ".join(said), " ".join(written)))
    return [(RAW(said), RAW(written)) for said, written in pairs]


def jiwers(alignments: list[list[jiwer.AlignmentChunk]]) -> list[Edits]:
    """jiwer's alignments, counted."""
    found = []
    for chunks in alignments:
        lengths = dict.fromkeys(("equal", "substitute", "delete", "insert"), 0)
        for chunk in chunks:
            lengths[chunk.type] += max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        found.append(Edits(*lengths.values()))
    return found


@pytest.mark.parametrize("unit", ["word", "character"])
def test_edits_are_jiwers_and_as_many_as_kaldialigns_on_10000_pairs(unit):
    # Substitutions, deletions and insertions are compared with jiwer's alone: where several alignments need equally few edits,
    # another aligner may take another one of them.
    pairs = adversarial_pairs(10_000)
    cut = str.split if unit == "word" else list
    said, written = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    theirs = jiwer.process_words(said, written) if unit == "word" else jiwer.process_characters(said, written)
    ours = [count_edits(cut(a), cut(b)) for a, b in pairs]
    assert ours == jiwers(theirs.alignments)
    assert [one.errors for one in ours] == [kaldialign.edit_distance(cut(a), cut(b))["total"] for a, b in pairs]
    assert [one.units for one in ours] == [len(cut(text)) for text in said]
    corpus = (word_errors if unit == "word" else character_errors)(said, written)
    assert corpus.rate == (theirs.wer if isinstance(theirs, jiwer.WordOutput) else theirs.cer)


@given(TEXTS, TEXTS)
def test_an_alignment_is_both_texts_and_has_the_edits_that_are_counted(said, written):
    aligned = align(said, written)
    assert [word for part in aligned for word in part.reference] == said.split()
    assert [word for part in aligned for word in part.hypothesis] == written.split()
    lengths = dict.fromkeys(("hit", "substitution", "deletion", "insertion"), 0)
    for part in aligned:
        lengths[part.kind] += max(len(part.reference), len(part.hypothesis))
        if part.kind in ("hit", "substitution"):
            assert all((a == b) == (part.kind == "hit") for a, b in zip(part.reference, part.hypothesis, strict=True))
    assert Edits(*lengths.values()) == count_edits(said.split(), written.split())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=5), st.sampled_from(list(NORMALISERS)))
def test_many_pairs_are_counted_as_each_alone(pairs, language):
    found = count_pairs(pairs, language)
    normalise = NORMALISERS[language]
    assert found.texts == [(normalise(said), normalise(written)) for said, written in pairs]
    for number, (said, written) in enumerate(pairs):
        clean = [normalise(text) for text in (said, written)]
        letters = [text.replace(" ", "") if language == "ja" else text for text in clean]
        for name, texts in {
            "wer": [text.split() for text in clean],
            "cer": letters,
            "wer_raw": [said.split(), written.split()],
            "cer_raw": [said, written],
        }.items():
            assert tuple(found.edits[name][number]) == astuple(count_edits(*texts))


def test_processes_count_as_one_does(monkeypatch):
    pairs = adversarial_pairs(60)
    alone = count_pairs(pairs, "en")
    monkeypatch.setattr(counts, "CHUNK", 7)
    monkeypatch.setattr(counts, "PAIRS_A_PROCESS", 10)
    spread = count_pairs(pairs, "en", processes=2)
    assert spread.texts == alone.texts
    assert all((spread.edits[name] == alone.edits[name]).all() for name in alone.edits)
