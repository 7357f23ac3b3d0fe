"""The model as a configuration says: what is trained of it, that padding changes nothing, and that a checkpoint brings it back."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from encodeonce.store.layout import Output
from encodeonce.train.batch import FeatureIdentity
from encodeonce.train.checkpoint import SIZES, Fingerprints, load_checkpoint, save_checkpoint
from encodeonce.train.checks import check_config
from encodeonce.train.config import TrainConfig
from encodeonce.train.configure import parse_config
from encodeonce.train.errors import TrainingError
from encodeonce.train.model import AdapterModel, build_model, restore_model
from encodeonce.train.objectives.base import Tokens
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXTS = ["open the door", "close a red door", "the cat sat on the mat", "no"]
LENGTHS = torch.tensor([23, 31, 40, 12])
FLOATS, CODES = (
    Output("layer-9", 10, "float16", "made up"),
    Output("codes", 2, "uint16", "made up", codebook_sizes=(7, 5)),
)
WINDOWS = {"name": "window-qformer", "window_frames": 5, "hidden": 16, "layers": 2, "heads": 2}
CONCAT = {"name": "concat-mlp", "concat": 2, "hidden": 16}
PARTS: dict[str, dict[str, Any]] = {
    "qformer": {
        "adapter": {"name": "qformer", "hidden": 16, "layers": 3, "heads": 2, "queries": 4},
        "objectives": {"stc": {"width": 8, "queue": 8}, "stm": {}, "stg": {}},
    },
    "contrast alone": {"adapter": {"name": "qformer", "queries": 4}, "objectives": {"stc": {}}},
    "bert": {
        "adapter": {"name": "qformer", "bert": "BERT", "queries": 4},
        "objectives": {"stg": {}},
        "text": {"tokenizer": "bert"},
    },
    "windows": {"adapter": WINDOWS, "objectives": {"stg": {}}, "input": {"normalise": "layer"}},
    "windows, no text": {"adapter": {**WINDOWS, "positions": "learned"}, "objectives": {"llm": {}}, "llm": "LLM"},
    "bilstm": {"adapter": {"name": "bilstm", "hidden": 8}, "objectives": {"ctc": {}}},
    "codes": {"adapter": {"name": "bilstm", "hidden": 8}, "objectives": {"ctc": {}}, "input": {"codes": "interleave"}},
    "mix": {"adapter": {"name": "transformer", "hidden": 16, "layers": 1}, "objectives": {"ctc": {"units": "text"}}},
    "llm": {"adapter": CONCAT, "objectives": {"ctc": {"units": "llm"}, "llm": {}}, "llm": "LLM"},
    "rows alone": {"adapter": CONCAT, "objectives": {"ctc": {"units": "llm"}}, "llm": "LLM"},
    "merged alone": {"adapter": {"name": "ctc-compressed"}, "objectives": {"ctc": {}}},
    "merged": {
        "adapter": {"name": "ctc-compressed", "encoder": {**WINDOWS, "bert": "BERT"} | dict.fromkeys(("hidden", "layers", "heads"))},
        "objectives": {"ctc": {}, "llm": {}},
        "llm": "LLM",
    },
}  # fmt: skip
OUTPUTS = {"codes": [CODES], "mix": [FLOATS, FLOATS]}
kinds = pytest.mark.parametrize("kind", PARTS)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small random BERT and a small random Llama with tokenizers."""
    folder = tmp_path_factory.mktemp("pretrained")
    words = sorted({word for text in TEXTS for word in text.split()})
    torch.manual_seed(3)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 24, "intermediate_size": 40}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    bert = BertForMaskedLM(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=20, **sizes))
    bert.save_pretrained(folder / "bert")
    (folder / "bert" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=30, num_key_value_heads=1, max_position_embeddings=64, **sizes))
    llama.save_pretrained(folder / "llm")
    known = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", "</s>", *words])}, "<unk>"))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=known, eos_token="</s>", unk_token="<unk>").save_pretrained(folder / "llm")
    return {"BERT": folder / "bert", "LLM": folder / "llm"}


def config_of(kind: str, pretrained: Mapping[str, Path]) -> TrainConfig:
    training = {"max_steps": 1, "device": "cpu", "best": "loss"}
    values = {"output_dir": "nowhere", "training": training, "text": {"tokenizer": "words"}, **PARTS[kind]}
    if "llm" in values:
        values["llm"] = {"model": str(pretrained["LLM"]), "dtype": "float32", "max_tokens": 8}
    config = parse_config(json.loads(json.dumps(values).replace('"BERT"', json.dumps(str(pretrained["BERT"])))))
    check_config(config)
    return config


def make(kind: str, pretrained: Mapping[str, Path]) -> AdapterModel:
    torch.manual_seed(5)
    return build_model(config_of(kind, pretrained), outputs_of(kind), TEXTS)


def outputs_of(kind: str) -> list[Output]:
    return OUTPUTS.get(kind, [FLOATS])


def spoken(kind: str, padding: int = 0) -> list[Tensor]:
    """What is stored of each output, with anything after an utterance's end."""
    generator = torch.Generator().manual_seed(1)
    shape = (len(TEXTS), int(LENGTHS.max()) + 9)
    found = []
    for output in outputs_of(kind):
        codes = torch.randint(5, (*shape, output.width), generator=generator)
        floats = torch.randn(*shape, output.width, generator=generator)
        found.append((codes if output.dtype == "uint16" else floats)[:, : int(LENGTHS.max()) + padding])
    return found


def tokens_of(model: AdapterModel) -> dict[str, Tokens]:
    return {name: Tokens.of([encode(text) for text in TEXTS]) for name, encode in model.encoders().items()}


def losses(model: AdapterModel, kind: str, padding: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(2)  # negatives are drawn
    return model(spoken(kind, padding), LENGTHS, tokens_of(model), list(model.objectives))


@kinds
def test_gradients_reach_all_that_is_trained_and_nothing_frozen_moves(kind, pretrained):
    model = make(kind, pretrained).train()
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    sum(losses(model, kind).values(), torch.zeros(())).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    optimiser.step()
    for name, parameter in model.named_parameters():
        assert name not in frozen or (parameter.grad is None and torch.equal(parameter, frozen[name])), name
    assert {n for n in frozen if n.startswith("llm.")} == {
        n for n, _ in model.named_parameters() if n.startswith("llm.")
    }


def test_what_no_objective_reads_is_not_trained(pretrained):
    frozen = {
        kind: {n for n, p in make(kind, pretrained).named_parameters() if not p.requires_grad and n[:4] != "llm."}
        for kind in PARTS
    }
    parts = {
        kind: {name.removeprefix("adapter.").rpartition(".")[0] for name in names} for kind, names in frozen.items()
    }
    last = {f"layers.1.feed_query.{part}" for part in ("up", "down", "norm")}
    assert parts["windows"] == parts["bert"] == last
    assert parts["contrast alone"] == {"text", "text.transform", "text.norm"}
    assert {name.partition(".")[0] for name in parts["merged alone"]} == {"layers", "norm"}
    rest = set(PARTS) - {"windows", "bert", "contrast alone", "merged alone"}
    assert not any(parts[kind] for kind in rest)


@kinds
@torch.no_grad()
def test_padding_changes_no_loss_and_no_text(kind, pretrained):
    model = make(kind, pretrained).eval()
    torch.testing.assert_close(losses(model, kind), losses(model, kind, padding=9), rtol=1e-5, atol=1e-5)
    if model.writes:
        assert model.transcribe(spoken(kind), LENGTHS) == model.transcribe(spoken(kind, 9), LENGTHS)


@kinds
@torch.no_grad()
def test_loss_of_a_batch_is_that_of_its_utterances_alone(kind, pretrained):
    model = make(kind, pretrained).eval()
    active = [name for name in model.objectives if name not in ("stc", "stm")]  # those compare utterances
    tokens, features = tokens_of(model), spoken(kind)
    together = model(features, LENGTHS, tokens, active)
    alone = dict.fromkeys(active, torch.zeros(()))
    for row, length in enumerate(LENGTHS.tolist()):
        own = {
            name: Tokens(t.ids[row : row + 1, : t.lengths[row]], t.lengths[row : row + 1]) for name, t in tokens.items()
        }
        found = model([x[row : row + 1, :length] for x in features], LENGTHS[row : row + 1], own, active)
        alone = {name: alone[name] + found[name] for name in active}
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def save(model: AdapterModel, config: TrainConfig, folder: Path) -> Path:
    made = Fingerprints.of(FeatureIdentity("toy", "features", ("layer-9",)), model)
    return save_checkpoint(folder, 1, config, model, made, None, {}, best=True)


@kinds
def test_a_checkpoint_brings_back_the_model_without_the_bert_that_it_began_with(kind, pretrained, tmp_path):
    config, model = config_of(kind, pretrained), make(kind, pretrained)
    torch.manual_seed(6)
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.requires_grad):
            weight += 0.1 * torch.randn_like(weight)
    model.train()
    losses(model, kind)  # fills the queue
    save(model.eval(), config, tmp_path)
    away = pretrained["BERT"].rename(tmp_path / "away")
    try:
        restored = restore_model(load_checkpoint(tmp_path), outputs_of(kind))
    finally:
        away.rename(pretrained["BERT"])
    assert not restored.training
    state = restored.trainable()
    assert state.keys() == model.trainable().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.trainable().items())
    with torch.no_grad():
        assert losses(restored, kind) == losses(model, kind)
    if model.writes:
        assert restored.transcribe(spoken(kind), LENGTHS) == model.transcribe(spoken(kind), LENGTHS)


def test_damaged_sizes_of_a_checkpoint_are_told(pretrained, tmp_path):
    folder = save(make("bert", pretrained), config_of("bert", pretrained), tmp_path)
    (folder / SIZES).write_text('{"hidden": 24}')
    with pytest.raises(TrainingError, match=r"sizes.json is damaged.*take another checkpoint"):
        restore_model(load_checkpoint(folder), outputs_of("bert"))


def test_a_bert_whose_padding_is_not_the_blank_is_refused_for_ctc(pretrained, tmp_path):
    folder = tmp_path / "bert"
    shutil.copytree(pretrained["BERT"], folder)
    words = (folder / "vocab.txt").read_text().split()
    (folder / "vocab.txt").write_text("\n".join([*words[4:], *words[:4]]) + "\n")
    ctc = {"adapter": "bilstm", "objectives": {"ctc": {"units": "text"}}, "text": {"tokenizer": str(folder)}}
    config = parse_config({"output_dir": "nowhere", **ctc})
    with pytest.raises(TrainingError, match=r"\[PAD\] is token 12.*units=characters"):
        build_model(config, [FLOATS], TEXTS)


def test_a_checkpoint_is_not_restored_with_another_language_model(pretrained, tmp_path):
    folder = save(make("llm", pretrained), config_of("llm", pretrained), tmp_path)
    file = folder / "fingerprints.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "llm": "another"}))
    with pytest.raises(TrainingError, match=r"trained on something else.*llm \w+ against another"):
        restore_model(load_checkpoint(folder), outputs_of("llm"))


def test_moments_come_with_the_checkpoint(pretrained, tmp_path):
    kind = "bilstm"
    config = parse_config({"output_dir": "nowhere", "input": {"normalise": "moments"}, **PARTS[kind]})
    model = build_model(config, outputs_of(kind), TEXTS, [(torch.arange(10.0), torch.full((10,), 4.0))]).eval()
    save(model, config, tmp_path)
    restored = restore_model(load_checkpoint(tmp_path), outputs_of(kind))
    with torch.no_grad():
        assert losses(restored, kind) == losses(model, kind)


def test_objectives_of_one_vocabulary_share_their_ids(pretrained):
    encoders = make("qformer", pretrained).encoders()
    assert len(set(encoders.values())) == 1 < len(encoders)
    assert len(set(make("llm", pretrained).encoders().values())) == 2


def test_what_cannot_be_trained_on_is_told_by_the_limit_that_it_passes(pretrained):
    def passed(kind: str, objective: str, frames: list[int], tokens: list[int]) -> dict[str, list[bool]]:
        texts = [list(range(5, 5 + count)) for count in tokens]
        found = make(kind, pretrained).excess(objective, torch.tensor(frames), texts)
        return {why: which.tolist() for why, which in found.items()}

    assert passed("bert", "stg", [9, 9], [18, 19]) == {"more than 18 tokens": [False, True]}  # 20 positions
    for kind, tokens in (("bilstm", [3, 4]), ("codes", [6, 7])):
        ((why, over),) = passed(kind, "ctc", [3, 3], tokens).items()
        assert why.startswith("more text than CTC has emissions for, by adapter.")
        assert "objectives.ctc.emissions=" in why
        assert over == [False, True]
    assert passed("llm", "llm", [10, 10, 112], [8, 9, 8]) == {
        "more than 8 tokens": [False, True, False],
        "more than the language model has positions for": [False, False, True],
    }


@pytest.mark.parametrize(("weights", "writes"), [({"llm": 1, "ctc": 1}, "llm"), ({"llm": 0, "ctc": 1}, "ctc")])
def test_what_is_trained_to_the_end_writes(pretrained, weights, writes):
    """An objective of the phases alone has forgotten what it could; and validation decodes what is trained."""
    config = config_of("llm", pretrained)
    objectives = {name: replace(getattr(config.objectives, name), weight=weight) for name, weight in weights.items()}
    config = replace(config, objectives=replace(config.objectives, **objectives))
    assert build_model(config, outputs_of("llm"), TEXTS).writes == writes
