"""The identity of a checkpoint: what changes the features changes it, and nothing else does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import FAMILIES, MOONSHINE, Checkpoints, reference, relative, speechlike
from encodeonce.extract.batching import CONTEXT_SECONDS, CUT_SECONDS
from encodeonce.extract.cache import FileCache
from encodeonce.extract.encode import BatchEncoder, Cutting
from encodeonce.extract.encoders import ssl
from encodeonce.extract.encoders.moonshine import Moonshine
from encodeonce.extract.encoders.registry import find_encoder
from encodeonce.store.identity import canonical_json
from safetensors.torch import load_file, save_file
from transformers.models.moonshine.modeling_moonshine import MoonshineEncoder

FAMILY_CLASSES = [
    ssl.Hubert,
    ssl.Wav2Vec2,
    ssl.Wav2Vec2Conformer,
    ssl.WavLM,
    ssl.Data2VecAudio,
    ssl.UniSpeech,
    ssl.UniSpeechSat,
    Moonshine,
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def folder(checkpoints, tmp_path) -> Path:
    """A copy of a HuBERT checkpoint with its preprocessor, to be changed."""
    copy = tmp_path / "hubert"
    shutil.copytree(checkpoints.folder("hubert-large"), copy)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(copy)
    return copy


def identity(folder: Path) -> str:
    """The identity as it is hashed, with a cache of its own, so that files are really read."""
    return canonical_json(
        find_encoder(str(folder), FileCache(folder.parent / f"cache-{folder.name}")).identity()
    ).decode()


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def encode(folder: Path, audio, layers: str = "last"):
    encoder = find_encoder(str(folder), FileCache(folder.parent / "cache"))
    outputs = encoder.outputs(layers, "float32")
    loaded = encoder.load("cpu", "float32", outputs)
    cutting = Cutting(CUT_SECONDS, CONTEXT_SECONDS)
    (frames,) = BatchEncoder(encoder, loaded, cutting, "float32", lambda: loaded).encode([audio])
    return frames[outputs[-1].what]


def as_torch_weights(folder: Path, **options: Any) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin", **options)


def test_identity_is_json_and_names_no_path(folder):
    found = identity(folder)
    assert json.loads(found)["encoder"]["class"] == "HubertModel"
    assert str(folder) not in found
    assert folder.name + "/" not in found


def test_identity_stays_with_another_path_and_name(folder, tmp_path):
    before = identity(folder)
    assert identity(folder.rename(tmp_path / "elsewhere")) == before


@pytest.mark.parametrize(
    "values",
    [
        {"transformers_version": "4.9.0"},
        {"hidden_dropout": 0.7, "attention_dropout": 0.3, "layerdrop": 0.5, "feat_proj_dropout": 0.2},
        {"mask_time_prob": 0.9, "apply_spec_augment": False, "gradient_checkpointing": True},
        {"vocab_size": 99, "pad_token_id": 3, "_name_or_path": "somebody/else", "architectures": ["HubertForCTC"]},
        {"torch_dtype": "float32", "dtype": "float32"},
    ],
)
def test_identity_stays_with_what_does_not_change_the_features(values, folder):
    before = identity(folder)
    change(folder / "config.json", **values)
    assert identity(folder) == before


@pytest.mark.parametrize("legacy", [False, True], ids=["zip archive", "before torch 1.6"])
def test_identity_and_features_stay_with_the_file_format_of_the_weights(legacy, folder):
    before, audio = identity(folder), speechlike(3000, 0)
    features = encode(folder, audio)
    as_torch_weights(folder, _use_new_zipfile_serialization=not legacy)
    assert identity(folder) == before
    assert relative(encode(folder, audio), features) < 1e-6


def test_identity_stays_when_the_weights_are_split_into_parts(folder):
    before = identity(folder)
    model = FAMILIES["hubert-large"].saved.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert identity(folder) == before


def test_identity_stays_with_a_field_at_its_default(folder):
    before = identity(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["layer_norm_eps"], config["conv_kernel"], config["hidden_act"], config["feat_proj_layer_norm"]
    (folder / "config.json").write_text(json.dumps(config))
    assert identity(folder) == before


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"layer_norm_eps": 1e-6}),
        ("config.json", {"feat_extract_activation": "relu"}),
        ("config.json", {"num_attention_heads": 2}),
        ("preprocessor_config.json", {"do_normalize": False}),
    ],
)
def test_identity_changes_with_what_changes_the_features(file, values, folder):
    before = identity(folder)
    change(folder / file, **values)
    assert identity(folder) != before


def test_identity_changes_with_one_weight(folder):
    before = identity(folder)
    state = load_file(folder / "model.safetensors")
    name = "encoder.layers.1.attention.k_proj.weight"
    state[name][3, 3] += 1e-6
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert identity(folder) != before


def test_identity_sees_a_file_that_changed_since_it_was_cached(folder, tmp_path):
    cache = FileCache(tmp_path / "kept")
    before = find_encoder(str(folder), cache).identity()
    assert find_encoder(str(folder), cache).identity() == before
    state = load_file(folder / "model.safetensors")
    state["encoder.layer_norm.bias"] += 1
    (folder / "model.safetensors").unlink()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert find_encoder(str(folder), cache).identity() != before


@pytest.mark.parametrize("family", FAMILY_CLASSES, ids=lambda family: family.__name__)
def test_defaults_are_those_of_transformers(family, tmp_path):
    """A field that a config.json leaves out means the same to the identity as to the model."""
    expected = getattr(transformers, family.model_class.replace("Encoder", "Model").replace("Model", "Config"))()
    (tmp_path / "model.safetensors").touch()
    config = family(tmp_path, {}, "x", "x", FileCache(tmp_path)).config
    for field, value in config.items():
        theirs = getattr(expected, field, None)  # HuBERT's adapter_attn_dim is read, but no declared field
        assert value == (list(theirs) if isinstance(theirs, tuple) else theirs), field


@pytest.mark.parametrize(
    "old", [{"partial_rotary_factor": 0.62, "rope_theta": 5000.0}, {"partial_rotary_factor": 0.62}, {}]
)
def test_moonshines_rotary_fields_of_transformers_4_mean_the_same(old, tmp_path):
    folder = tmp_path / "moonshine"
    FAMILIES["moonshine-encoder"].model().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config.update(old, rope_scaling=None, encoder_num_key_value_heads=None, transformers_version="4.48.0")
    (folder / "config.json").write_text(json.dumps(config))
    before = identity(folder)

    model = MoonshineEncoder.from_pretrained(folder)
    found = find_encoder(str(folder), FileCache(tmp_path / "other")).identity()["encoder"]["config"]
    assert found["rope_parameters"] == model.config.rope_parameters
    model.save_pretrained(folder)
    assert "rope_parameters" in json.loads((folder / "config.json").read_text())
    assert identity(folder) == before


@pytest.mark.parametrize("kind", ["Hubert", "Wav2Vec2"])
def test_a_checkpoint_fine_tuned_with_ctc_gives_what_its_base_model_gives(kind, tmp_path):
    options = FAMILIES["hubert-large"].options
    model = getattr(transformers, f"{kind}ForCTC")(getattr(transformers, f"{kind}Config")(**options)).eval()
    model.save_pretrained(tmp_path / "ctc")
    base = getattr(transformers, f"{kind}Model").from_pretrained(tmp_path / "ctc").eval()
    audio = speechlike(5000, 1)
    assert relative(encode(tmp_path / "ctc", audio), reference(base, audio)[-1]) < 1e-5


def test_weight_norm_under_its_old_names_loads(folder):
    """The checkpoints on the hub are older than torch's parametrizations: their names are weight_g and weight_v."""
    audio = speechlike(5000, 1)
    features = encode(folder, audio)
    state = load_file(folder / "model.safetensors")
    prefix = "encoder.pos_conv_embed.conv."
    state[f"{prefix}weight_g"] = state.pop(f"{prefix}parametrizations.weight.original0")
    state[f"{prefix}weight_v"] = state.pop(f"{prefix}parametrizations.weight.original1")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert relative(encode(folder, audio), features) < 1e-6


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_a_checkpoint_in_half_precision_is_computed_in_float32(stored, folder):
    model = FAMILIES["hubert-large"].saved.from_pretrained(folder, dtype=stored)
    model.save_pretrained(folder)
    audio = speechlike(5000, 1)
    expected = reference(model.float().eval(), audio)[-1]
    assert relative(encode(folder, audio), expected) < 1e-5


def test_the_encoder_alone_and_the_whole_model_give_the_same(tmp_path):
    whole = FAMILIES["moonshine-whole"].model()
    whole.save_pretrained(tmp_path / "whole")
    whole.encoder.save_pretrained(tmp_path / "alone")
    assert whole.config.hidden_size == MOONSHINE["hidden_size"]
    audio = speechlike(5000, 1)
    assert relative(encode(tmp_path / "whole", audio), encode(tmp_path / "alone", audio)) < 1e-6
