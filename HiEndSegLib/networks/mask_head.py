"""Masked Multi-Scale Segmentation Head of MaskMed (arXiv 2511.15603): shared object queries, two embeddings each.

One set of queries is refined by transformer layers over multi-scale decoder features and decoded into a mask
embedding (a class-agnostic mask) and a class embedding (a label). What the paper leaves open follows Mask2Former
(arXiv 2112.01527) and is our fill-in: masked cross-attention, order of the sub-layers, prediction after every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .deformable import normalised_position
from .mask_features import MaskFeatures


@dataclass
class QueryPrediction:
    """What the queries say after one layer.

    class_logits: (B, Q, K + 1), the last column is "no object".
    mask_embeddings: (B, Q, d_mask); a mask's logits are their inner product with the mask features.
    """

    class_logits: Tensor
    mask_embeddings: Tensor


@dataclass
class HeadOutput:
    """The head's answer.

    predictions: before the first layer and after every layer, the last one is the answer.
    mask_features: d_mask channels at the image's resolution, computed where they are asked for.
    queries: (B, Q, D) after the last layer.
    """

    predictions: list[QueryPrediction]
    mask_features: MaskFeatures
    queries: Tensor

    @property
    def final(self) -> QueryPrediction:
        return self.predictions[-1]


def mask_logits(embeddings: Tensor, features: Tensor) -> Tensor:
    """(B, Q, d) and (B, d, I, J, K) -> (B, Q, I, J, K)."""
    return (embeddings @ features.flatten(2)).unflatten(2, features.shape[2:])


def fuse(class_logits: Tensor, masks: Tensor) -> Tensor:
    """Class scores from queries, normalised over the classes: (B, Q, K + 1), (B, Q, ...) -> (B, K, ...).

    score_k(v) = sum over q of softmax(class_q)[k] * sigmoid(mask_q(v)) for k < K (arXiv 2107.06278, section 3.3),
    divided by its sum over k, so that scores of neighbouring tiles can be averaged.
    """
    probability = class_logits.float().softmax(-1)[..., :-1]
    scores = probability.to(masks.dtype).transpose(1, 2) @ masks.sigmoid().flatten(2)
    scores = scores / scores.sum(1, keepdim=True).clamp_min(1e-6)
    return scores.unflatten(2, masks.shape[2:])


class QueryLayer(nn.Module):
    """Masked cross-attention to one scale, self-attention among queries, MLP; post-norm (arXiv 2112.01527, 3.2.1)."""

    def __init__(self, *, embed_dim: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        self.num_heads = num_heads
        self.cross_q = nn.Linear(embed_dim, embed_dim)
        self.cross_kv = nn.Linear(embed_dim, 2 * embed_dim)
        self.cross_out = nn.Linear(embed_dim, embed_dim)
        self.self_qk = nn.Linear(embed_dim, 2 * embed_dim)
        self.self_v = nn.Linear(embed_dim, embed_dim)
        self.self_out = nn.Linear(embed_dim, embed_dim)
        self.fc1 = nn.Linear(embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, embed_dim)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.norm3 = nn.LayerNorm(embed_dim)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)                   # (B, H, N, D/H)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        out = F.scaled_dot_product_attention(self._heads(q), self._heads(k), self._heads(v), attn_mask=mask)
        return out.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, query_pos: Tensor, memory: Tensor, memory_pos: Tensor, allowed: Tensor,
                heard: Tensor | None = None) -> Tensor:
        """x, query_pos: (B, Q, D). memory: (B, N, D), memory_pos: (N, D). allowed: (B, 1, Q, N) bool. heard: (Q, Q)
        bool, whom a query listens to (None: all)."""
        # Keys carry the position, values do not; one fused weight, split to project each from its own input.
        k_weight, v_weight = self.cross_kv.weight.chunk(2)
        k_bias, v_bias = self.cross_kv.bias.chunk(2)
        k = F.linear(memory + memory_pos, k_weight, k_bias)
        v = F.linear(memory, v_weight, v_bias)
        x = self.norm1(x + self.cross_out(self._attend(self.cross_q(x + query_pos), k, v, allowed)))
        q, k = self.self_qk(x + query_pos).chunk(2, -1)
        x = self.norm2(x + self.self_out(self._attend(q, k, self.self_v(x), heard)))
        return self.norm3(x + self.fc2(F.relu(self.fc1(x))))


class MaskedMultiScaleHead(nn.Module):
    """Queries over multi-scale decoder maps -> class logits and masks.

    memory_channels: channels of the decoder maps the queries attend to, in the order they are visited, repeated
    `rounds` times. mask_dim: channels of the mask features. queries >= classes; default one per class.

    Query q starts out inclined to class q (`class_prior`, learned like any weight): the head begins near the ordinary
    point-wise head, which it contains as a limit, and decouples from there. Ours; with few volumes the queries
    otherwise spend most of the training agreeing who is who.

    guests: how many of the last queries came later, with new classes, generation by generation. Those before them do
    not listen to them in self-attention, so that a new class changes nothing of what the old queries say.
    """

    def __init__(self, *, num_classes: int, memory_channels: list[int], mask_dim: int, num_queries: int | None = None,
                 embed_dim: int = 96, num_heads: int = 6, rounds: int = 1, guests: Sequence[int] = ()):
        super().__init__()
        num_queries = num_classes if num_queries is None else num_queries
        if any(n < 1 for n in guests) or sum(guests) >= num_queries:
            raise ValueError(f"guests {list(guests)} must be positive and fewer than the {num_queries} queries")
        self.guests = tuple(guests)
        if num_queries < num_classes:
            raise ValueError(f"num_queries {num_queries} must be at least num_classes {num_classes}")
        self.num_classes, self.num_queries, self.rounds = num_classes, num_queries, rounds
        self.query_content = nn.Parameter(torch.empty(num_queries, embed_dim))
        self.query_position = nn.Parameter(torch.empty(num_queries, embed_dim))
        self.memory_proj = nn.ModuleList(nn.Conv3d(c, embed_dim, 1) for c in memory_channels)
        self.scale_embed = nn.Parameter(torch.empty(len(memory_channels), embed_dim))
        self.layers = nn.ModuleList(QueryLayer(embed_dim=embed_dim, num_heads=num_heads)
                                    for _ in range(rounds * len(memory_channels)))
        self.norm = nn.LayerNorm(embed_dim)
        self.class_embed = nn.Linear(embed_dim, num_classes + 1)
        self.class_prior = nn.Parameter(torch.zeros(num_queries, num_classes + 1))
        self.mask_embed = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim),
                                        nn.ReLU(), nn.Linear(embed_dim, mask_dim))
        for parameter in (self.query_content, self.query_position):
            nn.init.normal_(parameter, std=1.0)
        nn.init.normal_(self.scale_embed, std=0.02)
        with torch.no_grad():
            self.class_prior[torch.arange(num_queries), torch.arange(num_queries) % num_classes] = 5.0

    def predict(self, queries: Tensor) -> QueryPrediction:
        x = self.norm(queries)
        return QueryPrediction(self.class_embed(x) + self.class_prior, self.mask_embed(x))

    def _heard(self, device: torch.device) -> Tensor | None:
        """(Q, Q) bool: each query hears its own generation and those before."""
        if not self.guests:
            return None
        born = torch.zeros(self.num_queries, dtype=torch.long, device=device)
        for first in range(len(self.guests)):
            born[self.num_queries - sum(self.guests[first:]):] += 1
        return born[None] <= born[:, None]

    @torch.no_grad()
    def _allowed(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """Where a query may look: inside its own last mask; everywhere if that mask is empty. (B, 1, Q, N) bool."""
        inside = (mask_logits(embeddings.detach(), features) > 0).flatten(2)            # sigmoid > 0.5
        return (inside | ~inside.any(-1, keepdim=True)).unsqueeze(1)

    def forward(self, memory: list[Tensor], mask_features: MaskFeatures) -> HeadOutput:
        """memory: decoder maps (B, C_s, I_s, J_s, K_s)."""
        b = memory[0].shape[0]
        dim = self.query_content.shape[1]
        tokens, positions, at_scale = [], [], []
        for scale, (m, proj) in enumerate(zip(memory, self.memory_proj)):
            tokens.append(proj(m).flatten(2).transpose(1, 2) + self.scale_embed[scale])
            positions.append(normalised_position(m.shape[2:], dim, m).to(m.dtype))
            # The mask is linear in the features, so resizing the features once resizes every query's logits.
            at_scale.append(mask_features.pooled(m.shape[2:]))
        x = self.query_content.expand(b, -1, -1)
        query_pos = self.query_position.expand(b, -1, -1)
        heard = self._heard(x.device)
        predictions = [self.predict(x)]
        for index, layer in enumerate(self.layers):
            scale = index % len(memory)
            allowed = self._allowed(predictions[-1].mask_embeddings, at_scale[scale])
            x = layer(x, query_pos, tokens[scale], positions[scale], allowed, heard=heard)
            predictions.append(self.predict(x))
        return HeadOutput(predictions, mask_features, x)
