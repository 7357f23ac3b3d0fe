"""Intervals hold the truth as often as they promise, and the paired test calls chance a difference as rarely as it promises."""

import numpy as np
import pytest
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.evaluation import Evaluation
from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.evaluate.metrics.intervals import (
    FEWEST_SPEAKERS,
    MOST_CLUSTERS,
    Bootstrap,
    Clusters,
    bootstrap_interval,
    student_quantile,
)
from encodeonce.evaluate.metrics.significance import compare, paired_test
from encodeonce.evaluate.scoring import ScoreOptions, score
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

TRUE_RATE = 0.1


def corpus(
    random: np.random.Generator, speakers: int, utterances: int = 15
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Speaker, errors and words of each utterance; speakers differ in how well they are understood, about `TRUE_RATE`."""
    rates = random.gamma(4, TRUE_RATE / 4, speakers).clip(0, 0.9)
    of = np.repeat(np.arange(speakers), random.poisson(utterances, speakers) + 1)
    words = random.poisson(15, len(of)) + 1
    return [f"s{number}" for number in of], random.binomial(words, rates[of]), words


def covered(speakers: int, by_speaker: bool, corpora: int = 500) -> float:
    random, inside = np.random.default_rng(3), 0
    for _ in range(corpora):
        names, errors, words = corpus(random, speakers)
        low, high = bootstrap_interval(
            errors.tolist(), words.tolist(), resamples=800, groups=names if by_speaker else None
        )
        inside += low <= TRUE_RATE <= high
    return inside / corpora


@pytest.mark.parametrize("speakers", [12, 40])
def test_intervals_over_speakers_hold_the_truth_95_times_of_100(speakers):
    assert 0.92 <= covered(speakers, by_speaker=True) <= 0.98


def test_intervals_over_utterances_are_too_narrow_where_speakers_differ():
    assert covered(12, by_speaker=False) < 0.75


def test_a_lone_speaker_or_few_are_said_and_utterances_drawn():
    names = [f"s{number % (FEWEST_SPEAKERS - 1)}" for number in range(40)]
    clusters = Clusters.find(names, 40)
    assert (clusters.over, clusters.count) == ("utterances", 40)
    assert clusters.described == "40 utterances (5 speakers are too few)"
    assert Clusters.find(["a"] * 9, 9).described == "9 utterances (1 speaker is too few)"
    assert Clusters.find(None, 9).described == "9 utterances (the speakers are unknown)"
    mixed = Clusters.find([*"abcdef", None, "a", None], 9)
    assert (mixed.over, mixed.count, mixed.of[0] == mixed.of[7], mixed.of[6] == mixed.of[8]) == (
        "speakers",
        8,
        True,
        False,
    )
    assert mixed.described == "6 speakers and 2 utterances of unknown speakers"


def test_intervals_of_rates_and_means_are_those_of_a_plain_loop():
    names, errors, words = corpus(np.random.default_rng(1), 25)
    random, of = np.random.default_rng(2), np.array([int(name[1:]) for name in names])
    rates, means = [], []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(of == speaker) for speaker in random.integers(25, size=25)])
        rates.append(errors[rows].sum() / words[rows].sum())
        means.append((errors[rows] > 0).mean())
    tail = stats.norm.sf(np.sqrt(25 / 24) * stats.t.ppf(0.975, 24))
    bootstrap = Bootstrap(Clusters.find(names, len(names)))
    for ours, values in ((bootstrap.ratio(errors, words), rates), (bootstrap.mean(errors > 0), means)):
        theirs = np.quantile(values, [tail, 1 - tail])
        assert ours == pytest.approx(theirs, abs=0.06 * np.ptp(theirs))


def test_very_many_utterances_have_the_interval_of_the_normal_law():
    random = np.random.default_rng(5)
    words = random.poisson(30, 5 * MOST_CLUSTERS) + 1
    errors = random.binomial(words, TRUE_RATE)
    rate = errors.sum() / words.sum()
    half = 1.96 * np.sqrt(((errors - rate * words) ** 2).sum()) / words.sum()
    assert bootstrap_interval(errors.tolist(), words.tolist(), resamples=2000) == pytest.approx(
        (rate - half, rate + half), abs=0.1 * half
    )


def test_students_quantiles_are_scipys():
    for freedom in (FEWEST_SPEAKERS - 1, 10, 39, 2337):
        assert student_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=0.005)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 9), st.sampled_from([*"abcdefgh", None])), min_size=10, max_size=40
    )
)
def test_an_interval_holds_its_rate_and_stays_inside_what_can_be(utterances):
    errors, words, names = map(list, zip(*utterances, strict=True))
    low, high = bootstrap_interval(errors, words, resamples=500, groups=names)
    singly = [a / b for a, b in zip(errors, words, strict=True)]
    assert min(singly) - 1e-9 <= low <= sum(errors) / sum(words) + 1e-9
    assert sum(errors) / sum(words) - 1e-9 <= high <= max(singly) + 1e-9
    assert (low, high) == bootstrap_interval(errors, words, resamples=500, groups=names)


@pytest.mark.parametrize(("errors", "words"), [([], []), ([1] * 9, [2] * 9), ([1] * 12, [0] * 3 + [1] * 9)])
def test_what_has_no_interval_is_refused(errors, words):
    with pytest.raises(EvaluationError, match="give at least 10 utterances with texts"):
        bootstrap_interval(errors, words)


def test_a_degenerate_utterance_among_few_gives_no_interval():
    errors, words = np.array([500, *[0] * 19]), np.array([1, *[0] * 12, *[8] * 7])
    few = Bootstrap(Clusters.find(None, 8))
    assert few.ratio(errors[12:], words[12:]) is few.mean(errors[12:]) is None
    assert Bootstrap(Clusters.find(None, 20)).ratio(errors, words) is None  # 8 of 20 have words
    assert Bootstrap(Clusters.find(None, 20)).mean(errors) is not None


def test_as_few_utterances_give_no_interval_whoever_speaks():
    errors, words = np.array([500, *[0] * 11]), np.array([1, *[8] * 11])
    for count in (6, 9):
        speakers = Bootstrap(Clusters.find([f"s{number % 6}" for number in range(count)], count))
        assert speakers.clusters.over == "speakers"
        assert speakers.ratio(errors[:count], words[:count]) is speakers.interval(np.arange(9.0)) is None
    enough = Bootstrap(Clusters.find([*"abcdef"] * 2, 12))
    assert enough.ratio(errors, words * np.array([1] * 9 + [0] * 3)) is None  # 9 of 12 have words
    assert enough.ratio(errors, words) is not None


def p_values(speakers: int, advantage: float, by_speaker: bool = True, tests: int = 600) -> np.ndarray:
    """Of pairs of systems, each of which understands some speakers better than the other."""
    random, found = np.random.default_rng(11), []
    for _ in range(tests):
        names, _, words = corpus(random, speakers)
        of = np.array([int(name[1:]) for name in names])
        rates = random.gamma(4, TRUE_RATE / 4, (2, speakers)).clip(0, 0.9) * [[1], [1 - advantage]]
        errors = random.binomial(words, rates[:, of])
        clusters = Clusters.find(names if by_speaker else None, len(names))
        found.append(paired_test(errors[0] - errors[1], clusters, resamples=600))
    return np.array(found)


@pytest.mark.parametrize("speakers", [8, 20])
def test_chance_is_called_a_difference_5_times_of_100(speakers):
    low, high = stats.binom.interval(0.999, 600, 0.05)
    assert low <= np.count_nonzero(p_values(speakers, 0.0) <= 0.05) <= high


def test_a_difference_is_found_where_there_is_one():
    assert np.mean(p_values(20, 0.5, tests=100) <= 0.05) > 0.8


def test_speakers_taken_for_independent_utterances_would_call_chance_a_difference():
    assert np.mean(p_values(20, 0.0, by_speaker=False, tests=100) <= 0.05) > 0.2


def test_p_values_of_few_speakers_are_scipys_exact_ones():
    differences = np.array([3, -1, 4, 1, -5, 9, 2, -6, 5])
    theirs = stats.permutation_test(
        (differences, np.zeros(9)), lambda a, b: np.sum(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert paired_test(differences, Clusters.find([str(n) for n in range(9)], 9)) == pytest.approx(theirs.pvalue)
    assert paired_test(np.zeros(9), Clusters.find(None, 9)) == 1
    assert 0 < paired_test(np.ones(30), Clusters.find(None, 30), resamples=99) == 0.01


def evaluation(title: str, written: dict[str, str], said: str = "a b c d", language: str = "en") -> Evaluation:
    hypotheses = [Hypothesis(name, text, said, speaker=name[0]) for name, text in written.items()]
    return score(hypotheses, ScoreOptions(language=language, leave_out=("bertscore",)), title)


def test_a_comparison_is_of_the_errors_of_the_same_utterances():
    names = [f"{speaker}{number}" for speaker in "stuvwxyz" for number in range(4)]
    good = evaluation("good", dict.fromkeys(names, "a b c d"))
    bad = evaluation("bad", {**dict.fromkeys(names, "a b x"), "s0": "a b c d"})
    found = compare(good, bad)
    assert (found.first_wer, found.second_wer, found.difference) == (0, 62 / 128, -62 / 128)
    assert (found.winner, found.first_better, found.second_better, found.utterances) == ("first", 31, 0, 32)
    assert found.p_value == 2 / 2**8
    assert found.interval is not None
    assert found.interval[0] <= found.difference <= found.interval[1] < 0
    assert found.over == "8 speakers"
    assert good.scores["wer"].signature in found.signature
    back = compare(bad, good)
    assert (back.winner, back.difference, back.p_value) == ("second", -found.difference, found.p_value)
    same = compare(bad, bad)
    assert (same.winner, same.difference, same.p_value, same.interval) == (None, 0, 1, None)


def test_evaluations_that_do_not_compare_are_refused_with_names_and_counts():
    one = evaluation("one", dict.fromkeys(("a", "b", "c", "d"), "a"))
    fewer = evaluation("fewer", dict.fromkeys(("b", "c", "e"), "a"))
    with pytest.raises(
        EvaluationError, match=r"2 utterances are only in one \(a, d\) and 1 utterances are only in fewer \(e\)"
    ):
        compare(one, fewer)
    some = compare(one, fewer, common_only=True)
    assert (some.utterances, some.only_first, some.only_second) == (2, 2, 1)
    with pytest.raises(
        EvaluationError, match=r"4 of 4 utterances have another reference in said than in one \(a, b, c \.\.\.\)"
    ):
        compare(one, evaluation("said", dict.fromkeys(("a", "b", "c", "d"), "a"), said="a b c"))
    with pytest.raises(EvaluationError, match=r"whisper-english.*whisper-basic.*score both in the same way"):
        compare(one, evaluation("german", dict.fromkeys(("a", "b", "c", "d"), "a"), language="de"))
    with pytest.raises(EvaluationError, match="no utterance in common"):
        compare(one, evaluation("other", {"z": "a"}), common_only=True)
