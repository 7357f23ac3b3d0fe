"""A GGUF file is unpacked once: its copy is the same model, is removed when damaged, and never stands in the way of a training."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from encodeonce.store.cache import cache_folder
from encodeonce.train.errors import TrainingError
from encodeonce.train.llm import load
from encodeonce.train.llm.config import LLMConfig
from encodeonce.train.llm.frozen import FrozenLLM
from encodeonce.train.llm.load import load_llm
from transformers import LlamaForCausalLM

gguf = pytest.importorskip("gguf")
WIDTH, HIDDEN, LAYERS, HEADS = 64, 96, 2, 4
PIECES = ["<unk>", "<s>", "</s>", *"abcdefghijklmnop", "Ġ", "ab", "Ġa"]
MATRICES = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (WIDTH, WIDTH),
    "attn_v": (WIDTH, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (HIDDEN, WIDTH),
    "ffn_up": (HIDDEN, WIDTH),
    "ffn_down": (WIDTH, HIDDEN),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaMA with random weights in 8 bits."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write_gguf(path, seed=2)
    return path


def write_gguf(path: Path, seed: int) -> None:
    writer, random = gguf.GGUFWriter(path, "llama"), np.random.default_rng(seed)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(PIECES))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(PIECES)
    writer.add_token_types([3, 3, 3, *[1] * (len(PIECES) - 3)])
    writer.add_token_merges(["a b", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    kind = gguf.GGMLQuantizationType.Q8_0

    def matrix(name: str, shape: tuple[int, int]) -> None:
        values = random.standard_normal(shape, np.float32) / 4
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)

    matrix("token_embd", (len(PIECES), WIDTH))
    matrix("output", (len(PIECES), WIDTH))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(WIDTH, np.float32))
        for name, shape in MATRICES.items():
            matrix(f"blk.{layer}.{name}", shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def config_of(file: Path) -> LLMConfig:
    return LLMConfig(model=str(file), dtype="bfloat16")


def copies() -> list[Path]:
    return sorted(path for path in (cache_folder() / "llms").glob("*") if path.is_dir())


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each time that weights were loaded, whether a GGUF file was unpacked."""
    found: list[bool] = []
    real = load.load_weights
    monkeypatch.setattr(
        load, "load_weights", lambda source, *rest: found.append(bool(source.gguf)) or real(source, *rest)
    )
    return found


def check_same(found: FrozenLLM, expected: FrozenLLM) -> None:
    assert found.fingerprint == expected.fingerprint
    assert found.words.encode("abc a b") == expected.words.encode("abc a b")
    assert found.words.end == expected.words.end
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {value.dtype for value in ours.values()} == {value.dtype for value in theirs.values()}


def test_the_copy_is_the_model_that_was_unpacked(file: Path, sources: list[bool]):
    first, second = load_llm(config_of(file)), load_llm(config_of(file))
    assert sources == [True, False]
    check_same(second, first)
    (copy,) = copies()
    assert not (copy.parent / f"{copy.name}.part").exists()
    plain = LlamaForCausalLM.from_pretrained(copy)  # the format is transformers' own
    assert all(torch.equal(value, first.state_dict()[f"model.{name}"]) for name, value in plain.state_dict().items())


def test_every_dtype_and_every_file_has_a_copy_of_its_own(file: Path, tmp_path: Path, sources: list[bool]):
    other = tmp_path / "small.gguf"
    write_gguf(other, seed=3)
    load_llm(config_of(file))
    load_llm(replace(config_of(file), dtype="float32"))
    load_llm(config_of(other))
    moved = Path(shutil.copy(file, tmp_path / "moved.gguf"))
    load_llm(config_of(moved))
    assert sources == [True, True, True, False]
    assert len(copies()) == 3


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "files.json"])
def test_a_damaged_copy_is_removed_and_made_again(file: Path, sources: list[bool], name: str):
    first = load_llm(config_of(file))
    (copy,) = copies()
    damaged = bytearray((copy / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (copy / name).write_bytes(damaged)
    check_same(load_llm(config_of(file)), first)
    check_same(load_llm(config_of(file)), first)
    assert sources == [True, True, False]
    (copy / name).unlink()
    check_same(load_llm(config_of(file)), first)
    assert sources[3:] == [True]
    assert set(json.loads((copy / "files.json").read_text())) >= {"model.safetensors", "config.json", "tokenizer.json"}


def test_a_cache_that_cannot_be_written_is_none(file: Path, tmp_path: Path, monkeypatch, sources: list[bool]):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ENCODEONCE_CACHE", str(tmp_path / "file"))
    load_llm(config_of(file))
    load_llm(config_of(file))
    assert sources == [True, True]


def test_a_full_disk_leaves_nothing_and_stops_nothing(file: Path, monkeypatch, sources: list[bool]):
    def full(self, folder: Path, *_, **__) -> None:
        Path(folder).mkdir()
        (Path(folder) / "model.safetensors").write_bytes(b"some")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", full)
        load_llm(config_of(file))
    assert copies() == []
    load_llm(config_of(file))
    assert sources == [True, True]
    assert len(copies()) == 1


def test_quantising_is_refused_with_a_copy_as_without(file: Path):
    load_llm(config_of(file))
    with pytest.raises(TrainingError, match=r"llm\.quantise=4bit: .* is a GGUF file"):
        load_llm(replace(config_of(file), quantise="4bit"))
