"""Padding that cannot be seen: what mixes frames over time is made to see each utterance's own frames alone.

Two things leak through the padding of transformers' speech encoders: normalisation over time (group norm after the first
convolution) and convolutions over padded frames that are no longer zero. Both are mended here by lengths, so that a
batch of mixed lengths gives what each utterance gives alone.
"""

import threading
from collections.abc import Callable, Sequence

import torch
from torch import nn


def frame_mask(lengths: Sequence[int], frames: int, device: torch.device) -> torch.Tensor:
    """`[B, frames]` bool, true on the first `lengths[b]` frames."""
    # From pinned memory, or the device would be waited for.
    valid = torch.tensor(lengths, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    return torch.arange(frames, device=device) < valid[:, None]


class PerThread(threading.local):
    """What belongs to the forward pass that a thread is in: one model serves several threads."""

    lengths: Sequence[int] | None = None

    def __init__(self) -> None:
        self.caught: dict[int, torch.Tensor] = {}


class MaskedGroupNorm(nn.Module):
    """nn.GroupNorm over `[B, C, T]` whose statistics are taken over each utterance's valid frames.

    `here.lengths` is set before a forward pass: the valid frames of each utterance at this module, or None for all.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        self.here = PerThread()

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        if self.here.lengths is None:
            return self.norm(x_BCT)
        B, C, T = x_BCT.shape
        groups = self.norm.num_groups
        grouped = x_BCT.float().view(B, groups, C // groups, T)
        mask = frame_mask(self.here.lengths, T, x_BCT.device)[:, None, None, :]
        count = mask.sum(-1, keepdim=True) * (C // groups)  # [B, 1, 1, 1]
        mean = (grouped * mask).sum((2, 3), keepdim=True) / count
        centred = (grouped - mean) * mask
        variance = centred.square().sum((2, 3), keepdim=True) / count
        normed = (centred * torch.rsqrt(variance + self.norm.eps)).view(B, C, T)
        if self.norm.affine:
            normed = normed * self.norm.weight.float()[:, None] + self.norm.bias.float()[:, None]
        return normed.to(x_BCT.dtype)


class PaddingZeroed:
    """Zeroes the padding in the input `[B, C, T]` of every convolution of a module that pads, as its own padding is zero."""

    def __init__(self, module: nn.Module) -> None:
        self.here = PerThread()
        for child in module.modules():
            if isinstance(child, nn.Conv1d) and child.padding != (0,):
                child.register_forward_pre_hook(self._hook)

    def _hook(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self.here.lengths is None:
            return None
        mask = frame_mask(self.here.lengths, inputs[0].shape[-1], inputs[0].device)
        return (inputs[0] * mask[:, None, :].to(inputs[0].dtype), *inputs[1:])


def mask_group_norms(module: nn.Module) -> list[MaskedGroupNorm]:
    """Replace every nn.GroupNorm inside a module; the replacements, to be told the lengths."""
    replaced = []
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm) and not isinstance(parent, MaskedGroupNorm):
                masked = MaskedGroupNorm(child)
                setattr(parent, name, masked)
                replaced.append(masked)
    return replaced


class HiddenStates:
    """Catches chosen hidden states on their way: number k is what layer k takes in."""

    def __init__(self, layers: nn.ModuleList, wanted: Sequence[int]) -> None:
        self.here = PerThread()
        for number in wanted:
            layers[number].register_forward_pre_hook(self._hook(number), with_kwargs=True)

    def _hook(self, number: int) -> Callable[..., None]:
        def catch(module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
            self.here.caught[number] = args[0] if args else kwargs["hidden_states"]

        return catch
