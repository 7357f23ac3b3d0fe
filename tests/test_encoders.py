"""The promise of every encoder: an utterance's features are those that it has alone, by the model as transformers runs it."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from checkpoints import FAMILIES, LAYERS, MOONSHINE, Checkpoints, reference, relative, speechlike
from encodeonce.extract.batching import windows
from encodeonce.extract.cache import FileCache
from encodeonce.extract.encode import BatchEncoder, Cutting
from encodeonce.extract.encoders.base import Encoder
from encodeonce.extract.encoders.registry import find_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.moonshine.modeling_moonshine import MoonshineEncoder

TOLERANCE = 1e-4
CUT = Cutting(60.0, 5.0)
SHORTEST, LONGEST = 900, 8000
CONVOLUTIONS = [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> FileCache:
    return FileCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def real_moonshine() -> Path:
    data = os.environ.get("ENCODEONCE_TEST_DATA")
    if not data:
        pytest.skip("ENCODEONCE_TEST_DATA is not set: the real Moonshine encoder lies beside that folder")
    return Path(data).parent / "models" / "moonshine-tiny-encoder"


def batch_encoder(
    encoder: Encoder, layers: str = "last", precision: str = "float32", cut: Cutting = CUT
) -> BatchEncoder:
    outputs = encoder.outputs(layers, "float32")
    loaded = encoder.load("cpu", precision, outputs)
    return BatchEncoder(encoder, loaded, cut, precision, lambda: encoder.load("cpu", "float32", outputs))


def lengths_of(count: int) -> list[int]:
    """Mixed lengths; the first fills the batch, some are a sample apart, one gives a single frame."""
    drawn = np.random.default_rng(count).integers(SHORTEST, LONGEST, count).tolist()
    return [LONGEST, SHORTEST, 2000, 2001, *drawn][:count]


def utterances(count: int) -> list[np.ndarray]:
    return [speechlike(length, seed) for seed, length in enumerate(lengths_of(count))]


@pytest.mark.parametrize("name", FAMILIES)
def test_features_never_depend_on_what_shares_the_batch(name, checkpoints, cache):
    encode = batch_encoder(find_encoder(str(checkpoints.folder(name)), cache)).encode
    audio = utterances(64)
    expected = [checkpoints.reference(name, x)[-1] for x in audio]

    for count in (1, 4, 64):
        found = encode(audio[:count])
        assert len(found) == count
        for frames, alone in zip(found, expected, strict=False):
            (values,) = frames.values()
            assert values.dtype == np.float32
            assert relative(values, alone) < TOLERANCE


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_one_loaded_encoder_serves_several_threads(name, checkpoints, cache):
    encoder = find_encoder(str(checkpoints.folder(name)), cache)
    if not encoder.parallel:
        pytest.skip(f"{name} says that it is not parallel, and a run gives it one thread")
    encode = batch_encoder(encoder).encode
    batches = [utterances(12)[first : first + size] for size in (1, 3) for first in range(0, 12, size)]
    alone = [encode(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(encode, batches * 3))
    for one, other in zip(alone * 3, together, strict=True):
        for frames, threaded in zip(one, other, strict=True):
            for what, values in frames.items():
                assert relative(threaded[what], values) < TOLERANCE


@pytest.mark.parametrize("name", ["hubert-base", "wav2vec2-large", "conformer-rotary", "moonshine-whole"])
def test_order_in_the_batch_does_not_matter(name, checkpoints, cache):
    encode = batch_encoder(find_encoder(str(checkpoints.folder(name)), cache)).encode
    audio = utterances(6)
    forward, backward = encode(audio), encode(audio[::-1])[::-1]
    for one, other in zip(forward, backward, strict=True):
        for what, values in one.items():
            assert relative(values, other[what]) < TOLERANCE


@pytest.mark.parametrize(
    "name", ["hubert-base", "hubert-batch-norm", "wavlm-base", "data2vec-audio", "moonshine-whole"]
)
def test_the_tiny_models_would_show_a_leak(name, checkpoints):
    """Padded naively, transformers itself moves these features far beyond the tolerance: the tests above can fail."""
    audio = speechlike(4000, 3)
    family = FAMILIES[name]
    model = family.encoder_of(family.saved.from_pretrained(checkpoints.folder(name)).eval())
    padded = torch.zeros(1, LONGEST)
    padded[0, : len(audio)] = torch.from_numpy(audio)
    mask = (torch.arange(LONGEST) < len(audio)).long()[None]
    alone = reference(model, audio)[-1]
    with torch.no_grad():
        naive = model(padded, attention_mask=mask).last_hidden_state[0, : len(alone)].numpy()
    assert relative(naive, alone) > 20 * TOLERANCE


@pytest.mark.shared
def test_real_moonshine_on_real_speech_equals_transformers_one_by_one(real_moonshine, cache):
    soundfile = pytest.importorskip("soundfile")
    data = Path(os.environ["ENCODEONCE_TEST_DATA"])
    files = sorted((data / "LibriSpeech" / "train-clean-5").rglob("*.flac"))[:8]
    audio = [soundfile.read(path, dtype="float32")[0][: 16000 * (2 + i)] for i, path in enumerate(files)]
    model = MoonshineEncoder.from_pretrained(real_moonshine).eval()

    found = batch_encoder(find_encoder(str(real_moonshine), cache), "0,3,6").encode(audio)

    for x, frames in zip(audio, found, strict=True):
        alone = reference(model, x)
        for layer in (0, 3, 6):
            assert relative(frames[f"hidden_states[{layer}]"], alone[layer]) < TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_numbered_as_transformers_numbers_hidden_states(name, checkpoints, cache):
    encoder = find_encoder(str(checkpoints.folder(name)), cache)
    audio = utterances(4)
    alone = [checkpoints.reference(name, x) for x in audio]
    last = len(alone[0]) - 1

    for layers, numbers in {"all": range(last + 1), f"0,{last}": [0, last], "0": [0], "1": [1], "0-1": [0, 1]}.items():
        found = batch_encoder(encoder, layers).encode(audio)
        for frames, states in zip(found, alone, strict=True):
            assert list(frames) == [f"hidden_states[{number}]" for number in numbers]
            for number in numbers:
                assert relative(frames[f"hidden_states[{number}]"], states[number]) < TOLERANCE


@pytest.mark.parametrize("name", ["hubert-base", "hubert-large", "conformer-relative", "moonshine-whole"])
def test_no_layer_beyond_the_deepest_asked_for_is_run(name, checkpoints, cache):
    encoder = find_encoder(str(checkpoints.folder(name)), cache)
    for layers, deepest in {"0": 0, "1": 1, "0,2": 2, "last": LAYERS}.items():
        model = batch_encoder(encoder, layers).loaded.model  # pyrefly: ignore[missing-attribute]
        assert len(getattr(model, "encoder", model).layers) == deepest


def test_outputs_are_named_by_layer_and_dtype(checkpoints, cache):
    encoder = find_encoder(str(checkpoints.folder("hubert-base")), cache)
    assert [o.name for o in encoder.outputs("last", "float16")] == ["layer-03"]
    assert [o.name for o in encoder.outputs("2, 0-1", "int8")] == ["layer-00-int8", "layer-01-int8", "layer-02-int8"]
    assert [(o.width, o.dtype) for o in encoder.outputs("all", "float32")] == [(32, "float32")] * 4


@settings(max_examples=200, deadline=None)
@given(samples=st.integers(1, 400_000))
def test_frame_counts_follow_the_convolutions(samples, checkpoints, cache):
    """Against the chain of convolutions with its floor at every step."""
    for name, chain in {"hubert-base": CONVOLUTIONS, "moonshine-encoder": [(127, 64), (7, 3), (3, 2)]}.items():
        count = samples
        for kernel, stride in chain:
            count = (count - kernel) // stride + 1 if count >= kernel else 0
        assert find_encoder(str(checkpoints.folder(name)), cache).frames(samples) == count


@settings(max_examples=25, deadline=None)
@given(extra=st.integers(0, 9000))
@pytest.mark.parametrize(
    "name", ["hubert-large", "wavlm-base", "data2vec-audio", "conformer-rotary", "moonshine-encoder"]
)
def test_frame_counts_are_the_models_own(name, extra, checkpoints, cache):
    encoder = find_encoder(str(checkpoints.folder(name)), cache)
    samples = encoder.receptive_field + extra
    assert encoder.frames(samples) == len(checkpoints.reference(name, speechlike(samples, 0))[0])
    assert encoder.frames(encoder.receptive_field - 1) == 0


@pytest.mark.parametrize("normalise", [True, False])
def test_input_is_normalised_as_the_preprocessor_says(normalise, checkpoints, cache, tmp_path):
    model = FAMILIES["hubert-large"].model()
    model.save_pretrained(tmp_path)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise)
    extractor.save_pretrained(tmp_path)
    encoder = find_encoder(str(tmp_path), cache)
    assert encoder.normalise is normalise

    audio = utterances(4)
    found = batch_encoder(encoder).encode([encoder.prepare(x) for x in audio])

    for x, frames in zip(audio, found, strict=True):
        values = extractor(x, sampling_rate=16000, return_tensors="np")["input_values"][0]
        assert relative(frames["hidden_states[3]"], reference(model, values)[-1]) < TOLERANCE


def test_a_preprocessor_that_says_nothing_normalises_as_its_class_does(cache, tmp_path):
    FAMILIES["hubert-base"].model().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"feature_extractor_type": "Wav2Vec2FeatureExtractor"}')
    assert transformers.AutoFeatureExtractor.from_pretrained(tmp_path).do_normalize is True
    assert find_encoder(str(tmp_path), cache).normalise is True


def test_the_preprocessor_inside_a_processor_counts(cache, tmp_path):
    FAMILIES["hubert-base"].model().save_pretrained(tmp_path)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    (tmp_path / "processor_config.json").write_text(f'{{"feature_extractor": {extractor.to_json_string()}}}')
    assert find_encoder(str(tmp_path), cache).normalise is True


def test_without_a_preprocessor_audio_is_taken_as_it_is(checkpoints, cache):
    encoder = find_encoder(str(checkpoints.folder("hubert-base")), cache)
    audio = speechlike(2000, 1)
    assert encoder.prepare(audio) is audio


@pytest.mark.parametrize("name", ["hubert-base", "moonshine-encoder"])
def test_long_audio_is_encoded_in_the_documented_windows(name, checkpoints, cache):
    encoder = find_encoder(str(checkpoints.folder(name)), cache)
    audio = [speechlike(150 * 16000, 1), speechlike(5000, 2)]

    long, short = (f["hidden_states[3]"] for f in batch_encoder(encoder, cut=CUT).encode(audio))

    assert len(long) == encoder.frames(len(audio[0]))
    assert relative(short, checkpoints.reference(name, audio[1])[-1]) < TOLERANCE
    cuts = windows(len(audio[0]), encoder.samples_per_frame, encoder.receptive_field, 60 * 16000, 5 * 16000)
    assert len(cuts) > 1
    done = 0
    for cut in cuts:
        alone = checkpoints.reference(name, audio[0][cut.start : cut.stop])[-1][cut.first : cut.last]
        assert relative(long[done : done + len(alone)], alone) < TOLERANCE
        done += len(alone)
    assert done == len(long)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_is_close(name, precision, checkpoints, cache):
    encoding = batch_encoder(find_encoder(str(checkpoints.folder(name)), cache), precision=precision)
    audio = [*utterances(4), speechlike(64_000, 9)]
    for x, frames in zip(audio, encoding.encode(audio), strict=True):
        (values,) = frames.values()
        alone = checkpoints.reference(name, x)[-1]
        assert values.dtype == np.float32
        assert np.vdot(values, alone) / np.linalg.norm(values) / np.linalg.norm(alone) > 0.999
    assert encoding.again == 0


def test_a_batch_that_overflows_float16_is_encoded_in_float32_and_counted(cache, tmp_path):
    model = FAMILIES["hubert-large"].model()
    with torch.no_grad():
        model.encoder.layers[1].feed_forward.output_dense.bias.add_(1e5)
    model.save_pretrained(tmp_path)
    encoding = batch_encoder(find_encoder(str(tmp_path), cache), precision="float16")
    audio = utterances(4)

    found = encoding.encode(audio)

    assert encoding.again == 4
    for x, frames in zip(audio, found, strict=True):
        assert relative(frames["hidden_states[3]"], reference(model, x)[-1]) < TOLERANCE
    encoding.encode(audio[:2])
    assert encoding.again == 6


@pytest.mark.parametrize("name", ["hubert-base", "moonshine-encoder"])
def test_a_silent_utterance_does_not_disturb_its_batch(name, checkpoints, cache):
    encode = batch_encoder(find_encoder(str(checkpoints.folder(name)), cache)).encode
    audio = [speechlike(8000, 1), np.zeros(3000, np.float32), speechlike(5000, 2)]
    for x, frames in zip(audio, encode(audio), strict=True):
        assert relative(frames["hidden_states[3]"], checkpoints.reference(name, x)[-1]) < TOLERANCE


def test_half_precision_keeps_rotary_positions_exact(tmp_path, cache):
    """Angles are position times frequency: frequencies in bfloat16 would be off by a radian after some seconds."""
    model = MoonshineEncoder(transformers.MoonshineConfig(**MOONSHINE))
    model.save_pretrained(tmp_path)
    loaded = batch_encoder(find_encoder(str(tmp_path), cache), precision="bfloat16").loaded
    rotary = loaded.model.rotary_emb  # pyrefly: ignore[missing-attribute]
    assert torch.equal(rotary.inv_freq, model.rotary_emb.inv_freq)
