"""transcribe: the features it makes of audio are those of the store, bit for bit; its texts those of the cached features."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from commands import RATE, extract, feature_store, run, speech, write_corpus
from encodeonce.evaluate.decoding.transcriber import Transcriber
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.transcription.cli import main
from encodeonce.evaluate.transcription.features import FeatureMaker
from encodeonce.evaluate.transcription.segments import cut
from encodeonce.extract.audio import decode
from encodeonce.extract.corpora.base import Utterance
from encodeonce.extract.progress import Progress
from encodeonce.store import FeatureStore
from encodeonce.train.checkpoint import Fingerprints, load_checkpoint
from encodeonce.train.cli import main as train_adapter
from encodeonce.train.model import open_model
from hypothesis import given, settings
from hypothesis import strategies as st

LENGTHS = (0.7, 1.1, 0.9, 1.4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio, its features as float16, int8 and normalised ones derived of them, and a small CTC trained on them for three steps."""
    folder = tmp_path_factory.mktemp("made")
    write_corpus(folder / "data" / "dev", LENGTHS)
    for options in ((), ("--dtype", "int8")):
        assert extract(folder / "data", "dev", folder / "features", *options).status == 0
    assert feature_store("derive", "normalise", folder / "features", "--output", "fbank", "--name", "unit").status == 0
    config = {
        "output_dir": str(folder / "run"),
        "data": {"store": str(folder / "features"), "train": ["dev"], "frames_per_batch": 500},
        "adapter": {"name": "concat-mlp", "concat": 1, "hidden": 16},
        "objectives": {"ctc": {}},
        "training": {"learning_rate": 0.05, "max_steps": 3, "device": "cpu", "threads": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert run(train_adapter, [str(folder / "config.yaml")]).status == 0
    return folder


def maker(made: Path, outputs: tuple[str, ...], store: Path | None) -> FeatureMaker:
    found = FeatureStore(made / "features")
    trained = Fingerprints(found.encoder, found.fingerprint, outputs, None, "")
    return FeatureMaker(trained, Progress(quiet=True), store, None, "cpu")


def audio(path: Path) -> Utterance:
    return Utterance(id=path.stem, audio=path)


@pytest.mark.parametrize("source", ["stored", "encoded", "encoded without the store"])
@pytest.mark.parametrize("outputs", [("fbank",), ("fbank-int8", "fbank"), ("unit",)])
def test_features_of_audio_are_the_stores(made, outputs, source, monkeypatch):
    if source == "encoded":
        monkeypatch.setattr(FeatureMaker, "_copied", lambda *_: None)
    if source == "encoded without the store" and "unit" in outputs:
        with pytest.raises(EvaluationError, match="derived; give --store"):
            maker(made, outputs, None)
        return
    features = maker(made, outputs, None if source == "encoded without the store" else made / "features")
    with FeatureStore(made / "features") as store:
        for path in sorted((made / "data" / "dev").glob("*.wav")):
            heard = features.of(decode(audio(path)), path.name)
            assert heard.stored == (source == "stored")
            for name, values in zip(outputs, heard.values, strict=True):
                np.testing.assert_array_equal(values, store[path.stem][name])


def test_texts_are_those_of_the_cached_features(made):
    files = sorted((made / "data" / "dev").glob("*.wav"))
    done = run(main, [str(made / "run"), *map(str, files), "--json"])
    assert done.status == 0, done.err
    found, store = load_checkpoint(made / "run"), FeatureStore(made / "features")
    transcriber = Transcriber(open_model(found, store))
    for path, line in zip(files, done.json["files"], strict=True):
        values = torch.as_tensor(np.array(store[path.stem]["fbank"], np.float32))[None]
        (written,) = transcriber.write([values], torch.tensor([values.shape[1]]), [1.0])
        assert line["audio_filepath"] == str(path)
        assert line["pred_text"] == written.text
        assert [segment["stored"] for segment in line["segments"]] == [True]
    assert [line.split("\t")[0] for line in done.out.splitlines()[: len(files)]] == list(map(str, files))


def test_long_audio_is_cut_in_its_pauses_and_broken_audio_does_not_stop_the_others(made, tmp_path):
    pause = np.zeros(RATE // 2, np.float32)
    loud = [speech(1.2, seed) for seed in range(4)]
    long = np.concatenate([part for one in loud for part in (one, pause)])
    soundfile.write(tmp_path / "long.wav", long, RATE)
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    soundfile.write(tmp_path / "tiny.wav", np.zeros(20, np.float32), RATE)
    to = tmp_path / "texts"
    done = run(
        main, [str(made / "run"), str(tmp_path), "--segment-seconds", "2", "--times", "--output", str(to), "--json"]
    )
    assert done.status == 1
    assert "broken.wav is no audio" in done.err
    assert "tiny.wav is too short" in done.err
    broken, found, tiny = done.json["files"]
    assert (broken["segments"], tiny["segments"]) == ([], [])
    edges = [segment["start"] for segment in found["segments"]] + [found["segments"][-1]["end"]]
    assert edges[0] == 0
    assert edges[-1] == pytest.approx(len(long) / RATE)
    for edge in edges[1:-1]:
        assert not np.abs(long[int(edge * RATE) - 100 : int(edge * RATE) + 100]).any(), f"{edge} s is no pause"
    assert found["pred_text"] == " ".join(one["text"] for one in found["segments"] if one["text"])
    assert json.loads((to / "long.json").read_text()) == found
    assert (to / "long.txt").read_text() == found["pred_text"] + "\n"
    assert (to / "long.srt").read_text().startswith("1\n00:00:00,000 --> ")
    assert "broken.wav is no audio" in json.loads((to / "broken.json").read_text())["error"]
    assert sorted(path.name for path in to.iterdir() if path.stem != "long") == ["broken.json", "tiny.json"]


def test_a_translation_is_written_in_its_language(tmp_path):
    """Into one without spaces between words: texts of segments are joined without any."""
    (tmp_path / "data").mkdir()
    lines = []
    for seed in range(4):
        soundfile.write(tmp_path / "data" / f"u{seed}.wav", speech(1.0, seed), RATE)
        lines.append({"id": f"u{seed}", "audio": f"u{seed}.wav", "text": "a b", "translation_ja": "あ"})
    (tmp_path / "data" / "dev.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert extract(tmp_path / "data", "dev", tmp_path / "features").status == 0
    config = {
        "output_dir": str(tmp_path / "run"),
        "data": {"store": str(tmp_path / "features"), "train": ["dev"], "target": "translation:ja"},
        "adapter": {"name": "concat-mlp", "concat": 8, "hidden": 16},
        "objectives": {"ctc": {}},
        "training": {"learning_rate": 0.05, "max_steps": 60, "device": "cpu", "threads": 1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert run(train_adapter, [str(tmp_path / "config.yaml"), "--quiet"]).status == 0
    soundfile.write(tmp_path / "two.wav", np.concatenate([speech(1.0, 0), np.zeros(RATE // 2), speech(1.0, 1)]), RATE)
    done = run(main, [str(tmp_path / "run"), str(tmp_path / "two.wav"), "--segment-seconds", "1.6", "--json"])
    assert done.status == 0, done.err
    (found,) = done.json["files"]
    assert [set(segment["text"]) for segment in found["segments"]] == [{"あ"}, {"あ"}]
    assert found["pred_text"] == "".join(segment["text"] for segment in found["segments"])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 3000), st.integers(0, 100), st.floats(0.05, 3))
def test_segments_are_the_audio_and_none_is_too_long(count, seed, longest):
    samples = np.random.default_rng(seed).normal(size=count).astype(np.float32)
    found = cut(samples, 1000, longest)
    assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
    assert found[-1][1] == count
    assert all(0 < stop - start <= max(1, int(longest * 1000)) for start, stop in found) or not count


def test_other_features_are_refused_by_what_differs(made, tmp_path):
    write_corpus(tmp_path / "data" / "dev", LENGTHS)
    files = [str(path) for path in (tmp_path / "data" / "dev").glob("*.wav")]
    checkpoint = load_checkpoint(made / "run").folder
    other = tmp_path / "run" / checkpoint.name
    other.parent.mkdir()
    other.mkdir()
    for path in checkpoint.iterdir():
        if path.is_file():
            (other / path.name).write_bytes(path.read_bytes())
    marks = json.loads((other / "fingerprints.json").read_text())
    (other / "fingerprints.json").write_text(json.dumps({**marks, "features": "0" * 64}))
    done = run(main, [str(other), *files])
    assert (done.status, "fbank makes other features" in done.err, "--store" in done.err) == (2, True, True)
    done = run(main, [str(made / "run"), str(tmp_path / "nowhere.wav")])
    assert (done.status, "there is no" in done.err) == (2, True)
    done = run(main, [str(made / "run"), *files, "--encoder", "mfcc"])
    assert (done.status, "mfcc makes other features" in done.err) == (2, True)


def test_a_request_that_cannot_be_met_is_refused_before_anything_is_encoded(made, tmp_path, monkeypatch):
    monkeypatch.setattr(FeatureMaker, "of", lambda *_: pytest.fail("it was encoded"))
    (tmp_path / "prompt.txt").write_bytes(b"\xff\xfe words")
    (tmp_path / "file").write_text("no folder")
    words = ["--method", "beam", "--language-model", "smollm2-135m", "--prompt", str(tmp_path / "prompt.txt")]
    for options, told in (
        (words, "prompt.txt, line 1: byte 1 (0xff) is no UTF-8"),
        (["--store", str(tmp_path)], f"{tmp_path} holds no features of fbank that the checkpoint was trained on"),
        (["--output", str(tmp_path / "file" / "texts")], str(tmp_path / "file" / "texts")),
    ):
        done = run(main, [str(made / "run"), str(made / "data" / "dev"), *options])
        assert done.status == 2
        assert told in done.err
        assert "Traceback" not in done.err
