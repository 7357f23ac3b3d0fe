"""STC, speech-text contrast: an utterance and its text are to be closer to each other than to those of others."""

import weakref
from typing import NamedTuple

import torch
from encodeonce.train.adapters.base import Adapted, Adapter
from encodeonce.train.errors import TrainingError
from encodeonce.train.objectives.base import Objective, Spoken, Tokens
from encodeonce.train.objectives.config import ContrastiveConfig
from encodeonce.train.objectives.gather import Peers, gather
from encodeonce.train.objectives.pairs import Pairs, Past
from encodeonce.train.objectives.temperature import Temperature
from encodeonce.train.objectives.texts import framed, same_texts, text_adapter
from encodeonce.train.tokenizer import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F


class Contrastive(Objective):
    """The image-text contrast of BLIP-2 (Li et al. 2023, section 3.2) for speech.

    The queries, and the text's [CLS] position, go through linear maps into one space; a pair's similarity is the largest cosine between
    any query and the text, over a learned temperature. Cross-entropy with label smoothing in both directions, halved.

    In training the candidates are the pairs of all ranks and, as negatives alone, those of the queue. In validation they are those of
    the batch: the value depends neither on ranks nor on the past. Equal texts are not each other's negatives (corpora of commands
    repeat their sentences): they leave the candidates, and the smoothing. A pair's loss depends on its batch, by its nature; small
    micro-batches, accumulated, contrast less than a large one.

    Args:
        width: of the adapter's embeddings and of the hidden states of text.
        queries: of an utterance, where every one has as many; the queue needs it.
        peers: who shares the contrast; None: the process group of the moment, where there is one.
    """

    name = "stc"
    reasonable = (
        "about ln(candidates) at the beginning: 2.8 for 16, 4.2 for 64; "
        "it cannot fall below what label smoothing 0.1 leaves: 0.57 for 16, 0.73 for 64"
    )

    def __init__(
        self,
        width: int,
        tokenizer: Tokenizer,
        config: ContrastiveConfig,
        queries: int | None = None,
        peers: Peers | None = None,
    ) -> None:
        super().__init__()
        if config.queue and queries is None:
            raise TrainingError(
                f"objectives.stc.queue={config.queue} needs an adapter with as many queries for every utterance: take qformer, or queue=0"
            )
        self.speech = nn.Linear(width, config.width)
        self.text = nn.Linear(width, config.width)
        self.temperature = Temperature(config.temperature)
        self.past = Past(config.queue, queries, config.width) if config.queue and queries else None
        self.smoothing = config.label_smoothing
        self.start, self.end = tokenizer.start, tokenizer.end
        self.peers = peers
        self.last: _Last | None = None

    def count(self, tokens: Tokens) -> int:
        """Pairs."""
        return len(tokens)

    def forward(self, adapter: Adapter, spoken: Spoken, tokens: Tokens) -> Tensor:
        own = self._project(adapter, spoken, tokens)
        candidates, first = self._candidates(own)
        speech_to_text, text_to_speech = (self.temperature(cosines) for cosines in own.cosines(candidates))
        mine = slice(first, first + len(own))
        self.last = _Last(weakref.ref(spoken), weakref.ref(tokens), speech_to_text[:, mine].detach())
        admitted = (own.keys[:, None] != candidates.keys) & (candidates.counts > 0)
        admitted[:, mine].fill_diagonal_(True)
        losses = (
            _cross_entropy(logits, admitted, first, self.smoothing) for logits in (speech_to_text, text_to_speech)
        )
        return sum(losses, torch.zeros((), device=own.text.device)) / 2

    @torch.no_grad()
    def similarities(self, adapter: Adapter, spoken: Spoken, tokens: Tokens) -> Tensor:
        """Logits `[B, B]` of each utterance with each text of the batch: those of `forward`, where it has just seen this batch."""
        if self.last is not None and self.last.spoken() is spoken and self.last.tokens() is tokens:
            return self.last.logits
        own = self._project(adapter, spoken, tokens)
        return self.temperature(own.cosines(own)[0])

    def project_speech(self, heard: Adapted) -> Tensor:
        """`[B, N, W]` float32 of norm 1, where an utterance's queries stand in the space of the contrast."""
        return F.normalize(self.speech(heard.embeddings).float(), dim=-1)

    def project_text(self, adapter: Adapter, tokens: Tokens) -> Tensor:
        """`[B, W]` float32 of norm 1, where texts stand in it."""
        text = framed(tokens, self.start, self.end)
        said = text_adapter(adapter, self.name).read(text.ids, text.lengths)[:, 0]
        return F.normalize(self.text(said).float(), dim=-1)

    def _project(self, adapter: Adapter, spoken: Spoken, tokens: Tokens) -> Pairs:
        return Pairs(
            self.project_speech(spoken.adapted),
            spoken.adapted.lengths,
            self.project_text(adapter, tokens),
            same_texts(tokens.ids, tokens.lengths),
        )

    def _candidates(self, own: Pairs) -> tuple[Pairs, int]:
        """What a pair is told apart from, and where the batch's own pairs begin in it."""
        if not self.training:
            return own, 0
        peers = self.peers or Peers.here()
        speech, text = gather(own.speech, peers), gather(own.text, peers)
        counts, keys = gather(torch.stack((own.counts, own.keys), 1), peers).tensor.unbind(1)
        everyone = Pairs(speech.tensor, counts, text.tensor, keys)
        if self.past is None:
            return everyone, text.first
        candidates = everyone.followed_by(self.past.all())
        self.past.add(everyone)
        return candidates, text.first


class _Last(NamedTuple):
    """Similarities of the batch that was seen last."""

    spoken: weakref.ref[Spoken]
    tokens: weakref.ref[Tokens]
    logits: Tensor


def _cross_entropy(logits: Tensor, admitted: Tensor, first: int, smoothing: float) -> Tensor:
    """Summed over rows of `[B, M]` logits; row i is to choose place `first + i`; label smoothing is over what is admitted."""
    log_shares = logits.masked_fill(~admitted, -torch.inf).log_softmax(1)
    right = log_shares.diagonal(first).sum()
    even = (log_shares.masked_fill(~admitted, 0).sum(1) / admitted.sum(1)).sum()
    return -(1 - smoothing) * right - smoothing * even


def queries_of(adapter: Adapter) -> int | None:
    """Queries of an utterance, where every one has as many; None: they follow its length."""
    short, long = adapter.output_lengths(torch.tensor([1, 1_000_000])).tolist()
    return short if short == long else None
