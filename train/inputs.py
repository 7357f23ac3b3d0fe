"""From stored outputs to the features an adapter reads: layers mixed, codes embedded, positions added, parts masked."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from encodeonce.store.layout import Output
from encodeonce.train.adapters.frames import blank
from encodeonce.train.errors import TrainingError
from encodeonce.train.positions import sinusoids
from encodeonce.train.spec_augment import spans
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

LEAST_STD = 1e-5
"""Of a dimension; what hardly moves is not blown up to unit variance."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """SpecAugment on features: spans of time and of dimensions put to zero, in training alone (Park et al. 2019)."""

    time_spans: int = 0
    time_frames: int = 20
    """Frames of a span at most."""
    time_share: float = 0.2
    """Of an utterance at most, all spans together."""
    width_spans: int = 0
    width_share: float = 0.1
    """Dimensions of a span at most."""

    def __post_init__(self) -> None:
        for option, value in vars(self).items():
            most = 1 if option.endswith("share") else math.inf
            if not 0 <= value <= most:
                fitting = "a share from 0 to 1" if most == 1 else "0 or more"
                raise TrainingError(f"input.mask.{option}={value}: take {fitting}")


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """What happens to features before the adapter."""

    normalise: Literal["none", "layer", "moments"] = "none"
    """layer: LayerNorm without weights, frame by frame; moments: the training set's mean and deviation of each dimension, taken out."""
    positions: Literal["none", "sinusoidal"] = "none"
    codes: Literal["sum", "interleave"] = "sum"
    """How the codebooks of a frame's codes come together: embeddings summed, or one after the other in time."""
    code_width: int = 256
    """Of the embedding of codes and units."""
    noise: float = 0.0
    """Deviation of Gaussian noise that is added in training."""
    dropout: float = 0.0
    mask: MaskConfig | None = None


class FeatureInput(nn.Module):
    """What the adapter reads, `[B, T, width]` float32, made of what the store holds; all is zero after an utterance's end.

    Several outputs of one width are mixed as SUPERB does it (Yang et al. 2021): each is normalised, and summed with a softmax over learned
    numbers as weights. Codes and units go through a learned table for each codebook.

    Args:
        config: what happens to them.
        outputs: as the store describes them; the values of `forward` come in this order.
        moments: mean and variance `[D]` of each output, for `normalise="moments"`. None: they come with a checkpoint's state, and
            features are NaN until they do.

    Raises:
        TrainingError: outputs that do not go together, or not with the options.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        config: InputConfig,
        outputs: Sequence[Output],
        moments: Sequence[tuple[ArrayLike, ArrayLike]] | None = None,
    ) -> None:
        super().__init__()
        check_outputs(config, outputs)
        self.config = config
        self.tables = Tables(config, outputs) if is_coded(outputs[0]) else None
        self.width = self.tables.width if self.tables else outputs[0].width
        self.mix = nn.Parameter(torch.zeros(len(outputs))) if len(outputs) > 1 and not self.tables else None
        if config.normalise == "moments":
            unknown = np.full(self.width, np.nan)
            mean, variance = zip(*(moments or [(unknown, unknown)] * len(outputs)), strict=True)
            scale = 1 / np.maximum(np.sqrt(np.stack(variance)), LEAST_STD)
            self.register_buffer("mean", torch.tensor(np.stack(mean), dtype=torch.float32))  # [outputs, D]
            self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))

    @property
    def weights(self) -> Tensor:
        """How much of each output is in the mix, `[outputs]`: 1 together."""
        return torch.ones(1) if self.mix is None else self.mix.detach().softmax(0)

    def forward(self, values: Sequence[Tensor], lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features and their lengths.

        Args:
            values: of each output, `[B, T, D]` floats or `[B, T, K]` codes.
            lengths: `[B]` frames that are each utterance's own; interleaving makes K of each.

        Raises:
            TrainingError: outputs of different numbers of frames.
        """
        frames = sorted({value.shape[1] for value in values})
        if len(frames) > 1:
            raise TrainingError(
                f"outputs of {' and '.join(map(str, frames))} frames do not go together; give outputs of one frame rate"
            )
        if self.tables:
            features, lengths = self.tables(torch.cat(list(values), dim=2), lengths)
            features = self._normalised(features, 0)
        else:
            features = self._mixed(values)
        if self.training:
            features = self._disturbed(features, lengths)
        if self.config.positions == "sinusoidal":
            features = features + sinusoids(features.shape[1], self.width, features.device)
        return blank(F.dropout(features, self.config.dropout, self.training), lengths), lengths

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Frames, `[B]`, that the adapter gets of utterances of so many stored ones."""
        return self.tables.output_lengths(lengths) if self.tables else lengths

    def _mixed(self, values: Sequence[Tensor]) -> Tensor:
        normalised = (self._normalised(value.float(), place) for place, value in enumerate(values))
        if self.mix is None:
            return next(normalised)
        weighted = (weight * value for weight, value in zip(self.mix.softmax(0), normalised, strict=True))
        return functools.reduce(torch.add, weighted)

    def _normalised(self, features: Tensor, place: int) -> Tensor:
        if self.config.normalise == "layer":
            return F.layer_norm(features, features.shape[2:])
        if self.config.normalise == "moments":
            return (features - self.mean[place]) * self.scale[place]
        return features

    def _disturbed(self, features: Tensor, lengths: Tensor) -> Tensor:
        if self.config.noise:
            features = features + self.config.noise * torch.randn_like(features)
        return masked(features, lengths, self.config.mask) if self.config.mask else features


def masked(features: Tensor, lengths: Tensor, mask: MaskConfig) -> Tensor:
    """Features `[B, T, D]` with spans of each utterance's frames, `lengths` `[B]`, and of its dimensions put to zero."""
    _, frames, width = features.shape
    if mask.time_spans:
        longest = (lengths * (mask.time_share / mask.time_spans)).long().clamp(max=mask.time_frames)
        features = features.masked_fill(spans(mask.time_spans, longest, lengths, frames)[..., None], 0)
    if mask.width_spans:
        whole = torch.full_like(lengths, width)
        longest = torch.full_like(lengths, int(mask.width_share * width))
        features = features.masked_fill(spans(mask.width_spans, longest, whole, width)[:, None], 0)
    return features


class Tables(nn.Module):
    """Codes `[B, T, K]` to embeddings, by a learned table for each codebook.

    Codebooks are summed, `[B, T, W]`, or one after the other in time, `[B, T * K, W]`. What comes out has unit variance at the beginning.
    """

    def __init__(self, config: InputConfig, outputs: Sequence[Output]) -> None:
        super().__init__()
        sizes = [size for output in outputs for size in output.codebook_sizes or ()]
        self.width, self.summed, self.codebooks = config.code_width, config.codes == "sum", len(sizes)
        self.register_buffer("starts", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)
        self.table = nn.Parameter(torch.randn(sum(sizes), self.width) / (len(sizes) if self.summed else 1) ** 0.5)

    def forward(self, codes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and their lengths `[B]`."""
        rows = codes.long() + self.starts  # [B, T, K]
        if self.summed:
            embedded = F.embedding_bag(rows.flatten(0, 1), self.table, mode="sum").unflatten(0, rows.shape[:2])
        else:
            embedded = F.embedding(rows.flatten(1), self.table)
        return embedded, self.output_lengths(lengths)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """What lengths `[B]` become."""
        return lengths if self.summed else lengths * self.codebooks


def is_coded(output: Output) -> bool:
    """It holds codes or units, numbers of things, rather than quantities."""
    return output.dtype == "uint16"


def check_outputs(config: InputConfig, outputs: Sequence[Output]) -> None:
    """Refuse outputs that cannot be read together.

    Raises:
        TrainingError: they cannot, or not with these options.
    """
    if not outputs:
        raise TrainingError("no output to train on; name one in data.outputs")
    names = ", ".join(output.name for output in outputs)
    coded = [output for output in outputs if is_coded(output)]
    if coded and len(coded) < len(outputs):
        raise TrainingError(f"outputs {names}: features and codes do not go together; give one kind")
    if coded and config.normalise == "moments":
        raise TrainingError(f"outputs {names} are codes, which have no moments; give input.normalise=none or layer")
    for output in coded:
        if output.codebook_sizes is None or len(output.codebook_sizes) != output.width:
            raise TrainingError(
                f"output {output.name} does not say how many codes each codebook has; write it with Output(..., codebook_sizes=...)"
            )
    if len({output.width for output in outputs}) > 1 and not coded:
        widths = ", ".join(f"{output.name} of {output.width}" for output in outputs)
        raise TrainingError(f"outputs {widths} dimensions cannot be mixed; give outputs of one width")
