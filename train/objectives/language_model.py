"""The frozen language model's loss on the target, asked by embeddings that a linear map brings to its width."""

from encodeonce.train.adapters.base import Adapted, Adapter
from encodeonce.train.llm.frozen import FrozenLLM
from encodeonce.train.objectives.base import Objective, Spoken, Tokens
from torch import Tensor, nn
from torch.nn import functional as F


class SoftPrompt(nn.Linear):
    """The linear map from an adapter's embeddings `[B, N, width]` to a language model's width `[B, N, W]`.

    It begins with weights of deviation r / sqrt(width) and no bias, r being the root mean square of what the model's own
    embedding gives for words: embeddings of unit variance, which a LayerNorm leaves, become as large as those.

    Args:
        as_long_as_rows: give every embedding the root mean square r. CTC by cosines to the rows teaches directions alone, and lengths
            drift: to 7 times those of SmolLM2's rows in 300 steps.
    """

    def __init__(self, width: int, llm: FrozenLLM, as_long_as_rows: bool = False) -> None:
        super().__init__(width, llm.width)
        self.rms = llm.embedding_rms()
        self.as_long_as_rows = as_long_as_rows
        nn.init.normal_(self.weight, std=self.rms / width**0.5)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        mapped = super().forward(input)
        if not self.as_long_as_rows:
            return mapped
        return F.rms_norm(mapped.float(), mapped.shape[-1:]) * self.rms


class LanguageModelObjective(Objective):
    """-log p of the target's tokens and the end token after them.

    Args:
        prompt: from the adapter's embeddings to the model's; like the model it is another's submodule, not this one's.
        llm: the model.
    """

    name = "llm"
    reasonable = (
        "about 9 nats a token at the beginning (SmolLM2, short texts); "
        "the model hears the speech once it is below what the text costs without any"
    )

    def __init__(self, prompt: SoftPrompt, llm: FrozenLLM) -> None:
        super().__init__()
        self._others = (prompt, llm)

    @property
    def llm(self) -> FrozenLLM:
        """The language model."""
        return self._others[1]

    def soft(self, adapted: Adapted) -> Adapted:
        """The adapter's embeddings in the language model's width."""
        return Adapted(self._others[0](adapted.embeddings), adapted.lengths)

    def forward(self, adapter: Adapter, spoken: Spoken, tokens: Tokens) -> Tensor:
        return self.llm.loss(self.soft(spoken.adapted), tokens)

    def count(self, tokens: Tokens) -> int:
        return int(tokens.lengths.sum()) + len(tokens)

    def generate(self, adapted: Adapted, most: int | None = None, beams: int = 1) -> list[str]:
        """What the language model writes of an adapter's embeddings; see `FrozenLLM.generate`."""
        return self.llm.generate(self.soft(adapted), most, beams)
