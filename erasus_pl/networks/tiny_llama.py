"""A small decoder in the style of Llama (Touvron et al., 2023, arXiv:2302.13971)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TinyLlama"]


class TinyLlama(nn.Module):
    """Decoder-only transformer: RMSNorm, rotary positions, SwiGLU, no biases, untied head.

    Args:
        vocabulary: number of tokens.
        width: size of the residual stream; a multiple of `2 * heads`.
        layers: number of blocks.
        heads: attention heads.
        dropout: probability of dropping a residual update while training.
    """

    def __init__(
        self,
        vocabulary: int = 64,
        width: int = 32,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            msg = f"`width` must be a multiple of 2 * heads = {2 * heads}, got {width}"
            raise ValueError(msg)
        self.size = width // heads
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map tokens `(B, T)` to logits `(B, T, vocabulary)`; padding is masked out."""
        length = input_ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
        if attention_mask is not None:
            seen = attention_mask.bool()[:, None, None, :]
            own = torch.eye(length, dtype=torch.bool, device=input_ids.device)
            mask = (mask & seen) | own
        x = self.embedding(input_ids)
        rotation = _rotation(length, self.size, x)
        for block in self.blocks:
            x = block(x, mask, rotation)
        return self.head(self.norm(x))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.gate = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, self.size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, rotation), _rotate(k, rotation)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        h = self.mlp_norm(x)
        return x + self.dropout(self.down(F.silu(self.gate(h)) * self.up(h)))


def _rotation(length: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    frequency = 10_000.0 ** (-torch.arange(0, size, 2, device=like.device) / size)
    angle = torch.outer(torch.arange(length, device=like.device), frequency)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    even, odd = x.chunk(2, -1)
    return torch.cat([even * cos - odd * sin, even * sin + odd * cos], -1)
