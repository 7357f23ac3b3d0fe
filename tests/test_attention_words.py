"""Attention held against word times: `evaluate-adapter --word-times`, from a CTM file or TextGrids to the numbers of its report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import Done, run
from encodeonce.evaluate.attention.alignment import Word, word_times
from encodeonce.evaluate.attention.capture import Attention, Writing, read_attention
from encodeonce.evaluate.attention.references import read_word_times
from encodeonce.evaluate.attention.timing import time_words
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.report import attention as attention_report
from encodeonce.evaluate.report.extras import Extras, Picture
from encodeonce.evaluate.report.page import write_report
from encodeonce.store import FeatureStore
from encodeonce.train.checkpoint import load_checkpoint
from encodeonce.train.cli import main as train_main
from encodeonce.train.model import open_model
from report_case import evaluate as evaluated
from report_case import extras, hypotheses
from test_attention import GRID
from test_evaluate_cli import evaluate, write_split
from torch import from_numpy, tensor

ALL = {"spk/u1", "u1", "u2"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and a Q-Former on it that writes letters."""
    folder = tmp_path_factory.mktemp("place")
    for split, count in (("train", 20), ("dev", 4)):
        write_split(folder / "store", "toy", split, count)
    config = {
        "output_dir": str(folder / "qformer"),
        "data": {"store": str(folder / "store"), "train": ["train"], "dev_where": "speaker == 't'"},
        "adapter": {"name": "qformer", "queries": 3, "hidden": 16, "layers": 2, "heads": 2},
        "objectives": {"stg": {}},
        "text": {"tokenizer": "characters"},
        "training": {"max_steps": 2, "eval_steps": 2, "device": "cpu", "threads": 1, "learning_rate": 1e-2},
    }
    (folder / "qformer.yaml").write_text(yaml.safe_dump(config))
    done = run(train_main, [str(folder / "qformer.yaml"), "--quiet"])
    assert done.status == 0, done.err
    return folder


@pytest.fixture(scope="module")
def told(place: Path) -> dict[str, list[Word]]:
    """What attention tells of the words of each utterance when the Q-Former writes what was said."""
    checkpoint, store = load_checkpoint(place / "qformer"), FeatureStore(place / "store", split="dev")
    model, found = open_model(checkpoint, store), {}
    for name in store.ids:
        frames = from_numpy(np.array(store[name]["letters"]))[None]
        (attention,) = read_attention(
            model, [frames], tensor([frames.shape[1]]), store.frame_rate, [(store[name].text or "").lower()]
        )
        found[name] = word_times(attention)
        assert found[name]
    return found


def ctm(path: Path, words: dict[str, list[Word]], late: float = 0.0) -> Path:
    lines = [
        f"{n} 1 {w.start + late:.6f} {w.end - w.start:.6f} {w.word.upper()}" for n, ws in words.items() for w in ws
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def held(place: Path, out: Path, times: Path, *more: str) -> tuple[Done, dict[str, Any]]:
    """An evaluation, and its word centres in results.json."""
    done = evaluate(
        *(place / "qformer", "--split", "dev", "--output", out, "--attention", "4", "--word-times", times, *more)
    )
    assert done.status == 0, done.err
    return done, json.loads((out / "results.json").read_text())["details"]["qformer on dev"]["word_centres"]


def test_attention_and_an_even_spread_are_as_far_off_as_they_are(place, told, tmp_path):
    """Against times that are 20 ms after attention's own, attention is off by that; the spread as by hand."""
    times = ctm(tmp_path / "late.ctm", told, late=0.02)
    done, found = held(place, tmp_path / "out", times)
    assert found["source"] == str(times)
    assert found["left_out"] == {}
    assert found["together"]["words"] == found["together"]["said"] == sum(map(len, told.values()))
    assert found["together"]["attention"] == pytest.approx({"mean": 0.02, "median": 0.02}, abs=1e-5)
    by_hand = []
    for words in told.values():
        letters, at = sum(len(one.word) + 1 for one in words), 0
        for one in words:
            middle = (at + (len(one.word) + 1) / 2) / letters * words[-1].end
            by_hand.append(abs(middle - (one.start + one.end) / 2 - 0.02))
            at += len(one.word) + 1
    evenly = found["together"]["evenly"]
    assert evenly == pytest.approx({"mean": np.mean(by_hand), "median": np.median(by_hand)}, abs=1e-5)
    assert sorted(one["utterance"] for one in found["utterances"]) == sorted(told)
    sentence = f"0.020 s off by attention (median 0.020 s), {evenly['mean']:.3f} s off when words are spread evenly"
    assert sentence in done.err
    assert sentence in (tmp_path / "out" / "report.html").read_text()
    text = (tmp_path / "out" / "report.md").read_text()
    assert sentence in text.replace("\\", "")
    for one in found["utterances"]:
        caption = f"{one['words']} of its {one['said']} words, against known times: 0.020 s off by attention"
        assert f"{caption} (median 0.020 s), {one['evenly']['mean']:.3f} s off spread evenly" in text.replace("\\", "")
        link = f"attention/attention-{one['utterance']}.png"
        assert f"![Attention of {one['utterance']}]({link})" in text
        assert (tmp_path / "out" / link).is_file()


def test_what_has_no_times_or_those_of_a_whole_recording_is_told_and_left_out(place, told, tmp_path):
    first, second, third, fourth = told
    late = [Word(one.word, one.start + 90, one.end + 90) for one in told[second]]
    other = [Word("nothing", 0.1, 0.2)]
    times = ctm(tmp_path / "some.ctm", {first: told[first], second: late, third: other})
    done, found = held(place, tmp_path / "out", times)
    assert [one["utterance"] for one in found["utterances"]] == [first]
    assert found["together"]["attention"]["mean"] < 1e-5
    assert "go on to 90" in found["left_out"].pop(second)
    assert found["left_out"] == {
        third: "no word of its text is in its word times",
        fourth: "there are no word times of it",
    }
    assert f"Not held against word times: 1 of 4 drawn ({fourth}): there are no word times of it" in done.err
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Not compared: there are no word times of it." in text
    assert "Not held against word times: there are no word times of it." in text


def test_what_is_drawn_unless_told_is_held_against_word_times(place, told, tmp_path):
    times = ctm(tmp_path / "times.ctm", told)
    done = evaluate(place / "qformer", "--split", "dev", "--output", tmp_path / "out", "--word-times", times)
    assert done.status == 0, done.err
    assert "words in 3\u00a0utterances, against known times: 0.000 s off by attention" in done.err


def test_word_times_that_can_serve_nothing_are_refused_before_anything_is_decoded(place, told, tmp_path):
    times, out = ctm(tmp_path / "times.ctm", told), tmp_path / "out"
    command = (place / "qformer", "--split", "dev", "--output", out, "--word-times")
    strangers = ctm(tmp_path / "strangers.ctm", {"somebody": told["dev-00"]})
    (tmp_path / "damaged.ctm").write_text("dev-00 1 0.5 nan go\n")
    texts = tmp_path / "hyp.jsonl"
    texts.write_text('{"id": "a", "text": "a", "pred_text": "a"}\n')
    for arguments, why in (
        ((*command, times, "--attention", "0"), "--attention 0 draws nothing"),
        ((*command, times, "--attention", "1", "--no-report"), "--no-report draws nothing"),
        (("--hypotheses", texts, "--word-times", times), "--word-times belongs to CHECKPOINT"),
        ((*command, tmp_path / "none", "--attention", "1"), "does not exist"),
        ((*command, strangers, "--attention", "1"), "but those of somebody; name them by the utterances' ids"),
        ((*command, tmp_path / "damaged.ctm", "--attention", "1"), "line 1: 'dev-00 1 0.5 nan go'"),
    ):
        done = evaluate(*arguments)
        assert done.status == 2
        assert why in done.err
    assert not out.exists()


def test_a_folder_has_text_grids_and_ctms_at_any_depth(tmp_path):
    (tmp_path / "spk").mkdir()
    (tmp_path / "spk" / "u1.TextGrid").write_text(GRID)
    (tmp_path / "more.ctm").write_text("u2 1 0.5 0.4 go\nstranger 1 0 1 go\n")
    found = read_word_times(tmp_path, {"spk/u1", "u2"})
    assert {name: [word.word for word in words] for name, words in found.items()} == {
        "spk/u1": ["go", "on"],
        "u2": ["go"],
    }
    assert read_word_times(tmp_path, {"u1"}).keys() == {"u1"}
    assert read_word_times(tmp_path, ALL).keys() == {"spk/u1", "u2"}
    assert read_word_times(tmp_path / "spk" / "u1.TextGrid", {"u1"}) == {"u1": found["spk/u1"]}
    (tmp_path / "again.ctm").write_text("u2 1 0.5 0.4 go\n")
    with pytest.raises(EvaluationError, match=r"again\.ctm and .*more\.ctm both have the words of u2"):
        read_word_times(tmp_path, {"u2"})


def test_times_that_cannot_be_are_refused(tmp_path):
    file = tmp_path / "u1.TextGrid"
    for old, new, why in (
        ("xmax = 0.9", "xmax = 0.2", "no seconds from the beginning, one after the other"),
        ("xmax = 0.9", "xmax = ?", "no seconds from the beginning"),
        ("xmax = 1.25", "", "has 2 intervals of words, and says 3"),
    ):
        file.write_text(GRID.replace(old, new))
        with pytest.raises(EvaluationError, match=why):
            read_word_times(file, {"u1"})
    (tmp_path / "times.ctm").write_text("u1 1 -0.5 0.4 go\n")
    with pytest.raises(EvaluationError, match="line 1"):
        read_word_times(tmp_path / "times.ctm", {"u1"})


def diagonal(*words: str) -> Attention:
    """Each word looks at a query of its own, and that at two frames of its own, 0.1 s each."""
    count = len(words)
    rows = np.repeat(np.eye(count), 2, axis=1)[None, None].astype(np.float32) / 2
    on_queries = np.stack([np.zeros((1, count, count)), np.eye(count)[None]]).astype(np.float32)
    seen = np.tile([0, 2 * count], (count, 1))
    return Attention(rows, (0,), seen, np.ones((1, 1, count)), 0.1, Writing(words, on_queries))


def test_words_are_compared_that_are_the_same_but_for_case_and_punctuation():
    attention = diagonal("don't", "go", "there", "now")
    known = [
        Word("DON\N{RIGHT SINGLE QUOTATION MARK}T", 0.0, 0.3),
        Word("ever", 0.3, 0.4),
        Word("There,", 0.4, 0.8),
        Word("now", 0.6, 0.8),
    ]
    found = time_words(attention, "don't go there now", known)
    assert found.said == 4
    assert found.attention == pytest.approx([0.05, 0.1, 0.0], abs=1e-3)
    assert len(found.evenly) == 3
    with pytest.raises(EvaluationError, match="no word of its text"):
        time_words(attention, "don't go there now", [Word("elsewhere", 0.0, 0.1)])
    with pytest.raises(EvaluationError, match="5 words, and the Q-Former has room for 4"):
        time_words(attention, "don't go there now again", known)


def test_attention_without_text_tells_no_time():
    attention = diagonal("go")
    silent = Attention(attention.weights, (0,), attention.seen, attention.on_frames, 0.1)
    with pytest.raises(EvaluationError, match="write no text"):
        time_words(silent, "go", [Word("go", 0.0, 0.1)])


def test_pictures_for_which_the_page_has_no_room_are_in_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(attention_report, "PICTURE_BYTES", 10)
    given = extras(tmp_path / "a folder")
    (tmp_path / "elsewhere.png").write_bytes(b"png")
    pictures = [*given.pictures, Picture(tmp_path / ".." / "elsewhere.png", "Outside", "Of another folder.")]
    monkeypatch.chdir(tmp_path)
    report = write_report(tmp_path, evaluated(hypotheses(3)), Extras(pictures=pictures[:1]))
    assert "data:image/png" not in report.read_text()
    assert "This page is full: see " in report.read_text()
    assert "](a%20folder/attention.png)" in (tmp_path / "report.md").read_text()
