"""The first convolution of a raw-waveform encoder with its norm: a matrix product over the samples, as exact as float32.

In 16 bits samples and weights are each the sum of two numbers, so that their product loses nothing but what its result does.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from encodeonce.extract.encoders.packed_layers import Computing, Norm, fused_linear
from torch import nn


class FirstConvolution:
    """Samples `[B, S]` to rows `[n, channels]`: convolution, layer norm or group norm over time, GELU.

    A group norm with a group a channel is folded into the weights, utterance by utterance: mean and variance over time of
    `w . x + b` are `w . mean(x) + b` and `w . cov(x) . w`, of the kernel's few samples x.
    """

    def __init__(self, conv: nn.Conv1d, norm: Any, computing: Computing) -> None:
        self.kernel, self.stride, self.computing = conv.kernel_size[0], conv.stride[0], computing
        self.weight = conv.weight[:, 0].detach().to(computing.device, torch.float64)  # [channels, kernel]
        bias = torch.zeros(len(self.weight)) if conv.bias is None else conv.bias
        self.bias = bias.detach().to(self.weight)
        self.norm = Norm(norm, computing, float32=False) if isinstance(norm, nn.LayerNorm) else None
        self.group_norm = isinstance(norm, nn.GroupNorm)
        if self.group_norm:
            self.eps = norm.eps
            self.scale, self.shift = norm.weight.detach().to(self.weight), norm.bias.detach().to(self.weight)

    def __call__(self, audio: torch.Tensor, lengths: Sequence[int], spans: Sequence[int]) -> torch.Tensor:
        """Rows of all utterances as one stream, in which each takes `spans[b]` samples; `spans` are multiples of the stride."""
        padded = F.pad(audio, (0, max(spans) - audio.shape[1])) if max(spans) > audio.shape[1] else audio
        stream = _joined([row[:span] for row, span in zip(padded, spans, strict=True)])
        inputs = self._inputs(stream)
        if not self.group_norm:
            y = self._product(inputs, self.weight, self.bias, gelu=self.norm is None)
            return y if self.norm is None else F.gelu(self.norm(y))
        own = inputs.split(
            [span // self.stride for span in spans[:-1]] + [len(inputs) - sum(spans[:-1]) // self.stride]
        )
        return _joined(
            [
                self._product(x, *self._folded(row[:length]), gelu=True)
                for x, row, length in zip(own, audio, lengths, strict=True)
            ]
        )

    def _folded(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and bias `[channels, kernel]`, `[channels]` float64 that hold the norm over the frames of some samples."""
        seen = samples.unfold(0, self.kernel, self.stride).double()
        mean = seen.mean(0)
        centred = seen - mean
        covariance = centred.T @ centred / len(seen)
        variance = ((self.weight @ covariance) * self.weight).sum(1)
        weight = self.weight * (self.scale * torch.rsqrt(variance + self.eps))[:, None]
        return weight, self.shift - weight @ mean

    def _inputs(self, stream: torch.Tensor) -> torch.Tensor:
        """What the kernel sees of each frame, and ones for the bias: `[n, kernel + 1]`, in 16 bits `[n, 3 kernel + 2]`."""
        parts = _parts(stream, self.computing.dtype)
        seen = [part.unfold(0, self.kernel, self.stride) for part in (*parts, parts[0])[: 2 * len(parts) - 1]]
        return torch.cat([*seen, seen[0].new_ones(len(seen[0]), len(parts))], 1)

    def _product(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, gelu: bool) -> torch.Tensor:
        parts, biases = _parts(weight, self.computing.dtype), _parts(bias[:, None], self.computing.dtype)
        joined = torch.cat([parts[0], *parts, *biases] if len(parts) > 1 else [*parts, *biases], 1)
        if self.computing.fused:
            return fused_linear(inputs, joined, None, gelu)
        y = F.linear(inputs, joined)
        return F.gelu(y) if gelu else y


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _parts(x: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Numbers of a precision that add up to x: one in float32, two in 16 bits."""
    if dtype == torch.float32:
        return [x.to(dtype)]
    high = x.to(dtype)
    return [high, (x - high.to(x.dtype)).to(dtype)]
