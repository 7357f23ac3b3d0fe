"""Resynthesis: the recogniser hears what the reference decodes, each utterance once, and the rates are jiwer's."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from codec_checkpoints import CODECS, Codecs
from commands import Done, extract, run, split_folder, write_corpus
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.normalise import find_normaliser
from encodeonce.evaluate.recognisers.base import Recogniser
from encodeonce.evaluate.resynthesis.cli import main
from encodeonce.evaluate.resynthesis.transcripts import Transcripts
from encodeonce.store import FeatureStore
from encodeonce.store.identity import member_key
from encodeonce.store.utterance import StoredUtterance
from speechtokenizer_checkpoint import reference_model, save_speechtokenizer
from whisper_checkpoint import ctranslate2_whisper

LENGTHS = (0.7, 1.31, 0.5, 0.93)
NAMES = [f"utt-{number:03d}" for number in range(len(LENGTHS))]
Says = Callable[[np.ndarray], str]


class Hearing(Recogniser):
    """Keeps what it is given, and says what it is told to."""

    name, signature = "hearing", "hearing|1"

    def __init__(self, says: Says, sample_rate: int) -> None:
        self.says, self.sample_rate = says, sample_rate
        self.heard: list[np.ndarray] = []

    def recognise(self, samples: np.ndarray) -> str:
        self.heard.append(samples.copy())
        return self.says(samples)


@pytest.fixture
def hearing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hearing]:
    """Put a recogniser in the place of all others."""

    def install(says: Says = lambda samples: f"words {len(samples)}", sample_rate: int = 16000) -> Hearing:
        recogniser = Hearing(says, sample_rate)
        monkeypatch.setattr("encodeonce.evaluate.recognise.find_recogniser", lambda *asked: recogniser)
        return recogniser

    return install


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, the codec `small`, and its store with codes of all quantizers and of some, and latents."""
    root = tmp_path_factory.mktemp("resynthesis")
    write_corpus(root / "data" / "few", LENGTHS)
    write_corpus(root / "data" / "few", [0.6], first=len(LENGTHS))
    (root / "data" / "few" / "utt-004.txt").unlink()
    save_speechtokenizer(root / "small")
    outputs = "codes,codes:1-7,latents,latents:2"
    done = extract(root / "data", "few", root / "store", "--outputs", outputs, encoder=str(root / "small"))
    assert done.status == 0, done.err
    return root


def resynthesis(root: Path, to: Path, *options: str) -> Done:
    return run(main, [str(root / "store"), "--asr", "any", "--codec", str(root / "small"), "--to", str(to), *options])


def texted(root: Path) -> list[StoredUtterance]:
    """The utterances that have a text, in the order of the store."""
    return [utterance for utterance in FeatureStore(root / "store") if utterance.text is not None]


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def package_audio(root: Path, name: str, first: int, last: int) -> np.ndarray:
    """What the package decodes of the stored codes of some quantizers, as long as the utterance."""
    stored = FeatureStore(split_folder(root / "store", "few"), output="codes")[name]
    codes = torch.from_numpy(stored.features.T.astype(np.int64)[first : last + 1, None])
    with torch.no_grad():
        audio = reference_model(root / "small").decode(codes, st=first)
    return audio[0, 0, : stored.record["samples"]].numpy()


@pytest.mark.parametrize("family", ["encodec", "dac", "mimi", "xcodec", "xcodec2"])
def test_the_recogniser_hears_what_transformers_decodes(family, tmp_path, hearing):
    codecs = Codecs(tmp_path)
    write_corpus(tmp_path / "data" / "few", LENGTHS[:2])
    extract(tmp_path / "data", "few", tmp_path / "store", encoder=str(codecs.folder(family)))
    recogniser = hearing(sample_rate=CODECS[family].rate)
    arguments = [
        str(tmp_path / "store"),
        "--asr",
        "any",
        "--codec",
        str(tmp_path / family),
        "--to",
        str(tmp_path / "to"),
    ]
    done = run(main, arguments)
    assert done.status == 0, done.err
    store = FeatureStore(tmp_path / "store")
    assert len(recogniser.heard) == len(store) == 2
    for utterance, heard in zip(store, recogniser.heard, strict=True):
        expected = codecs.reference(family).audio(utterance.features)
        np.testing.assert_array_equal(heard, expected[: utterance.record["samples"]])
        assert len(expected) > 1000


def test_audio_of_a_codec_that_decodes_at_another_rate_is_heard_and_kept_at_that(tmp_path, hearing):
    codecs = Codecs(tmp_path)
    write_corpus(tmp_path / "data" / "few", LENGTHS[:2])
    folder = str(codecs.folder("neucodec"))
    extract(tmp_path / "data", "few", tmp_path / "store", encoder=folder)
    recogniser = hearing(sample_rate=24_000)
    where = ["--to", str(tmp_path / "to"), "--save-audio"]
    done = run(main, [str(tmp_path / "store"), "--asr", "any", "--codec", folder, *where])
    assert done.status == 0, done.err
    for utterance, heard in zip(FeatureStore(tmp_path / "store"), recogniser.heard, strict=True):
        expected = codecs.reference("neucodec").audio(utterance.features)[: utterance.record["samples"] * 3 // 2]
        np.testing.assert_array_equal(heard, expected)
        kept, rate = soundfile.read(tmp_path / "to" / "audio" / f"{member_key(utterance.id)}.wav", dtype="float32")
        assert rate == 24_000
        np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize(
    ("options", "first", "last", "said"),
    [
        ([], 0, 7, "codes, quantizers 0-7"),
        (["--quantizers", "0"], 0, 0, "codes, quantizers 0-0"),
        (["--quantizers", "1-7"], 1, 7, "codes, quantizers 1-7"),
        (["--output", "codes-1-7"], 1, 7, "codes-1-7, quantizers 1-7"),
        (["--output", "codes-1-7", "--quantizers", "2-4"], 2, 4, "codes-1-7, quantizers 2-4"),
    ],
)
def test_codes_of_some_quantizers_are_decoded_as_the_package_does(options, first, last, said, root, tmp_path, hearing):
    recogniser = hearing()
    done = resynthesis(root, tmp_path, "--limit", "2", *options)
    assert done.status == 0, done.err
    assert said in done.out
    for utterance, heard in zip(texted(root), recogniser.heard, strict=False):
        np.testing.assert_array_equal(heard, package_audio(root, utterance.id, first, last))
    assert len(recogniser.heard) == 2


def test_latents_are_decoded_where_they_are_asked_for(root, tmp_path, hearing):
    recogniser = hearing()
    resynthesis(root, tmp_path / "all", "--output", "latents", "--limit", "1")
    resynthesis(root, tmp_path / "one", "--output", "latents-2", "--limit", "1")
    first = texted(root)[0].id
    for heard, quantizers in zip(recogniser.heard, [(0, 7), (2, 2)], strict=True):
        expected = package_audio(root, first, *quantizers)
        assert np.abs(heard - expected).max() < 0.01 * np.abs(expected).max()  # latents are kept in float16


def test_audio_is_heard_at_the_recognisers_rate(root, tmp_path, hearing):
    recogniser = hearing(sample_rate=8000)
    resynthesis(root, tmp_path)
    lengths = [-(-utterance.record["samples"] // 2) for utterance in texted(root)]
    assert [len(heard) for heard in recogniser.heard] == lengths


def test_rates_are_jiwers_and_the_report_shows_every_text(root, tmp_path, hearing):
    hearing(lambda samples: f"Words, OF | {len(samples) % 5}!")
    done = resynthesis(root, tmp_path, "--json")
    samples = lines(tmp_path / "samples.jsonl")
    assert sorted(sample["id"] for sample in samples) == NAMES
    targets, heard = ([sample[name] for sample in samples] for name in ("text", "pred_text"))
    assert targets == [f"words of {int(sample['id'][-3:])}" for sample in samples]
    normalise = find_normaliser("en")
    plain = [normalise(text) for text in targets], [normalise(text) for text in heard]
    expected = {
        "wer_raw": jiwer.wer(targets, heard),
        "wer_caseless": jiwer.wer([text.lower() for text in targets], [text.lower() for text in heard]),
        "wer": jiwer.wer(plain[0], plain[1]),
        "cer": jiwer.cer(plain[0], plain[1]),
    }
    assert len(set(expected.values())) == 4
    found = results(tmp_path)
    ((title, rates),) = found["results"].items()
    assert title == done.out.splitlines()[0] == "small, codes, quantizers 0-7, heard by hearing"
    assert expected.items() <= rates.items()
    assert done.json == found
    assert (found["config"]["failed"], found["config"]["without_text"]) == (0, 1)
    assert found["n-samples"][title]["effective"] == 4
    assert "rapidfuzz" in found["signatures"][title]["wer"]
    assert "1 utterances without a text" in done.err
    assert f"{100 * expected['wer']:.2f} %" in done.out
    assert f"Report: {tmp_path / 'report.html'}" in done.out
    shown = (tmp_path / "report.md").read_text().partition("## Targets and predictions")[2]
    for sample in samples:
        assert f"| {sample['text']} | {sample['pred_text'].replace('|', chr(92) + '|')} |" in shown


def test_a_killed_run_goes_on_and_ends_the_same(root, tmp_path, hearing, monkeypatch):
    hearing()
    resynthesis(root, tmp_path / "whole")

    def interrupted(samples: np.ndarray) -> str:
        if len(stopped.heard) == 3:
            raise KeyboardInterrupt
        return f"words {len(samples)}"

    stopped = hearing(interrupted)
    done = resynthesis(root, tmp_path / "again")
    assert (done.status, done.out) == (130, "")
    assert not (tmp_path / "again" / "results.json").exists()
    with open(tmp_path / "again" / "transcripts.jsonl", "a") as file:
        file.write('{"audio": "resynthesised", "id": "utt-0')
    rest = hearing()
    assert resynthesis(root, tmp_path / "again").status == 0
    assert len(rest.heard) == 2
    for name in ("samples.jsonl", "transcripts.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert results(tmp_path / "again")["results"] == results(tmp_path / "whole")["results"]
    monkeypatch.setattr("encodeonce.evaluate.resynthesis.run.decode", None)  # nothing is decoded in vain
    assert resynthesis(root, tmp_path / "again").status == 0


def test_what_fails_is_named_left_out_and_tried_again(root, tmp_path, hearing):
    def says(samples: np.ndarray) -> str:
        if len(faulty.heard) == 2:
            raise RuntimeError("CUDA out of memory\nand more")
        return "words of 0"

    faulty = hearing(says)
    done = resynthesis(root, tmp_path, "--json")
    failed = texted(root)[1].id
    assert done.status == 1
    assert f"{failed}: CUDA out of memory" in done.err
    (details,) = done.json["details"].values()
    assert details["failures"] == [{"id": failed, "reason": "CUDA out of memory"}]
    assert (len(lines(tmp_path / "samples.jsonl")), done.json["config"]["failed"]) == (3, 1)
    again = hearing()
    assert resynthesis(root, tmp_path).status == 0
    assert len(again.heard) == 1


def test_the_original_audio_is_heard_too(root, tmp_path, hearing):
    recogniser = hearing()
    done = resynthesis(root, tmp_path, "--original", "--data", str(root / "data"), "--limit", "2", "--json")
    assert done.status == 0, done.err
    for number, utterance in zip(range(2), texted(root), strict=False):
        samples, _ = soundfile.read(root / "data" / "few" / f"{utterance.id}.wav", dtype="float32")
        np.testing.assert_array_equal(recogniser.heard[2 * number + 1], samples)
    samples = lines(tmp_path / "samples.jsonl")
    texts = [[sample[name] for sample in samples] for name in ("text", "pred_text", "original_pred_text")]
    assert texts[2] == [f"words {len(recogniser.heard[number])}" for number in (1, 3)]
    normalise = find_normaliser("en")
    plain = [list(map(normalise, some)) for some in texts]
    (rates,) = done.json["results"].values()
    for name, prefix in (("pred_text", ""), ("original_pred_text", "original_")):
        heard = plain[1 if name == "pred_text" else 2]
        assert rates[f"{prefix}wer"] == jiwer.wer(plain[0], heard)
        assert rates[f"{prefix}cer"] == jiwer.cer(plain[0], heard)
    (comparison,) = done.json["comparisons"]
    assert comparison["second"] == "the original audio"
    assert comparison["difference"] == pytest.approx(rates["wer"] - rates["original_wer"])
    assert "Against the original audio, 2 utterances in common" in done.out


def test_other_audio_than_was_encoded_is_no_original(root, tmp_path, hearing):
    hearing()
    write_corpus(tmp_path / "data" / "few", LENGTHS[::-1])
    (tmp_path / "data" / "few" / f"{NAMES[0]}.wav").unlink()
    done = resynthesis(root, tmp_path / "to", "--original", "--data", str(tmp_path / "data"))
    assert done.status == 1
    assert done.err.count("is not the audio that was encoded") == 3
    assert f"{NAMES[0]}: {tmp_path / 'data' / 'few'} has no utterance of this id" in done.err
    assert ["Utterances", "0"] in [line.split() for line in done.out.splitlines()]
    assert (tmp_path / "to" / "report.html").is_file()


def test_saved_audio_is_what_was_heard_also_after_transcribing(root, tmp_path, hearing):
    recogniser = hearing()
    resynthesis(root, tmp_path, "--limit", "1")
    resynthesis(root, tmp_path, "--limit", "2", "--save-audio")
    assert len(recogniser.heard) == 2
    for utterance, heard in zip(texted(root), recogniser.heard, strict=False):
        kept, rate = soundfile.read(tmp_path / "audio" / f"{member_key(utterance.id)}.wav", dtype="float32")
        np.testing.assert_array_equal(kept, heard)
        assert rate == 16000
    assert (tmp_path / "report.html").read_text().count('src="data:audio/mpeg') >= 2


def test_transcripts_of_another_request_are_not_taken(root, tmp_path, hearing, monkeypatch):
    hearing()
    assert resynthesis(root, tmp_path / "to", "--limit", "1").status == 0
    done = resynthesis(root, tmp_path / "to", "--quantizers", "0-3")
    assert done.status == 2
    assert "holds transcripts of another request (quantizers: [0, 3] against [0, 7]); give another --to" in done.err
    with open(tmp_path / "to" / "transcripts.jsonl", "a") as file:
        file.write("{}\n")
    assert "line 3, is damaged: KeyError('text')" in resynthesis(root, tmp_path / "to").err
    model = tmp_path / "any"
    model.mkdir()
    monkeypatch.chdir(tmp_path)
    (model / "model.bin").write_text("once")
    assert resynthesis(root, tmp_path / "other", "--limit", "1").status == 0
    (model / "model.bin").write_text("fine-tuned")
    assert "recogniser_files: " in resynthesis(root, tmp_path / "other", "--limit", "1").err


def test_two_processes_do_not_write_one_folder(tmp_path):
    with (
        Transcripts(tmp_path, {"one": 1}),
        pytest.raises(EvaluationError, match="is held by another process; wait for it, or give another --to"),
        Transcripts(tmp_path, {"one": 1}),
    ):
        pass


def test_another_codec_is_refused(root, tmp_path, hearing):
    hearing()
    save_speechtokenizer(tmp_path / "other", seed=1)
    Codecs(tmp_path).folder("dac")
    store, to = str(root / "store"), str(tmp_path / "to")
    for word, reason in (
        (["--codec", str(tmp_path / "other")], 'other is not the codec that made [^ ]+: weights: "[0-9a-f.]+" against'),
        (
            ["--codec", str(tmp_path / "dac")],
            'encoder.class: "DacModel" against "SpeechTokenizer"; .*; [0-9]+ more; give',
        ),
        (["--codec", "fbank"], "fbank is no codec and cannot decode"),
        ([], "the codec of [^ ]+ is not found by its name: no encoder 'small'.*give its folder with --codec"),
    ):
        done = run(main, [store, "--asr", "any", "--to", to, *word])
        assert done.status == 2
        assert done.err.count("\n") == 1
        assert re.search(reason, done.err), done.err
    assert not (tmp_path / "to").exists()


def test_what_cannot_be_meant_is_refused(root, tmp_path, hearing):
    hearing()
    write_corpus(tmp_path / "data" / "few", [0.4])
    (tmp_path / "data" / "few" / "utt-000.txt").unlink()
    for encoder in ("fbank", str(root / "small")):
        extract(tmp_path / "data", "few", tmp_path / Path(encoder).name, encoder=encoder)
    for store, options, reason in (
        (tmp_path / "fbank", [], "no output of [^ ]+ holds codes or latents of a codec; there are fbank"),
        (tmp_path / "small", [], "no utterance of [^ ]+ has a text"),
        (root / "store", ["--quantizers", "5-8"], "--quantizers 5-8: codes holds quantizers 0 to 7"),
        (root / "store", ["--quantizers", "all"], "'all': give one number or a range"),
        (root / "store", ["--output", "latents", "--quantizers", "0"], "the sum of quantizers 0 to 7, which cannot"),
        (root / "store", ["--output", "layer-09"], "no output 'layer-09'"),
        (root / "store", ["--device", "gpu"], "device 'gpu': take auto, cpu, cuda or cuda:N"),
        (root / "store", ["--language", "english!"], "'english!' is no language code"),
    ):
        arguments = [str(store), "--asr", "any", "--codec", str(root / "small"), "--to", str(tmp_path / "to"), *options]
        done = run(main, arguments)
        assert done.status == 2
        assert re.search(reason, done.err), done.err
    assert not (tmp_path / "to").exists()


def test_a_real_recogniser_from_end_to_end(root, tmp_path):
    arguments = [str(root / "store"), "--asr", str(ctranslate2_whisper()), "--codec", str(root / "small")]
    done = run(main, [*arguments, "--to", str(tmp_path), "--limit", "1", "--device", "cpu", "--json"])
    assert done.status == 0, done.err
    assert done.json["config"]["recogniser"].startswith("model|beam:5")
    assert len(lines(tmp_path / "samples.jsonl")) == 1
