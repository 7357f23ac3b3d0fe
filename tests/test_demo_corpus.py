"""The corpus that comes with the package: what its README and the demo promise of it."""

from itertools import islice

import numpy as np
import pytest
from encodeonce.extract.audio import read_audio
from encodeonce.extract.corpora import list_corpus
from encodeonce.extract.corpora.base import Utterance
from encodeonce.train.demo import SPEECH
from encodeonce.train.demo.grammar import WORDS, possible, sentences
from encodeonce.train.demo.synthesise import COUNTS, GAP_SECONDS, HELD_OUT, KNOWN, LOUDNESS, SEED


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Utterance]]:
    listings = {name: list_corpus(SPEECH, name) for name in COUNTS}
    assert not any(listing.problems for listing in listings.values())
    return {name: list(listing.utterances) for name, listing in listings.items()}


def test_texts_are_those_of_the_grammar_and_none_comes_twice(splits: dict[str, list[Utterance]]) -> None:
    texts = [utterance.text for split in splits.values() for utterance in split]
    assert texts == list(islice(sentences(SEED), sum(COUNTS.values())))
    assert len(set(texts)) == len(texts)
    assert len(WORDS) == 98
    assert possible() > 10_000


def test_every_word_is_heard_in_training(splits: dict[str, list[Utterance]]) -> None:
    heard = {word for utterance in splits["train"] for word in (utterance.text or "").split()}
    assert heard == set(WORDS)


def test_the_held_out_voice_is_in_no_other_split(splits: dict[str, list[Utterance]]) -> None:
    known = {voice.name for voice in KNOWN}
    assert {name: {u.speaker for u in split} for name, split in splits.items()} == {
        "train": known,
        "sentences": known,
        "voice": {HELD_OUT.name},
    }


@pytest.mark.parametrize("name", COUNTS)
def test_segments_hold_their_utterance_whole(splits: dict[str, list[Utterance]], name: str) -> None:
    for utterance in splits[name][:: COUNTS[name] // 10]:
        samples = read_audio(utterance, 16_000)
        around = Utterance(
            id="around",
            audio=utterance.audio,
            offset=utterance.offset - GAP_SECONDS / 2,
            duration=(utterance.duration or 0) + GAP_SECONDS,
        )
        assert np.sqrt(np.mean(samples**2)) == pytest.approx(LOUDNESS, rel=0.1)
        outside = np.sum(read_audio(around, 16_000) ** 2) - np.sum(samples**2)
        assert outside < 1e-3 * np.sum(samples**2), "speech lies beside the segment"


def test_it_stays_small() -> None:
    assert sum(path.stat().st_size for path in SPEECH.iterdir()) < 4_000_000
