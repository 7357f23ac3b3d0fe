"""Contradictions in a configuration, refused with the reason before anything is loaded."""

import math
import re
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from encodeonce.store.devices import find_device
from encodeonce.train.config import TrainConfig
from encodeonce.train.errors import TrainingError
from encodeonce.train.objectives.config import ObjectivesConfig

OBJECTIVES = tuple(field.name for field in fields(ObjectivesConfig))
Writer = Literal["llm", "stg", "ctc"]
WRITERS: tuple[Writer, ...] = ("llm", "stg", "ctc")
"""Objectives that write text, whose word error rate can be told; of several that are trained alike the first of these writes."""
ONE_OR_MORE = (
    *("data.frames_per_batch", "data.max_batch", "data.limit", "text.max_tokens", "llm.max_tokens", "llm.lora.rank"),
    *("training.max_steps", "training.epochs", "training.gradient_accumulation_steps", "training.eval_steps"),
    *(
        "training.eval_utterances",
        "training.patience",
        "training.log_steps",
        "training.threads",
        "objectives.stc.width",
        "objectives.ctc.emissions",
    ),
)
ABOVE_ZERO = (
    *("data.max_seconds", "training.learning_rate", "training.clip_norm", "training.max_minutes"),
    "objectives.stc.temperature",
)
ZERO_OR_MORE = ("seed", "training.warmup_steps", "training.weight_decay", "objectives.stc.queue", "input.noise")
BELOW_ONE = ("objectives.stc.label_smoothing", "objectives.stg.label_smoothing", "training.ema", "input.dropout")
SHARES = ("training.final_learning_rate",)


def check_config(config: TrainConfig) -> None:
    """Refuse what cannot be trained as it is asked for.

    Raises:
        TrainingError: every contradiction, with what to change.
    """
    rules = (_ranges, _objectives, _phases, _vocabulary, _language_model, _data, _training, _folders, _libraries)
    if wrong := [found for rule in rules for found in rule(config)]:
        raise TrainingError("; ".join(wrong))


def warnings(config: TrainConfig) -> list[str]:
    """What is allowed, and seldom meant."""
    told, objectives = [], config.objectives
    if config.data.target.startswith("translation:") and objectives.ctc:
        told.append(
            "objectives.ctc follows the order of the speech, and a translation often does not: expect little of it"
        )
    if not has_dev(config):
        told.append(
            "no dev set (data.dev or data.dev_where): nothing is validated, and only the last checkpoint is kept"
        )
    if objectives.stm and objectives.stc and not objectives.stc.weight:
        told.append(
            "objectives.stc.weight=0: its similarities are not trained, so the negatives of stm are hardly hard"
        )
    return told


def has_dev(config: TrainConfig) -> bool:
    """Whether there is something to validate on."""
    return bool(config.data.dev or config.data.dev_where)


def objective_weights(config: TrainConfig) -> dict[str, float]:
    """The objectives that are given, by name, with their weights outside the phases."""
    given = {name: getattr(config.objectives, name) for name in OBJECTIVES}
    return {name: section.weight for name, section in given.items() if section is not None}


def writers_of(config: TrainConfig) -> list[Writer]:
    """The objectives of a training that write text: those that are trained to the end first."""
    weights = objective_weights(config)
    return sorted((name for name in WRITERS if name in weights), key=lambda name: not weights[name])


def text_is_read(config: TrainConfig) -> bool:
    """Whether the vocabulary of `text` is used: by the Q-Former's text side, or by CTC."""
    ctc = config.objectives.ctc
    return bool(objective_weights(config).keys() & {"stc", "stm", "stg"}) or (ctc is not None and ctc.units == "text")


def _at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = None if config is None else getattr(config, name)
    return config


def _ranges(config: TrainConfig) -> Iterator[str]:
    kinds = (
        (ONE_OR_MORE, "1 or more", lambda value: value >= 1),
        (ABOVE_ZERO, "a number above 0", lambda value: value > 0),
        (ZERO_OR_MORE, "0 or more", lambda value: value >= 0),
        (BELOW_ONE, "0 or more, below 1", lambda value: 0 <= value < 1),
        (SHARES, "a share from 0 to 1", lambda value: 0 <= value <= 1),
    )
    for paths, what, fits in kinds:
        for path in paths:
            value = _at(config, path)
            if value is not None and not fits(value):
                yield f"{path}={value}: take {what}"
    if not all(0 <= beta < 1 for beta in config.training.betas):
        yield f"training.betas={list(config.training.betas)}: take two numbers from 0, below 1"
    for name, weight in objective_weights(config).items():
        if weight < 0:
            yield f"objectives.{name}.weight={weight}: take 0 or more"


def _objectives(config: TrainConfig) -> Iterator[str]:
    given, adapter = objective_weights(config), config.adapter
    if not given:
        yield "objectives: none is given; with its defaults one is written stg: {}, ctc: {} or llm: {}"
        return
    reached = {name for phase in config.phases for name, weight in phase.objectives.items() if weight > 0}
    if not any(given.values()):
        yield f"objectives: the weights of {' and '.join(given)} are all 0, so there is nothing to train when the phases are over"
    for name, weight in given.items():
        if weight == 0 and name not in reached and not (name == "stc" and "stm" in given):
            yield f"objectives.{name}.weight=0, and no phase has it: leave it out, or give it a weight"
    if "stm" in given and "stc" not in given:
        yield "objectives.stm draws its negatives by the similarities of objectives.stc, which is not given: add stc: {}"
    if not adapter.has_text and (text := given.keys() & {"stc", "stm", "stg"}):
        yield (
            f"objectives.{min(text)} reads or writes text with the adapter, and {adapter.name} has no text side: take a qformer, "
            f"or objectives ctc or llm"
        )
    if adapter.name == "ctc-compressed" and "ctc" not in given:
        yield "adapter ctc-compressed merges by what CTC hears, and objectives.ctc is not given: add ctc: {}"
    ctc = config.objectives.ctc
    if adapter.name == "ctc-compressed" and ctc and (ctc.units == "llm" or ctc.emissions > 1):
        yield (
            f"objectives.ctc: adapter ctc-compressed tells units itself, one for a frame, and ctc asks for units={ctc.units}, "
            f"emissions={ctc.emissions}: take units characters or text, and emissions 1"
        )
    elif ctc and ctc.units == "llm" and ctc.emissions > 1:
        yield f"objectives.ctc.emissions={ctc.emissions}: with units llm each embedding tells one token; leave it out"
    if "ctc" in given and not adapter.ordered:
        yield (
            f"objectives.ctc needs embeddings in the order of time, which those of adapter {adapter.name} are not: take "
            f"window-qformer, concat-mlp, bilstm or another that follows time"
        )
    stc = config.objectives.stc
    if stc and stc.queue and adapter.ordered and adapter.has_text:
        yield (
            f"objectives.stc.queue={stc.queue} keeps as many queries of every utterance, and those of {adapter.name} follow its "
            f"length: take adapter qformer, or leave the queue out"
        )
    if stc and config.data.max_batch == 1 and not stc.queue:
        yield "data.max_batch=1 leaves objectives.stc nothing to tell apart: take a larger one, or objectives.stc.queue"


def _phases(config: TrainConfig) -> Iterator[str]:
    given = objective_weights(config)
    for number, phase in enumerate(config.phases):
        path = f"phases.{number}"
        if phase.steps < 1:
            yield f"{path}.steps={phase.steps}: take 1 or more"
        if phase.learning_rate is not None and phase.learning_rate <= 0:
            yield f"{path}.learning_rate={phase.learning_rate:g}: take a number above 0"
        for name in phase.objectives:
            if name not in OBJECTIVES:
                yield f"{path}.objectives.{name}: no such objective; there are {', '.join(OBJECTIVES)}"
            elif name not in given:
                yield (
                    f"{path}.objectives.{name} has no options: add {name}: {{weight: 0}} to objectives, or {name}: {{}} to "
                    f"train it later too"
                )
        if not any(weight > 0 for weight in phase.objectives.values()):
            yield f"{path}.objectives: no weight above 0, so there is nothing to train"
        if any(weight < 0 for weight in phase.objectives.values()):
            yield f"{path}.objectives: take weights of 0 or more"


def _vocabulary(config: TrainConfig) -> Iterator[str]:
    if not text_is_read(config):
        return
    name, bert = config.text.tokenizer, getattr(config.adapter, "bert", None)
    if bert is None and name == "bert":
        yield "text.tokenizer=bert is that of adapter.bert, which is not given: give one, or take characters, words or bpe:1000"
    elif bert is not None and name != "bert":
        yield (
            f"text.tokenizer={name}: adapter.bert={bert} brings embeddings for its own vocabulary: take text.tokenizer=bert, "
            f"or leave adapter.bert out"
        )
    elif name.startswith("bpe:") and not re.fullmatch(r"bpe:[1-9]\d*", name):
        yield f"text.tokenizer={name}: write bpe: and the size of the vocabulary, such as bpe:1000"
    elif name not in ("bert", "characters", "words") and not name.startswith("bpe:") and not Path(name).is_dir():
        yield f"text.tokenizer={name}: take bert, characters, words, bpe:N, or a BERT folder; there is no folder of that name"


def _language_model(config: TrainConfig) -> Iterator[str]:
    llm, objectives, precision = config.llm, config.objectives, config.training.mixed_precision
    if llm is None:
        if objectives.llm:
            yield "objectives.llm is given, but no llm: say which, such as llm: {model: smollm2-135m}"
        if objectives.ctc and objectives.ctc.units == "llm":
            yield "objectives.ctc.units=llm, but no llm is given: say which, or take characters"
        return
    if not objectives.llm and not (objectives.ctc and objectives.ctc.units == "llm"):
        yield f"llm.model={llm.model} is given, and no objective reads it: add llm: {{}} to objectives, or leave the section out"
    if llm.prompt.count("{speech}") != 1:
        yield f"llm.prompt={llm.prompt!r}: it has to hold {{speech}} once"
    if llm.quantise != "none" and is_gguf(llm.model):
        yield f"llm.quantise={llm.quantise}: a GGUF file is quantised as it is, and restored when it is loaded: leave one of them out"
    if llm.quantise == "8bit" and llm.dtype == "float32":
        yield "llm.quantise=8bit computes in 16 bits: take llm.dtype=bfloat16 or float16"
    if (llm.dtype, precision) in (("float16", "bf16"), ("bfloat16", "fp16")):
        yield f"llm.dtype={llm.dtype} and training.mixed_precision={precision} are two kinds of 16 bits: take the same"
    if (llm.dtype, precision) == ("float16", "no"):
        yield "llm.dtype=float16 loses small gradients without a scale: take training.mixed_precision=fp16, or llm.dtype=bfloat16"
    if llm.lora and not objectives.llm:
        yield "llm.lora is trained by objectives.llm, which is not given: add it, or leave lora out"


def is_gguf(model: str) -> bool:
    """Whether a language model is a GGUF file."""
    return model.endswith(".gguf") or model == "smollm2-135m"


def _data(config: TrainConfig) -> Iterator[str]:
    data = config.data
    kind, colon, name = data.target.partition(":")
    if colon and (kind not in ("translation", "metadata") or not name):
        yield f"data.target={data.target}: take text, translation:LANGUAGE, metadata:KEY, or a column of the table"
    both = set(data.train) & set(data.dev)
    if both and not data.dev_where:
        yield f"split {min(both)} is in data.train and in data.dev, and nobody learns from the dev set: say which of it with data.dev_where"
    for path, names in (("train", data.train), ("dev", data.dev), ("outputs", data.outputs)):
        if double := next((name for name in names if names.count(name) > 1), None):
            yield f"data.{path} has {double} twice"


def _training(config: TrainConfig) -> Iterator[str]:
    loop = config.training
    if loop.max_steps is None and loop.epochs is None:
        yield "training: neither max_steps nor epochs is given: say how long to train"
    if loop.max_steps is not None and loop.epochs is not None:
        yield f"training.max_steps={loop.max_steps} and training.epochs={loop.epochs}: give one of them"
    if loop.warmup_steps > (loop.max_steps or math.inf):
        yield f"training.warmup_steps={loop.warmup_steps} is more than training.max_steps={loop.max_steps}"
    if loop.patience is not None and not has_dev(config):
        yield f"training.patience={loop.patience} waits for validations, and there is no dev set: give data.dev or data.dev_where"
    if has_dev(config) and loop.best == "wer" and not any(objective_weights(config).get(name) for name in WRITERS):
        yield "training.best=wer, but nothing that is trained writes text: take training.best=loss"
    if find_device(loop.device) == "cpu" and loop.mixed_precision == "fp16":
        yield "training.mixed_precision=fp16 needs a GPU, and this trains on the CPU: take bf16 or no"


def _folders(config: TrainConfig) -> Iterator[str]:
    output_dir = Path(config.output_dir)
    there = next((folder for folder in (output_dir, *output_dir.parents) if folder.exists()), output_dir)
    if there.exists() and not there.is_dir():
        where = "is" if there == output_dir else f"cannot be made: {there} is"
        yield f"output_dir={config.output_dir} {where} a file: give a folder"
    if config.resume_from_checkpoint is None and (output_dir / "last").is_dir():
        yield (
            f"output_dir={config.output_dir} holds a training: resume_from_checkpoint=auto goes on with it; or give another output_dir"
        )
    for name in ("init_from", "resume_from_checkpoint"):
        folder = getattr(config, name)
        if folder not in (None, "auto") and not Path(folder).is_dir():
            yield f"{name}={folder}: no such folder; give that of a checkpoint"
    if config.init_from == "auto":
        yield "init_from=auto: give the folder of a checkpoint"


def _libraries(config: TrainConfig) -> Iterator[str]:
    llm = config.llm
    needs = [
        ("accelerate", "train", True),
        ("peft", "lora", llm is not None and llm.lora is not None),
        ("gguf", "gguf", llm is not None and is_gguf(llm.model)),
        ("bitsandbytes", "quantised", llm is not None and llm.quantise != "none"),
        ("tensorboard", "tensorboard", config.training.tensorboard),
    ]
    for module, extra, needed in needs:
        if needed and find_spec(module) is None:
            yield f'this needs the package {module}, which is not installed: pip install "encodeonce[{extra}]"'
