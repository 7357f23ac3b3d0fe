"""Text from features: an adapter's model with one way of writing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

import torch
from encodeonce.evaluate.decoding.ctc_beam import BeamOptions, beam_text
from encodeonce.evaluate.decoding.fusion import Fusion, decode_with
from encodeonce.evaluate.decoding.llm_words import LLMWords
from encodeonce.evaluate.decoding.next_token import LLMTokens, QFormerTokens
from encodeonce.evaluate.decoding.options import (
    BEAMS,
    CHARACTERS_PER_SECOND,
    CTC_BEAMS,
    TOKENS_PER_SECOND,
    DecodeOptions,
    choose_precision,
    choose_writer,
)
from encodeonce.evaluate.decoding.posteriors import Posteriors, alphabet_of
from encodeonce.evaluate.decoding.token_search import (
    Drawn,
    Found,
    NextTokens,
    checked,
    likeliest,
    write_by_beams,
    write_one_by_one,
)
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.train.adapters.base import Adapted
from encodeonce.train.model import AdapterModel
from encodeonce.train.objectives.ctc import CTC, collapsed
from encodeonce.train.objectives.language_model import LanguageModelObjective
from encodeonce.train.qformer import Queries
from encodeonce.train.tokenizer import Tokenizer
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Written:
    """What was written of an utterance.

    Args:
        tokens: of the writer's vocabulary, without those that begin and end a text; of CTC, the classes that are no blanks.
        score: log p of the tokens and of the end token, nats; of CTC's best path, that of the path; None of its beam search.
        ended: the end token came before the budget was used up; CTC always ends.
    """

    text: str
    tokens: tuple[int, ...]
    score: float | None
    ended: bool


class Transcriber:
    """Writes texts of utterances. What it writes of one depends on the others of its batch by no more than rounding.

    Args:
        model: in evaluation mode, on its device.

    Attributes:
        writer: the objective that writes.

    Raises:
        EvaluationError: the model was not trained for what the options ask. TrainingError: the language model is not to be had.
    """

    def __init__(self, model: AdapterModel, options: DecodeOptions | None = None) -> None:
        self._model, self._options = model, options or DecodeOptions()
        self.writer = choose_writer(self._options, model.config)
        self._device = next(model.parameters()).device
        text = model.vocabularies.text
        self._rate = TOKENS_PER_SECOND if text is None or not _of_characters(text) else CHARACTERS_PER_SECOND
        self._alphabet = alphabet_of(model) if self.writer == "ctc" and self._options.method == "beam" else []
        self._words = self._fusion = None
        if self._options.language_model is not None:
            self._fusion = _fusion(self._options)
            self._words = _load_words(self._options.language_model, self._fusion, self._device)

    @torch.inference_mode()
    def write(
        self, outputs: Sequence[Tensor], lengths: Tensor, seconds: Sequence[float], ids: Sequence[str] | None = None
    ) -> list[Written]:
        """The texts of utterances.

        Args:
            outputs: `[B, T, D]` features or `[B, T, K]` codes, one tensor a stored output, on any device.
            lengths: `[B]` frames.
            seconds: `[B]` of audio, which the budget of tokens goes by.
            ids: what sampling draws by; None: the place in the batch.

        Raises:
            EvaluationError: there is too little memory for so many at once.
        """
        names = [str(place) for place in range(len(seconds))] if ids is None else ids
        with self._in_memory(len(lengths), int(lengths.max())), self._arithmetic():
            adapted = self._model.hear([o.to(self._device) for o in outputs], lengths.to(self._device)).adapted
            if self.writer == "ctc":
                return self._write_ctc(adapted)
            return (
                self._write_llm(adapted, seconds, names)
                if self.writer == "llm"
                else self._write_stg(adapted, seconds, names)
            )

    def _write_llm(self, adapted: Adapted, seconds: Sequence[float], names: Sequence[str]) -> list[Written]:
        objective = self._model.objectives["llm"]
        assert isinstance(objective, LanguageModelObjective)
        llm, soft = objective.llm, objective.soft(adapted)
        room = [llm.limit - len(llm.prompt) - n if llm.limit else None for n in soft.lengths.tolist()]
        budgets = [self._budget(most, span) for most, span in zip(room, seconds, strict=True)]
        fits = [row for row, budget in enumerate(budgets) if budget > 0]
        written = [Written("", (), None, False)] * len(budgets)  # what stays for those that leave no room to write
        if fits:
            some = Adapted(soft.embeddings[fits], soft.lengths[fits])
            found = self._search(LLMTokens(llm, some), [budgets[row] for row in fits], [names[row] for row in fits])
            for row, one in zip(fits, found, strict=True):
                written[row] = _written(llm.words.decode(one.tokens), one)
        return written

    def _write_stg(self, adapted: Adapted, seconds: Sequence[float], names: Sequence[str]) -> list[Written]:
        text, most = self._model.vocabularies.text, self._model.most_text
        assert text is not None
        assert isinstance(adapted, Queries)
        budgets = [self._budget(most, span) for span in seconds]
        found = self._search(QFormerTokens(self._model.adapter, adapted, text), budgets, names)
        return [_written(text.decode(one.tokens), one) for one in found]

    def _search(self, model: NextTokens, budgets: Sequence[int], names: Sequence[str]) -> list[Found]:
        options = self._options
        if options.method == "beam":
            penalty = 1.0 if options.length_penalty is None else options.length_penalty
            return write_by_beams(model, budgets, options.beams or BEAMS, penalty, options.no_repeat_ngram)
        choose = likeliest
        if options.method == "sample":
            choose = Drawn(options.seed or 0, names, max(budgets), options.temperature or 1.0, options.top_p or 1.0)
        return write_one_by_one(model, budgets, choose, options.no_repeat_ngram)

    def _budget(self, most: int | None, seconds: float) -> int:
        """Tokens that an utterance may have: what the options say, and never more than `most`."""
        wanted = self._options.base_tokens + ceil((self._options.tokens_per_second or self._rate) * seconds)
        return wanted if most is None else min(wanted, most)

    def _write_ctc(self, adapted: Adapted) -> list[Written]:
        objective = self._model.objectives["ctc"]
        assert isinstance(objective, CTC)
        logits, emissions = objective.logits(adapted)
        shares = checked(logits).log_softmax(2)
        if self._alphabet:
            frames = [row[:length] for row, length in zip(shares.cpu().numpy(), emissions.tolist(), strict=True)]
            texts = self._beam_texts(Posteriors(self._alphabet, {str(i): row for i, row in enumerate(frames)}))
            classes = {character: number for number, character in enumerate(self._alphabet)}
            return [Written(text, tuple(classes[letter] for letter in text), None, True) for text in texts]
        likely, best = (found.tolist() for found in shares.max(2))
        written = []
        for path, values, length in zip(best, likely, emissions.tolist(), strict=True):
            units = collapsed(path[:length])
            written.append(Written(self._model.spell(objective, units), tuple(units), sum(values[:length]), True))
        return written

    def _beam_texts(self, posteriors: Posteriors) -> list[str]:
        if self._words is not None and self._fusion is not None:
            texts = decode_with(self._words, posteriors, self._fusion)
            return [texts[name] for name in posteriors.frames]
        beam = BeamOptions(width=self._options.beams or CTC_BEAMS)
        return [beam_text(frames, self._alphabet, beam) for frames in posteriors.frames.values()]

    def _arithmetic(self) -> torch.autocast:
        precision = choose_precision(self._options, self._model.config, self._device.type)
        return torch.autocast(self._device.type, torch.bfloat16, enabled=precision == "bfloat16")

    @contextmanager
    def _in_memory(self, utterances: int, frames: int) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as error:  # torch's allocator on the CPU has no kind of its own
            words = str(error).lower()
            if isinstance(error, MemoryError) or "out of memory" in words or "allocate memory" in words:
                beams = ", or fewer beams" if self._options.method == "beam" else ""
                raise EvaluationError(
                    f"out of memory while {utterances} utterances of up to {frames:,} frames were decoded together: take a "
                    f"smaller frames_per_batch than {self._options.frames_per_batch:,}, or than "
                    f"utterances_per_batch={self._options.utterances_per_batch}{beams}"
                ) from error
            raise


def _written(text: str, found: Found) -> Written:
    return Written(text, found.tokens, found.score, found.ended)


def _of_characters(text: Tokenizer) -> bool:
    return all(len(text.decode([number])) <= 1 for number in range(text.size))


def _fusion(options: DecodeOptions) -> Fusion:
    weight, bonus, plain = options.language_model_weight, options.word_bonus, Fusion()
    return Fusion(
        weight=plain.weight if weight is None else weight,
        word_bonus=plain.word_bonus if bonus is None else bonus,
        beam=BeamOptions(width=options.beams or CTC_BEAMS),
        prompt=options.prompt,
    )


def _load_words(name: str, fusion: Fusion, device: torch.device) -> LLMWords:
    from encodeonce.train.llm.config import LLMConfig
    from encodeonce.train.llm.load import load_llm

    return LLMWords(load_llm(LLMConfig(model=name), device), fusion.prompt)
