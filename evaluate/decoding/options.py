"""How text is written from cached features: which objective writes, how it is searched, and how much it may write."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite
from typing import Any, Literal, get_args

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.train.checks import WRITERS, Writer, writers_of
from encodeonce.train.config import TrainConfig

Method = Literal["greedy", "beam", "sample"]
Precision = Literal["auto", "float32", "bfloat16"]
TOKENS_PER_SECOND, CHARACTERS_PER_SECOND = 12.0, 36.0
"""More than anyone says: LibriSpeech's train-clean-5 has 2.8 words and 15 characters a second, at most 4.7 and 22."""
BEAMS, CTC_BEAMS = 4, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeOptions:
    """How text is written; None: the default of the method, and refused where another method has no use for it.

    Args:
        writer: the objective that writes; None: llm, else stg, else ctc, whichever was trained.
        method: greedy takes the likeliest token each time (of CTC the best path), beam keeps several texts, sample draws.
        beams: with beam; None: 4, and 12 prefixes of CTC.
        length_penalty: with beam over tokens: log p / tokens^penalty is compared, as in transformers. None: 1.
        temperature: with sample: logits are divided by it. None: 1.
        top_p: with sample: draw from the likeliest tokens that hold so much of the probability. None: 1, all.
        seed: with sample; what is drawn for an utterance depends on it and on the utterance's id. None: 0.
        no_repeat_ngram: forbid to write the same so many tokens twice. None: nothing is forbidden.
        tokens_per_second: of llm and stg: tokens at most are `base_tokens` and so many for each second of audio. None: 12, of a
            vocabulary of characters 36.
        base_tokens: see there.
        frames_per_batch: stored frames that are decoded together at most, padding included. A longer utterance goes alone.
        utterances_per_batch: that are decoded together at most.
        precision: of the adapter's arithmetic; auto is bfloat16 on a GPU where it was trained so, else float32.
        language_model: for ctc over characters with beam: a frozen language model that scores the words; whatever train-adapter
            takes, such as smollm2-135m.
        language_model_weight, word_bonus: see `fusion.Fusion`. None: 1 and 4.
        prompt: texts that this language model is shown first, one a line; `fusion.prompt_lines` picks some.

    Raises:
        EvaluationError: a value out of range, or options that contradict each other.
    """

    writer: Writer | None = None
    method: Method = "greedy"
    beams: int | None = None
    length_penalty: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    no_repeat_ngram: int | None = None
    tokens_per_second: float | None = None
    base_tokens: int = 16
    frames_per_batch: int = 20_000
    utterances_per_batch: int = 64
    precision: Precision = "auto"
    language_model: str | None = None
    language_model_weight: float | None = None
    word_bonus: float | None = None
    prompt: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise EvaluationError(f"{name}={value!r}: take one of {', '.join(filter(None, allowed))}")
        for name, (holds, wanted) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise EvaluationError(f"{name}={value!r}: take {wanted}")
        self._check_together()

    def _check_together(self) -> None:
        for name, method in _BELONGS.items():
            if getattr(self, name) is not None and self.method != method:
                raise EvaluationError(
                    f"{name}={getattr(self, name)} has no use with method={self.method}: take {method}"
                )
        if self.language_model is None:
            for name in ("language_model_weight", "word_bonus", "prompt"):
                if value := getattr(self, name):
                    raise EvaluationError(f"{name}={value} belongs to a language model beside ctc: give language_model")
        elif self.writer not in (None, "ctc"):
            raise EvaluationError(
                f"language_model={self.language_model} scores the words of ctc, not of {self.writer}: take writer=ctc"
            )
        if self.writer == "ctc":
            self._check_ctc()

    def _check_ctc(self) -> None:
        if self.method == "sample":
            raise EvaluationError(
                "method=sample has no use with ctc, which tells all frames at once: take greedy or beam"
            )
        for name in ("length_penalty", "no_repeat_ngram", "tokens_per_second"):
            if (value := getattr(self, name)) is not None:
                raise EvaluationError(
                    f"{name}={value} has no use with ctc, which writes no token after another: leave it out"
                )

    def to_json(self) -> dict[str, Any]:
        """What the texts depend on: `frames_per_batch` and `utterances_per_batch` change nothing but rounding."""
        values = asdict(self)
        return {
            name: value for name, value in values.items() if name not in ("frames_per_batch", "utterances_per_batch")
        }


def choose_writer(options: DecodeOptions, config: TrainConfig) -> Writer:
    """The objective of a training that writes, by its configuration: nothing has to be loaded.

    Raises:
        EvaluationError: it was not trained, or the options have no use with it.
    """
    trained = writers_of(config)
    if not trained:
        raise EvaluationError("this checkpoint writes no text: it was trained for none of llm, stg, ctc")
    writer = trained[0] if options.writer is None else options.writer
    if writer not in trained:
        raise EvaluationError(
            f"writer={writer}: this checkpoint was trained for {', '.join(trained)}; take one of these"
        )
    options = replace(options, writer=writer)  # checks what has no use with it
    if writer == "ctc" and options.method == "beam" and not tells_characters(config):
        what = "method=beam" if options.language_model is None else f"language_model={options.language_model}"
        raise EvaluationError(
            f"{what}: the beam search is over characters, and this checkpoint's CTC tells others "
            f"(objectives.ctc.units={config.objectives.ctc and config.objectives.ctc.units}): take method=greedy"
        )
    return writer


def choose_precision(options: DecodeOptions, config: TrainConfig, device: str) -> Literal["float32", "bfloat16"]:
    """Of the adapter's arithmetic on a device (cpu, cuda, cuda:N): what the options say, or what auto means there."""
    if options.precision != "auto":
        return options.precision
    return "bfloat16" if device.startswith("cuda") and config.training.mixed_precision == "bf16" else "float32"


def tells_characters(config: TrainConfig) -> bool:
    """Whether a training has a CTC, and one over characters."""
    units = config.objectives.ctc and config.objectives.ctc.units
    return units == "characters" or (units == "text" and config.text.tokenizer == "characters")


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "writer": (None, *WRITERS),
    "method": get_args(Method),
    "precision": get_args(Precision),
}
_COUNT: tuple[Callable[[Any], bool], str] = (
    lambda value: isinstance(value, int) and value >= 1,
    "a whole number, 1 or more",
)
_MORE: tuple[Callable[[Any], bool], str] = (lambda value: 0 < value < inf, "a number above 0")
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "beams": _COUNT,
    "length_penalty": (isfinite, "a number"),
    "temperature": _MORE,
    "top_p": (lambda value: 0 < value <= 1, "a share, above 0 and up to 1"),
    "seed": (lambda value: isinstance(value, int) and 0 <= value < 2**63, "a whole number, 0 or more"),
    "no_repeat_ngram": _COUNT,
    "tokens_per_second": _MORE,
    "base_tokens": _COUNT,
    "frames_per_batch": _COUNT,
    "utterances_per_batch": _COUNT,
    "language_model_weight": (lambda value: 0 <= value < inf, "a number, 0 or more"),
    "word_bonus": (isfinite, "a number"),
}
_BELONGS: dict[str, Method] = {
    "beams": "beam",
    "length_penalty": "beam",
    "temperature": "sample",
    "top_p": "sample",
    "seed": "sample",
    "language_model": "beam",
}
