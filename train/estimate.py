"""What a training takes, told before anything large is loaded: parameters by part, bytes of memory by part."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from encodeonce.store.layout import Output
from encodeonce.train.adapters.base import AdapterConfig
from encodeonce.train.checks import objective_weights, text_is_read
from encodeonce.train.config import TrainConfig
from encodeonce.train.inputs import FeatureInput
from encodeonce.train.llm.config import LLMConfig
from encodeonce.train.qformer import QFormer, Queries
from encodeonce.train.shapes import LLMShape, bert_sizes, llm_shape
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

UTTERANCE_SECONDS = 12.0
"""Of the utterances that activations are told for; LibriSpeech's have 12.3 on average."""
TOKENS_A_SECOND = 3.5
"""Word pieces of read English; LibriSpeech's are 2.7 words and some 3.4 pieces of BERT's a second."""
CHARACTERS_A_SECOND = 15.0
CHARACTERS = 32
FOUR_BIT_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a parameter in NF4: four bits, a scale in 8 bits for each 64, and a float32 one for each 256 of those (Dettmers et al. 2023)."""
PREFETCHED = 5
"""Batches that the stream holds: four ahead, one in use."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the device that trains, by what they are for. A GPU's libraries and the gaps between blocks take 0.5 to 1 GB more."""

    weights: int
    """Of input, adapter and heads, float32."""
    gradients: int
    optimiser: int
    """AdamW's two moments; and the moving average, where there is one."""
    activations: int
    """What adapter and objectives keep for the way back, of a batch of `data.frames_per_batch`."""
    llm: int
    llm_activations: int
    """What the frozen language model keeps for the way back: norms, keys and values, gates, and the logits of the target."""
    batches: int
    """Features that the stream holds."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Estimate:
    """Parameters and memory of a training."""

    trained: dict[str, int]
    """Parameters by part."""
    frozen: dict[str, int]
    memory: Memory

    def lines(self) -> list[str]:
        """What start-up prints."""
        return [parameters_line(self.trained, self.frozen), memory_line(self.memory)]


def parameters_line(trained: Mapping[str, int], frozen: Mapping[str, int]) -> str:
    """How many parameters there are, by part."""
    parts = ", ".join(f"{name} {millions(count)}" for name, count in trained.items())
    rest = "".join(f"; frozen {name} {millions(count)}" for name, count in frozen.items())
    return f"Parameters: {millions(sum(trained.values()))} trained ({parts}){rest}"


def memory_line(memory: Memory) -> str:
    """How much memory a training takes, by part."""
    parts = ", ".join(f"{name.replace('_', ' ')} {gigabytes(size)}" for name, size in asdict(memory).items() if size)
    return f"Memory: about {gigabytes(memory.total)} beside Python's and PyTorch's own ({parts})"


def millions(count: int) -> str:
    """A number of parameters."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"


def gigabytes(size: float) -> str:
    """A number of bytes."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def count_parameters(model: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    """Trained and frozen parameters of a model by its parts."""
    trained: dict[str, int] = {}
    frozen: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        counts = trained if parameter.requires_grad else frozen
        part = name.partition(".")[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
    return trained, frozen


def estimate(
    config: TrainConfig, outputs: Sequence[Output], frame_rate: float, vocabulary: int | None = None, fused: bool = True
) -> Estimate:
    """Parameters and memory of a training on features of these outputs.

    Input and adapter run over one and over two utterances of 12 s in which shapes alone are computed; what autograd keeps of them
    is counted, and scaled to a batch. The language model is told by its config.json.

    Args:
        vocabulary: of a tokenizer that is learnt from the texts; by default what `text.tokenizer` says.
        fused: attention is computed without keeping its weights, as GPUs do it; with dropout a CPU keeps them.

    Raises:
        TrainingError: a language model or a BERT of unknown size; outputs that do not go together.
    """
    words = vocabulary_of(config) if vocabulary is None else vocabulary
    shape = llm_shape(config.llm.model) if config.llm else None
    options = without_pretrained(config.adapter, fused)
    with FakeTensorMode():
        features = FeatureInput(config.input, outputs)
        adapter = options.build(features.width, _seen(config, words))
    frames = round(UTTERANCE_SECONDS * frame_rate)
    utterances = config.data.frames_per_batch / frames
    embeddings = int(adapter.output_lengths(features.output_lengths(torch.tensor([frames])))[0])
    unread = sum(weight.numel() for weight in adapter.unread(objective_weights(config)))
    trained = {
        "input": _count(features),
        "adapter": _count(adapter) - unread,
        "objectives": _heads(config, adapter.width, words),
    }
    if shape and config.llm:
        trained |= {"projection": (adapter.width + 1) * shape.hidden, "lora": _lora(config.llm, shape)}
    trained = {name: count for name, count in trained.items() if count}
    count = 4 * sum(trained.values())
    fixed, each = _activations(config, options, outputs, frames, words)
    each += _classes(config, embeddings, words)
    memory = Memory(
        weights=count + 4 * unread,
        gradients=count,
        optimiser=count * (2 if config.training.ema is None else 3),
        activations=round(fixed + utterances * each),
        llm=_llm_bytes(config.llm, shape) if shape and config.llm else 0,
        llm_activations=_llm_activations(config, shape, embeddings, utterances) if shape else 0,
        batches=PREFETCHED * config.data.frames_per_batch * 4 * sum(output.width for output in outputs),
    )
    frozen = {"adapter": unread, "llm": shape.parameters if shape else 0}
    return Estimate(trained, {name: size for name, size in frozen.items() if size}, memory)


def vocabulary_of(config: TrainConfig) -> int | None:
    """How many tokens the vocabulary of texts has, as far as the configuration says; nothing where there is none.

    Raises:
        TrainingError: a BERT of unknown size.
    """
    name, bert = config.text.tokenizer, getattr(config.adapter, "bert", None)
    if not text_is_read(config):
        return None
    if name == "bert" and bert is not None:
        return bert_sizes(bert)[3] + 1
    if name.startswith("bpe:"):
        return int(name.removeprefix("bpe:"))
    return CHARACTERS if name == "characters" else 10_000 if name == "words" else bert_sizes(name)[3] + 1


def without_pretrained(adapter: AdapterConfig, fused: bool) -> AdapterConfig:
    """An adapter of the same sizes that loads nothing; without dropout, so that attention is fused."""
    changes: dict[str, Any] = {"dropout": 0.0} if fused else {}
    if (bert := getattr(adapter, "bert", None)) is not None:
        hidden, layers, heads, _ = bert_sizes(bert)
        changes |= {"bert": None, "hidden": hidden, "layers": layers, "heads": heads}
    return replace(adapter, **changes)


def _seen(config: TrainConfig, words: int | None) -> int | None:
    """Tokens that the adapter itself knows: of its text side, or CTC's where it merges by them."""
    if config.adapter.name == "ctc-compressed":
        return words or CHARACTERS
    return words if config.adapter.has_text and objective_weights(config).keys() & {"stc", "stm", "stg"} else None


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _heads(config: TrainConfig, width: int, words: int | None) -> int:
    """Parameters of what objectives add."""
    stc, stm, ctc = config.objectives.stc, config.objectives.stm, config.objectives.ctc
    classes = 0 if ctc is None or ctc.units == "llm" else words if ctc.units == "text" and words else CHARACTERS
    classes *= ctc.emissions if ctc else 1
    return (2 * stc.width if stc else 0) * (width + 1) + (2 if stm else 0) * (width + 1) + classes * (width + 1)


def _lora(llm: LLMConfig, shape: LLMShape) -> int:
    """Parameters of low-rank updates, as if all targets were square."""
    return 2 * llm.lora.rank * shape.hidden * len(llm.lora.targets) * shape.layers if llm.lora else 0


def saved_bytes(run: Callable[[], Any], model: nn.Module) -> int:
    """What autograd keeps of a computation for the way back, the model's own weights left out."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


class _Model(nn.Module):
    """Input and adapter of a training."""

    def __init__(
        self, config: TrainConfig, options: AdapterConfig, outputs: Sequence[Output], words: int | None
    ) -> None:
        super().__init__()
        self.input = FeatureInput(config.input, outputs)
        self.adapter = options.build(self.input.width, _seen(config, words))
        self.adapter.checkpointing = config.training.gradient_checkpointing
        self.train()


def _activations(
    config: TrainConfig, adapter: AdapterConfig, outputs: Sequence[Output], frames: int, words: int | None
) -> tuple[int, int]:
    """Bytes that a batch takes however small it is (weights in 16 bits), and what each utterance adds."""
    tokens, half = round(UTTERANCE_SECONDS * TOKENS_A_SECOND), config.training.mixed_precision != "no"

    def run(model: _Model, count: int, length: int) -> int:
        values = [torch.zeros(count, length, output.width) for output in outputs]
        lengths = torch.full((count,), length)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return saved_bytes(lambda: _passes(config, model, values, lengths, tokens), model)

    with suppress(DataDependentOutputException, DynamicOutputShapeException), FakeTensorMode():
        model = _Model(config, adapter, outputs, words)
        if not any(isinstance(module, nn.LSTM) for module in model.modules()):
            one, two = run(model, 1, frames), run(model, 2, frames)  # shapes are computed, and nothing else
            return 2 * one - two, two - one
    # Merged frames have shapes that depend on values, and LSTMs keep more than their shapes tell.
    model, share = _Model(config, adapter, outputs, words), 8
    one, two = run(model, 1, frames // share), run(model, 2, frames // share)
    return max(0, 2 * one - two), share * (two - one)


def _passes(config: TrainConfig, model: _Model, values: Sequence[Tensor], lengths: Tensor, tokens: int) -> list[Any]:
    """What a step computes with input and adapter, all of it held."""
    given, adapter = objective_weights(config), model.adapter
    features, lengths = model.input(values, lengths)
    adapted = adapter(features, lengths)
    held: list[Any] = [adapted]
    if not isinstance(adapter, QFormer) or not given.keys() & {"stc", "stm", "stg"}:
        return held
    ids, sizes = torch.zeros(len(lengths), tokens, dtype=torch.long), torch.full((len(lengths),), tokens)
    if "stc" in given:
        held.append(adapter.read(ids, sizes))
    if "stm" in given:
        three = (features.repeat(3, 1, 1), lengths.repeat(3), ids.repeat(3, 1), sizes.repeat(3))
        held.append(adapter.match(*three))
    if "stg" in given and isinstance(adapted, Queries):
        held.append(adapter.logits(adapter.write(ids, adapted)[0]))
    return held


def _classes(config: TrainConfig, embeddings: int, words: int | None) -> int:
    """Bytes that the classes of an utterance take: logits, log-shares and a gradient, float32."""
    count, ctc = 0, config.objectives.ctc
    if config.objectives.stg and words:
        count += round(UTTERANCE_SECONDS * TOKENS_A_SECOND) * words
    if ctc and ctc.units != "llm":
        emissions = max(embeddings * ctc.emissions, round(UTTERANCE_SECONDS * CHARACTERS_A_SECOND))
        count += emissions * (words if ctc.units == "text" and words else CHARACTERS)
    return 12 * count


def _llm_bytes(llm: LLMConfig, shape: LLMShape) -> int:
    size = 4 if llm.dtype == "float32" else 2
    body = {"none": size, "8bit": 1.0, "4bit": FOUR_BIT_BYTES}[llm.quantise]
    return round(shape.embeddings * size + shape.body * body)


def _llm_activations(config: TrainConfig, shape: LLMShape, embeddings: int, utterances: float) -> int:
    """Bytes that a frozen model of the LLaMA kind keeps of a batch, as transformers computes it with fused attention.

    Of each token and layer: the inputs of two norms in float32 (8 h), queries, keys, values and what attention gives (4 h), gate, its
    SiLU and up (3 f), and the softmax's normaliser (4 bytes a head); inputs of frozen matrices are not kept. With gradient
    checkpointing, h of each layer and one layer whole. Logits of the target in float32, their log-shares, and a gradient.
    """
    llm = config.llm
    if llm is None or config.objectives.llm is None:
        return 0
    size, target = 4 if llm.dtype == "float32" else 2, round(UTTERANCE_SECONDS * TOKENS_A_SECOND) + 1
    tokens = embeddings + target + len(llm.prompt) // 4
    layer = 8 * shape.hidden + size * (4 * shape.hidden + 3 * shape.feed_forward) + 4 * shape.heads + 8
    layers = shape.layers * layer
    if config.training.gradient_checkpointing:
        layers = shape.layers * size * shape.hidden + layer
    return round(utterances * (tokens * layers + target * shape.vocabulary * 12))
