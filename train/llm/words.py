"""A language model's own tokenizer, reduced to what a soft prompt needs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from encodeonce.train.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Words:
    """Text to a language model's token ids and back.

    Attributes:
        first: the token that begins every text, where the model wants one.
        end: the token that ends an answer: with `chat` the one that ends a turn of the chat template, else end of text.

    Raises:
        TrainingError: the tokenizer has no end token, or no chat template where one is needed.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", chat: bool = False) -> None:
        self._tokenizer = tokenizer
        if chat and not tokenizer.chat_template:
            raise TrainingError(
                "llm.chat=true, but the language model's tokenizer has no chat template; take llm.chat=false"
            )
        begin = tokenizer.bos_token_id
        self.first: list[int] = [begin] if begin is not None and begin in tokenizer("").input_ids else []
        end = self._end_of_turn() if chat else None
        end = tokenizer.eos_token_id if end is None else end
        if end is None:
            raise TrainingError(
                "the language model's tokenizer has no end token (eos_token), which every target ends with; give one in it"
            )
        self.end: int = end

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without first and end token."""
        return self._tokenizer(text, add_special_tokens=False).input_ids if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids up to the first end token; special tokens are left out."""
        ids = list(ids)
        ids = ids[: ids.index(self.end)] if self.end in ids else ids
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def pieces(self) -> list[str]:
        """What each id adds to a text, its space in front included; nothing for special tokens."""
        before = self.encode("a")  # what stands first in a text loses its space
        ids = [before, *([*before, number] for number in range(len(self._tokenizer)))]
        alone, *texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [text[len(alone) :] for text in texts]

    def ask(self, text: str) -> str:
        """The chat template's text in which a user says `text`, up to where the answer begins."""
        return self._chat([{"role": "user", "content": text}], begin_answer=True)

    def _chat(self, messages: list[dict[str, str]], begin_answer: bool) -> str:
        # enable_thinking is known to the templates of models that think first; others do not read it.
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=begin_answer, enable_thinking=False
            )
        )

    def _end_of_turn(self) -> int | None:
        """The special token right after an answer, or None where the template ends it otherwise."""
        marker = "ANSWER"
        asked = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": marker}]
        tail = self._chat(asked, begin_answer=False).rpartition(marker)[2].lstrip()
        ids = self.encode(tail)
        special = {*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder}
        return ids[0] if ids and ids[0] in special else None
