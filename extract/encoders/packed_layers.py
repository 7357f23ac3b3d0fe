"""The pieces of a packed forward pass: every one takes and gives rows, `[frames, channels]`, in the precision of its weights.

Each is plain torch on any device. With `fused`, on a CPU, matrix products and convolutions go through oneDNN's operators
with the weights laid out once for them and GELU inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

POSITIONS_AT_ONCE = 4
"""Frames that one row of the positional convolution's matrix product makes."""


@dataclass(frozen=True, slots=True)
class Computing:
    """Where and how to compute.

    Attributes:
        fused: through oneDNN's fused operators, on a CPU that has instructions for the precision.
        joined: the convolutions run over a batch at once, and not utterance by utterance.
        variable: attention through FlashAttention's kernel for sequences of different lengths, where a head's width
            allows (`attending`); for 16 bits on CUDA alone, from compute capability 8.0.
    """

    device: torch.device
    dtype: torch.dtype
    fused: bool = False
    joined: bool = False
    variable: bool = False

    @classmethod
    def best(cls, device: str, precision: str) -> "Computing":
        """What is fastest for a device and a precision."""
        where, dtype = torch.device(device), getattr(torch, precision)
        if where.type != "cpu":
            ampere = where.type == "cuda" and torch.cuda.get_device_capability(where) >= (8, 0)
            return cls(where, dtype, joined=True, variable=ampere and dtype != torch.float32)
        native = {
            torch.float32: torch.backends.cpu.get_cpu_capability().startswith("AVX"),
            torch.bfloat16: torch.cpu._is_avx512_bf16_supported(),
        }
        return cls(where, dtype, fused=native.get(dtype, False) and torch.backends.mkldnn.is_available())

    def attending(self, width: int) -> "Computing":
        """The same for heads of some width: FlashAttention takes multiples of 8, up to 256."""
        return self if width % 8 == 0 and width <= 256 else replace(self, variable=False)

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Weights as they are computed with."""
        return tensor.detach().to(self.device, self.dtype)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Weights of what is computed in float32 whatever the precision."""
        return tensor.detach().to(self.device, torch.float32)


class Linear:
    """`x @ weight.T + bias`, GELU after it where asked; `weight` `[out, in]` and `bias` `[out]` float32."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, computing: Computing, gelu: bool = False
    ) -> None:
        self.weight, self.bias = computing.take(weight), None if bias is None else computing.take(bias)
        self.gelu, self.fused = gelu, computing.fused
        if self.fused:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.fused:
            return fused_linear(x, self.weight, self.bias, self.gelu)
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if self.gelu else y


def fused_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool) -> torch.Tensor:
    """`x @ weight.T + bias` by oneDNN, GELU (erf) after it where asked; `weight` may be laid out for it already."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else "")


class Norm:
    """Layer norm; in float32 where its rows are, else with float32 inside."""

    def __init__(self, norm: nn.LayerNorm, computing: Computing, float32: bool = True) -> None:
        convert = computing.keep if float32 else computing.take
        self.weight = None if norm.weight is None else convert(norm.weight)
        self.bias = None if norm.bias is None else convert(norm.bias)
        self.eps, self.shape = norm.eps, list(norm.normalized_shape)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class Convolution:
    """A convolution over rows without padding, then layer norm where there is one, then GELU: `[n, in]` to `[m, out]`."""

    def __init__(self, conv: nn.Conv1d, norm: nn.LayerNorm | None, computing: Computing) -> None:
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        self.bias = None if conv.bias is None else computing.take(conv.bias)
        self.norm = None if norm is None else Norm(norm, computing, float32=False)
        self.fused = computing.fused
        weight = computing.take(conv.weight)  # [out, in, kernel]
        if self.fused:
            self.weights = [weight[:, :, None].contiguous(memory_format=torch.channels_last)]
            self.weights = [
                torch.ops.mkldnn._reorder_convolution_weight(self.weights[0], [0, 0], [1, self.stride], [1, 1], 1)
            ]
        else:  # as many taps at once as the stride is wide: rows that do not overlap need no copy
            self.weights = [taps.transpose(1, 2).flatten(1).contiguous() for taps in weight.split(self.stride, 2)]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.fused:
            attribute, algorithm = ("none", "") if self.norm else ("gelu", "none")
            images = x[None, None].permute(0, 3, 1, 2)  # [1, in, 1, n], channels last
            y = torch.ops.mkldnn._convolution_pointwise(
                images, self.weights[0], self.bias, [0, 0], [1, self.stride], [1, 1], 1, attribute, [], algorithm
            )
            y = y.permute(0, 2, 3, 1)[0, 0]
            return F.gelu(self.norm(y)) if self.norm else y
        n, channels = x.shape
        m = (n - self.kernel) // self.stride + 1
        y = None
        for number, weight in enumerate(self.weights):
            rows = x.as_strided((m, weight.shape[1]), (self.stride * channels, 1), number * self.stride * channels)
            y = F.linear(rows, weight, self.bias) if y is None else y.addmm_(rows, weight.T)
        assert y is not None
        return F.gelu(self.norm(y) if self.norm else y)


class Positional:
    """A grouped convolution of odd or even kernel, padded with zeros at an utterance's ends, then GELU: as one batched product.

    A row of the product takes the frames that POSITIONS_AT_ONCE output frames see; its matrix holds the kernel as often, each
    time a frame further down. On a CPU its few zeros cost less than the copies that other forms take; on CUDA bmm copies
    the overlapping rows: for a batch of 320 s of the large models that is 1 GB in 16 bits.
    """

    def __init__(self, conv: nn.Conv1d, norm: nn.LayerNorm | None, computing: Computing) -> None:
        self.kernel, self.groups, width = conv.kernel_size[0], conv.groups, conv.out_channels
        assert conv.bias is not None
        self.bias = computing.take(conv.bias)
        self.norm = None if norm is None else Norm(norm, computing)
        kernels = conv.weight.detach().view(self.groups, width // self.groups, -1, self.kernel).permute(0, 3, 2, 1)
        several = kernels.new_zeros(
            self.groups, self.kernel + POSITIONS_AT_ONCE - 1, kernels.shape[2], POSITIONS_AT_ONCE, kernels.shape[3]
        )
        for i in range(POSITIONS_AT_ONCE):
            several[:, i : i + self.kernel, :, i] = kernels
        self.weight = computing.take(several.flatten(3, 4).flatten(1, 2))

    def __call__(self, x: torch.Tensor, frames: Sequence[int]) -> torch.Tensor:
        """`[N, D]` float32 to the same: `frames` of each utterance, one after the other."""
        gap, at_once = self.kernel // 2, POSITIONS_AT_ONCE
        zeros = self.weight.new_zeros(gap, x.shape[1])
        made = sum(frames) + gap * (len(frames) - 1)  # rows from the first frame to the last, gaps included
        blocks = -(-made // at_once)
        tail = blocks * at_once + self.kernel - 1 - made - gap
        parts = [part for own in x.to(self.weight.dtype).split(list(frames)) for part in (zeros, own)]
        rows = torch.cat([*parts, self.weight.new_zeros(tail, x.shape[1])])
        grouped = rows.view(len(rows), self.groups, -1).transpose(0, 1).contiguous()  # [groups, rows, channels]
        size = grouped.shape[2]
        seen = grouped.as_strided((self.groups, blocks, self.weight.shape[1]), (grouped.stride(0), at_once * size, 1))
        y = torch.bmm(seen, self.weight).view(self.groups, blocks * at_once, size).transpose(0, 1).flatten(1)
        own = _without_gaps(y, frames, gap) + self.bias
        return F.gelu(self.norm(own.float()) if self.norm else own).float()


def _without_gaps(x: torch.Tensor, frames: Sequence[int], gap: int) -> torch.Tensor:
    starts = [sum(frames[:i]) + i * gap for i in range(len(frames))]
    return torch.cat([x[start : start + count] for start, count in zip(starts, frames, strict=True)])


@dataclass(frozen=True, slots=True)
class Sequences:
    """Where the frames of each utterance of a batch lie among the packed rows."""

    frames: Sequence[int]
    bounds: torch.Tensor | None
    """`[B + 1]` int32 on the device, where the kernel for variable lengths wants it."""

    @classmethod
    def of(cls, frames: Sequence[int], computing: Computing) -> "Sequences":
        """The utterances of a batch."""
        if not computing.variable:
            return cls(frames, None)
        bounds = F.pad(torch.tensor(frames).cumsum(0), (1, 0)).int()
        if computing.device.type == "cuda":
            bounds = bounds.pin_memory()
        return cls(frames, bounds.to(computing.device, non_blocking=True))


def attention(qkv: torch.Tensor, sequences: Sequences, computing: Computing) -> torch.Tensor:
    """Softmax attention of each utterance over its own frames: `[N, 3, heads, width]` to `[N, heads * width]`."""
    if sequences.bounds is not None:
        from torch.nn.attention.varlen import varlen_attn

        longest = max(sequences.frames)
        query, key, value = qkv.unbind(1)
        mixed = varlen_attn(query, key, value, sequences.bounds, sequences.bounds, longest, longest)
        assert isinstance(mixed, torch.Tensor)
        return mixed.flatten(1)
    by_head = computing.fused and computing.dtype == torch.bfloat16
    alone = _attention_by_head if by_head else _attention_of_one
    return torch.cat([alone(one) for one in qkv.split(list(sequences.frames))])


def _attention_of_one(qkv: torch.Tensor) -> torch.Tensor:
    query, key, value = qkv.permute(1, 2, 0, 3)[:, None]  # [1, heads, T, width] each
    return F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).flatten(1)


def _attention_by_head(qkv: torch.Tensor) -> torch.Tensor:
    """As plain products, which oneDNN does twice as fast as torch's own bfloat16 attention; a head's scores fit the cache."""
    T, _, heads, width = qkv.shape
    query, key, value = qkv.permute(1, 2, 0, 3).contiguous()  # [heads, T, width] each
    query = query * width**-0.5
    mixed = qkv.new_empty(T, heads, width)
    for head in range(heads):
        scores = query[head] @ key[head].T
        mixed[:, head] = torch.softmax(scores, -1) @ value[head]
    return mixed.flatten(1)
