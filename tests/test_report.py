"""The report as files: everything is in it, nothing of a text becomes markup, and large evaluations stay small pages."""

import io
import json
import re
from base64 import b64decode, b64encode
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest
import soundfile
from encodeonce.evaluate.evaluation import Evaluation, Score
from encodeonce.evaluate.hypotheses import Hypothesis, read_hypotheses
from encodeonce.evaluate.metrics.significance import compare
from encodeonce.evaluate.report import listing
from encodeonce.evaluate.report.aligned import aligned
from encodeonce.evaluate.report.extras import Extras, Picture
from encodeonce.evaluate.report.page import write_report
from encodeonce.store.errors import StoreError
from hypothesis import given, settings
from hypothesis import strategies as st
from report_case import HOSTILE, RATE, SECONDS, evaluate, extras, hypotheses

VOID = {"meta", "link", "img", "wbr", "br", "input", "path", "use", "rect", "line"}


class Page(HTMLParser):
    """Elements, attributes and texts of a page; it has to be well nested."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if "td" in self.open:
            self.cells[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    decoding = {"writer": "ctc", "word_bonus": 4.0, "beams": None, "prompt": ()}
    return evaluate(hypotheses(), split="a split", checkpoint="runs/<one>", decoding=decoding)


@pytest.fixture(scope="module")
def report(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(folder, evaluation, extras(folder / "extras"))


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report)


def test_no_text_becomes_markup_and_every_text_is_there(page: Page) -> None:
    known = ("html", "head", "body", "main", "nav", "header", "footer", "table", "td", "script", "img", "b", "looks")
    counts = Counter(tag for tag, _ in page.elements)
    assert {tag: counts[tag] for tag in known if tag not in ("table", "td")} == {
        **dict.fromkeys(("html", "head", "body", "main", "nav", "header", "footer", "script", "img"), 1),
        **dict.fromkeys(("b", "looks"), 0),
    }
    assert not page.open
    for name in HOSTILE:
        assert name in page.cells
    for text in ("مرحبا بالعالم كيف الحال", "bano beko", "abab"):
        assert any(text in cell for cell in page.cells), text
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_options_that_were_set_stand_in_the_configuration(page: Page) -> None:
    assert "writer ctc · word bonus 4" in page.cells


def test_page_needs_nothing_beside_it_and_runs_no_script_but_its_own(page: Page) -> None:
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), value
    assert not re.search(r"@import|url\((?!#)", page.source)
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    script = page.source[page.source.rindex("<script>") + len("<script>") : page.source.rindex("</script>")]
    assert policy is not None
    assert f"script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'")


def test_every_section_is_linked_and_every_picture_has_words(page: Page) -> None:
    links = [attributes["href"] for attributes in page.all("a") if (attributes.get("href") or "").startswith("#")]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {(link or "")[1:] for link in links} <= set(ids)
    sections = [attributes["id"] for attributes in page.all("section")]
    assert sections == [
        *("scores", "notices", "training", "published", "bands", "words", "ratio", "flags", "examples", "attention"),
        *("utterances", "made"),
    ]
    assert all(image.get("alt") for image in page.all("img"))
    assert all(svg.get("aria-labelledby") or svg.get("aria-label") for svg in page.all("svg"))


def test_numbers_are_the_same_in_page_markdown_and_json(report: Path, evaluation: Evaluation, page: Page) -> None:
    results = json.loads((report.parent / "results.json").read_text())
    markdown = (report.parent / "report.md").read_text()
    assert {"results", "configs", "versions", "config", "git_hash", "date", "n-samples"} <= set(results)
    for name in ("wer", "cer", "ser"):
        score = evaluation.scores[name]
        assert results["results"][evaluation.title][name] == score.value
        assert results["signatures"][evaluation.title][name] == score.signature
        assert results["intervals"][evaluation.title][name] == list(score.interval or ())
        shown = f"{100 * score.value:.2f}\u00a0%"
        assert shown in page.cells
        assert shown in markdown
    assert results["n-samples"][evaluation.title] == {"original": 71, "effective": 71}
    found = results["analysis"][evaluation.title]
    for band in (*found["by_duration"], *found["by_speaker"], *found["by_length"]):
        assert {f"{band['words']:,}", f"{band['errors']:,}"} <= set(page.cells)
        assert band["wer"] is None or f"{100 * band['wer']:.1f}\u00a0%" in page.cells
    for word in found["confusions"]["substitutions"]:
        assert {word["reference"], word["hypothesis"], f"{word['count']:,}"} <= set(page.cells)
    samples = {json.loads(line)["id"] for line in (report.parent / "samples.jsonl").open()}
    assert len(found["worst"]) == 10
    assert len({*found["worst"], *found["median"]} & samples) == 20
    assert all(notice in "".join(page.texts) for notice in found["notices"])
    assert {table["name"] for table in results["published"]} >= {"thesis-asr"}
    assert evaluation.scores["wer"].signature in page.cells


def test_samples_are_the_hypotheses_again(report: Path, evaluation: Evaluation) -> None:
    again = read_hypotheses(report.parent / "samples.jsonl")
    assert [(one.id, one.pred_text, one.text) for one in again] == [
        (one.source.id, one.source.pred_text, one.source.text) for one in evaluation.utterances
    ]
    assert [one.metadata["scored"]["wer"] for one in again] == [one.wer for one in evaluation.utterances]


def test_markdown_keeps_texts_out_of_its_markup(report: Path) -> None:
    lines = (report.parent / "report.md").read_text().splitlines()
    for line in lines:
        assert "<script>" not in line.replace("\\<script\\>", "")
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) >= 3
    assert lines[0] == "# \\<b\\>bold\\</b\\> \\& a system"


def test_audio_at_hand_is_in_the_page(page: Page) -> None:
    (audio,) = page.all("audio")
    source = audio["src"] or ""
    assert source.startswith("data:audio/mpeg;base64,")
    samples, rate = soundfile.read(io.BytesIO(b64decode(source.partition(",")[2])))
    assert rate == RATE
    assert len(samples) / rate == pytest.approx(SECONDS, abs=0.2)


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    (tmp_path / "noise.wav").write_bytes(b"no audio")
    found = [replace(one, metadata={"offset": 0.25}, duration=0.5) for one in hypotheses(0)]
    given_extras = extras(tmp_path / "extras", "script")
    files = {**given_extras.audio, "quotes": tmp_path / "noise.wav"}
    missing = Picture(tmp_path / "none.png", "A picture", "Not there.")
    page = Page(write_report(tmp_path, evaluate(found), Extras(tmp_path / "nothing", [missing], files)))
    said = " ".join(page.texts)
    assert f"cannot read {missing.path}" in said
    assert "noise.wav is no audio" in said
    (audio,) = page.all("audio")
    samples, rate = soundfile.read(io.BytesIO(b64decode((audio["src"] or "").partition(",")[2])))
    assert len(samples) / rate == pytest.approx(0.5, abs=0.2)
    assert "training" not in [section["id"] for section in page.all("section")]


def test_of_many_utterances_a_page_shows_some_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LISTED", 2000)
    page = Page(write_report(tmp_path, evaluate(hypotheses(3000))))
    listed = [cell for cell in page.cells if cell.startswith("u-")]
    assert len(listed) == len(set(listed)) == 2000 - len(HOSTILE)
    assert set(HOSTILE) <= set(page.cells)
    assert "2,000 of 3,011 utterances" in " ".join(page.texts)
    assert "All utterances" not in page.texts
    assert len(page.source) < 2_000_000
    with (tmp_path / "samples.jsonl").open() as lines:
        assert sum(1 for _ in lines) == 3011


def test_comparisons_details_and_what_was_skipped_are_shown(tmp_path: Path) -> None:
    first = evaluate(hypotheses())
    second = evaluate([replace(one, pred_text=one.text or "") for one in hypotheses()])
    table = {"labels": [{"label": "<on>", "f1": 0.5}], "outside": 3}
    nan = Score("odd_score", float("nan"), "points", "none")
    shown = replace(
        first, details={"labels": table}, skipped={"bleu": "install <it>"}, scores={**first.scores, "odd_score": nan}
    )
    page = Page(write_report(tmp_path, shown, comparisons=[compare(first, replace(second, title="the other"))]))
    assert {"<on>", "3", "install <it>", "the other", "not defined"} <= set(page.cells)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["results"][first.title]["odd_score"] is None
    assert results["comparisons"][0]["winner"] == "second"
    assert results["skipped"][first.title] == {"bleu": "install <it>"}


def test_without_references_there_is_a_report(tmp_path: Path) -> None:
    unscored = [Hypothesis("a", "what was <written>")]
    page = Page(write_report(tmp_path, Evaluation("new audio", {}, [], unscored)))
    assert any("no utterance has a reference" in text for text in page.texts)
    assert read_hypotheses(tmp_path / "samples.jsonl")[0].pred_text == "what was <written>"


def test_results_are_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encodeonce.evaluate.report.page.html_of", None)
    with pytest.raises(TypeError):
        write_report(tmp_path, evaluate(hypotheses(3)))
    assert not (tmp_path / "results.json").exists()


def test_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        write_report(tmp_path / "file", evaluate(hypotheses(3)))


TEXTS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12).map(" ".join)


@given(TEXTS, TEXTS)
@settings(max_examples=200, deadline=None)
def test_aligned_words_are_the_two_texts(reference: str, hypothesis: str) -> None:
    pairs = aligned(reference, hypothesis)
    assert " ".join(pair.reference for pair in pairs if pair.reference) == reference
    assert " ".join(pair.hypothesis for pair in pairs if pair.hypothesis) == hypothesis
    assert all(pair.reference or pair.hypothesis for pair in pairs)
