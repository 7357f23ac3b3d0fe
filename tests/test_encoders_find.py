"""Finding an encoder by name, folder, hub cache or file; and what is said when it cannot be had."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import transformers
from checkpoints import FAMILIES, Checkpoints, relative, speechlike
from codec_checkpoints import CODECS
from encodeonce.extract.cache import FileCache
from encodeonce.extract.encoders.base import Encoder, EncoderError
from encodeonce.extract.encoders.registry import (
    BUILT_IN,
    HUB,
    MODEL_TYPES,
    cached_folder,
    find_encoder,
    list_encoders,
    wanted_files,
)
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

COMMIT = "ff022d095678a2995f3c49bab18a96a9e553f782"
OFFLINE = """
from encodeonce.extract.cache import FileCache
from encodeonce.extract.encoders.registry import find_encoder
find_encoder({word!r}, FileCache())
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def cache(tmp_path) -> FileCache:
    return FileCache(tmp_path / "cache")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A HuBERT checkpoint to be damaged."""
    FAMILIES["hubert-base"].model().save_pretrained(tmp_path / "broken")
    return tmp_path / "broken"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, and no network."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def put_in_hub_cache(hub: Path, repository: str, *, torch_weights: bool = False, preprocessor: bool = True) -> Path:
    """A checkpoint as the hub's client leaves it: blobs by hash, and links to them in the snapshot."""
    root = hub / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    FAMILIES["hubert-large"].model().save_pretrained(snapshot)
    if preprocessor:
        transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(snapshot)
    if torch_weights:
        torch.save(load_file(snapshot / "model.safetensors"), snapshot / "pytorch_model.bin")
        (snapshot / "model.safetensors").unlink()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    (root / "blobs").mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        blob = root / "blobs" / f"{number:040x}"
        file.rename(blob)
        file.symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def load(encoder: Encoder) -> None:
    encoder.load("cpu", "float32", encoder.outputs("last", "float16"))


def refusal(word: str | Path, cache: FileCache) -> str:
    """The one line that stops the search, or the loading."""
    with pytest.raises(EncoderError) as caught:
        load(find_encoder(str(word), cache))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("torch_weights", [False, True], ids=["safetensors", "pytorch_model.bin"])
def test_a_short_name_is_found_in_the_hubs_cache_without_a_network(torch_weights, hub, cache):
    snapshot = put_in_hub_cache(hub, "facebook/hubert-large-ll60k", torch_weights=torch_weights)
    encoder = find_encoder("hubert-large", cache)
    assert (encoder.name, encoder.source, encoder.normalise) == ("hubert-large", "facebook/hubert-large-ll60k", True)
    assert encoder.identity() == find_encoder(str(snapshot), cache).identity()
    load(encoder)
    assert {row.known.name for row in list_encoders() if row.here and row.known.name in HUB} == {"hubert-large"}


def test_a_hub_id_means_its_short_name(hub, cache):
    put_in_hub_cache(hub, "facebook/hubert-large-ll60k")
    assert find_encoder("facebook/hubert-large-ll60k", cache).name == "hubert-large"


def test_any_hub_id_in_the_cache_is_found(hub, cache):
    put_in_hub_cache(hub, "somebody/hubert-finnish")
    encoder = find_encoder("somebody/hubert-finnish", cache)
    assert (encoder.name, encoder.source) == ("hubert-finnish", "somebody/hubert-finnish")


def test_a_hub_cache_without_the_preprocessor_is_no_reason_to_skip_normalising(hub, cache):
    """HubertModel.from_pretrained alone leaves such a cache; the real checkpoint has a preprocessor that normalises."""
    put_in_hub_cache(hub, "facebook/hubert-large-ll60k", preprocessor=False)
    encoder = find_encoder("hubert-large", cache)
    assert encoder.normalise
    assert "as published for facebook/hubert-large-ll60k" in encoder.note
    put_in_hub_cache(hub, "microsoft/wavlm-large", preprocessor=False)  # what that one says is not known here
    with pytest.raises(EncoderError, match=r"its preprocessor_config\.json is not in the hub's cache"):
        find_encoder("wavlm-large", cache)


def test_a_checkpoint_of_somebody_without_a_preprocessor_is_taken_as_it_is(hub, cache):
    put_in_hub_cache(hub, "somebody/hubert-raw", preprocessor=False)
    assert find_encoder("somebody/hubert-raw", cache).normalise is False


def test_half_a_checkpoint_in_the_hubs_cache_is_none(hub):
    snapshot = put_in_hub_cache(hub, "facebook/hubert-large-ll60k")
    (snapshot / "model.safetensors").unlink()
    assert cached_folder("facebook/hubert-large-ll60k") is None


def test_without_cache_and_network_the_message_names_a_folder_as_the_way_out(tmp_path):
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "ENCODEONCE_CACHE": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", OFFLINE.format(word="hubert-large")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    message = result.stderr.strip().splitlines()[-1]
    assert "EncoderError: hubert-large is facebook/hubert-large-ll60k: it is not in the hub's cache" in message
    assert "--encoder ./that-folder" in message


def test_a_hub_that_cannot_be_reached_is_not_asked_again_and_again(hub, cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    before = time.monotonic()
    assert "--encoder ./that-folder" in refusal("hubert-large", cache)
    assert time.monotonic() - before < 5


@pytest.mark.parametrize(
    ("weights", "others"),
    [
        (["model.safetensors"], ["pytorch_model.bin", "model.fp32-00001-of-00002.safetensors", "flax_model.msgpack"]),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], ["model.safetensors.index.fp32.json"]),
        (["pytorch_model.bin"], ["tf_model.h5", "pytorch_model.fp32.bin"]),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], ["optimizer.bin"]),
    ],
)
def test_one_set_of_weights_is_fetched(weights, others):
    configurations = ["config.json", "preprocessor_config.json"]
    names = [*configurations, *weights, *others]
    assert list(filter_repo_objects(names, allow_patterns=wanted_files(set(names)))) == [*configurations, *weights]


def test_a_name_that_is_nearly_right_gets_a_suggestion(cache):
    assert "no encoder 'hubert-larg'; did you mean hubert-large or " in refusal("hubert-larg", cache)
    assert "did you mean" not in refusal("qqqq", cache)


def test_every_name_and_model_type_leads_to_an_encoder(checkpoints, cache):
    types = {json.loads((checkpoints.folder(name) / "config.json").read_text())["model_type"] for name in FAMILIES}
    codecs = {getattr(transformers, f"{family.kind}Config").model_type for family in CODECS.values()}
    assert types | codecs | {"speechtokenizer"} == set(MODEL_TYPES)
    assert {row.known.name for row in list_encoders()} == {*HUB, *BUILT_IN}


def test_a_folder_gives_the_encoder_its_name(checkpoints, cache, monkeypatch):
    monkeypatch.chdir(checkpoints.folder("wavlm-base"))
    for word in (".", "../wavlm-base", str(checkpoints.folder("wavlm-base"))):
        encoder = find_encoder(word, cache)
        assert (encoder.name, encoder.source) == ("wavlm-base", "wavlm-base")


def test_a_folder_without_config_is_refused(folder, cache):
    (folder / "config.json").unlink()
    assert "is no checkpoint in transformers' format: it has no config.json" in refusal(folder, cache)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_type": ', "\x00"])
def test_a_config_that_is_none_is_refused(text, folder, cache):
    (folder / "config.json").write_text(text)
    assert "is no configuration of transformers" in refusal(folder, cache)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_preprocessor_that_is_none_is_refused(text, folder, cache):
    (folder / "preprocessor_config.json").write_text(text)
    assert "preprocessor_config.json is no" in refusal(folder, cache)


def test_convolutions_that_do_not_fit_are_refused(folder, cache):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "conv_stride": [5, 2]}))
    assert "conv_kernel has 7 entries, conv_stride 2" in refusal(folder, cache)


def test_a_model_type_that_is_no_encoder_here_is_refused_with_those_that_are(folder, cache):
    (folder / "config.json").write_text('{"model_type": "bert"}')
    message = refusal(folder, cache)
    assert "'bert', which is no encoder known here" in message
    assert all(kind in message for kind in MODEL_TYPES)


def test_a_folder_without_weights_is_refused(folder, cache):
    (folder / "model.safetensors").unlink()
    assert "holds no weights: neither model.safetensors nor pytorch_model.bin" in refusal(folder, cache)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_truncated_safetensors_are_refused(keep, folder, cache):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    assert str(folder) in refusal(folder, cache)
    with pytest.raises(EncoderError, match=r"safetensors (is truncated|is no)"):
        find_encoder(str(folder), cache).identity()


def test_weights_that_are_text_are_refused(folder, cache):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n" * 9)
    refusal(folder, cache)
    with pytest.raises(EncoderError, match="no safetensors file"):
        find_encoder(str(folder), cache).identity()


def test_torch_weights_that_are_none_are_refused(folder, cache):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"no weights at all")
    refusal(folder, cache)
    with pytest.raises(EncoderError, match="holds more than plain weights, or is no file of torch"):
        find_encoder(str(folder), cache).identity()


def test_a_missing_part_of_split_weights_is_named(folder, cache):
    (folder / "model.safetensors").unlink()
    FAMILIES["hubert-base"].model().save_pretrained(folder, max_shard_size="40KB")
    part = next(folder.glob("model-00002*.safetensors"))
    part.unlink()
    assert f"lacks {part.name}, which model.safetensors.index.json names" in refusal(folder, cache)
    (folder / "model.safetensors.index.json").write_text("[]")
    assert "no index of weights" in refusal(folder, cache)


@pytest.mark.parametrize(
    "name", ["encoder.layers.2.attention.q_proj.weight", "feature_extractor.conv_layers.0.conv.weight"]
)
def test_a_checkpoint_that_lacks_weights_is_refused(name, folder, cache):
    path = folder / "model.safetensors"
    state = load_file(path)
    del state[name]
    save_file(state, path, {"format": "pt"})
    message = refusal(folder, cache)
    assert f"lacks weights of HubertModel (1, e.g. {name}): they would be random" in message


def test_weights_of_another_size_are_refused(folder, cache):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    assert str(folder) in refusal(folder, cache)


@pytest.mark.parametrize("layers", ["4", "0-9", "2-1", "-1", "first", "1,,2", "", "1.5", "1-", "²"])
def test_layers_that_are_none_are_refused(layers, checkpoints, cache):
    encoder = find_encoder(str(checkpoints.folder("hubert-base")), cache)
    with pytest.raises(EncoderError, match="--layers") as caught:
        encoder.outputs(layers, "float16")
    assert re.search("0 to 3|give last, all, numbers|runs backwards", str(caught.value))


def test_layers_of_an_encoder_that_has_none_are_refused(cache):
    with pytest.raises(EncoderError, match="this encoder has one output, fbank"):
        find_encoder("fbank", cache).outputs("3", "float16")


def test_filterbanks_equal_torchaudios_one_at_a_time(cache):
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    encoder = find_encoder("fbank", cache)
    outputs = encoder.outputs("last", "float32")
    assert [(o.name, o.width) for o in outputs] == [("fbank-float32", 80)]
    audio = [speechlike(n, n) for n in (400, 559, 560, 8000, 3001)]
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(x) for x in audio], batch_first=True)
    (found,) = encoder.load("cpu", "float32", outputs).forward(padded, [len(x) for x in audio]).values()
    for x, frames in zip(audio, found, strict=True):
        alone = kaldi.fbank(torch.from_numpy(x)[None] * 32768, num_mel_bins=80, dither=0.0).numpy()
        assert encoder.frames(len(x)) == len(alone)
        assert relative(frames[: len(alone)].numpy(), alone) < 1e-6
