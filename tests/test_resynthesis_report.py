"""What a codec keeps, in its own report and in an adapter's: the same rates; a folder without them is refused before any decoding."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jiwer
import pytest
from commands import Done, run
from encodeonce.evaluate.cli import main
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.evaluation import Evaluation
from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.evaluate.normalise import find_normaliser
from encodeonce.evaluate.report import page
from encodeonce.evaluate.report.document import Section, Table
from encodeonce.evaluate.report.markdown import escaped
from encodeonce.evaluate.report.resynthesis import ORIGINAL_TEXT, RATES, read_rates, resynthesis, targets
from encodeonce.evaluate.resynthesis.report import write_resynthesis
from encodeonce.evaluate.resynthesis.run import Resynthesis
from encodeonce.evaluate.resynthesis.scores import score_audio

SAID = "This is, I THINK, the number %d!"
CONFIG = {"codec": "a-codec", "decoded": "codes, quantizers 0-7", "asr": "whisper", "split": "few"}


def samples(count: int, wrong: int = 10, original: bool = False) -> list[Hypothesis]:
    """Every `wrong`-th is heard badly; the original audio is heard without punctuation."""
    heard = [
        "wrong <b>%d</b>\nall\\ |" if number % wrong == 0 else "this is i think the number %d"
        for number in range(count)
    ]
    metadata = {ORIGINAL_TEXT: "this is i think number"} if original else {}
    return [
        Hypothesis(f"u{number:03d}", text % number, SAID % number, 3.0, metadata=metadata)
        for number, text in enumerate(heard)
    ]


def written(folder: Path, found: Sequence[Hypothesis], **config: str) -> Mapping[str, Evaluation]:
    evaluations = score_audio(found, "en", "a codec", {**CONFIG, **config})
    write_resynthesis(folder, Resynthesis(list(found), {}, 0), evaluations)
    return evaluations


def expected(said: Sequence[str], heard: Sequence[str]) -> dict[str, float]:
    """jiwer's."""
    normalise = find_normaliser("en")
    plain = [normalise(text) for text in said], [normalise(text) for text in heard]
    return {
        "wer_raw": jiwer.wer(list(said), list(heard)),
        "wer_caseless": jiwer.wer([text.lower() for text in said], [text.lower() for text in heard]),
        "wer": jiwer.wer(plain[0], plain[1]),
        "cer": jiwer.cer(plain[0], plain[1]),
    }


@pytest.mark.parametrize("named", [None, "en", "English", "Klingon"])
def test_the_rates_are_of_the_language_asked_for_however_the_corpus_names_it(named: str | None) -> None:
    found = score_audio([replace(one, language=named) for one in samples(12)], "en", "a codec", CONFIG)["resynthesised"]
    rates = expected([SAID % number for number in range(12)], [one.pred_text for one in samples(12)])
    assert {name: found.scores[name].value for name in rates} == pytest.approx(rates)
    assert "normaliser" not in found.skipped


def tables(section: Section | None) -> list[Table]:
    assert section is not None
    return [block for block in section.blocks if isinstance(block, Table)]


def test_an_adapters_report_has_the_rates_that_were_measured(tmp_path: Path) -> None:
    found = samples(12, original=True)
    written(tmp_path / "many", found)
    written(tmp_path / "few", samples(12, 2), decoded="codes, quantizers 0-0")
    (tmp_path / "texts.jsonl").write_text(json.dumps({"id": "a", "text": "one two", "pred_text": "one"}) + "\n")
    done = evaluate(tmp_path, tmp_path / "many", tmp_path / "few")
    assert done.status == 0, done.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (details,) = results["details"].values()
    many, few = details["resynthesis"]
    said = [one.text or "" for one in found]
    assert many["resynthesised"] == expected(said, [one.pred_text for one in found])
    assert many["original"] == expected(said, [one.metadata[ORIGINAL_TEXT] for one in found])
    assert (few["original"], few["decoded"]) == ({}, "codes, quantizers 0-0")
    text = (tmp_path / "out" / "report.md").read_text()
    section = text.partition("## Codec resynthesis")[2].partition("\n## ")[0]
    percents = [f"{100 * many['resynthesised'][name]:.1f}\u00a0%".replace("\u00a0", " ") for name in RATES]
    assert f"| a-codec, codes, quantizers 0-7 | {' | '.join(percents)} | 12 | few | whisper |" in section
    assert section.count("| Original |") == 1
    assert "Not all rows compare" not in section
    published = text.partition("## Published")[2]
    assert "| Whisper large | 22.5 | 10.5 | 5.6 |" in published


def evaluate(place: Path, *folders: Path) -> Done:
    options = [word for folder in folders for word in ("--resynthesis", str(folder))]
    texts = ["--hypotheses", str(place / "texts.jsonl"), "--output", str(place / "out"), "--leave-out", "bertscore"]
    return run(main, [*texts, "--language", "en", *options])


@pytest.mark.parametrize(
    ("results", "why"),
    [
        (None, "results.json is not there"),
        ("{", "is no JSON object"),
        ("{}", ""),
        ('{"results": {"resynthesised": {"wer": 1}}}', ""),
        ('{"configs": {"a": {"task": "resynthesis"}}, "details": {"a": {"resynthesis": []}}}', ""),
        ('{"configs": {"a": {"task": "recognition"}}}', "it is of another task"),
        ('{"configs": {"a": {"task": "resynthesis"}}, "details": {"a": {"resynthesis": [{"codec": 1}]}}}', ""),
    ],
)
def test_a_folder_without_rates_is_refused_before_anything_is_read(
    results: str | None, why: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if results is not None:
        (folder / "results.json").write_text(results)
    with pytest.raises(EvaluationError, match=why or None):
        read_rates(folder)
    (tmp_path / "texts.jsonl").write_text("damaged\n")
    done = evaluate(tmp_path, folder)
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert f"{folder / 'results.json'} holds no rates of a codec" in done.err
    assert "evaluate-resynthesis" in done.err


def test_one_original_is_shown_once_and_other_ways_of_counting_are_told(tmp_path: Path) -> None:
    for name, wrong in (("one", 2), ("other", 3)):
        written(tmp_path / name, samples(12, wrong, original=True), decoded=name)
    found = [read_rates(tmp_path / name) for name in ("one", "other")]
    (table,) = tables(resynthesis(found))
    assert [row[0].text for row in table.rows] == ["Original", "a-codec, one", "a-codec, other"]
    (table,) = tables(resynthesis([found[0], replace(found[1], signature="another")]))
    assert f"Not all rows compare: WER was counted by another and {found[0].signature}." in table.note


def test_a_long_table_of_texts_shows_the_worst_and_others(tmp_path: Path) -> None:
    evaluation = written(tmp_path, samples(100))["resynthesised"]
    worst, others = tables(targets(evaluation))
    assert tables(targets(evaluation)) == [worst, others]
    predictions = [[row[2].text for row in table.rows] for table in (worst, others)]
    assert sum("wrong" in text for text in predictions[0]) == 10
    assert len(predictions[0]) == len(predictions[1]) == 25
    assert not {row[-1].text for row in worst.rows} & {row[-1].text for row in others.rows}
    assert r"wrong \<b\>90\</b\> all\\ \|" in (tmp_path / "report.md").read_text()
    assert escaped("a|b\nc *d* `e` [f](g)") == r"a\|b c \*d\* \`e\` \[f\](g)"
    assert "wrong &lt;b&gt;90&lt;/b&gt;" in (tmp_path / page.PAGE).read_text()
    (whole,) = tables(targets(score_audio(samples(50), "en", "", CONFIG)["resynthesised"]))
    assert [row[0].text for row in whole.rows] == [f"({number})" for number in range(1, 51)]


def test_a_run_of_which_nothing_was_heard_has_a_report(tmp_path: Path) -> None:
    evaluations = score_audio([], "en", "a codec", CONFIG)
    failed = Resynthesis([], {"utt <1>": "too long"}, 0)
    assert write_resynthesis(tmp_path, failed, evaluations).comparison is None
    assert "utt &lt;1&gt;" in (tmp_path / page.PAGE).read_text()
    found = read_rates(tmp_path)
    assert (found.utterances, found.resynthesised, found.original) == (0, {}, {})
