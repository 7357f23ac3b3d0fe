"""Attention among frames, and the pre-norm Transformer layer made of it."""

from torch import Tensor, nn
from torch.nn import functional as F


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, seen: Tensor | None, dropout: float) -> Tensor:
    """What queries `[B, N, H]` find among keys and values `[B, M, H]`: `[B, N, H]`.

    Args:
        seen: `[B, M]`, true where a key may be looked at, one for each utterance at least; None: everywhere.
        dropout: of attention weights; 0 but in training.
    """
    split = (
        x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (queries, keys, values)
    )  # [B, heads, N or M, H / heads]
    mask = None if seen is None else seen[:, None, None]  # [B, 1, 1, M]
    found = F.scaled_dot_product_attention(*split, attn_mask=mask, dropout_p=dropout)
    return found.transpose(1, 2).flatten(2)


class FeedForward(nn.Sequential):
    """The pre-norm feed-forward of a layer, without its residual path."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, inner),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(inner, width),
            nn.Dropout(dropout),
        )


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each with its LayerNorm before and a residual path around (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width)
        self.entry = nn.Linear(width, 3 * width)
        self.leave = nn.Linear(width, width)
        self.feed_forward = FeedForward(width, feed_forward, dropout)

    def forward(self, frames: Tensor, seen: Tensor) -> Tensor:
        """Frames `[B, T, H]`, of which those are looked at that `seen` `[B, T]` says."""
        dropout = self.dropout if self.training else 0.0
        queries, keys, values = self.entry(self.norm(frames)).chunk(3, dim=2)
        found = self.leave(attend(queries, keys, values, self.heads, seen, dropout))
        frames = frames + F.dropout(found, self.dropout, self.training)
        return frames + self.feed_forward(frames)
