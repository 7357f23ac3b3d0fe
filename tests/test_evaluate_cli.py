"""evaluate-adapter end to end: a small checkpoint, or texts from anywhere, to numbers; bad input is a line and exit status 2."""

import json
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import yaml
from commands import Done, run
from encodeonce.evaluate import finish
from encodeonce.evaluate import run as evaluate_run
from encodeonce.evaluate.cli import main
from encodeonce.evaluate.decoding import flags
from encodeonce.evaluate.decoding import run as decoding_run
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.formats.find import read_texts
from encodeonce.evaluate.formats.pairing import alone
from encodeonce.store import FeatureStore, FeatureWriter, NewUtterance, Output
from encodeonce.store.errors import StoreError
from encodeonce.train.cli import main as train_main

LETTERS = "abcdef "
FRAMES = 3
ONLY = ("--leave-out", "bertscore", "--device", "cpu")


def text_of(number: int) -> str:
    """Letters that never stand beside their like."""
    rng = np.random.default_rng(number)
    return "a" + "".join(LETTERS[i] for i in rng.integers(1, 6, 8).cumsum() % 6) + "b"


def one_hot(text: str, seed: int) -> np.ndarray:
    """Frames `[3 * letters, 7]` that say their letter, not quite clearly."""
    clear = np.repeat(np.eye(len(LETTERS), dtype=np.float32)[[LETTERS.index(c) for c in text]], FRAMES, axis=0)
    return clear + np.random.default_rng(seed).normal(0, 0.25, clear.shape).astype(np.float32)


def write_split(folder: Path, encoder: str, split: str, count: int, text: bool = True, **metadata: Any) -> None:
    said = {f"{split}-{i:02d}": text_of(i + len(split)) for i in range(count)}
    utterances = [
        NewUtterance(
            name,
            FRAMES * len(words),
            text=words.upper() if text else None,
            speaker="tuvwxyz"[i % 7],
            translations={"de": f"satz {words}"},
            metadata={"intent": ["go", "stay"][i % 2], **metadata},
        )
        for i, (name, words) in enumerate(said.items())
    ]
    writer = FeatureWriter(folder, encoder, split, [Output("letters", 7, "float16", "one-hot")], {}, 16_000, 320)
    assert not writer.write(utterances, lambda name: {"letters": one_hot(said[name], count)}).failed


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and two trainings on it: `ctc` spells letters, `qformer` contrasts, matches and writes."""
    folder = tmp_path_factory.mktemp("place")
    for split, count in (("train", 40), ("dev", 9), ("other", 8)):
        write_split(folder / "store", "toy", split, count)
    write_split(folder / "store", "toy", "mute", 3, text=False)
    write_split(folder / "store", "toy", "counted", 3, words=2)
    write_split(folder / "strange", "another", "dev", 3)
    (folder / "earlier").mkdir()
    (folder / "earlier" / "samples.jsonl").write_text('{"id": "other-00", "text": "a", "pred_text": "a"}\n')
    (folder / "sounds" / "dev").mkdir(parents=True)
    (folder / "sounds" / "dev" / "somebody.wav").write_bytes(b"")
    (folder / "latin").write_bytes(b"na\xefve")
    small = {"data": {"store": str(folder / "store"), "train": ["train"], "dev_where": "speaker == 't'"}}
    ctc = {"adapter": {"name": "concat-mlp", "concat": 1, "hidden": 32}, "objectives": {"ctc": {}}}
    qformer = {
        "adapter": {"name": "qformer", "queries": 3, "hidden": 16, "layers": 2, "heads": 2},
        "objectives": {"stc": {}, "stm": {}, "stg": {}},
        "text": {"tokenizer": "characters"},
    }
    contrast = {**qformer, "objectives": {"stc": {}}}
    for name, parts, steps in (("ctc", ctc, 40), ("qformer", qformer, 4), ("contrast", contrast, 4)):
        loop = {"learning_rate": 3e-2, "max_steps": steps, "eval_steps": steps, "device": "cpu", "threads": 1}
        if name == "contrast":
            loop["best"] = "loss"
        config = {"output_dir": str(folder / name), **small, **parts, "training": loop}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        done = run(train_main, [str(folder / f"{name}.yaml"), "--quiet"])
        assert done.status == 0, done.err
    return folder


def evaluate(*arguments: str | Path) -> Done:
    return run(main, [*map(str, arguments), *ONLY])


def written_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_a_checkpoint_is_scored_as_jiwer_scores_what_it_wrote(place, tmp_path):
    out = tmp_path / "out"
    done = evaluate(place / "ctc", "--split", "train", "--output", out, "--json", "--language", "en")
    assert done.status == 0, done.err
    (found,) = done.json["splits"]
    lines = written_in(out)
    assert [line["id"] for line in lines] == FeatureStore(place / "store", split="train").ids
    wanted = jiwer.process_words([line["text"].lower() for line in lines], [line["pred_text"] for line in lines])
    assert found["scores"]["wer"]["value"] == wanted.wer
    assert found["scores"]["wer"]["counts"]["substitutions"] == wanted.substitutions
    assert 0 < found["scores"]["cer"]["value"] < 0.6
    assert found["scores"]["rtf"]["value"] > 0
    low, high = found["scores"]["wer"]["interval"]
    assert low <= wanted.wer <= high
    shown = done.out.splitlines()
    assert shown[0].split() == ["train"]
    assert f"{100 * wanted.wer:.2f} %" in next(line for line in shown if line.startswith("WER "))
    assert f"Report: {out / 'report.html'}" in shown
    assert "Decoded 40 utterances of train" in done.err
    config = json.loads((out / "results.json").read_text())["config"]
    assert (config["split"], config["step"], config["decoding"]["writer"]) == ("train", 40, "ctc")
    assert str(place / "ctc") in config["checkpoint"]


def test_the_same_command_decodes_nothing_again_and_another_one_is_refused(place, tmp_path, monkeypatch):
    command = (place / "ctc", "--split", "dev", "--output", tmp_path, "--no-report")
    first = evaluate(*command)
    assert first.status == 0, first.err
    assert f"Results: {tmp_path}" in first.out
    assert not (tmp_path / "report.html").exists()
    lines = (tmp_path / "hypotheses.jsonl").read_text()
    monkeypatch.setattr(decoding_run, "Transcriber", None)
    again = evaluate(*command)
    assert again.status == 0, again.err
    assert again.out == first.out
    assert "Read 9 utterances of dev, decoded before" in again.err
    monkeypatch.setattr(evaluate_run, "open_model", None)
    other = evaluate(*command, "--where", "speaker != 't'")
    assert other.status == 2
    assert "where" in other.err.splitlines()[-1]
    assert (tmp_path / "hypotheses.jsonl").read_text() == lines


def test_an_interrupted_run_is_gone_on_with(place, tmp_path, monkeypatch):
    command = (place / "ctc", "--split", "dev", "--output", tmp_path, "--frames-per-batch", "60", "--no-report")
    write, calls = decoding_run._write, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(decoding_run, "_write", interrupted)
    broken = evaluate(*command)
    assert broken.status == 130
    assert "run the same command again to go on" in broken.err
    calls.clear()
    monkeypatch.setattr(decoding_run, "_write", write)
    done = evaluate(*command)
    assert done.status == 0, done.err
    assert "going on:" in done.err
    assert len(written_in(tmp_path)) == 9


def test_several_splits_are_one_table_and_a_folder_each(place, tmp_path):
    done = evaluate(place / "ctc", "--split", "dev", "--split", "other", "--output", tmp_path, "--limit", "5", "--json")
    assert done.status == 0, done.err
    assert done.out.splitlines()[0].split() == ["dev", "other"]
    assert [found["split"] for found in done.json["splits"]] == ["dev", "other"]
    for name in ("dev", "other"):
        assert len(written_in(tmp_path / name)) == 5
        assert (tmp_path / name / "report.html").is_file()


def test_results_lie_beside_the_checkpoint_unless_told(place):
    done = evaluate(place / "ctc", "--split", "other", "--limit", "2", "--json", "--no-report", "--quiet")
    assert done.status == 0, done.err
    assert done.err == ""
    assert Path(done.json["splits"][0]["output"]) == place / "ctc" / "evaluation" / "step-000040" / "other"


def test_a_contrastive_checkpoint_is_scored_by_retrieval_too(place, tmp_path):
    done = evaluate(place / "qformer", "--split", "dev", "--output", tmp_path, "--json", "--no-report")
    assert done.status == 0, done.err
    scores = done.json["splits"][0]["scores"]
    assert {"wer", "recall_at_1_speech_to_text", "recall_at_10_text_to_speech", "matching_accuracy"} <= scores.keys()
    details = json.loads((tmp_path / "results.json").read_text())["details"]
    assert details["qformer on dev"]["retrieval"]["utterances"] == 9


def test_attention_is_drawn_where_an_adapter_has_queries(place, tmp_path):
    done = evaluate(place / "qformer", "--split", "dev", "--output", tmp_path, "--attention", "2", "--limit", "4")
    assert done.status == 0, done.err
    pictures = {path.name for path in (tmp_path / "attention").iterdir()}
    assert "attention-entropy.png" in pictures
    assert len([name for name in pictures if "heads" in name]) == 2
    assert (tmp_path / "report.html").read_text().count("data:image/png") == len(pictures)
    none = evaluate(place / "ctc", "--split", "dev", "--output", tmp_path / "ctc", "--limit", "2", "--attention", "1")
    assert none.status == 0, none.err
    assert "No attention to show" in none.err


def test_pictures_that_cannot_be_drawn_do_not_cost_the_report(place, tmp_path, monkeypatch):
    """A column `words` that is something else is none of word times; and what else goes wrong is told."""
    command = (place / "qformer", "--split", "counted", "--output", tmp_path)
    done = evaluate(*command)
    assert done.status == 0, done.err
    assert len(list((tmp_path / "attention").glob("*-heads.png"))) == 3
    assert "word times" not in done.err

    def fail(*arguments: Any, **options: Any) -> None:
        raise EvaluationError("the queries look away")

    monkeypatch.setattr(evaluate_run, "attention_pictures", fail)
    done = evaluate(*command)
    assert done.status == 0, done.err
    assert "Not computed: Attention: the queries look away" in done.out
    assert "the queries look away" in (tmp_path / "report.html").read_text()
    skipped = json.loads((tmp_path / "results.json").read_text())["skipped"]
    assert skipped["qformer on counted"]["attention"] == "the queries look away"


def test_queries_that_write_no_text_tell_no_time(place, tmp_path):
    (tmp_path / "times.ctm").write_text("dev-00 1 0.1 0.2 some\n")
    done = evaluate(
        *(place / "contrast", "--split", "dev", "--output", tmp_path / "out"),
        *("--word-times", tmp_path / "times.ctm", "--attention", "9"),
    )
    assert done.status == 0, done.err
    assert "1 of 9 drawn (dev-00): this adapter's queries write no text" in done.err
    none = evaluate(
        *(place / "ctc", "--split", "dev", "--output", tmp_path / "ctc", "--word-times", tmp_path / "times.ctm")
    )
    assert none.status == 0, none.err
    assert "No attention to show" in none.err


def test_flags_are_those_of_the_language_that_is_given(place, tmp_path, monkeypatch):
    """Letters without spaces are a word in most languages, and many in Chinese."""
    monkeypatch.setattr(flags, "LETTERS_PER_SECOND", 1.0)
    command = (place / "ctc", "--split", "other", "--no-report", "--json", "--output", tmp_path)
    shares = [evaluate(*command, *more).split["scores"]["flagged"]["value"] for more in ((), ("--language", "zh"), ())]
    assert shares == [0, 1, 0]
    write_texts(tmp_path, hyp_jsonl='{"id": "a", "text": "b", "pred_text": "abcdefgh", "duration": 0.5}\n')
    texts = ("--hypotheses", tmp_path / "hyp.jsonl", "--no-report", "--json")
    for more, flagged in (((), 0), (("--language", "zh"), 1)):
        assert evaluate(*texts, *more).split["scores"].get("flagged", {"value": 0})["value"] == flagged


def test_translations_are_scored_as_such(place, tmp_path):
    done = evaluate(
        place / "ctc", "--split", "dev", "--target", "translation:de", "--output", tmp_path, "--json", "--no-report"
    )
    assert done.status == 0, done.err
    assert {"bleu", "chrf"} <= done.json["splits"][0]["scores"].keys()
    assert written_in(tmp_path)[0]["text"].startswith("satz ")


@pytest.mark.parametrize(("task", "scored"), [((), "accuracy"), (("--task", "recognition"), "wer")])
def test_metadata_are_labels_unless_told(place, tmp_path, task, scored):
    done = evaluate(
        *(place / "ctc", "--split", "dev", "--target", "metadata:intent", "--output", tmp_path),
        *("--json", "--no-report", *task),
    )
    assert done.status == 0, done.err
    assert scored in done.json["splits"][0]["scores"]
    assert ("scored as labels" in done.err) == (not task)
    assert {line["text"] for line in written_in(tmp_path)} == {"go", "stay"}


def test_what_only_retrieves_counts_and_draws_the_utterances_of_its_condition(place, tmp_path):
    done = evaluate(
        *(place / "contrast", "--split", "dev", "--where", "speaker in ('t', 'v')", "--output", tmp_path, "--json"),
        *("--attention", "2"),
    )
    assert done.status == 0, done.err
    drawn = {path.name.removesuffix("-heads.png") for path in (tmp_path / "attention").glob("*-heads.png")}
    assert drawn == {"attention-dev-00", "attention-dev-07"}
    assert done.json["splits"][0]["utterances"] == 3
    assert "3 utterances" in (tmp_path / "report.md").read_text()


def test_a_comparison_is_paired_over_the_utterances_in_common(place, tmp_path):
    for name, limit in (("first", "9"), ("second", "6")):
        more = ("--compare", tmp_path / "first") if name == "second" else ()
        done = evaluate(
            place / "ctc",
            "--split",
            "dev",
            "--output",
            tmp_path / name,
            "--limit",
            limit,
            "--no-report",
            "--json",
            *more,
        )
        assert done.status == 0, done.err
    found = done.json["splits"][0]["comparison"]
    assert (found["utterances"], found["only_second"], found["difference"], found["winner"]) == (6, 3, 0, None)
    assert "6 utterances in common, 3 others left out" in done.out
    assert "no difference that chance does not explain" in done.out


def test_a_comparison_that_cannot_be_made_does_not_cost_the_report(place, tmp_path):
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "samples.jsonl").write_text('{"id": "dev-00", "text": "other words", "pred_text": "a"}\n')
    (tmp_path / "earlier" / "results.json").write_text('{"results": {"earlier": {}}}')
    done = evaluate(
        place / "ctc", "--split", "dev", "--output", tmp_path / "out", "--compare", tmp_path / "earlier", "--json"
    )
    assert done.status == 0, done.err
    assert done.split["comparison"] is None
    assert "1 of 1 utterances have another reference in earlier" in done.split["skipped"]["comparison"]
    assert "have another reference in earlier" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "nothing to evaluate: give CHECKPOINT, or texts with --hypotheses"),
        (["{place}/ctc", "--hypotheses", "{place}/ctc.yaml"], "take one of them"),
        (["{place}/ctc", "--references", "{place}/ctc.yaml"], "--references belongs to --hypotheses"),
        (["--hypotheses", "{place}/ctc.yaml", "--beams", "4"], "--beams belongs to CHECKPOINT"),
        (["{place}/nothing"], "nothing is no checkpoint"),
        (["{place}/ctc", "--split", "dve"], "no split 'dve'"),
        (["{place}/ctc"], "several splits, and none was named; there are: counted, dev, mute, other, train"),
        (["{place}/ctc", "--split", "dev", "--store", "{place}/strange"], "encoder another against toy"),
        (["{place}/ctc", "--split", "dev", "--store", "{place}/nowhere"], "nowhere is no folder"),
        (["{place}/ctc", "--split", "dev", "--where", "speaker == 'q'"], "nothing to decode"),
        (["{place}/contrast", "--split", "dev", "--where", "speaker == 'q'"], "nothing to decode"),
        (["{place}/contrast", "--split", "mute"], "that are asked for has a text to compare with"),
        (["{place}/ctc", "--split", "dev", "--where", "speker == 't'"], "no column 'speker'"),
        (["{place}/ctc", "--split", "mute"], "that are asked for has a text to compare with: take another split"),
        (["{place}/ctc", "--split", "dev", "--target", "translation:fr"], "did you mean translation:de?"),
        (["{place}/ctc", "--split", "dev", "--writer", "llm"], "this checkpoint was trained for ctc"),
        (["{place}/ctc", "--split", "dev", "--temperature", "2"], "has no use with method=greedy"),
        (["{place}/ctc", "--split", "dev", "--method", "sample"], "no use with ctc"),
        (["{place}/ctc", "--split", "dev", "--language", "klingon"], "'klingon' is no language code"),
        (["{place}/ctc", "--split", "dev", "--leave-out", "were"], "were cannot be left out"),
        (["{place}/ctc", "--split", "dev", "--compare", "{place}"], "give the folder of an earlier evaluation of dev"),
        (["{place}/ctc", "--compare", "{place}", "--task", "labels"], "--compare tests word error rates"),
        (["{place}/ctc", "--compare", "{place}/earlier", "--leave-out", "wer"], "--leave-out wer has none"),
        (["{place}/contrast", "--compare", "{place}/earlier"], "word error rates, and this checkpoint writes no text"),
        (
            ["{place}/ctc", "--split", "dev", "--compare", "{place}/earlier"],
            "such as dev-01, but others, such as other-00: give the folder of an earlier evaluation of dev",
        ),
        (["{place}/ctc", "--split", "dev", "--prompt", "{place}/latin"], "latin, line 1: byte 3 (0xef) is no UTF-8"),
        (["{place}/ctc", "--split", "dev", "--audio", "{place}"], "no split 'dev' under"),
        (["{place}/ctc", "--split", "dev", "--audio", "{place}/sounds"], "has an id such as dev-01; give the corpus"),
        (["{place}/ctc", "--split", "dev", "--also", "kaldi"], "'kaldi' is not one of"),
    ],
)
def test_bad_input_is_a_line_that_names_the_way_out(place, tmp_path, monkeypatch, arguments, told):
    monkeypatch.setattr(evaluate_run, "open_model", None)  # it is refused before that
    done = evaluate(*(argument.format(place=place) for argument in arguments), "--output", tmp_path / "out")
    assert done.status == 2, done.out + done.err
    assert told in done.err, done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def write_texts(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def test_texts_of_any_system_are_scored_without_a_checkpoint(tmp_path):
    write_texts(
        tmp_path,
        hyp_trn="the cat sat on a mat (1-1)\nit is 4 (1-2)\nhello (2-1)\n",
        ref_txt="1-1 THE CAT SAT ON THE MAT\n1-2 It's four.\n2-1 hello world\n2-2 nothing\n",
    )
    files = ("--hypotheses", tmp_path / "hyp.trn", "--references", tmp_path / "ref.txt")
    refused = evaluate(*files)
    assert refused.status == 2
    assert "lacks 1 of the 4 utterances" in refused.err
    assert "(2-2)" in refused.err
    done = evaluate(*files, "--allow-missing", "--language", "en", "--split", "mine", "--json")
    assert done.status == 0, done.err
    (found,) = done.json["splits"]
    counts = found["scores"]["wer"]["counts"]
    assert (found["split"], found["output"]) == ("mine", str(tmp_path / "hyp-evaluation"))
    assert [counts[kind] for kind in ("substitutions", "deletions", "insertions", "reference_words")] == [1, 2, 0, 12]
    assert f"{tmp_path / 'hyp.trn'} is read as sclite's trn" in done.err
    assert f"{tmp_path / 'ref.txt'} is read as Kaldi's text" in done.err
    assert "1 missing hypothesis counts as empty: 2-2" in done.err
    assert "Flagged" in done.out


def test_ids_that_look_like_words_are_not_taken_for_words(tmp_path):
    write_texts(tmp_path, hyp_txt="anna go on\nbert stop\n", ref_txt="bert stop\nanna go off\n")
    files = ("--hypotheses", tmp_path / "hyp.txt", "--references", tmp_path / "ref.txt")
    refused = evaluate(*files)
    assert refused.status == 2
    assert "begin with the same words (anna, bert) in different order: give --format kaldi" in refused.err
    done = evaluate(*files, "--format", "kaldi", "--json")
    assert done.json["splits"][0]["scores"]["wer"]["value"] == 1 / 3


def test_files_of_other_toolkits_hold_what_was_compared(tmp_path):
    write_texts(
        tmp_path,
        hyp_jsonl='{"id": "u-1", "pred_text": "A cat.", "text": "a bat"}\n{"id": "u-2", "pred_text": "", "text": "b"}\n',
    )
    also = [word for name in ("icefall", "sclite", "espnet") for word in ("--also", name)]
    done = evaluate("--hypotheses", tmp_path / "hyp.jsonl", *also, "--no-report", "--output", tmp_path)
    assert done.status == 0, done.err
    wanted = [("u-1", "a bat", "a cat"), ("u-2", "b", "")]
    recogs = alone(read_texts(tmp_path / "recogs-hyp.txt", "pred_text")).hypotheses
    assert [(one.id, one.text, one.pred_text) for one in recogs] == wanted
    for place, name in ((1, "ref.trn"), (2, "hyp.trn")):
        entries = read_texts(tmp_path / name, "text").entries
        assert [(entry.id, entry.text) for entry in entries] == [(one[0], one[place]) for one in wanted]
    assert (tmp_path / "errs-hyp.txt").read_text().startswith("%WER = 66.67\n")
    assert "|hyp|2|3|33.3|33.3|33.3|0.0|66.7|100.0|" in (tmp_path / "espnet.md").read_text()


def test_results_are_written_when_everything_else_is(tmp_path, monkeypatch):
    """They are what a sweep takes for the end of an evaluation."""

    def fail(*arguments: Any) -> None:
        raise StoreError("the disk is full")

    write_texts(tmp_path, hyp_jsonl='{"id": "a(b)", "pred_text": "a", "text": "a"}\n')
    command = ("--hypotheses", tmp_path / "hyp.jsonl", "--output", tmp_path / "out")
    monkeypatch.setitem(finish.WRITERS, "espnet", fail)
    for more, told in (
        (("--also", "espnet"), "the disk is full"),
        (("--also", "espnet", "--no-report"), "the disk is full"),
        (("--also", "sclite"), "id 'a(b)' cannot stand in ref.trn"),
    ):
        done = evaluate(*command, *more)
        assert (done.status, told in done.err) == (2, True)
        assert not list(tmp_path.rglob("results.json"))


def test_a_metric_that_cannot_be_had_is_told_with_the_way_out(tmp_path):
    write_texts(tmp_path, hyp_jsonl='{"pred_text": "der hund", "text": "Der Hund.", "language": "tlh"}\n')
    done = run(main, ["--hypotheses", str(tmp_path / "hyp.jsonl"), "--bert", str(tmp_path), "--no-report"])
    assert done.status == 0, done.err
    (line,) = (line for line in done.out.splitlines() if line.startswith("Not computed: BERTScore"))
    assert str(tmp_path) in line
    assert any(line.startswith("Normalisation: tlh has no normaliser") for line in done.out.splitlines())
    assert any(line.startswith("WER ") and "0.00 %" in line for line in done.out.splitlines())


def test_audio_is_found_by_id_in_a_corpus(place, tmp_path):
    folder = tmp_path / "data" / "dev"
    folder.mkdir(parents=True)
    names = FeatureStore(place / "store", split="dev").ids[:3]
    for name in names:
        (folder / f"{name}.wav").write_bytes(b"")
    done = evaluate(
        place / "ctc", "--split", "dev", "--audio", tmp_path / "data", "--output", tmp_path / "out", "--no-report"
    )
    assert done.status == 0, done.err
    told = [line.get("audio_filepath") for line in written_in(tmp_path / "out")]
    assert told == [str(folder / f"{name}.wav") for name in names] + [None] * 6


def test_the_feature_set_is_the_one_the_checkpoint_was_trained_on(place, tmp_path):
    write_split(tmp_path, "toy", "dev", 3)
    write_split(tmp_path, "another", "dev", 3)
    done = evaluate(place / "ctc", "--store", tmp_path, "--output", tmp_path / "out", "--no-report")
    assert done.status == 0, done.err


def test_texts_are_not_written_over_what_a_checkpoint_wrote(tmp_path):
    (tmp_path / "hyp.jsonl").write_text('{"id": "a", "text": "b", "pred_text": "b"}\n')
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "hypotheses.json").write_text("{}")
    done = run(main, ["--hypotheses", str(tmp_path / "hyp.jsonl"), "--output", str(tmp_path / "out")])
    assert (done.status, "holds what a checkpoint wrote" in done.err) == (2, True)
