"""Which objectives, with what weight; none is trained that is not given."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """STC, speech-text contrast."""

    weight: float = 1.0
    width: int = 256
    temperature: float = 0.07
    """At the beginning; it is learned."""
    label_smoothing: float = 0.1
    queue: int = 0
    """Utterances of past batches that serve as negatives, kept as they were projected then."""


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """STM, speech-text matching with hard negatives; needs stc."""

    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """STG, the text word by word from the queries."""

    weight: float = 1.0
    label_smoothing: float = 0.1


@dataclass(frozen=True, kw_only=True)
class CTCConfig:
    """CTC on the adapter's embeddings, for adapters that follow time."""

    weight: float = 1.0
    units: Literal["text", "characters", "llm"] = "characters"
    """The text's vocabulary; characters; or the language model's tokens, told by cosines to its embedding rows."""
    emissions: int = 1
    """Of each embedding, where the adapter makes fewer embeddings than there are units."""


@dataclass(frozen=True, kw_only=True)
class LLMLossConfig:
    """The frozen language model's loss on the target after the soft prompt."""

    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """What the adapter is trained for."""

    stc: ContrastiveConfig | None = None
    stm: MatchingConfig | None = None
    stg: GenerationConfig | None = None
    ctc: CTCConfig | None = None
    llm: LLMLossConfig | None = None
