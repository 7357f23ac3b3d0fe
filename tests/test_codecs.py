"""The promise of every codec: codes are, bit for bit, those of transformers on the utterance alone; and they decode again."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from checkpoints import relative, speechlike
from codec_checkpoints import CODECS, Codecs
from commands import extract, feature_store, split_folder, write_corpus
from encodeonce.extract.audio import resample
from encodeonce.extract.cache import FileCache
from encodeonce.extract.encode import BatchEncoder, Cutting
from encodeonce.extract.encoders import dac, encodec, mimi, xcodec, xcodec2
from encodeonce.extract.encoders.base import EncoderError
from encodeonce.extract.encoders.codec import Codec, LoadedCodec
from encodeonce.extract.encoders.registry import find_encoder
from encodeonce.store import FeatureStore
from encodeonce.store.codebooks import read_codebooks
from hypothesis import given, settings
from hypothesis import strategies as st

ALL = sorted(CODECS)
RESIDUAL = [name for name in ALL if CODECS[name].layers is not None]
SCALAR = [name for name in ALL if CODECS[name].layers is None]
"""Of one quantizer."""
CUT = Cutting(1.0, 0.1)
"""Shorter than most audio here: a codec does not care."""


@pytest.fixture(scope="session")
def codecs(tmp_path_factory) -> Codecs:
    return Codecs(tmp_path_factory.mktemp("codecs"))


@pytest.fixture
def copied(codecs, tmp_path):
    """A copy of a checkpoint, to be changed."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(codecs.folder(name), tmp_path / name))

    return copy


def codec(folder: Path) -> Codec:
    found = find_encoder(str(folder), FileCache(folder.parent / f"cache-{folder.name}"))
    assert isinstance(found, Codec)
    return found


def loaded(folder: Path, chosen: str = "codes") -> LoadedCodec:
    encoder = codec(folder)
    return encoder.load("cpu", "float32", encoder.outputs(chosen, "float32"))


def encoded(folder: Path, chosen: str, audio: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """What the outputs hold of a batch of utterances."""
    encoder = codec(folder)
    ready = encoder.load("cpu", "float32", encoder.outputs(chosen, "float32"))
    return BatchEncoder(encoder, ready, CUT, "float32", lambda: ready).encode(audio)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def utterances(name: str) -> list[np.ndarray]:
    """Of mixed lengths, the longest first: whole frames, a sample more, a sample less, one frame."""
    hop = CODECS[name].hop
    lengths = [83 * hop + hop // 3, hop, hop + 1, 2 * hop - 1, 7 * hop, 40 * hop + 5]
    return [speechlike(length, seed) for seed, length in enumerate(lengths)]


@pytest.mark.parametrize("name", ALL)
def test_codes_are_those_of_the_utterance_alone(name, codecs):
    audio = utterances(name)
    expected = [codecs.reference(name).codes(x) for x in audio]
    quantizers = expected[0].shape[1]

    for count in (1, len(audio)):
        for found, codes in zip(encoded(codecs.folder(name), "codes", audio[:count]), expected, strict=False):
            np.testing.assert_array_equal(found[f"codes[0-{quantizers - 1}]"], codes)
    # Were a few entries all that is ever used, equal codes would say little.
    assert min(len(np.unique(column)) for column in expected[0].T) >= 10


@pytest.mark.parametrize("name", RESIDUAL)
def test_latents_are_what_the_decoder_takes(name, codecs):
    (found,) = encoded(codecs.folder(name), "codes,latents,latents:0-1,latents:1-2", utterances(name)[:1])
    last = codec(codecs.folder(name)).outputs("codes", "float32")[0].width - 1
    codes, reference = found[f"codes[0-{last}]"], codecs.reference(name)
    books = loaded(codecs.folder(name)).quantizers

    assert relative(found[f"latents[0-{last}]"], reference.latents(codes)) < 1e-5
    assert relative(found["latents[0-1]"], reference.latents(codes[:, :2])) < 1e-5
    assert relative(found["latents[0-1]"], books.vectors(codes, (0, 1))) < 1e-5
    assert relative(found["latents[1-2]"], books.vectors(codes, (1, 2))) < 1e-5


@pytest.mark.parametrize("name", SCALAR)
def test_latents_of_the_only_quantizer_are_what_the_decoder_takes(name, codecs):
    (found,) = encoded(codecs.folder(name), "codes,latents", utterances(name)[:1])
    codes, books = found["codes[0-0]"], loaded(codecs.folder(name)).quantizers

    assert books.sizes == (65_536,)
    assert relative(found["latents[0-0]"], codecs.reference(name).latents(codes)) < 1e-5
    assert relative(found["latents[0-0]"], books.vectors(codes)) < 1e-5


def test_neucodec_decodes_at_another_rate_than_it_listens_at(codecs):
    ready, codes = loaded(codecs.folder("neucodec")), codecs.reference("neucodec").codes(speechlike(16_000, 0))

    assert (ready.sample_rate, ready.decoded_rate) == (16_000, 24_000)
    assert len(codes) == 50
    assert len(ready.decode_codes(codes)) == 24_000


def test_an_xcodec2_decodes_where_torchaudio_does_not_load(codecs, monkeypatch):
    def without(**options: Any) -> None:
        raise ImportError("no torchaudio here")

    codes = codecs.reference("xcodec2").codes(speechlike(16_000, 0))
    monkeypatch.setattr("transformers.Xcodec2FeatureExtractor", without)
    ready = codec(codecs.folder("xcodec2")).load("cpu", "float32", [])
    np.testing.assert_array_equal(ready.decode_codes(codes), codecs.reference("xcodec2").audio(codes))
    with pytest.raises(EncoderError, match="needs torchaudio to encode, which does not load: no torchaudio here"):
        loaded(codecs.folder("xcodec2"))


@pytest.mark.parametrize(("seconds", "most"), [(0.5, 2), (0.6, 1)])
def test_threads_take_turns_at_audio_whose_attention_is_large(seconds, most, codecs, monkeypatch):
    """At shorter audio both compute at the same time."""
    ready, meeting = loaded(codecs.folder("xcodec2")), Barrier(most)
    assert isinstance(ready, xcodec2.LoadedXcodec2)
    encode, inside, together = ready.model.encode, [], []

    def watched(**inputs: torch.Tensor) -> Any:
        inside.append(inputs)
        meeting.wait(10)
        time.sleep(0.05)
        together.append(len(inside))
        codes = encode(**inputs)
        inside.pop()
        return codes

    monkeypatch.setattr(xcodec2, "TOGETHER_SECONDS", 0.5)
    monkeypatch.setattr(ready.model, "encode", watched)
    audio = torch.from_numpy(speechlike(int(16_000 * seconds), 0))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: ready.encode_one(audio), range(2))
    assert torch.equal(first, second)
    assert max(together) == most


@pytest.mark.parametrize(
    ("file", "values", "named"),
    [
        ("config.json", {"downsampling_ratios": [2, 2, 4, 4, 4]}, "has 256 samples a frame"),
        ("preprocessor_config.json", {"hop_length": 640}, "pads audio to multiples of 640"),
        ("config.json", {"semantic_model_config": {"model_type": "hubert"}}, "listens with 'hubert'"),
        ("config.json", {"semantic_model_config": {"add_adapter": True}}, "add_adapter"),
        ("config.json", {"quantization_levels": [8] * 6}, "262,144 entries"),
    ],
)
def test_an_xcodec2_whose_inputs_would_not_fit_together_is_refused(file, values, named, copied):
    folder = copied("xcodec2")
    change(folder / file, **values)
    with pytest.raises(EncoderError, match=named):
        codec(folder)


def test_what_a_codec_of_one_quantizer_has_no_outputs_for_is_named(codecs):
    with pytest.raises(EncoderError, match=r"no quantizers codes:1; there are 0 to 0"):
        codec(codecs.folder("xcodec2")).outputs("codes:1", "float16")
    with pytest.raises(EncoderError, match=r"such as codes:0$"):
        codec(codecs.folder("xcodec2")).outputs("layer", "float16")


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_frames_are_known_from_samples(name, data, codecs):
    encoder, hop = codec(codecs.folder(name)), CODECS[name].hop
    samples = data.draw(st.integers(hop, 12 * hop) | st.integers(1, 12).map(lambda k: k * hop))

    assert encoder.frames(samples) == len(codecs.reference(name).codes(speechlike(samples, 0)))
    assert encoder.frames(hop - 1) == 0


@pytest.mark.parametrize("name", ALL)
def test_codes_decode_to_the_audio_of_the_reference(name, codecs):
    reference, ready = codecs.reference(name), loaded(codecs.folder(name))
    for audio in utterances(name)[:3]:
        codes = reference.codes(audio)
        expected = reference.audio(codes)

        np.testing.assert_array_equal(ready.decode_codes(codes.astype(np.uint16)), expected)
        np.testing.assert_array_equal(ready.decode_codes(codes[:, :2]), reference.audio(codes[:, :2]))
        assert relative(ready.decode_latents(ready.quantizers.vectors(codes)), expected) < 1e-4


@pytest.mark.parametrize("name", ALL)
def test_one_loaded_codec_serves_several_threads(name, codecs):
    ready, audio = loaded(codecs.folder(name)), utterances(name)

    def codes(x: np.ndarray) -> torch.Tensor:
        (found,) = ready.forward(torch.from_numpy(x)[None], [len(x)]).values()
        return found

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(codes, audio))
    assert all(torch.equal(a, b) for a, b in zip(together, map(codes, audio), strict=True))


def test_fewer_quantizers_are_a_lower_bandwidth(codecs):
    audio = utterances("encodec")[:1]
    (found,) = encoded(codecs.folder("encodec"), "codes:0-1,codes:0-3", audio)
    reference = codecs.reference("encodec")

    np.testing.assert_array_equal(found["codes[0-1]"], reference.codes(audio[0], bandwidth=0.9))
    np.testing.assert_array_equal(found["codes[0-3]"], reference.codes(audio[0], bandwidth=1.8))


def test_mimi_takes_the_whole_utterance_also_where_its_configuration_streams(codecs, copied):
    audio, folder = utterances("mimi")[:2], copied("mimi")
    change(folder / "config.json", use_streaming=True, use_cache=True)

    for found, x in zip(encoded(folder, "codes", audio), audio, strict=True):
        np.testing.assert_array_equal(found["codes[0-3]"], codecs.reference("mimi").codes(x))


def test_padding_is_counted_exactly_beyond_what_float32_holds(codecs):
    ready: Any = loaded(codecs.folder("encodec"))
    strided = [module for module in ready.model.modules() if hasattr(module, "_get_extra_padding_for_conv1d")]
    assert {int(module.stride) for module in strided} == {1, 2, 4, 5, 8}
    for module in strided:
        for length in (1, 77, 320, (1 << 24) + 1, (1 << 24) + 64, (1 << 25) + 3):
            states = torch.empty(1, 1, length, device="meta")
            assert (length + module._get_extra_padding_for_conv1d(states)) % int(module.stride) == 0
            assert 0 <= module._get_extra_padding_for_conv1d(states) < int(module.stride)


@pytest.mark.parametrize(
    ("family", "config", "named"),
    [
        (encodec.Encodec, transformers.EncodecConfig(), {"codebook_dim": 128}),
        (dac.Dac, transformers.DacConfig(), {"hidden_size": 1024}),
        (mimi.Mimi, transformers.MimiConfig(), {"frame_rate": 12.5, "head_dim": 64}),
        (xcodec.Xcodec, transformers.XcodecConfig(), {"codebook_dim": 1024}),
        (xcodec.HiggsAudioTokenizer, transformers.HiggsAudioV2TokenizerConfig(), {"codebook_dim": 64}),
        (xcodec2.Xcodec2, transformers.Xcodec2Config(), {"codebook_size": 65_536}),
        (xcodec2.NeuCodec, transformers.NeuCodecConfig(), {"codebook_size": 65_536, "output_sampling_rate": 24000}),
    ],
)
def test_what_a_configuration_leaves_out_has_the_default_of_transformers(family, config, named):
    bare, written = family.__new__(family), json.loads(config.to_json_string(use_diff=False))
    found = bare.computed({"model_type": config.model_type})

    assert found == bare.computed(written)
    assert found.items() >= named.items()
    bare.config = found
    if family in (xcodec2.Xcodec2, xcodec2.NeuCodec):
        assert bare.quantizers() == 1
        assert bare.hop() == getattr(config, "encoder_hop_length", config.hop_length) == 320
    else:
        assert bare.quantizers() == getattr(config, "num_quantizers", None) or config.n_codebooks
        assert bare.hop() == getattr(config, "frame_size", None) or config.hop_length


def test_the_identity_knows_what_makes_the_codes(copied):
    folder = copied("mimi")
    before = codec(folder).identity()

    change(folder / "config.json", trim_right_ratio=1, use_streaming=True, transformers_version="4.45.0")
    assert codec(folder).identity() == before
    change(folder / "config.json", sliding_window=8)
    assert codec(folder).identity()["encoder"] != before["encoder"]
    CODECS["mimi"].save(folder, seed=1)
    assert codec(folder).identity()["weights"] != before["weights"]


def test_the_identity_knows_what_audio_is_padded_to(copied):
    folder = copied("dac")
    before = codec(folder).identity()
    change(folder / "preprocessor_config.json", hop_length=640)
    assert codec(folder).identity() != before


def test_extracted_codes_are_kept_with_their_codebooks(codecs, tmp_path):
    data, store, rate = tmp_path / "data", tmp_path / "features", 16000
    (data / "dev").mkdir(parents=True)
    for number, samples in enumerate((20000, 1000, 16001, 9999)):
        soundfile.write(data / "dev" / f"utt-{number}.wav", speechlike(samples, number), rate, subtype="FLOAT")

    done = extract(data, "dev", store, "--outputs", "codes,latents:1-3", encoder=str(codecs.folder("mimi")))
    assert (done.status, done.counts()) == (1, (3, 0, 0, 1))
    assert "utt-1" in done.err
    assert "too short" in done.err

    split = split_folder(store, "dev")
    read = FeatureStore(split)
    assert read.frame_rate == 12.5
    books = read_codebooks(split.parent / "codebooks" / "codes.safetensors")
    reference = codecs.reference("mimi")
    for utterance in read.ids:
        audio, _ = soundfile.read(data / "dev" / f"{utterance}.wav", dtype="float32")
        codes = read[utterance]["codes"]
        np.testing.assert_array_equal(codes, reference.codes(resample(audio, rate, 24000)))
        assert relative(read[utterance]["latents-1-3"], books.vectors(codes, (1, 2, 3))) < 1e-3
    shown = feature_store("info", split)
    assert "codes" in shown.out
    assert "latents-1-3" in shown.out


def test_codebooks_that_are_lost_are_found_and_written_again(codecs, tmp_path):
    data, store, folder = tmp_path / "data", tmp_path / "features", str(codecs.folder("encodec"))
    write_corpus(data / "dev", [0.5, 0.8])
    assert extract(data, "dev", store, "--outputs", "codes,codes:1-2", encoder=folder).status == 0
    split = split_folder(store, "dev")
    kept = split.parent / "codebooks" / "codes-1-2.safetensors"
    whole = kept.read_bytes()
    assert feature_store("verify", split).status == 0

    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    damaged = feature_store("verify", "--quick", split)
    assert (damaged.status, str(kept) in damaged.err) == (1, True), damaged.err
    kept.unlink()
    lost = feature_store("verify", "--quick", split)
    assert (lost.status, "codebooks of [64, 64] vectors, found no such file" in lost.err) == (1, True), lost.err

    again = extract(data, "dev", store, "--outputs", "codes", encoder=folder)
    assert again.counts() == (0, 0, 2, 0)
    assert kept.read_bytes() == whole
    assert feature_store("verify", split).status == 0


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"audio_channels": 2}, "2 channels"),
        ({"normalize": True, "chunk_length_s": 1.0}, "scaled by its loudness, in chunks of 1.0 s"),
        ({"target_bandwidths": [0.1]}, "no quantizer"),
    ],
)
def test_an_encodec_that_codes_alone_do_not_describe_is_refused(values, named, copied):
    folder = copied("encodec")
    change(folder / "config.json", **values)
    with pytest.raises(EncoderError, match=named):
        codec(folder)


def test_weights_of_another_architecture_are_refused(codecs, copied):
    folder = copied("encodec")
    shutil.copy(codecs.folder("dac") / "model.safetensors", folder)
    with pytest.raises(EncoderError, match="lacks weights of EncodecModel"):
        loaded(folder)


@pytest.mark.parametrize(
    ("file", "values", "named"),
    [
        (
            "config.json",
            {"codebook_size": 32},
            r"weights do not fit its config.json, e.g. .* is \[64\] and should be \[32\]",
        ),
        ("config.json", {"codebook_size": "many"}, "configuration that cannot be used"),
        ("preprocessor_config.json", {"hop_length": 0}, "configuration that cannot be used"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(file, values, named, copied):
    folder = copied("xcodec")
    change(folder / file, **values)
    with pytest.raises(EncoderError, match=named):
        loaded(folder)


def test_missing_weights_are_refused(copied):
    folder = copied("mimi")
    (folder / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match="holds no weights"):
        codec(folder)


def test_a_codebook_beyond_uint16_is_refused(copied):
    folder = copied("dac")
    change(folder / "config.json", codebook_size=131072)
    with pytest.raises(EncoderError, match="131,072 entries"):
        codec(folder).outputs("codes", "float16")


def test_an_unknown_semantic_part_is_refused(copied):
    folder = copied("xcodec")
    semantic = json.loads((folder / "config.json").read_text())["semantic_model_config"]
    change(folder / "config.json", semantic_model_config={**semantic, "model_type": "whisper"})
    with pytest.raises(EncoderError, match="'whisper'"):
        codec(folder)


@pytest.mark.parametrize(
    ("codes", "named"),
    [
        (np.zeros((3, 9), np.uint16), r"shape \[3, 9\]"),
        (np.zeros((0, 8), np.uint16), r"shape \[0, 8\]"),
        (np.zeros((3, 8), np.float32), "float32"),
        (np.full((3, 8), 64, np.uint16), "code 64 in column 0"),
        (np.full((3, 8), -1, np.int64), "code -1 in column 0"),
    ],
)
def test_what_is_no_code_of_the_codec_is_not_decoded(codes, named, codecs):
    with pytest.raises(EncoderError, match=named):
        loaded(codecs.folder("encodec")).decode_codes(codes)


def test_latents_of_another_width_are_not_decoded(codecs):
    with pytest.raises(EncoderError, match=r"latents \[T, 16\]"):
        loaded(codecs.folder("encodec")).decode_latents(np.zeros((3, 8), np.float32))
