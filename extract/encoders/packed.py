"""HuBERT, wav2vec 2.0 and what shares their blocks, on packed frames: a batch without padding, each utterance by itself.

The audio of a batch is one stream, each utterance beginning on a multiple of the hop: convolutions run over all of it, and
the few frames across a border are dropped. What is left, the frames of all utterances one after the other, goes
through the transformer as one matrix; attention and the positional convolution keep to each utterance. Sums that go on
from layer to layer, and the norms on them, are float32.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from encodeonce.extract.encoders.base import Chosen, LoadedEncoder
from encodeonce.extract.encoders.checkpoint import CheckpointEncoder, mean_state
from encodeonce.extract.encoders.packed_first import FirstConvolution
from encodeonce.extract.encoders.packed_layers import (
    Computing,
    Convolution,
    Linear,
    Norm,
    Positional,
    Sequences,
    attention,
)
from encodeonce.store.layout import Output
from torch import nn

CLASSES = ("HubertModel", "Wav2Vec2Model", "UniSpeechModel", "UniSpeechSatModel", "Data2VecAudioModel")


def can_pack(model: Any) -> bool:
    """Whether a model of transformers is made of nothing but the blocks that are computed here."""
    return (
        type(model).__name__ in CLASSES
        and model.config.hidden_act == model.config.feat_extract_activation == "gelu"
        and getattr(model.encoder.pos_conv_embed, "batch_norm", None) is None
        and all(getattr(layer, "adapter_layer", None) is None for layer in model.encoder.layers)
    )


class Layer:
    """One layer of the transformer: attention, then two linear layers, each with its sum and norm in float32."""

    def __init__(self, layer: Any, norm_first: bool, computing: Computing) -> None:
        attends, feeds = layer.attention, layer.feed_forward
        projections = (attends.q_proj, attends.k_proj, attends.v_proj)
        self.heads, self.norm_first, self.computing = attends.num_heads, norm_first, computing
        self.qkv = Linear(
            torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections]), computing
        )
        self.mix = Linear(attends.out_proj.weight, attends.out_proj.bias, computing)
        self.widen = Linear(feeds.intermediate_dense.weight, feeds.intermediate_dense.bias, computing, gelu=True)
        self.narrow = Linear(feeds.output_dense.weight, feeds.output_dense.bias, computing)
        self.norm, self.final_norm = Norm(layer.layer_norm, computing), Norm(layer.final_layer_norm, computing)

    def __call__(self, x: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        """`[N, D]` float32 to the same."""
        if self.norm_first:
            x = x + self._attend(self.norm(x), sequences)
            return x + self._feed(self.final_norm(x))
        x = self.norm(x + self._attend(x, sequences))
        return self.final_norm(x + self._feed(x))

    def _attend(self, x: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        qkv = self.qkv(x.to(self.computing.dtype)).view(len(x), 3, self.heads, -1)
        return self.mix(attention(qkv, sequences, self.computing))

    def _feed(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(self.widen(x.to(self.computing.dtype)))


class PackedModel:
    """The forward pass, with the weights of a model of transformers.

    Args:
        layers: how many layers to run.
        final: whether a norm after the last layer is wanted, where there is one.
    """

    def __init__(self, model: Any, layers: int, final: bool, computing: Computing) -> None:
        self.computing = computing = computing.attending(model.config.hidden_size // model.config.num_attention_heads)
        first, *others = model.feature_extractor.conv_layers
        self.first = FirstConvolution(first.conv, getattr(first, "layer_norm", None), computing)
        self.others = [Convolution(c.conv, getattr(c, "layer_norm", None), computing) for c in others]
        self.hop = first.conv.stride[0]
        for convolution in self.others:
            self.hop *= convolution.stride
        projection = model.feature_projection
        norm = getattr(projection, "layer_norm", None)
        self.projection_norm = None if norm is None else Norm(norm, computing)
        self.projection = Linear(projection.projection.weight, projection.projection.bias, computing)
        encoder = model.encoder
        self.positional = [
            Positional(p.conv, getattr(p, "layer_norm", None), computing)
            for p in getattr(encoder.pos_conv_embed, "layers", [encoder.pos_conv_embed])
        ]
        norm_first = bool(getattr(model.config, "do_stable_layer_norm", False))
        norm = Norm(encoder.layer_norm, computing)
        self.norm_before, self.norm_after = None if norm_first else norm, norm if norm_first and final else None
        self.layers = [Layer(layer, norm_first, computing) for layer in encoder.layers[:layers]]

    def __call__(
        self, audio: torch.Tensor, lengths: Sequence[int], frames: Sequence[int], wanted: Collection[int]
    ) -> dict[int, torch.Tensor]:
        """Some hidden states of a batch `[B, S]` float32, zero-padded: each `[N, D]` float32, the utterances in order."""
        size = len(lengths) if self.computing.joined else 1
        several = [slice(first, first + size) for first in range(0, len(lengths), size)]
        x = self._project(torch.cat([self._convolve(audio[some], lengths[some], frames[some]) for some in several]))
        positions = x
        for positional in self.positional:
            positions = positional(positions, frames)
        x = x + positions
        if self.norm_before is not None:
            x = self.norm_before(x)
        states, sequences = {0: x}, Sequences.of(frames, self.computing)
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, sequences)
            states[number] = x if number < len(self.layers) or self.norm_after is None else self.norm_after(x)
            if number - 1 not in wanted:
                del states[number - 1]
        return states

    def _convolve(self, audio: torch.Tensor, lengths: Sequence[int], frames: Sequence[int]) -> torch.Tensor:
        spans = [-(-length // self.hop) * self.hop for length in lengths]
        rows = self.first(audio, lengths, spans)
        for convolution in self.others:
            rows = convolution(rows)
        starts = [sum(spans[:i]) // self.hop for i in range(len(spans))]
        return torch.cat([rows[start : start + count] for start, count in zip(starts, frames, strict=True)])

    def _project(self, rows: torch.Tensor) -> torch.Tensor:
        if self.projection_norm is not None:
            rows = self.projection_norm(rows.float())
        return self.projection(rows.to(self.computing.dtype)).float()


class LoadedPacked(LoadedEncoder):
    """A packed encoder cut off after the deepest layer asked for."""

    def __init__(
        self, encoder: CheckpointEncoder, model: nn.Module, computing: Computing, outputs: Sequence[Output]
    ) -> None:
        self.encoder = encoder
        self.wanted = {output.what: Chosen.of(output.what) for output in outputs}
        self.needed = {number for layers in self.wanted.values() for number in range(layers.first, layers.last + 1)}
        deepest = max(self.needed)
        with torch.inference_mode():
            self.model = PackedModel(model, deepest, deepest == encoder.layers, computing)

    def forward(self, audio: torch.Tensor, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
        frames = [self.encoder.frames(length) for length in lengths]
        with torch.inference_mode():
            audio = audio.to(self.model.computing.device, torch.float32)
            states = self.model(audio, lengths, frames, self.needed)
            return {
                what: nn.utils.rnn.pad_sequence(list(mean_state(states, chosen).split(frames)), batch_first=True)
                for what, chosen in self.wanted.items()
            }
