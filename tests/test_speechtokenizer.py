"""SpeechTokenizer: codes, latents and decoded audio are those of its own package, whatever shared the batch."""

import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import speechlike
from commands import extract, split_folder, write_corpus
from encodeonce.extract.cache import FileCache
from encodeonce.extract.encoders.base import EncoderError
from encodeonce.extract.encoders.registry import find_encoder
from encodeonce.extract.encoders.speechtokenizer import HUB_FOLDER, REPOSITORY, LoadedSpeechTokenizer, SpeechTokenizer
from encodeonce.store import FeatureStore
from encodeonce.store.codebooks import read_codebooks
from speechtokenizer_checkpoint import reference_model, save_speechtokenizer

LENGTHS = (320, 321, 639, 640, 5000, 16000, 23457)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_speechtokenizer(tmp_path_factory.mktemp("speechtokenizer") / "small")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return reference_model(folder)


def found(folder: Path) -> SpeechTokenizer:
    encoder = find_encoder(str(folder), FileCache())
    assert isinstance(encoder, SpeechTokenizer)
    return encoder


def loaded(folder: Path, outputs: str) -> LoadedSpeechTokenizer:
    encoder = found(folder)
    return encoder.load("cpu", "float32", encoder.outputs(outputs, "float32"))


def forward(folder: Path, outputs: str, audio: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """One batch, zero-padded: for each utterance its frames by output."""
    model, encoder = loaded(folder, outputs), found(folder)
    lengths = [len(samples) for samples in audio]
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(samples) for samples in audio], batch_first=True)
    values = model.forward(padded, lengths)
    return [
        {what: batch[row, : encoder.frames(n)].numpy() for what, batch in values.items()}
        for row, n in enumerate(lengths)
    ]


def package_codes(reference: Any, samples: np.ndarray) -> torch.Tensor:
    """The package's own codes `[8, 1, T]` of one utterance."""
    with torch.no_grad():
        return reference.encode(torch.from_numpy(samples)[None, None])


def test_codes_are_the_packages_alone_and_in_a_batch(folder: Path, reference: Any) -> None:
    audio = [speechlike(n, seed) for seed, n in enumerate(LENGTHS)]
    together = forward(folder, "codes", audio)
    used: list[np.ndarray] = []
    for samples, batched in zip(audio, together, strict=True):
        expected = package_codes(reference, samples)[:, 0].T.numpy()
        (alone,) = forward(folder, "codes", [samples])
        np.testing.assert_array_equal(alone["codes[0-7]"], expected)
        np.testing.assert_array_equal(batched["codes[0-7]"], expected)
        used.append(expected)
    distinct = [len(np.unique(column)) for column in np.concatenate(used).T]
    assert min(distinct) > 20, f"codes that hardly vary would prove nothing: {distinct}"


def test_latents_are_the_packages_sums(folder: Path, reference: Any) -> None:
    samples = speechlike(9999, 3)
    (values,) = forward(folder, "latents,latents:0,latents:1-7,codes:0,codes:1-7", [samples])
    with torch.no_grad():
        layers = reference.forward_feature(torch.from_numpy(samples)[None, None])
        codes = reference.encode(torch.from_numpy(samples)[None, None])
        rest = reference.quantizer.decode(codes[1:], st=1)
    np.testing.assert_allclose(values["latents[0-7]"], torch.stack(layers).sum(0)[0].T, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(values["latents[0-0]"], layers[0][0].T)
    np.testing.assert_array_equal(values["latents[1-7]"], rest[0].T)
    np.testing.assert_array_equal(values["codes[0-0]"], codes[:1, 0].T)
    np.testing.assert_array_equal(values["codes[1-7]"], codes[1:, 0].T)


def test_frames_are_the_packages(folder: Path, reference: Any) -> None:
    encoder = found(folder)
    generator = np.random.default_rng(0)
    for samples in [*range(318, 324), *range(638, 643), *generator.integers(320, 40000, 25).tolist()]:
        frames = package_codes(reference, speechlike(samples, 0)).shape[-1]
        assert frames == math.ceil(samples / 320)
        assert encoder.frames(samples) == (frames if samples >= 320 else 0)
    assert encoder.frames(21 * 16000) == 1050


def test_decoding_gives_the_packages_audio(folder: Path, reference: Any) -> None:
    model = loaded(folder, "codes")
    codes = package_codes(reference, speechlike(7000, 4))
    with torch.no_grad():
        whole, first, rest = (
            reference.decode(codes)[0, 0],
            reference.decode(codes[:3])[0, 0],
            reference.decode(codes[1:], st=1)[0, 0],
        )
    stored = codes[:, 0].T.numpy().astype(np.uint16)
    np.testing.assert_array_equal(model.decode_codes(stored), whole)
    np.testing.assert_array_equal(model.decode_codes(stored[:, :3]), first)
    latents = model.quantizers.vectors(stored, range(1, 8))
    np.testing.assert_array_equal(model.decode_latents(latents), rest)


def test_a_store_holds_codes_latents_and_codebooks(folder: Path, reference: Any, tmp_path: Path) -> None:
    write_corpus(tmp_path / "data" / "few", [0.7, 1.31, 0.01])
    done = extract(tmp_path / "data", "few", tmp_path / "store", "--outputs", "codes,latents:1-7", encoder=str(folder))
    assert done.counts() == (2, 0, 0, 1), done.err
    assert "utt-002" in done.err
    path = split_folder(tmp_path / "store", "few")
    codes, latents = FeatureStore(path, output="codes"), FeatureStore(path, output="latents-1-7")
    books = read_codebooks(path.parent / "codebooks" / "codes.safetensors")
    assert books.sizes == (64,) * 8
    for name in codes.ids:
        stored = codes[name].features
        assert stored.dtype == np.uint16
        np.testing.assert_allclose(
            latents[name].features, books.vectors(np.asarray(stored), range(1, 8)), atol=2e-3, rtol=2e-3
        )
    again = extract(tmp_path / "data", "few", tmp_path / "store", "--outputs", "codes", encoder=str(folder))
    assert again.counts() == (0, 0, 2, 1)


def test_training_fields_are_not_in_the_identity(folder: Path, tmp_path: Path) -> None:
    other = save_speechtokenizer(tmp_path / "other", learning_rate=0.5)
    assert found(other).identity() == found(folder).identity()
    assert found(save_speechtokenizer(tmp_path / "seed", seed=1)).identity() != found(folder).identity()


def test_torch_does_not_warn_of_the_package(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codec = loaded(folder, "codes")
    assert codec.quantizers.sizes


def test_the_official_name_finds_the_hubs_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--fnlp--SpeechTokenizer"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40) / HUB_FOLDER
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for word in ("speechtokenizer", REPOSITORY):
        encoder = find_encoder(word, FileCache())
        assert (encoder.name, encoder.source) == ("speechtokenizer", REPOSITORY)


def rewritten(folder: Path, target: Path, remove: str = "", **changes: Any) -> Path:
    """A copy of the checkpoint with another config.json."""
    target.mkdir()
    config = json.loads((folder / "config.json").read_text()) | changes
    config.pop(remove, None)
    (target / "config.json").write_text(json.dumps(config))
    (target / "SpeechTokenizer.pt").symlink_to(folder / "SpeechTokenizer.pt")
    return target


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_filters": 8}, "does not fit its config.json"),
        ({"n_q": 9}, "quantizer.vq.layers.8"),
        ({"activation": "Elu"}, "cannot be used"),
        ({"strides": "8542"}, "cannot be used"),
        ({"n_q": 0}, "cannot be used"),
        ({"remove": "lstm_layers"}, "lacks lstm_layers"),
    ],
)
def test_a_configuration_that_does_not_fit(folder: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    other = rewritten(folder, tmp_path / "other", **changes)
    with pytest.raises(EncoderError, match=says):
        loaded(other, "codes")


def test_weights_that_are_not_there_or_another_models(folder: Path, tmp_path: Path) -> None:
    other = rewritten(folder, tmp_path / "other")
    weights = other / "SpeechTokenizer.pt"
    weights.unlink()
    with pytest.raises(EncoderError, match=r"holds no SpeechTokenizer\.pt"):
        found(other)
    torch.save({"a.weight": torch.zeros(3)}, weights)
    with pytest.raises(EncoderError, match=r"weights differ, e\.g\. a\.weight is"):
        loaded(other, "codes")
    torch.save([torch.zeros(3)], weights)
    with pytest.raises(EncoderError, match="cannot be loaded as plain weights"):
        found(other).identity()
    weights.write_bytes((folder / "SpeechTokenizer.pt").read_bytes()[:5000])
    with pytest.raises(EncoderError, match="cannot be loaded as plain weights"):
        loaded(other, "codes")
    state = torch.load(folder / "SpeechTokenizer.pt", weights_only=True)
    state["quantizer.vq.layers.0._codebook.inited"].zero_()
    torch.save(state, weights)
    with pytest.raises(EncoderError, match="never trained"):
        loaded(other, "codes")


def test_a_missing_package_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "speechtokenizer.model", None)
    with pytest.raises(EncoderError, match=r"encodeonce\[speechtokenizer\]"):
        loaded(folder, "codes")
