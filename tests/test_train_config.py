"""Configurations: what is wrong is refused by its path before anything is loaded, and what is right comes back as it was."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from encodeonce.store.layout import Output
from encodeonce.train.adapters.registry import ADAPTERS
from encodeonce.train.checks import check_config, objective_weights
from encodeonce.train.config import TrainConfig
from encodeonce.train.configure import about, as_values, load_config, override, parse_config, recipes, to_yaml
from encodeonce.train.errors import TrainingError
from encodeonce.train.estimate import FOUR_BIT_BYTES, estimate, saved_bytes
from encodeonce.train.llm.config import LLMConfig
from encodeonce.train.objectives.config import LLMLossConfig, ObjectivesConfig
from encodeonce.train.objectives.contrastive import Contrastive
from encodeonce.train.objectives.ctc import CTC
from encodeonce.train.objectives.generation import Generation
from encodeonce.train.objectives.language_model import LanguageModelObjective
from encodeonce.train.objectives.matching import Matching
from encodeonce.train.pretrained import BERTS, HUB, LLMS
from encodeonce.train.shapes import BERTS as BERT_SIZES
from encodeonce.train.shapes import KNOWN as LLM_SIZES
from encodeonce.train.shapes import llm_shape
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma3Config

SMALL: dict[str, Any] = {
    "output_dir": "runs/none",
    "adapter": "bilstm",
    "objectives": {"ctc": {}},
    "training": {"max_steps": 10, "device": "cpu"},
}
QFORMER: dict[str, Any] = {
    **SMALL,
    "adapter": {"name": "qformer"},
    "objectives": {"stc": {}, "stg": {}},
    "text": {"tokenizer": "characters"},
}
WITH_LLM: dict[str, Any] = {**SMALL, "objectives": {"llm": {}}, "llm": {"model": "smollm2-135m"}}

COMPRESSED: dict[str, Any] = {**WITH_LLM, "adapter": "ctc-compressed", "objectives": {"ctc": {}, "llm": {}}}


def configured(values: dict[str, Any], *overrides: str) -> TrainConfig:
    return parse_config(override(values, overrides))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("training.learnig_rate=1", "training.learnig_rate=1: no such option (did you mean learning_rate?)"),
        ("trainig.seed=1", "trainig={'seed': 1}: no such option (did you mean training?)"),
        ("training.learning_rate=fast", "training.learning_rate=fast: take a number"),
        ("training.learning_rate=.nan", "training.learning_rate=nan: take a number"),
        ("training.max_steps=1.5", "training.max_steps=1.5: take a whole number"),
        ("training.max_steps=true", "training.max_steps=true: take a whole number"),
        ("training.schedule=cosinus", "take one of cosine, tri-stage, constant (did you mean cosine?)"),
        ("training.betas=[0.9]", "training.betas=[0.9]: take a list of 2"),
        ("training.tensorboard=1", "training.tensorboard=1: take true or false"),
        ("data.train=[1088]", "data.train.0=1088: take a text"),
        ("data=features", "data: 'features' where options belong"),
        ("adapter=perciever", "perceiver"),
        ("adapter.hiden=3", "adapter.hiden=3: no such option (did you mean hidden?)"),
        ("adapter.hidden=0", "hidden is 0"),
        ("adapter={hidden: 3}", "say which adapter"),
        ("llm.dtype=bfloat16", "llm.model is not given"),
        ("llm={model: a, model: b}", "'model' is given twice"),
        ("phases=[{objectives: {ctc: high}, steps: 1}]", "phases.0.objectives.ctc=high: take a number"),
        ("seed", "write key=value"),
        ("seed.more=1", "before 'more' there is the value 3"),
    ],
)
def test_a_wrong_option_is_named_by_its_path_with_its_value(words, told):
    with pytest.raises(TrainingError) as error:
        configured({**SMALL, "seed": 3}, words)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("base", "words", "told"),
    [
        (SMALL, "objectives.ctc=null", "none is given"),
        (SMALL, "objectives.stg={}", "bilstm has no text side"),
        (QFORMER, "objectives={stm: {}, stg: {}}", "add stc: {}"),
        (QFORMER, "objectives={ctc: {}}", "in the order of time, which those of adapter qformer are not"),
        (QFORMER, "objectives={stc: {}}", None),
        (QFORMER, "text.tokenizer=bert", "adapter.bert, which is not given"),
        (QFORMER, "adapter={name: qformer, bert: minilm-l6}", "brings embeddings for its own vocabulary"),
        (QFORMER, "text.tokenizer=bpe:many", "write bpe: and the size"),
        (QFORMER, "text.tokenizer=nowhere", "no folder of that name"),
        (QFORMER, "data.max_batch=1", "nothing to tell apart"),
        (SMALL, "objectives.llm={}", "but no llm: say which"),
        (SMALL, "objectives.ctc.units=llm", "no llm is given"),
        (SMALL, "llm.model=smollm2-135m", "no objective reads it"),
        (WITH_LLM, "llm.prompt=Say it", "has to hold {speech} once"),
        (WITH_LLM, "llm.quantise=4bit", "leave one of them out"),
        (WITH_LLM, "llm.dtype=float16", "take training.mixed_precision=fp16"),
        (SMALL, "adapter=ctc-compressed", None),
        (COMPRESSED, "objectives.ctc.units=llm", "tells units itself, one for a frame"),
        (COMPRESSED, "objectives.ctc.emissions=2", "tells units itself, one for a frame"),
        (WITH_LLM, "objectives.ctc={units: llm, emissions: 2}", "each embedding tells one token"),
        (QFORMER, "objectives.stc.queue=64", None),
        (
            {**QFORMER, "adapter": "window-qformer"},
            "objectives.stc.queue=64",
            "follow its length: take adapter qformer",
        ),
        (WITH_LLM, "adapter=ctc-compressed", "objectives.ctc is not given"),
        (SMALL, "training.max_steps=null", "neither max_steps nor epochs"),
        (SMALL, "training.epochs=3", "give one of them"),
        (SMALL, "training.warmup_steps=11", "more than training.max_steps=10"),
        (SMALL, "training.mixed_precision=fp16", "needs a GPU"),
        (SMALL, "training.mixed_precision=no", None),
        (SMALL, "training.patience=3", "there is no dev set"),
        (SMALL, "training.learning_rate=0", "training.learning_rate=0.0: take a number above 0"),
        (SMALL, "data.frames_per_batch=0", "data.frames_per_batch=0: take 1 or more"),
        (SMALL, "training.ema=1", "0 or more, below 1"),
        (SMALL, "data.target=translations:de", "take text, translation:LANGUAGE"),
        (SMALL, "data={train: [a], dev: [a]}", "is in data.train and in data.dev"),
        (SMALL, "data={train: [a, a]}", "data.train has a twice"),
        (SMALL, "init_from=nowhere", "init_from=nowhere: no such folder"),
        (SMALL, "phases=[{objectives: {stg: 1}, steps: 5}]", "phases.0.objectives.stg has no options"),
        (SMALL, "phases=[{objectives: {ctcc: 1}, steps: 0}]", "phases.0.steps=0: take 1 or more"),
        (SMALL, "objectives.ctc.weight=0", "there is nothing to train when the phases are over"),
        (WITH_LLM, "objectives.ctc={units: llm, weight: 0}", "objectives.ctc.weight=0, and no phase has it"),
    ],
)
def test_contradictions_are_refused_with_the_reason(base, words, told):
    config = configured(base, words)
    if told is None:
        check_config(config)
        return
    with pytest.raises(TrainingError) as error:
        check_config(config)
    assert told in str(error.value)


def test_nothing_trained_writes_text_so_it_cannot_be_best_in_words():
    config = configured(QFORMER, "objectives={stc: {}}", "data.dev_where=speaker == 'a'")
    with pytest.raises(TrainingError, match=r"take training\.best=loss"):
        check_config(config)
    check_config(replace(config, training=replace(config.training, best="loss")))


def test_numbers_are_numbers_however_they_are_written():
    config = configured(
        SMALL, "training.learning_rate=1e-3", "data.frames_per_batch=4e4", "training.betas=[9e-1, 1e-1]"
    )
    assert config.training.learning_rate == 1e-3
    assert config.data.frames_per_batch == 40_000
    assert config.training.betas == (0.9, 0.1)
    assert configured(SMALL, "training.mixed_precision=no").training.mixed_precision == "no"


def test_overrides_reach_into_sections_that_are_not_there_yet_and_into_lists():
    changed = configured(
        {**WITH_LLM, "adapter": "bilstm"}, "llm.lora.rank=4", "adapter.hidden=8", "data.train=dev-clean"
    )
    assert changed.llm is not None
    assert changed.llm.lora is not None
    assert (changed.llm.lora.rank, changed.data.train) == (4, ("dev-clean",))
    assert as_values(changed)["adapter"]["hidden"] == 8
    phased = configured({**SMALL, "phases": [{"objectives": {"ctc": 1.0}, "steps": 5}]}, "phases.0.steps=7")
    assert phased.phases[0].steps == 7
    assert SMALL["training"] == {"max_steps": 10, "device": "cpu"}


def test_a_file_that_says_nothing_usable_is_told_in_a_line(tmp_path):
    for text, told in (
        ("- a\n", "holds no configuration"),
        ("a: [", "is no YAML"),
        ("seed: 1\nseed: 2\n", "given twice"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(TrainingError, match=told):
            load_config(tmp_path / "c.yaml")
    with pytest.raises(TrainingError, match="did you mean slam-asr-linear"):
        load_config("slam-asr-liner")


RECIPES = recipes()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_whole_and_comes_back_as_it_was(name):
    config = load_config(name)
    check_config(replace(config, init_from=None, training=replace(config.training, device="cpu")))
    assert parse_config(yaml.safe_load(to_yaml(config))) == config
    first, *rest = RECIPES[name].read_text().splitlines()
    assert about(RECIPES[name])
    assert first.startswith("# ")
    if not name.startswith("demo-"):  # those begin with what they have in common
        assert any(line.startswith("#") and f"train-adapter {name}" in line for line in rest), "it says its command"
        assert any(line.startswith("# Memory: about") for line in rest)


def named_by(recipe: str) -> list[str]:
    """The pretrained models that a recipe begins with."""
    config = load_config(recipe)
    bert, llm = getattr(config.adapter, "bert", None), None if config.llm is None else config.llm.model
    return [name for name in (bert, llm) if name is not None]


@pytest.mark.parametrize("name", sorted({name for recipe in RECIPES for name in named_by(recipe)}))
def test_every_pretrained_model_of_a_recipe_is_to_be_had(name):
    assert name in {*BERTS, *LLMS} or HUB.get(name, name).count("/") == 1
    assert name.count("/") == 1 or name in {*LLM_SIZES, *BERT_SIZES}, "its size is told without a network"


def test_the_berts_of_translations_write_the_letters_of_their_language():
    for recipe in RECIPES:
        config = load_config(recipe)
        if config.data.target.startswith("translation:"):
            assert not config.data.lower
            assert "-cased" in named_by(recipe)[0]


WORDS = st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" \n\t")
"""What people write; YAML as pyyaml writes it loses U+0085 and its like."""


@given(
    st.sampled_from(sorted(ADAPTERS)),
    st.integers(0, 2**31),
    st.floats(1e-9, 1e3),
    st.lists(st.text(WORDS, min_size=1, max_size=8), max_size=3, unique=True),
    st.text(WORDS, max_size=20),
)
def test_what_is_written_is_read_again(adapter, seed, rate, splits, condition):
    config = configured({**SMALL, "adapter": adapter, "seed": seed})
    data = replace(config.data, train=tuple(splits), train_where=condition)
    config = replace(config, data=data, training=replace(config.training, learning_rate=rate))
    assert parse_config(yaml.safe_load(to_yaml(config))) == config


def test_every_option_is_told_in_the_docs():
    """docs/training.md names each option of every section."""
    text = (Path(__file__).parent.parent / "docs" / "training.md").read_text()
    missing = [
        f"{section.name}.{option.name}"
        for section in dataclasses.fields(TrainConfig)
        if section.name in ("data", "input", "text", "training")
        for option in dataclasses.fields(type(getattr(configured(SMALL), section.name)))
        if f"`{option.name}`" not in text
    ]
    assert not missing
    assert all(f"`{name}`" in text for name in RECIPES if not name.startswith("demo-"))


def test_what_a_reasonable_loss_is_stands_in_the_docs():
    text = (Path(__file__).parent.parent / "docs" / "training.md").read_text()
    for objective in (Contrastive, Matching, Generation, CTC, LanguageModelObjective):
        assert objective.reasonable in text, objective.name


def test_four_bits_take_what_bitsandbytes_takes_for_them():
    quantised = pytest.importorskip("bitsandbytes.functional")
    packed, state = quantised.quantize_4bit(torch.randn(512, 1024), quant_type="nf4", compress_statistics=True)
    size = sum(part.nbytes for part in (packed, state.absmax, state.state2.absmax))
    assert size / (512 * 1024) == FOUR_BIT_BYTES


def test_a_7b_language_model_has_as_many_parameters_as_its_makers_say():
    assert llm_shape("meta-llama/Llama-2-7b-hf").parameters == 6_738_415_616
    assert llm_shape("TinyLlama/TinyLlama-1.1B-Chat-v1.0").parameters == 1_100_048_384


def test_a_language_model_that_sees_has_the_sizes_of_its_text_side(tmp_path):
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    seeing = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 300, "num_key_value_heads": 2}
    Gemma3Config(text_config=text, vision_config={**seeing, "image_size": 28, "patch_size": 14}).save_pretrained(
        tmp_path
    )
    found = llm_shape(str(tmp_path))
    assert (found.hidden, found.feed_forward, found.heads, found.layers, found.vocabulary) == (32, 48, 4, 2, 300)
    assert found.embeddings == 300 * 32


def test_hubert_large_with_a_billion_parameters_fits_8_gb():
    found = estimate(
        load_config("hubert-large-llm-1b"), [Output("layer-24", 1024, "float16", "hidden_states[24]")], 50.0
    )
    assert found.frozen["llm"] > 1e9
    assert found.memory.total + 1e9 < 8e9, "a gigabyte for CUDA and for gaps"


def test_what_a_language_model_keeps_is_what_autograd_keeps_of_it():
    """The formula against a small LLaMA of transformers: two sizes of batch, so that what is fixed falls out."""
    from encodeonce.train.estimate import TOKENS_A_SECOND, UTTERANCE_SECONDS, _llm_activations
    from encodeonce.train.shapes import LLMShape
    from transformers import LlamaConfig, LlamaModel

    sizes = {
        "hidden_size": 64,
        "intermediate_size": 200,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "vocab_size": 32,
    }
    model = LlamaModel(LlamaConfig(**sizes)).requires_grad_(False)
    shape = LLMShape(0, 0, hidden=64, feed_forward=200, heads=4, layers=3, vocabulary=0)
    config = replace(
        configured(SMALL), llm=LLMConfig(model="x", dtype="float32"), objectives=ObjectivesConfig(llm=LLMLossConfig())
    )
    embeddings, prompt = 60, len("{speech}") // 4
    tokens = embeddings + round(UTTERANCE_SECONDS * TOKENS_A_SECOND) + 1 + prompt

    def kept(count: int) -> int:
        frames = torch.zeros(count, tokens, 64, requires_grad=True)
        return saved_bytes(lambda: model(inputs_embeds=frames, use_cache=False).last_hidden_state, model)

    assert _llm_activations(config, shape, embeddings, 4) == pytest.approx(kept(8) - kept(4), rel=0.1)


def test_codes_one_after_the_other_in_time_take_as_many_times_the_activations():
    codes = [Output("codes", 4, "uint16", "codes", codebook_sizes=(16,) * 4)]
    config = configured({**SMALL, "adapter": "blsp"}, "input.code_width=32", "adapter.hidden=32")
    summed, apart = (
        estimate(replace(config, input=replace(config.input, codes=how)), codes, 50.0).memory.activations
        for how in ("sum", "interleave")
    )
    assert apart > 3 * summed


def test_weights_of_objectives_are_those_that_are_given():
    assert objective_weights(configured(QFORMER, "objectives.stg.weight=2")) == {"stc": 1.0, "stg": 2.0}
