"""transcribe --words: where a Viterbi of our own finds the words, in the file's seconds; and who has none."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from codec_checkpoints import CODECS
from commands import RATE, Done, extract, run, speech, write_corpus
from encodeonce.evaluate.attention.references import force_align
from encodeonce.evaluate.decoding.transcriber import Transcriber, Written
from encodeonce.evaluate.transcription.cli import main
from encodeonce.evaluate.transcription.features import FeatureMaker, Heard
from encodeonce.evaluate.transcription.words import frames_per_emission
from encodeonce.extract.audio import Decoded
from encodeonce.extract.progress import Progress
from encodeonce.store import FeatureStore, Output
from encodeonce.train.batch import FeatureIdentity
from encodeonce.train.checkpoint import Fingerprints, load_checkpoint, save_checkpoint
from encodeonce.train.configure import parse_config
from encodeonce.train.model import AdapterModel, build_model, open_model
from encodeonce.train.objectives.ctc import CTC
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

TEXTS = ["ab cab", "bad deed", "a bed"]
SMALL = {"hidden": 16, "layers": 2, "heads": 2}
CODES = Output("codes", 2, "uint16", "made up", codebook_sizes=(7, 7))
WRITES_AND_HEARS: dict[str, Any] = {
    "adapter": {"name": "window-qformer", "window_frames": 4, **SMALL},
    "objectives": {"stg": {}, "ctc": {}},
    "text": {"tokenizer": "characters", "max_tokens": 12},
}


def best_path(posteriors: np.ndarray, classes: Sequence[int]) -> list[int]:
    """The place in blank, c1, blank, c2 ... blank of each frame, on the likeliest path (Graves et al. 2006, section 4.1)."""
    states = [0] + [one for label in classes for one in (label, 0)]
    score = np.full((len(posteriors), len(states)), -np.inf)
    came = np.zeros(score.shape, int)
    score[0, :2] = posteriors[0, states[:2]]
    for frame in range(1, len(posteriors)):
        for state, label in enumerate(states):
            skips = state > 1 and label and label != states[state - 2]
            before = [state - step for step in (0, 1, 2) if state - step >= 0 and (step < 2 or skips)]
            came[frame, state] = max(before, key=lambda one: score[frame - 1, one])
            score[frame, state] = score[frame - 1, came[frame, state]] + posteriors[frame, label]
    path = [max(len(states) - 1, len(states) - 2, key=lambda one: score[-1, one])]
    for frame in range(len(posteriors) - 1, 0, -1):
        path.append(int(came[frame, path[-1]]))
    return path[::-1]


def frames_of_words(posteriors: np.ndarray, alphabet: Sequence[str], text: str) -> list[tuple[int, int]]:
    path, spans, at = best_path(posteriors, [alphabet.index(letter) for letter in text]), [], 0
    for word in text.split(" "):
        inside = [f for f, place in enumerate(path) if place in {2 * (at + i) + 1 for i in range(len(word))}]
        spans.append((inside[0], inside[-1] + 1))
        at += len(word) + 1
    return spans


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text("abe", min_size=1, max_size=4), min_size=1, max_size=4), st.integers(0, 30), st.integers(0, 999)
)
def test_words_are_where_a_viterbi_finds_them(words: list[str], spare: int, seed: int) -> None:
    text, alphabet = " ".join(words), ["", " ", "a", "b", "e"]
    values = np.random.default_rng(seed).normal(size=(2 * len(text) + spare, 5)).astype(np.float32)
    posteriors = F.log_softmax(torch.from_numpy(3 * values), 1).numpy()
    found = force_align(posteriors, alphabet, text, 0.5)
    assert [word.word for word in found] == words
    assert [(word.start * 2, word.end * 2) for word in found] == frames_of_words(posteriors, alphabet, text)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio, and what fbank, mfcc and a codec make of it."""
    folder = tmp_path_factory.mktemp("made")
    write_corpus(folder / "data" / "dev", (0.7, 1.1, 0.9, 0.6))
    CODECS["encodec"].save(folder / "codec")
    for encoder in ("fbank", "mfcc", str(folder / "codec")):
        store = folder / Path(encoder).name / "features"
        outputs = ("--outputs", "codes") if "codec" in encoder else ()
        done = extract(folder / "data", "dev", store, *outputs, encoder=encoder)
        assert done.status == 0, done.err
    return folder


def train(made: Path, encoder: str, name: str, **config: Any) -> Path:
    """A checkpoint of random weights that write much; trained for nothing."""
    store, folder = FeatureStore(made / encoder / "features"), made / encoder / name
    values = {
        "output_dir": str(folder),
        "data": {"store": str(made / encoder / "features"), "train": ["dev"]},
        "adapter": {"name": "concat-mlp", "concat": 1, "hidden": 16},
        "objectives": {"ctc": {}},
        "training": {"max_steps": 1, "device": "cpu"},
        **config,
    }
    parsed, outputs = parse_config(values), sorted(store.outputs)
    torch.manual_seed(3)
    model = build_model(parsed, [store.spec(name) for name in outputs], TEXTS).eval()
    for weight in model.parameters():
        weight.data.mul_(3 if weight.ndim > 1 else 1)
    identity = FeatureIdentity(store.encoder, store.fingerprint, tuple(outputs))
    save_checkpoint(folder, 1, parsed, model, Fingerprints.of(identity, model), None, {}, best=True)
    return folder


def transcribe(checkpoint: Path, *arguments: str | Path) -> Done:
    return run(main, [str(checkpoint), *map(str, arguments), "--json"])


def opened(checkpoint: Path, made: Path) -> tuple[AdapterModel, list[str]]:
    """A model on fbank, and its characters."""
    model = open_model(load_checkpoint(checkpoint), FeatureStore(made / "fbank" / "features"))
    tokenizer = model.vocabularies.ctc
    assert tokenizer is not None
    return model, [tokenizer.decode([number]) for number in range(tokenizer.size)]


def told(model: AdapterModel, checkpoint: Path, samples: np.ndarray) -> np.ndarray:
    """`[T, C]`, what CTC says of some audio."""
    maker = FeatureMaker(load_checkpoint(checkpoint).fingerprints, Progress(quiet=True), None, None, "cpu")
    objective = model.objectives["ctc"]
    assert isinstance(objective, CTC)
    (values,) = maker.of(Decoded(samples, RATE), "some audio").values
    with torch.inference_mode():
        adapted = model.hear([torch.from_numpy(values.astype(np.float32))[None]], torch.tensor([len(values)])).adapted
        return F.log_softmax(objective.logits(adapted)[0][0], 1).numpy()


@pytest.fixture(scope="module")
def framewise(made: Path) -> Path:
    return train(made, "fbank", "framewise", input={"normalise": "layer"})


def test_times_are_in_the_file_s_seconds_and_nothing_else_changes(made: Path, framewise: Path, tmp_path: Path) -> None:
    long = np.concatenate([speech(1.2, 1), np.zeros(RATE // 2, np.float32), speech(1.3, 2)])
    soundfile.write(tmp_path / "a talk.wav", long, RATE)
    options = (tmp_path / "a talk.wav", "--segment-seconds", "2")
    plain, done = (
        transcribe(framewise, *options),
        transcribe(framewise, *options, "--words", "--output", tmp_path / "to"),
    )
    (bare,), (file,) = plain.json["files"], done.json["files"]
    assert {one["words"] for one in bare["segments"]} == {None}
    assert [{**one, "words": None} for one in file["segments"]] == bare["segments"]
    assert len(file["segments"]) == 2
    model, alphabet = opened(framewise, made)
    for segment in file["segments"]:
        samples = long[round(segment["start"] * RATE) : round(segment["end"] * RATE)]
        posteriors = told(model, framewise, samples)
        wanted = frames_of_words(posteriors, alphabet, " ".join(segment["text"].split()))
        assert [word["word"] for word in segment["words"]] == segment["text"].split()
        assert segment["words"]
        for word, (first, end) in zip(segment["words"], wanted, strict=True):  # fbank: 100 frames a second
            assert word["start"] == pytest.approx(segment["start"] + first / 100, abs=0.0006)
            assert word["end"] == pytest.approx(min(segment["start"] + end / 100, segment["end"]), abs=0.0006)
    assert json.loads((tmp_path / "to" / "a talk.json").read_text()) == file
    words = [word for segment in file["segments"] for word in segment["words"]]
    lines = [line.split() for line in (tmp_path / "to" / "a talk.ctm").read_text().splitlines()]
    assert [(name, channel, text) for name, channel, _, _, text in lines] == [("a_talk", "1", w["word"]) for w in words]
    assert [float(a) for _, _, a, _, _ in lines] == [w["start"] for w in words]
    assert sum(line.startswith("  [") for line in done.out.splitlines()) == len(words)


@pytest.fixture(scope="module")
def writer(made: Path) -> Path:
    """Its Q-Former writes, and CTC hears beside it."""
    return train(made, "fbank", "writer", input={"normalise": "layer"}, **WRITES_AND_HEARS)


def test_what_another_objective_writes_is_aligned_and_what_ctc_does_not_know_is_told(
    made: Path, writer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = iter(["a bed", "a b\u00e9d", "bad deed " * 60, ""])
    monkeypatch.setattr(
        Transcriber, "write", lambda _, __, lengths, *___: [Written(next(texts), (), None, True) for _ in lengths]
    )
    done = transcribe(writer, made / "data" / "dev", "--words", "--quiet", "--writer", "stg")
    assert done.status == 0, done.err
    (one,), (two,), (three,), (four,) = (file["segments"] for file in done.json["files"])
    assert [word["word"] for word in one["words"]] == ["a", "bed"]
    assert one["unaligned"] is None
    assert (two["words"], three["words"], four["words"]) == (None, None, [])
    assert "'\u00e9', which CTC does not know" in two["unaligned"]
    assert "539 characters do not fit" in three["unaligned"]
    assert f"utt-001.wav, times of words from 0.0 s: {two['unaligned']}" in done.err


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({**WRITES_AND_HEARS, "objectives": {"stg": {}}}, "this checkpoint was trained for stg; leave words out"),
        (
            {**WRITES_AND_HEARS, "objectives": {"ctc": {"units": "text"}}, "text": {"tokenizer": "words"}},
            "this checkpoint has a CTC over others (units=text); leave words out",
        ),
    ],
)
def test_who_has_no_ctc_over_characters_is_refused_before_anything_is_loaded(
    made: Path, config: dict[str, Any], told: str, tmp_path: Path
) -> None:
    checkpoint = train(made, "fbank", tmp_path.name, **config)
    (load_checkpoint(checkpoint).folder / "adapter.safetensors").write_bytes(b"never read")
    done = transcribe(checkpoint, made / "data" / "dev", "--words")
    assert done.status == 2
    assert told in done.err


def test_a_machine_without_torchaudio_is_told_before_anything_is_loaded(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = train(made, "fbank", tmp_path.name)
    (load_checkpoint(checkpoint).folder / "adapter.safetensors").write_bytes(b"never read")
    monkeypatch.setitem(sys.modules, "torchaudio.functional", None)
    done = transcribe(checkpoint, made / "data" / "dev", "--words")
    assert done.status == 2
    assert "times of words are told by torchaudio, which does not load: " in done.err


@pytest.mark.parametrize(
    ("adapter", "ctc", "inputs", "frames"),
    [
        ({"name": "concat-mlp", "concat": 3, "hidden": 8}, {}, {}, 3),
        ({"name": "concat-mlp", "concat": 8, "hidden": 8}, {"emissions": 4}, {}, 2),
        ({"name": "window-qformer", "window_frames": 6, "queries_per_window": 4, **SMALL}, {}, {}, 1.5),
        ({"name": "bilstm", "hidden": 8}, {}, {"codes": "interleave"}, 0.5),
    ],
)
def test_emissions_are_so_many_frames_apart(
    adapter: dict[str, Any], ctc: dict[str, Any], inputs: dict[str, Any], frames: float
) -> None:
    values = {"output_dir": "nowhere", "adapter": adapter, "objectives": {"ctc": ctc}, "input": inputs}
    output = CODES if inputs else Output("layer-9", 8, "float16", "made up")
    model = build_model(parse_config({**values, "training": {"max_steps": 1}}), [output], TEXTS)
    assert frames_per_emission(model) == pytest.approx(frames, rel=1e-4)


def test_sampling_depends_on_the_seed_and_not_on_the_other_files(made: Path, writer: Path) -> None:
    def texts(files: Path, seed: int) -> list[str]:
        options = ("--method", "sample", "--temperature", "3", "--top-p", "0.95", "--tokens-per-second", "9")
        done = transcribe(writer, files, *options, "--seed", str(seed))
        assert done.status == 0, done.err
        return [file["pred_text"] for file in done.json["files"]]

    together = texts(made / "data" / "dev", 1)
    assert texts(made / "data" / "dev" / "utt-002.wav", 1) == [together[2]]
    assert texts(made / "data" / "dev", 2) != together
    refused = transcribe(writer, made / "data" / "dev", "--seed", "1")
    assert (refused.status, "seed=1 has no use with method=greedy" in refused.err) == (2, True)


@pytest.mark.parametrize("encoder", ["mfcc", "codec"])
def test_features_and_codes_of_new_audio_are_written_as_those_of_the_store(
    made: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"normalise": "layer"} if encoder == "mfcc" else {}
    checkpoint = train(made, encoder, "trained", input=inputs, adapter={"name": "bilstm", "hidden": 16})
    options = ("--encoder", str(made / encoder)) if encoder == "codec" else ()
    known = transcribe(checkpoint, made / "data" / "dev", *options, "--words")
    assert known.status == 0, known.err
    monkeypatch.setattr(FeatureMaker, "_copied", lambda *_: None)
    new = transcribe(checkpoint, made / "data" / "dev", *options, "--words")
    said = [segment for file in known.json["files"] for segment in file["segments"]]
    assert all(one["stored"] and one["text"] and one["words"] for one in said)
    assert [s for file in new.json["files"] for s in file["segments"]] == [{**one, "stored": False} for one in said]


def test_an_interrupt_leaves_the_files_that_were_done(
    made: Path, framewise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = FeatureMaker.of

    def interrupted(self: FeatureMaker, decoded: Decoded, name: str) -> Heard:
        if name.endswith("utt-003.wav"):
            raise KeyboardInterrupt
        return of(self, decoded, name)

    monkeypatch.setattr(FeatureMaker, "of", interrupted)
    done = transcribe(framewise, made / "data" / "dev", "--frames-per-batch", "1", "--output", tmp_path)
    assert done.status == 130
    assert done.err.splitlines()[-1].startswith("interrupted: files whose text was printed are done")
    assert [line.split("\t")[0] for line in done.out.splitlines()] == [str(made / "data" / "dev" / "utt-000.wav")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"utt-000.{kind}" for kind in ("json", "srt", "txt")]
