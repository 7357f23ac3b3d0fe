"""Reports of what is no recognition: translations, labels, systems that retrieve alone, and a single utterance."""

from datetime import UTC, datetime

import pytest
from encodeonce.evaluate.evaluation import Evaluation, Score
from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.evaluate.report.analysis import analyse
from encodeonce.evaluate.report.document import Document, Examples, Table
from encodeonce.evaluate.report.extras import Extras
from encodeonce.evaluate.report.markdown import markdown_of
from encodeonce.evaluate.report.page import document_of
from encodeonce.evaluate.report.results import results_of
from encodeonce.evaluate.scoring import ScoreOptions, Task, score, task_of
from encodeonce.evaluate.summary import skipped, table

NOW = datetime(2026, 11, 23, tzinfo=UTC)
SAID = ("Der Zug fährt um acht.", "Le musée est fermé.", "Wir treffen uns.", "Il fera meilleur.")


def evaluate(task: Task, texts: list[tuple[str, str]], languages: tuple[str, ...] = ("de",)) -> Evaluation:
    found = [
        Hypothesis(f"u{number}", written, said, language=languages[number % len(languages)])
        for number, (said, written) in enumerate(texts)
    ]
    return score(found, ScoreOptions(task=task, leave_out=("bertscore",), resamples=100, processes=1))


def report(evaluation: Evaluation) -> Document:
    return document_of(evaluation, analyse(evaluation), Extras(), (), NOW)


def keys(document: Document) -> list[str]:
    return [section.key for section in document.sections]


def tables(document: Document, key: str) -> list[Table]:
    (section,) = (section for section in document.sections if section.key == key)
    return [block for block in section.blocks if isinstance(block, Table)]


def cells(found: Table, name: str) -> list[str]:
    at = [column.name for column in found.columns].index(name)
    return [row[at].text for row in found.rows]


@pytest.fixture(scope="module")
def translation() -> Evaluation:
    return evaluate("translation", [(said, said.replace("est", "sera")) for said in SAID * 5], ("de", "fr"))


@pytest.fixture(scope="module")
def labels() -> Evaluation:
    return evaluate("labels", [("turn_on", "Turn_On"), ("turn_off", "turn_on"), ("stop", "please stop")] * 5)


def test_a_translation_has_no_word_error_rate_anywhere(translation: Evaluation) -> None:
    document = report(translation)
    assert not {"bands", "words", "meaning"} & set(keys(document))
    ours = [section for section in document.sections if section.key != "published"]
    assert "WER" not in markdown_of(Document("", [], document.headlines, ours))


def test_a_translation_is_shown_as_it_was_written(translation: Evaluation) -> None:
    (listed,) = tables(report(translation), "utterances")
    assert cells(listed, "Reference")[:1] == ["Le musée est fermé."]
    assert cells(listed, "Hypothesis")[:1] == ["Le musée sera fermé."]
    assert cells(listed, "Changes")[:6] == [*["1"] * 5, "0"]
    (shown,) = (section for section in report(translation).sections if section.key == "examples")
    assert next(block.title for block in shown.blocks if isinstance(block, Examples)).startswith("Least like")


def test_scores_over_several_languages_are_said(translation: Evaluation) -> None:
    said = markdown_of(report(translation))
    assert "de (10 utterances) and fr (10 utterances): every score is of all of them together" in said
    assert not any("--language" in line for line in skipped({"x": translation}))


def test_labels_are_right_or_wrong_and_not_wrong_by_the_word(labels: Evaluation) -> None:
    document = report(labels)
    assert keys(document) == ["scores", "details", "published", "utterances", "made"]
    (listed,) = tables(document, "utterances")
    assert cells(listed, "Right") == [*["no"] * 10, *["yes"] * 5]
    assert "please stop" in cells(listed, "Hypothesis")
    by_label = next(one for one in tables(document, "details") if one.caption == "By label")
    assert cells(by_label, "Recall") == ["0.0\u00a0%", "0.0\u00a0%", "100.0\u00a0%"]


def test_published_tables_are_folded_where_none_is_of_the_task(labels: Evaluation) -> None:
    document = report(labels)
    assert all(one.folded for one in tables(document, "published"))
    assert "None of them is of what was evaluated here" in markdown_of(document)


def test_what_only_retrieves_has_its_utterances_counted() -> None:
    recall = Score("recall_at_1_speech_to_text", 0.5, "fraction", "x", (0.3, 0.7), {"utterances": 20, "texts": 1})
    details = {"retrieval": {"utterances": 20, "texts": 1, "not_drawn": 3, "examples": [{"id": "a", "rank": 2}]}}
    evaluation = Evaluation("one", {recall.name: recall}, [], details=details)
    document = report(evaluation)
    assert document.facts == ["20\u00a0utterances"]
    assert table({"dev": evaluation})[1].split() == ["Utterances", "20"]
    assert results_of(evaluation, analyse(evaluation), (), NOW)["n-samples"]["one"]["effective"] == 20
    (scores,) = tables(document, "scores")
    assert "Intervals: 95" in scores.note
    assert cells(scores, "Counted") == ["20 utterances, 1 text"]
    assert all(one.folded for one in tables(document, "published"))


def test_a_single_utterance_is_written_of_in_the_singular() -> None:
    said = markdown_of(report(evaluate("recognition", [("hello world", "hello word")])))
    assert "Intervals: none, 1 utterance (the speakers are unknown): 10 or more are needed." in said
    assert "1 wrong, 1 utterance |" in said
    assert "of the word errors" not in said
    assert "1 utterances" not in said


@pytest.mark.parametrize(
    ("target", "task"),
    [(None, "recognition"), ("text", "recognition"), ("translation:de", "translation"), ("metadata:intent", "labels")],
)
def test_a_target_says_its_task(target: str | None, task: str) -> None:
    assert task_of(target) == task
