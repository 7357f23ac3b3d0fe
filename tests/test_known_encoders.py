"""The table of --list-encoders: its facts against the published architectures, and how it is printed."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from commands import run
from encodeonce.extract import listing
from encodeonce.extract.cache import FileCache
from encodeonce.extract.cli import main
from encodeonce.extract.encoders.checkpoint import CheckpointEncoder
from encodeonce.extract.encoders.known import KNOWN
from encodeonce.extract.encoders.registry import BUILT_IN, HUB, Listed, find_encoder
from rich.console import Console
from transformers.models.moonshine.modeling_moonshine import MoonshineEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

BASE: dict[str, Any] = {}
"""The default of transformers' configuration classes is the published base size."""
LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
}
XLARGE = {**LARGE, "hidden_size": 1280, "num_hidden_layers": 48, "intermediate_size": 5120}
XXLARGE = {**XLARGE, "hidden_size": 1920, "intermediate_size": 7680}


def whisper(width: int, layers: int, heads: int, mels: int = 80) -> dict[str, Any]:
    return {
        "d_model": width,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "num_mel_bins": mels,
    }


def moonshine(width: int, layers: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "encoder_num_hidden_layers": layers,
        "encoder_num_attention_heads": 8,
    }


def dac(rate: int, codebooks: int) -> dict[str, Any]:
    ratios = [2, 4, 5, 8]
    return {
        "sampling_rate": rate,
        "n_codebooks": codebooks,
        "downsampling_ratios": ratios,
        "upsampling_ratios": ratios[::-1],
    }


HIGGS: dict[str, Any] = {
    "target_bandwidths": [0.5, 1, 1.5, 2],
    "acoustic_model_config": {
        "model_type": "dac",
        "encoder_hidden_size": 64,
        "decoder_hidden_size": 1024,
        "downsampling_ratios": [8, 5, 4, 2, 3],
        "upsampling_ratios": [8, 5, 4, 2, 3],
        "hidden_size": 256,
    },
}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "hubert-base": ("Hubert", BASE),
    "hubert-large": ("Hubert", LARGE),
    "hubert-large-ft": ("Hubert", LARGE),
    "hubert-xlarge": ("Hubert", XLARGE),
    "hubert-xlarge-ft": ("Hubert", XLARGE),
    "distilhubert": ("Hubert", {"num_hidden_layers": 2, "feat_proj_layer_norm": False}),
    "mhubert-147": ("Hubert", {"conv_pos_batch_norm": True}),
    "wav2vec2-base": ("Wav2Vec2", BASE),
    "wav2vec2-large": ("Wav2Vec2", LARGE),
    "wav2vec2-large-robust": ("Wav2Vec2", LARGE),
    "xls-r-300m": ("Wav2Vec2", LARGE),
    "xls-r-1b": ("Wav2Vec2", XLARGE),
    "xls-r-2b": ("Wav2Vec2", XXLARGE),
    "mms-300m": ("Wav2Vec2", LARGE),
    "mms-1b": ("Wav2Vec2", XLARGE),
    "w2v-bert-2.0": ("Wav2Vec2Bert", BASE),
    "wavlm-base": ("WavLM", BASE),
    "wavlm-base-plus": ("WavLM", BASE),
    "wavlm-large": ("WavLM", {**LARGE, "conv_bias": False}),
    "unispeech-sat-base": ("UniSpeechSat", BASE),
    "unispeech-sat-base-plus": ("UniSpeechSat", BASE),
    "unispeech-sat-large": ("UniSpeechSat", LARGE),
    "data2vec-audio-base": ("Data2VecAudio", BASE),
    **{f"whisper-tiny{kind}": ("Whisper", whisper(384, 4, 6)) for kind in ("", ".en")},
    **{f"whisper-base{kind}": ("Whisper", whisper(512, 6, 8)) for kind in ("", ".en")},
    **{f"whisper-small{kind}": ("Whisper", whisper(768, 12, 12)) for kind in ("", ".en")},
    **{f"whisper-medium{kind}": ("Whisper", whisper(1024, 24, 16)) for kind in ("", ".en")},
    **{f"whisper-large{kind}": ("Whisper", whisper(1280, 32, 20)) for kind in ("", "-v2")},
    **{f"whisper-large-v3{kind}": ("Whisper", whisper(1280, 32, 20, mels=128)) for kind in ("", "-turbo")},
    "moonshine-tiny": ("Moonshine", moonshine(288, 6)),
    "moonshine-base": ("Moonshine", moonshine(416, 8)),
    "encodec-24khz": ("Encodec", BASE),
    "dac-16khz": ("Dac", dac(16000, 12)),
    "dac-24khz": ("Dac", dac(24000, 32)),
    "dac-44khz": ("Dac", {"sampling_rate": 44100}),
    "mimi": ("Mimi", BASE),
    "xcodec": ("Xcodec", BASE),
    "higgs-audio-v2": ("HiggsAudioV2Tokenizer", HIGGS),
    "xcodec2": ("Xcodec2", BASE),
    "neucodec": ("NeuCodec", BASE),
}
"""The architecture of each published checkpoint of transformers: the family, and what differs from the defaults."""
MODELS: dict[str, Any] = {"Whisper": WhisperEncoder, "Moonshine": MoonshineEncoder}
BOTH = ("semantic_model", "encoder_semantic", "acoustic_encoder", "fc")
SCALAR = ("semantic_encoder", "semantic_adapter", "acoustic_encoder", "fc_encoder")
ENCODING: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Encodec", "Dac", "Mimi"), ("encoder",)),
    **dict.fromkeys(("Xcodec", "HiggsAudioV2Tokenizer"), BOTH),
    **dict.fromkeys(("Xcodec2", "NeuCodec"), SCALAR),
}
"""The parts of a codec that encode."""
OTHERS = {"speechtokenizer", "moonshine-tiny-onnx", "fbank", "mfcc"}


@cache
def million_parameters(family: str, options: str) -> float:
    with torch.device("meta"):
        config = getattr(transformers, f"{family}Config")(**json.loads(options))
        model: Any = MODELS.get(family, getattr(transformers, f"{family}Model"))(config)
    parts = [getattr(model, name) for name in ENCODING[family]] if family in ENCODING else [model]
    return sum(tensor.numel() for part in parts for tensor in part.parameters()) / 1e6


def test_every_name_is_in_the_table_once():
    names = [known.name for known in KNOWN]
    assert len(set(names)) == len(names)
    assert set(names) == {*HUB, *BUILT_IN} == {*PUBLISHED, *OTHERS}
    assert len(set(HUB.values())) == len(HUB)


def test_the_documentation_names_every_encoder():
    root = Path(__file__).parent.parent
    table = (root / "docs" / "encoders.md").read_text().partition("\n\n`--list-encoders`")[0]
    rows = re.findall(r"^\| ([a-z].*?) \| (.*) \|$", table, re.MULTILINE)[1:]
    assert sorted(name for names, _ in rows for name in names.split(", ")) == sorted(known.name for known in KNOWN)
    assert f"a table of {len(KNOWN)} encoders" in (root / "README.md").read_text()

    (codecs,) = (names.split(", ") for names, what in rows if what.startswith("codecs"))
    families = (root / "docs" / "codecs.md").read_text().partition("\n\n## ")[0]
    assert set(codecs) <= set(re.findall(r"[\w.-]+", families.partition("| family |")[2]))


@pytest.mark.parametrize("known", [known for known in KNOWN if known.name in PUBLISHED], ids=lambda known: known.name)
def test_facts_are_those_of_the_published_architecture(known, tmp_path):
    """Parameters are counted in transformers' model; rate, width and layers are what our encoder makes of the configuration."""
    family, options = PUBLISHED[known.name]
    assert known.million_parameters == pytest.approx(million_parameters(family, json.dumps(options)), abs=0.05)

    getattr(transformers, f"{family}Config")(**options).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    encoder = find_encoder(str(tmp_path), FileCache(tmp_path / "cache"))
    (output,) = encoder.outputs(encoder.default_outputs, "float16")
    assert known.frame_rate == encoder.sample_rate / encoder.samples_per_frame
    assert known.width == output.width
    assert known.bytes_an_hour == pytest.approx(3600 * known.frame_rate * output.width * 2, abs=1)
    assert known.layers == (encoder.layers if isinstance(encoder, CheckpointEncoder) else 0)


def test_facts_of_encoders_without_a_checkpoint_are_the_encoders_own(tmp_path):
    for known in KNOWN:
        if known.name in BUILT_IN and known.name != "moonshine-tiny-onnx":
            encoder = BUILT_IN[known.name](FileCache(tmp_path))
            assert known.frame_rate == encoder.sample_rate / encoder.samples_per_frame
            assert known.width == encoder.outputs("last", "float16")[0].width


def test_speechtokenizer_has_the_parameters_that_are_listed():
    package = pytest.importorskip("speechtokenizer")
    config = {
        "n_filters": 64,
        "strides": [8, 5, 4, 2],
        "dimension": 1024,
        "semantic_dimension": 768,
        "bidirectional": True,
        "dilation_base": 2,
        "residual_kernel_size": 3,
        "n_residual_layers": 1,
        "lstm_layers": 2,
        "activation": "ELU",
        "codebook_size": 1024,
        "n_q": 8,
        "sample_rate": 16000,
    }
    with torch.device("meta"):
        encoder = package.SpeechTokenizer(config).encoder
    (known,) = [known for known in KNOWN if known.name == "speechtokenizer"]
    counted = sum(tensor.numel() for tensor in encoder.parameters()) / 1e6
    assert known.million_parameters == pytest.approx(counted, abs=0.05)
    assert (known.frame_rate, known.width) == (16000 / (8 * 5 * 4 * 2), 8)


@pytest.fixture
def no_hub(tmp_path, monkeypatch) -> Path:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_the_table_is_whole_and_aligned_where_no_terminal_is(no_hub):
    done = run(main, ["--list-encoders"])
    assert (done.status, done.err) == (0, "")
    head, *rows = done.out.splitlines()[: 1 + len(KNOWN)]
    assert [row.split()[0] for row in rows] == [known.name for known in KNOWN]
    assert "\x1b" not in done.out
    assert "…" not in done.out
    for heading in ("name", "from", "licence", "here"):
        left = head.index(heading)
        assert all(left == 0 or row[left - 1] == " " for row in rows)
        assert all(row[left] != " " for row in rows)
    for heading in ("params", "rate", "width", "layers", "MB/h"):
        right = head.index(heading) + len(heading)
        assert all(row[right - 1] != " " and row[right] == " " for row in rows)
    (hubert,) = [row for row in rows if row.startswith("hubert-large ")]
    assert re.split(r"  +", hubert) == [
        "hubert-large",
        "facebook/hubert-large-ll60k",
        "315.4M",
        "50/s",
        "1024",
        "24",
        "368.6",
        "Apache-2.0",
        "no",
    ]
    assert "onnx:FILE" in done.out.splitlines()[-1]


def test_numbers_are_whole_on_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setattr(listing, "Console", lambda **options: Console(**options, force_terminal=True, width=80))
    listing.print_encoders([Listed(known, False) for known in KNOWN])
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("hubert-large ")]
    assert len(row) <= 80
    assert row.split()[2:6] == ["315.4M", "50/s", "1024", "24"]


def test_the_json_has_every_fact_as_a_number(no_hub):
    done = run(main, ["--list-encoders", "--json"])
    rows = {row["name"]: row for row in done.json["encoders"]}
    assert set(rows) == {known.name for known in KNOWN}
    assert rows["mimi"] == {
        "name": "mimi",
        "source": "kyutai/mimi",
        "million_parameters": 38.9,
        "frame_rate": 12.5,
        "width": 32,
        "layers": 0,
        "licence": "CC-BY-4.0",
        "normalise": None,
        "bytes_an_hour": 12.5 * 32 * 2 * 3600,
        "here": False,
    }
    assert rows["fbank"]["here"] is True
