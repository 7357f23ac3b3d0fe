"""What stands around the speech: the prompt as token ids before it and after it."""

from collections.abc import Sequence
from dataclasses import dataclass

from encodeonce.train.errors import TrainingError
from encodeonce.train.llm.words import Words

SPEECH = "{speech}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids before the speech, which begin with the model's first token where it has one, and between the speech and the answer."""

    before: Sequence[int]
    after: Sequence[int]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


def build_prompt(template: str, words: Words, chat: bool) -> Prompt:
    """The prompt of a template that holds {speech} once.

    Args:
        chat: the template is what the user says; the tokenizer's own chat template stands around it.

    Raises:
        TrainingError: {speech} is not there once, or the tokenizer has no chat template.
    """
    before, after = _split(template, f"llm.prompt={template!r}")
    if not chat:
        return Prompt([*words.first, *words.encode(before)], words.encode(after))
    before, after = _split(words.ask(template), "what the chat template makes of llm.prompt")
    return Prompt(words.encode(before), words.encode(after))


def _split(text: str, what: str) -> tuple[str, str]:
    parts = text.split(SPEECH)
    if len(parts) != 2:
        raise TrainingError(
            f"{what} holds {SPEECH} {len(parts) - 1} times; it has to stand there once, where the speech belongs"
        )
    return parts[0], parts[1]
