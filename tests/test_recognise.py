"""Recognisers of either format give the text they should, whatever the audio's rate and length, and nothing else passes for one."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from checkpoints import LARGE, MOONSHINE, shake
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.metrics.word_errors import word_errors
from encodeonce.evaluate.normalise import find_normaliser
from encodeonce.evaluate.recognise import find_recogniser
from encodeonce.evaluate.recognisers.base import Recogniser
from encodeonce.evaluate.recognisers.pipeline import TransformersRecogniser
from encodeonce.store.errors import StoreError
from torchaudio.functional import resample
from whisper_checkpoint import (
    END_OF_TEXT,
    NO_TIMESTAMPS,
    START_OF_TRANSCRIPT,
    VOCABULARY,
    ctranslate2_whisper,
    real_whisper,
)

RATE = 16000


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real_whisper(tmp_path_factory.mktemp("whisper-tiny.en"))


@pytest.fixture(scope="module")
def ctc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random CTC recogniser with letters for a vocabulary."""
    folder = tmp_path_factory.mktemp("ctc")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefg"]
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**LARGE))
    shake(model, 0)
    model.save_pretrained(folder)
    return folder


def noise(seconds: float, rate: int = RATE) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(int(seconds * rate)).astype(np.float32) / 8


def clean_speech(shared: Path) -> dict[str, np.ndarray]:
    """Transcript -> samples of the utterances of test-clean and dev-clean that are here."""
    speech = {}
    for listing in sorted(shared.glob("LibriSpeech/*-clean/*/*/*.trans.txt")):
        for line in listing.read_text().splitlines():
            name, text = line.split(" ", 1)
            if (listing.parent / f"{name}.flac").is_file():
                speech[text] = soundfile.read(listing.parent / f"{name}.flac", dtype="float32")[0]
    return speech


def test_whisper_made_for_the_tests_is_the_one_in_ctranslate2s_format(whisper):
    """Encoder outputs agree, and greedy decoding gives the same tokens: weights and their names are right."""
    import ctranslate2

    reference = ctranslate2.models.Whisper(str(ctranslate2_whisper()), compute_type="float32", intra_threads=1)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(whisper)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(whisper)
    features = extractor(noise(2.0), sampling_rate=RATE, return_tensors="np")["input_features"]
    stored = ctranslate2.StorageView.from_array(features)
    with torch.no_grad():
        ours = model.get_encoder()(torch.from_numpy(features)).last_hidden_state.numpy()
    theirs = np.array(reference.encode(stored, to_cpu=True))
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
    tokens = model.generate(torch.from_numpy(features), num_beams=1, max_new_tokens=20)[0].tolist()
    expected = reference.generate(stored, [[START_OF_TRANSCRIPT, NO_TIMESTAMPS]], beam_size=1, max_length=22)
    assert [token for token in tokens if token < END_OF_TEXT] == expected[0].sequences_ids[0]


@pytest.mark.shared
def test_both_formats_give_the_same_text_of_real_speech(whisper, shared):
    speech = clean_speech(shared)
    shortest = sorted(speech, key=lambda text: len(speech[text]))[:2]
    normalise = find_normaliser()
    heard = [
        [normalise(text) for text in find_recogniser(str(folder)).transcribe([speech[text] for text in shortest], RATE)]
        for folder in (whisper, ctranslate2_whisper())
    ]
    assert heard[0] == heard[1]


@pytest.mark.shared
@pytest.mark.parametrize("form", ["transformers", "ctranslate2"])
def test_whisper_hears_all_of_audio_beyond_its_window(form, whisper, shared):
    speech = clean_speech(shared)
    long = np.concatenate(list(speech.values()))
    assert len(long) > 30 * RATE
    folder = whisper if form == "transformers" else ctranslate2_whisper()
    heard = find_recogniser(str(folder)).transcribe([long], RATE)
    rate = word_errors([" ".join(speech)], heard, find_normaliser()).rate
    assert rate is not None
    assert rate < 0.1


def test_long_audio_reaches_a_ctc_model_in_windows(ctc):
    assert lengths_seen(ctc, noise(70.0)) == [30 * RATE] * 3  # from 0, 20 and 40 s: they overlap by 5 s on each side
    assert lengths_seen(ctc, noise(30.0)) == [30 * RATE]


def lengths_seen(folder: Path, samples: np.ndarray) -> list[int]:
    """Transcribe, and tell how many samples the model got each time."""
    recogniser = find_recogniser(str(folder))
    assert isinstance(recogniser, TransformersRecogniser)
    seen: list[int] = []
    recogniser._pipeline.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_values"].shape[1]), with_kwargs=True
    )
    recogniser.transcribe([samples], RATE)
    return seen


def test_ctc_text_is_the_best_path(ctc):
    """Against the model itself: the likeliest letter of each frame, repeats and blanks left out."""
    samples = noise(1.5)
    model = transformers.Wav2Vec2ForCTC.from_pretrained(ctc)
    letters = {number: letter for letter, number in json.loads((ctc / "vocab.json").read_text()).items()}
    scaled = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    with torch.no_grad():
        best = model(torch.from_numpy(scaled)[None]).logits[0].argmax(-1)
    path = [letters[int(token)] for token in torch.unique_consecutive(best)]
    expected = "".join({"|": " "}.get(letter, letter) for letter in path if letter != "<pad>")
    assert find_recogniser(str(ctc)).transcribe([samples], RATE) == [expected.strip()]
    assert len(expected) > 5


def test_models_that_generate_transcribe_short_and_long_audio(whisper, tmp_path):
    transformers.WhisperTokenizer.from_pretrained(whisper).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    options: dict[str, Any] = {**MOONSHINE, "vocab_size": VOCABULARY}
    model = transformers.MoonshineForConditionalGeneration(transformers.MoonshineConfig(**options))
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(tmp_path)
    short, long = find_recogniser(str(tmp_path)).transcribe([noise(1.0), noise(31.0)], RATE)
    assert isinstance(short, str)
    assert isinstance(long, str)


def test_a_multilingual_whisper_is_told_the_language(whisper, tmp_path):
    english, german, transcribe = 50258, 50260, 50358
    transformers.WhisperTokenizer.from_pretrained(whisper).save_pretrained(tmp_path)
    transformers.WhisperFeatureExtractor().save_pretrained(tmp_path)
    sizes: dict[str, Any] = {f"{part}_layers": 1 for part in ("encoder", "decoder")} | {"d_model": 24}
    config = transformers.WhisperConfig.from_pretrained(whisper, **sizes)
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig.from_pretrained(
        whisper,
        is_multilingual=True,
        lang_to_id={"<|en|>": english, "<|de|>": german},
        task_to_id={"transcribe": transcribe},
        max_new_tokens=2,
    )
    model.save_pretrained(tmp_path)
    recogniser = find_recogniser(str(tmp_path), language="de")
    assert isinstance(recogniser, TransformersRecogniser)
    prompts: list[list[int]] = []
    recogniser._pipeline.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: prompts.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    recogniser.transcribe([noise(1.0)], RATE)
    assert prompts[0] == [START_OF_TRANSCRIPT, german, transcribe, NO_TIMESTAMPS]
    with pytest.raises(EvaluationError, match="knows no language 'fr'; it knows de, en"):
        find_recogniser(str(tmp_path), language="fr")


class Counting(Recogniser):
    """Hears how many samples there are."""

    name = signature = "counting"
    sample_rate = RATE

    def recognise(self, samples: np.ndarray) -> str:
        self.last = samples
        return f" {len(samples)} "


def test_audio_comes_at_the_recognisers_rate():
    recogniser, audio = Counting(), noise(1.0, 24000)
    assert recogniser.transcribe([audio, noise(0.5, 24000)], 24000) == ["16000", "8000"]
    recogniser.transcribe([audio], 24000)
    np.testing.assert_array_equal(recogniser.last, resample(torch.from_numpy(audio), 24000, RATE).numpy())


def test_very_short_audio_is_padded_and_none_gives_no_text(ctc):
    recogniser = Counting()
    assert recogniser.transcribe([np.zeros(0), np.ones(1), noise(0.2)], RATE) == ["", "1600", "3200"]
    assert recogniser.transcribe([], RATE) == []
    assert isinstance(find_recogniser(str(ctc)).transcribe([noise(0.001)], RATE)[0], str)


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros((2, 100)), RATE, r"audio 1 has shape \(2, 100\); give one channel"),
        (np.array([0.0, np.nan]), RATE, "audio 1 holds NaN or infinity"),
        (noise(0.1, 15999), 15999, "audio 1: audio of 15999 Hz shares too little"),
    ],
)
def test_audio_that_cannot_be_used_is_named(samples, rate, message):
    with pytest.raises(EvaluationError, match=message):
        Counting().transcribe([np.zeros(0), samples], rate)


def a_folder(kind: str, folder: Path, whisper: Path) -> Path:
    """What somebody might give for a recogniser."""
    if kind == "bert":
        transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, hidden_size=12)).save_pretrained(folder)
    elif kind == "headless":
        transformers.HubertModel(transformers.HubertConfig(**LARGE)).save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    elif kind == "without-tokenizer":
        for name in ("config.json", "preprocessor_config.json", "model.safetensors", "generation_config.json"):
            (folder / name).symlink_to(whisper / name)
    elif kind == "translator":
        name = b"TransformerSpec\0"
        (folder / "model.bin").write_bytes(struct.pack("<IH", 6, len(name)) + name)
    elif kind == "torn":
        for name in ("config.json", "tokenizer.json"):
            (folder / name).symlink_to(ctranslate2_whisper() / name)
        (folder / "model.bin").write_bytes((ctranslate2_whisper() / "model.bin").read_bytes()[:100_000])
    elif kind == "bin-alone":
        (folder / "model.bin").symlink_to(ctranslate2_whisper() / "model.bin")
    elif kind == "other-bin":
        (folder / "model.bin").write_bytes(b"\x80\x02")
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "is no recogniser in transformers' format"),
        ("bert", "is a checkpoint of 'bert', which transformers' pipeline for speech recognition does not know"),
        ("headless", "tensors of HubertForCTC are not in it, lm_head.bias for one: .* an encoder without a head"),
        ("without-tokenizer", "its tokenizer is not there, one of tokenizer.json"),
        ("translator", "holds a model.bin of TransformerSpec, and WhisperSpec is needed"),
        ("torn", "cannot be loaded by faster-whisper"),
        ("bin-alone", "lacks config.json; copy the whole model"),
        ("other-bin", "holds a model.bin of no CTranslate2 model"),
    ],
)
def test_a_folder_that_is_no_recogniser_is_refused(kind, message, whisper, tmp_path):
    with pytest.raises(EvaluationError, match=message) as refused:
        find_recogniser(str(a_folder(kind, tmp_path, whisper)))
    assert "\n" not in str(refused.value)


@pytest.mark.shared
def test_the_encoder_of_a_recogniser_is_refused(shared):
    folder = shared.parent / "models" / "moonshine-tiny-encoder"
    with pytest.raises(EvaluationError, match="161 tensors of MoonshineForConditionalGeneration are not in it"):
        find_recogniser(str(folder))


def test_a_hub_id_without_a_network_says_the_way_out(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EvaluationError, match=r"not in the hub's cache.*cannot be fetched.*give ./that-folder"):
        find_recogniser("nobody/nothing")


@pytest.mark.parametrize(
    ("word", "device", "language", "message"),
    [
        ("whisper-large", "cpu", "en", "no recogniser 'whisper-large': there is no such folder"),
        ("./a/b", "cpu", "en", "no recogniser './a/b': there is no such folder"),
        ("whisper-large", "gpu", "en", "device 'gpu': take auto, cpu, cuda or cuda:N"),
        ("whisper-large", "cuda:99", "en", "device 'cuda:99': torch sees [0-9]+ CUDA GPUs"),
        (str(ctranslate2_whisper()), "cpu", "de", "knows no language 'de'; it knows en"),
    ],
)
def test_what_cannot_be_meant_is_refused(word, device, language, message):
    with pytest.raises((EvaluationError, StoreError), match=message):
        find_recogniser(word, device, language)


def test_an_english_whisper_is_refused_for_another_language(whisper):
    with pytest.raises(EvaluationError, match="knows no language 'de'; it knows en"):
        find_recogniser(str(whisper), language="de")
