"""The breakdowns of an evaluation add up, say nothing by chance, and become pictures that any page can carry."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import jiwer
import numpy as np
import pytest
from encodeonce.evaluate.evaluation import Edits, Evaluation, Score, Scored
from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.evaluate.report import confusions
from encodeonce.evaluate.report.analysis import Analysis, analyse
from encodeonce.evaluate.report.bands import ratio_interval
from encodeonce.evaluate.report.charts import Point, band_chart, comparison_chart, meaning_chart, ratio_chart
from encodeonce.evaluate.report.palette import INK
from encodeonce.evaluate.report.training_chart import training_chart
from hypothesis import given, settings
from hypothesis import strategies as st

WORDS = ("the", "cat", "sat", "on", "a", "mat")


def scored(
    said: str,
    written: str,
    speaker: str | None = None,
    seconds: float | None = None,
    meaning: float | None = None,
    flags: tuple[str, ...] = (),
) -> Scored:
    if said:
        found = jiwer.process_words(said, written)
        edits = Edits(found.hits, found.substitutions, found.deletions, found.insertions)
    else:
        edits = Edits(0, 0, 0, len(written.split()))
    source = Hypothesis(f"{said}/{written}", written, said, seconds, speaker, flags=flags)
    return Scored(source, said, written, edits, edits, meaning)


def counted(errors: int, words: int, speaker: str | None = None, **known: float) -> Scored:
    """So many deletions; the texts are there to be aligned."""
    said = " ".join(f"w{i}" for i in range(words))
    written = " ".join(f"w{i}" for i in range(errors, words))
    edits = Edits(words - errors, 0, errors, 0)
    return Scored(Hypothesis("u", written, said, known.get("seconds"), speaker), said, written, edits, edits)


def analysed(utterances: Sequence[Scored], **options: int) -> Analysis:
    return analyse(Evaluation("test", {}, utterances), **options)


texts = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
utterances = st.builds(
    scored,
    texts,
    texts,
    st.sampled_from(("anna", "ben", None)),
    st.one_of(st.none(), st.floats(0, 60)),
    st.one_of(st.none(), st.floats(0, 1)),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(utterances, max_size=25))
def test_bands_add_up_to_the_whole(everything: list[Scored]) -> None:
    found = analysed(everything)
    assert found.errors == sum(one.words.errors for one in everything)
    for bands in (found.by_duration, found.by_length, found.by_speaker):
        if bands:
            assert sum(band.utterances for band in bands) == len(everything)
            assert sum(band.words for band in bands) == found.words
            assert sum(band.errors for band in bands) == found.errors
    for band in found.by_speaker:
        own = [one for one in everything if (one.source.speaker or "not known") == band.label]
        assert (band.utterances, band.errors) == (len(own), sum(one.words.errors for one in own))
    assert sum(band.utterances for band in found.meaning or ()) == sum(one.meaning is not None for one in everything)
    assert sum(found.length_ratio.counts if found.length_ratio else ()) == sum(
        bool(one.reference) for one in everything
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(utterances, min_size=1, max_size=25))
def test_confusions_are_those_of_jiwers_alignment(everything: list[Scored]) -> None:
    wanted: Counter[tuple[str | None, str | None]] = Counter()
    for one in everything:
        if not one.reference:
            wanted.update((None, word) for word in one.hypothesis.split())
            continue
        found = jiwer.process_words(one.reference, one.hypothesis)
        for chunk in found.alignments[0]:
            said = found.references[0][chunk.ref_start_idx : chunk.ref_end_idx]
            written = found.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx]
            if chunk.type == "substitute":
                wanted.update(zip(said, written, strict=True))
            elif chunk.type != "equal":
                wanted.update([(word, None) for word in said] + [(None, word) for word in written])
    counted = analysed(everything, most=1000).confusions
    every = (*counted.substitutions, *counted.deletions, *counted.insertions)
    assert {(one.reference, one.hypothesis): one.count for one in every} == wanted
    spoken = Counter(word for one in everything for word in one.reference.split())
    for one in every:
        assert one.occurrences == spoken[one.reference or one.hypothesis or ""]
        assert one.frequency == one.occurrences / max(spoken.total(), 1)


def test_the_most_frequent_confusions_come_first() -> None:
    found = analysed([scored("a b c", "x b c")] * 3 + [scored("a b c", "a y z")] * 2, most=2).confusions
    assert [(one.reference, one.hypothesis, one.count) for one in found.substitutions] == [("a", "x", 3), ("b", "y", 2)]


def test_of_too_many_errors_an_evenly_spaced_part_is_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusions, "WORD_ERRORS", 10)
    found = analysed([scored("a b", "c d")] * 20 + [scored("a", "a")] * 5)
    assert (found.erroneous, found.confusions.aligned) == (20, 5)
    assert found.confusions.substitutions[0].count == 5


def test_an_edge_belongs_to_one_band() -> None:
    found = analysed([counted(1, 10, seconds=2.0), counted(0, 5, seconds=30.0), counted(5, 5, seconds=1.99)])
    assert [band.label for band in found.by_duration] == ["under 2 s", "2 to 5 s", "30 s and over"]
    assert [band.label for band in found.by_length] == ["1 to 5", "6 to 10"]
    meaning = analysed([replace(one, meaning=0.5) for one in (counted(1, 10), counted(0, 5), counted(5, 5))]).meaning
    assert [band.label for band in meaning or ()] == ["0 %", "up to 10 %", "50 to 100 %"]


def test_meaning_is_by_quantile() -> None:
    values = np.random.default_rng(0).random(101)
    (band,) = analysed([replace(scored("a", "b"), meaning=float(value)) for value in values]).meaning or ()
    np.testing.assert_allclose(
        (band.low, *band.quartiles, band.high), np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95))
    )
    assert analysed([scored("a", "b")]).meaning is None


def test_what_is_not_known_is_empty() -> None:
    found = analysed([])
    assert (found.wer, found.by_duration, found.by_speaker, found.meaning, found.length_ratio) == (
        None,
        (),
        (),
        None,
        None,
    )
    assert found.worst == found.median == found.notices == ()
    assert analysed([scored("", "the")]).wer is None
    some = analysed([counted(1, 3, "anna", seconds=3), counted(1, 3)])
    assert [band.label for band in some.by_duration] == ["2 to 5 s", "not known"]
    assert {band.label for band in some.by_speaker} == {"anna", "not known"}


def test_worst_and_median_utterances() -> None:
    everything = [counted(errors, 10) for errors in (3, 0, 10, 5, 1)] + [counted(12, 40), counted(0, 7)]
    found = analysed(everything, examples=3)
    assert [(one.words.errors, one.words.units) for one in found.worst] == [(10, 10), (5, 10), (12, 40)]
    assert [one.words.errors for one in found.median] == [1, 3]  # 12 of 40 is among the worst
    assert all(one.words.errors for one in analysed([counted(0, 3)]).worst)


def _corpus(random: np.random.Generator, speakers: int, each: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Errors and words of each speaker; each has a rate of its own, around 0.2."""
    words = random.integers(3, 40, (speakers, each))
    rates = random.beta(4, 16, (speakers, 1))
    return random.binomial(words, rates).sum(1), words.sum(1)


def test_intervals_agree_with_the_bootstrap() -> None:
    random = np.random.default_rng(0)
    errors, words = _corpus(random, 60)
    drawn = random.integers(60, size=(20_000, 60))
    wanted = np.quantile(errors[drawn].sum(1) / words[drawn].sum(1), (0.025, 0.975))
    found = ratio_interval(errors, words)
    assert found is not None
    np.testing.assert_allclose(found, wanted, rtol=0.02)
    np.testing.assert_allclose(found[1] - found[0], wanted[1] - wanted[0], rtol=0.08)


@pytest.mark.parametrize("speakers", [10, 40])
def test_intervals_over_speakers_have_their_coverage(speakers: int) -> None:
    random = np.random.default_rng(1)
    found = [ratio_interval(*_corpus(random, speakers)) for _ in range(1000)]
    assert 0.92 <= np.mean([interval is not None and interval[0] <= 0.2 <= interval[1] for interval in found]) <= 0.975


def test_too_few_groups_have_no_interval() -> None:
    assert ratio_interval(np.full(9, 2), np.full(9, 10)) is None
    assert ratio_interval(np.array([5] + [0] * 30), np.full(31, 10)) is None
    assert analysed([counted(1, 4, "a", seconds=1)] * 5).by_duration[0].interval is None
    of_six = [counted(number % 5, 4, f"s{number % 6}") for number in range(12)]
    assert analysed(of_six).by_length[0].interval is not None
    assert analysed([*of_six[:9], counted(5, 8, "s0")]).by_length[0].interval is None


def test_intervals_are_over_speakers_where_there_are_enough() -> None:
    random = np.random.default_rng(2)
    known = [counted(int(random.integers(0, 9)), 10, f"s{i % 8}") for i in range(80)]
    found = analysed(known)
    assert found.intervals_over == "speakers"
    by_speaker = [[one.words for one in known if one.source.speaker == f"s{i}"] for i in range(8)]
    errors = np.array([sum(one.errors for one in own) for own in by_speaker])
    assert found.by_length[0].interval == ratio_interval(errors, np.full(8, 100), fewest=6)
    two = analysed([replace(one, source=replace(one.source, speaker=None)) for one in known])
    assert two.intervals_over == "utterances"
    assert two.by_length[0].interval == ratio_interval(np.array([one.words.errors for one in known]), np.full(80, 10))


def _speakers(random: np.random.Generator, rates: Sequence[float]) -> list[Scored]:
    return [counted(int(random.binomial(20, rate)), 20, f"s{i}") for i, rate in enumerate(rates) for _ in range(15)]


def test_a_speaker_is_noticed_only_beyond_chance() -> None:
    random = np.random.default_rng(3)
    said = [" ".join(analysed(_speakers(random, [0.2] * 20)).notices) for _ in range(40)]
    assert sum("Speaker" in text for text in said) <= 6
    (found,) = [text for text in analysed(_speakers(random, [0.2] * 19 + [0.6])).notices if "Speaker" in text]
    assert found.startswith("Speaker s19 is furthest from the others: WER ")
    assert re.search(r"WER \d+\.\d % \(\d+\.\d % to \d+\.\d %\), all others together \d+\.\d %\.$", found)


def test_notices_hold() -> None:
    repeated = scored("a b", "c c c c c c", flags=("repetition", "too_long"))
    said = " ".join(analysed([repeated] * 2 + [scored("a b c", "a b c")] * 18).notices)
    assert "66.7 % of the word errors are insertions (8 of 12)." in said
    assert "90.0 % of the utterances are without a word error (18 of 20)." in said
    assert "2 of 20 utterances have more errors than words." in said
    assert "Half of all word errors are in 5.0 % of the utterances (1 of 20)." in said
    assert "The hypotheses have 13.8 % more words than the references." in said
    assert "10.0 % of the utterances are flagged (2 of 20), most often as repetition (2)" in said
    perfect = analysed([scored("a b", "a b")] * 5).notices
    assert perfect == ("100 % of the utterances are without a word error (5 of 5).",)


@pytest.mark.parametrize(("normalised", "raw", "told"), [(0.31, 0.92, True), (0.31, 0.5, False), (0.01, 0.03, False)])
def test_raw_texts_that_are_only_written_otherwise_are_told(normalised: float, raw: float, told: bool) -> None:
    scores = {name: Score(name, value, "fraction", "") for name, value in (("wer", normalised), ("wer_raw", raw))}
    said = " ".join(analyse(Evaluation("test", scores, [scored("a b", "a b")])).notices)
    assert (
        f"The WER of the raw texts is {100 * raw:.1f} %, of the normalised ones {100 * normalised:.1f} %" in said
    ) is told


def test_flags_are_counted() -> None:
    found = analysed([scored("a", "a", flags=("repetition", "empty")), scored("a", "a", flags=("repetition",))] * 2)
    assert found.flags == {"repetition": 4, "empty": 2}
    assert found.repetition_rate == 1
    assert analysed([]).repetition_rate == 0


def _metrics(folder: Path, steps: int) -> Path:
    lines = [{"step": i, "losses": {"ctc": 5 / i, "stg": 9.0}, "learning_rate": 1e-3 / i} for i in range(1, steps + 1)]
    lines += [{"step": steps, "dev": {"ctc": 0.4, "stg": None}, "dev_loss": 0.4, "wer": 0.31, "cer": 0.1}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def charts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("training")
    random = np.random.default_rng(0)
    everything = [
        replace(counted(int(random.integers(0, 10)), 10, f"s{i % 7} <&> $x$", seconds=float(i)), meaning=0.5 + i / 200)
        for i in range(60)
    ]
    found = analysed(everything)
    assert found.meaning is not None
    assert found.length_ratio is not None
    training = training_chart(_metrics(folder, 1500))
    assert training is not None
    return [
        training,
        band_chart(found.by_duration, "WER by duration", "duration"),
        band_chart(found.by_speaker, "WER by speaker", "speaker"),
        band_chart([], "WER by nothing", "nothing"),
        meaning_chart(found.meaning),
        ratio_chart(found.length_ratio),
        comparison_chart([Point("a <b> & c", 0.2, (0.1, 0.3), "x"), Point("d", 0.4, None, "y")], "Systems", "WER, %"),
    ]


def test_charts_fit_into_any_page(charts: list[str]) -> None:
    ids: list[str] = []
    for text in charts:
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        tags = [element.tag.rpartition("}")[2] for element in root.iter()]
        assert tags.count("title") == tags.count("desc") == 1
        assert not {"style", "script", "image", "metadata"} & set(tags)
        assert "currentColor" in text
        assert INK not in text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
        own = {element.attrib["id"] for element in root.iter() if "id" in element.attrib}
        assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)) <= {(name, "") for name in own} | {
            ("", name) for name in own
        }
        assert set(root.attrib["aria-labelledby"].split()) <= own
        ids += [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))


def test_labels_are_text_as_they_are_spelt(charts: list[str]) -> None:
    drawn = [
        {
            "".join(element.itertext())
            for element in ElementTree.fromstring(text).iter()
            if element.tag.endswith("}text")
        }
        for text in charts
    ]
    assert "s0 <&> $x$" in drawn[2]
    assert "a <b> & c" in drawn[-1]
    assert "lowest WER on the dev sample 31.0 % at step 1,500" in charts[0]
    assert not any("mathdefault" in text for text in charts)


def test_charts_are_the_same_every_time_and_small(charts: list[str]) -> None:
    points = [Point("a <b> & c", 0.2, (0.1, 0.3), "x"), Point("d", 0.4, None, "y")]
    assert comparison_chart(points, "Systems", "WER, %") == charts[-1]
    assert max(map(len, charts)) < 80_000


def test_a_training_without_metrics_has_no_chart(tmp_path: Path) -> None:
    assert training_chart(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert training_chart(tmp_path) is None
