"""BLEU and chrF: those of sacrebleu, for the corpus and for every resample of it."""

import importlib.util
from typing import cast

import numpy as np
import pytest
import sacrebleu
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.metrics.intervals import Bootstrap, Clusters
from encodeonce.evaluate.metrics.translation import bleu, chrf
from hypothesis import given, settings
from hypothesis import strategies as st

WORDS = ("der", "Hund", "lief,", "über", "die", "Straße.", "nicht", "„heim“", "", "1.5", "3-mal")
sentence = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join) | st.text(max_size=12)
corpora = st.lists(st.tuples(sentence, sentence), min_size=1, max_size=8)
SAID = ["Der Hund lief über die Straße.", "Er kam nicht heim.", "Die Katze schlief den ganzen Tag.", "Ja."]
WRITTEN = ["Der Hund lief über eine Straße.", "Er kam heim.", "Die Katze schlief am Tag.", ""]


class Resamples:
    """A bootstrap of some given draws, which keeps what it is asked the interval of."""

    def __init__(self, times: list[list[int]]) -> None:
        self.times, self.values = np.array(times), np.empty(0)

    def sums(self, columns: np.ndarray) -> np.ndarray:
        return self.times @ columns

    def interval(self, values: np.ndarray) -> tuple[float, float]:
        self.values = values
        return float(values.min()), float(values.max())


@settings(max_examples=150, deadline=None)
@given(corpora)
def test_scores_and_signatures_are_those_of_sacrebleu(pairs):
    said, written = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    for found, metric in ((bleu(said, written), sacrebleu.BLEU()), (chrf(said, written), sacrebleu.CHRF())):
        expected = metric.corpus_score(written, [said])
        assert found.value == pytest.approx(expected.score, abs=1e-9)
        assert found.signature == str(metric.get_signature())
        assert (found.unit, found.lower_is_better, found.interval) == ("points", False, None)


@pytest.mark.parametrize(("compute", "metric"), [(bleu, sacrebleu.BLEU), (chrf, sacrebleu.CHRF)])
def test_a_resample_has_the_score_of_the_corpus_that_it_is(compute, metric):
    times = [[1, 1, 1, 1], [0, 3, 1, 0], [2, 0, 0, 2], [0, 0, 0, 4]]
    bootstrap = Resamples(times)
    found = compute(SAID, WRITTEN, bootstrap=cast(Bootstrap, bootstrap))
    expected = []
    for drawn in times:
        said, written = (
            [text for text, n in zip(texts, drawn, strict=True) for _ in range(n)] for texts in (SAID, WRITTEN)
        )
        expected.append(metric().corpus_score(written, [said]).score)
    np.testing.assert_allclose(bootstrap.values, expected, atol=1e-9)
    assert found.interval == (min(expected), max(expected))


def test_the_interval_holds_the_score_and_is_the_same_again():
    bootstrap = Bootstrap(Clusters.find(None, 40), resamples=500)
    for compute in (bleu, chrf):
        first, again = (compute(SAID * 10, WRITTEN * 10, bootstrap=bootstrap) for _ in range(2))
        assert first.interval is not None
        assert first.interval[0] < first.value < first.interval[1]
        assert first == again
        assert first.counts["utterances"] == 40


def test_chinese_is_cut_into_characters():
    said, written = ["我喜欢喝茶", "他不在家"], ["我喜欢茶", "他在家"]
    found = bleu(said, written, language="zh-CN")
    assert found.value == pytest.approx(sacrebleu.corpus_bleu(written, [said], tokenize="zh").score)
    assert "tok:zh" in found.signature
    assert bleu(said, written).value != pytest.approx(found.value)
    assert bleu(said, written, language="cmn_hans_cn").value == bleu(said, written, language="yue").value == found.value


@pytest.mark.skipif(importlib.util.find_spec("MeCab") is not None, reason="MeCab is installed")
def test_a_tokenizer_that_is_missing_is_told_with_the_way_out():
    with pytest.raises(EvaluationError, match=r"BLEU in 'ja' needs .*pip install \"sacrebleu\[ja\]\""):
        bleu(["猫"], ["犬"], language="ja")
    assert chrf(["猫"], ["犬"]).value == 0


def test_bad_requests_are_told():
    with pytest.raises(EvaluationError, match="2 references and 1 hypotheses"):
        bleu(["a", "b"], ["a"])
    with pytest.raises(EvaluationError, match="0 references"):
        chrf([], [])
