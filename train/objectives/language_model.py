"""The frozen language model's loss on the target, asked by embeddings that a linear map brings to its width."""

from encodeonce.train.adapters.base import Adapted, Adapter
from encodeonce.train.llm.frozen import FrozenLLM
from encodeonce.train.objectives.base import Objective, Spoken, Tokens
from torch import Tensor, nn


class LanguageModelObjective(Objective):
    """-log p of the target's tokens and the end token after them.

    The map begins with weights of deviation r / sqrt(width) and no bias, r being the root mean square of the model's embedding rows:
    embeddings of unit variance, which a LayerNorm leaves, become as large as the rows of words.

    Args:
        width: of the adapter's embeddings.
        llm: the model; it is another's submodule, not this one's.
    """

    name = "llm"
    reasonable = (
        "about 9 nats a token at the beginning (SmolLM2, short texts); "
        "the model hears the speech once it is below what the text costs without any"
    )

    def __init__(self, width: int, llm: FrozenLLM) -> None:
        super().__init__()
        self._llm = (llm,)
        self.project = nn.Linear(width, llm.width)
        nn.init.normal_(self.project.weight, std=llm.embedding_rms() / width**0.5)
        nn.init.zeros_(self.project.bias)

    @property
    def llm(self) -> FrozenLLM:
        """The language model."""
        return self._llm[0]

    def soft(self, adapted: Adapted) -> Adapted:
        """The adapter's embeddings in the language model's width."""
        return Adapted(self.project(adapted.embeddings), adapted.lengths)

    def forward(self, adapter: Adapter, spoken: Spoken, tokens: Tokens) -> Tensor:
        return self.llm.loss(self.soft(spoken.adapted), tokens)

    def count(self, tokens: Tokens) -> int:
        return int(tokens.lengths.sum()) + len(tokens)

    def generate(self, adapted: Adapted, most: int | None = None, beams: int = 1) -> list[str]:
        """What the language model writes of an adapter's embeddings; see `FrozenLLM.generate`."""
        return self.llm.generate(self.soft(adapted), most, beams)
