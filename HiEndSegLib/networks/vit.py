"""Plain 3D vision transformer: the encoder of Hi-End-MAE (arXiv 2502.08347) and small presets of ours.

What is unusual here:
- parameters carry the names of the official Hi-End-MAE encoder, so its weights load without renaming;
- the position table is fixed (not in the state dict) unless ``learned_position`` is asked for;
- ``forward_tokens`` runs on any subset of the tokens, as a masked auto-encoder needs;
- intermediate outputs and attention maps are methods, not hooks.

It knows nothing about decoders, spacing or what a structure is called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from HiEndSegLib.errors import OptionError
from HiEndSegLib.networks.attention import fused_attention, softmax_rows
from HiEndSegLib.networks.position import as_triple, resize_position, sincos_position_3d

# The paper's three encoders (names as in its code) and two of ours that a laptop can run.
VIT_VARIANTS: dict[str, dict] = {
    "hi_end_mae_vit_base_16p": {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0},
    "hi_end_mae_vit_large_16p": {"patch_size": 16, "embed_dim": 1536, "depth": 12, "num_heads": 16, "mlp_ratio": 4.0},
    "hi_end_mae_vit_large_12p": {"patch_size": 12, "embed_dim": 1536, "depth": 12, "num_heads": 16, "mlp_ratio": 4.0},
    "vit_small_12p": {"patch_size": 12, "embed_dim": 384, "depth": 12, "num_heads": 6, "mlp_ratio": 4.0},
    "vit_tiny_12p": {"patch_size": 12, "embed_dim": 144, "depth": 12, "num_heads": 6, "mlp_ratio": 4.0},
}


def build_vit(name: str, **overrides) -> VisionTransformer3D:
    """A freshly initialised encoder by the name of its variant; keywords replace entries of the table.

    Raises:
        OptionError: no such variant.
    """
    if name not in VIT_VARIANTS:
        raise OptionError(f"There is no encoder named {name!r}; choose one of {', '.join(VIT_VARIANTS)}.")
    return VisionTransformer3D(**{**VIT_VARIANTS[name], **overrides})


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens, ``(B, C, I, J, K) -> (B, N, D)``; a strided convolution by its weights."""

    def __init__(self, *, patch_size: int | Sequence[int], in_channels: int, embed_dim: int):
        super().__init__()
        self.patch_size = as_triple(patch_size)
        self.in_channels = in_channels
        self.proj = nn.Conv3d(in_channels, embed_dim, kernel_size=self.patch_size, stride=self.patch_size)

    def grid(self, spatial: Sequence[int]) -> tuple[int, int, int]:
        """Tokens along each axis for an input of this size in voxels; ValueError unless it divides evenly."""
        if len(spatial) != 3 or any(s < p or s % p for s, p in zip(spatial, self.patch_size)):
            raise ValueError(f"the encoder cuts its input into patches of {self.patch_size} voxels, and a size of "
                             f"{tuple(spatial)} is no multiple of that; pad or crop the input first")
        return tuple(s // p for s, p in zip(spatial, self.patch_size))

    def forward(self, x: Tensor) -> Tensor:
        self.grid(x.shape[2:])
        return self.proj(x).flatten(2).transpose(1, 2)

    def patchify(self, x: Tensor) -> Tensor:
        """``(B, C, I, J, K) -> (B, N, p1 * p2 * p3 * C)``; values of a token ordered (p1, p2, p3, channel)."""
        batch, channels = x.shape[:2]
        (g1, g2, g3), (p1, p2, p3) = self.grid(x.shape[2:]), self.patch_size
        x = x.reshape(batch, channels, g1, p1, g2, p2, g3, p3).permute(0, 2, 4, 6, 3, 5, 7, 1)
        return x.reshape(batch, g1 * g2 * g3, p1 * p2 * p3 * channels)

    def unpatchify(self, patches: Tensor, grid: Sequence[int]) -> Tensor:
        """The inverse of `patchify` for a token grid: ``(B, N, p1 * p2 * p3 * C)`` -> ``(B, C, I, J, K)``."""
        (g1, g2, g3), (p1, p2, p3) = as_triple(grid), self.patch_size
        x = patches.reshape(patches.shape[0], g1, g2, g3, p1, p2, p3, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.reshape(x.shape[0], x.shape[1], g1 * p1, g2 * p2, g3 * p3)

    def embed_patches(self, patches: Tensor) -> Tensor:
        """Tokens of already cut patches, ``(B, S, p1 * p2 * p3 * C)`` in the order of `patchify` -> ``(B, S, D)``."""
        weight = self.proj.weight.permute(0, 2, 3, 4, 1).flatten(1)  # channel last, as the patches are
        return F.linear(patches, weight, self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention ``(B, N, D) -> (B, N, D)`` with one fused projection [q | k | v]."""

    def __init__(self, dim: int, *, num_heads: int, qkv_bias: bool = True):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} attention heads do not divide a width of {dim}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(fused_attention(self.qkv(x), self.num_heads))

    def weights(self, x: Tensor, rows: Sequence[int] | Tensor | None = None) -> Tensor:
        """The softmax map of all or the asked query rows, float32 ``(B, heads, R, N)``."""
        return softmax_rows(self.qkv(x), self.num_heads, rows)


class Mlp(nn.Module):
    """Two linears with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block: ``x += attn(norm1(x)); x += mlp(norm2(x))``."""

    def __init__(self, dim: int, *, num_heads: int, mlp_ratio: float, qkv_bias: bool, norm_eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads=num_heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer3D(nn.Module):
    """ViT on volumes ``(B, C, I, J, K)``; tokens ``(B, N, D)`` with N = (I/p)(J/p)(K/p), first axis slowest.

    Works on any input whose size is a multiple of the patch: the fixed position table is recomputed for another
    grid, a learned one is resampled.

    Args:
        img_size: voxels per axis the position table is made for.
        norm_eps: epsilon of every LayerNorm (1e-6 in the paper's code).
        learned_position: train the table (it starts as the sine-cosine one) and keep it in the state dict.
        cls_token: prepend the pre-training encoder's extra token, which has no position.
        checkpointing: recompute blocks in the backward pass, trading time for memory.
    """

    def __init__(self, *, embed_dim: int, depth: int, num_heads: int, img_size: int | Sequence[int] = 96,
                 patch_size: int | Sequence[int] = 12, in_channels: int = 1, mlp_ratio: float = 4.0,
                 qkv_bias: bool = True, norm_eps: float = 1e-6, learned_position: bool = False,
                 cls_token: bool = False, checkpointing: bool = False):
        super().__init__()
        self.patch_embed = PatchEmbed(patch_size=patch_size, in_channels=in_channels, embed_dim=embed_dim)
        self.img_size = as_triple(img_size)
        self.patch_size = self.patch_embed.patch_size
        self.grid = self.patch_embed.grid(self.img_size)
        self.in_channels, self.embed_dim, self.depth, self.num_heads = in_channels, embed_dim, depth, num_heads
        self.learned_position = learned_position
        self.checkpointing = checkpointing
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if cls_token else None
        table = sincos_position_3d(self.grid, embed_dim)
        if learned_position:
            self.pos_embed = nn.Parameter(table)
        else:
            self.register_buffer("pos_embed", table, persistent=False)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, norm_eps=norm_eps)
            for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initial weights as in the paper's code; also refills the fixed table, e.g. after ``to_empty``."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        projection = self.patch_embed.proj
        # Xavier on the flattened kernel; nn.init would count the kernel's volume into the fan-out as well.
        limit = math.sqrt(6.0 / (projection.weight[0].numel() + self.embed_dim))
        nn.init.uniform_(projection.weight, -limit, limit)
        nn.init.zeros_(projection.bias)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)
        self.pos_embed.copy_(sincos_position_3d(self.grid, self.embed_dim))

    def position_table(self, grid: Sequence[int]) -> Tensor:
        """The position table ``(1, N, D)`` for a token grid, in the table's dtype and device."""
        grid = tuple(grid)
        if grid == self.grid:
            return self.pos_embed
        if self.learned_position:
            return resize_position(self.pos_embed, self.grid, grid)
        return sincos_position_3d(grid, self.embed_dim).to(self.pos_embed)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, I, J, K)`` -> the last block's output after the final norm, ``(B, N, D)`` without cls."""
        return self.forward_intermediates(x, ())[1]

    def forward_intermediates(self, x: Tensor, indices: Sequence[int], *, norm: bool = False,
                              return_final: bool = True, keep_cls: bool = False) -> tuple[list[Tensor], Tensor | None]:
        """Outputs of chosen blocks and of the whole encoder.

        Args:
            x: ``(B, C, I, J, K)``.
            indices: block indices from 0 (negative ones count from the end), in any order.
            norm: apply the final norm to the chosen outputs too (the paper's skip taps are raw).
            return_final: without it the run stops after the deepest chosen block and the second result is None.
            keep_cls: leave the cls token as row 0 (needs ``cls_token``); otherwise it is dropped.

        Returns:
            ``([(B, N, D), ...], (B, N, D))``: the chosen outputs in the order asked, and the normalised last output.
        """
        return self._run(self.embed(x), indices, norm=norm, return_final=return_final, keep_cls=keep_cls)

    def forward_tokens(self, patches: Tensor, positions: Tensor, indices: Sequence[int] = (), *, norm: bool = False,
                       return_final: bool = True, keep_cls: bool = False,
                       grid: Sequence[int] | None = None) -> tuple[list[Tensor], Tensor | None]:
        """As `forward_intermediates`, for some patches only (the visible ones of a masked auto-encoder).

        Args:
            patches: ``(B, S, p1 p2 p3 C)``, cut as by ``patch_embed.patchify``.
            positions: integer ``(B, S)`` or ``(S,)``, the flat grid index of every patch.
            grid: the token grid those indices mean; the encoder's own by default.
        """
        return self._run(self.embed_some(patches, positions, grid=grid), indices,
                         norm=norm, return_final=return_final, keep_cls=keep_cls)

    def embed(self, x: Tensor) -> Tensor:
        """``(B, C, I, J, K)`` -> what enters the first block: tokens with positions, the cls token (if any) first."""
        if x.dim() != 5 or x.shape[1] != self.in_channels:
            raise ValueError(f"the encoder takes (batch, {self.in_channels} channels, I, J, K), not {tuple(x.shape)}")
        tokens = self.patch_embed(x)
        return self._with_cls(tokens + self.position_table(self.patch_embed.grid(x.shape[2:])).to(tokens.dtype))

    def embed_some(self, patches: Tensor, positions: Tensor, *, grid: Sequence[int] | None = None) -> Tensor:
        """As `embed`, for some patches only; arguments as in `forward_tokens`."""
        table = self.position_table(self.grid if grid is None else as_triple(grid))[0]
        tokens = self.patch_embed.embed_patches(patches)
        return self._with_cls(tokens + table[positions].to(tokens.dtype))

    def attention_weights(self, x: Tensor, indices: Sequence[int], *, rows: Sequence[int] | Tensor | None = None,
                          keep_cls: bool = False) -> dict[int, Tensor]:
        """Softmax attention of the asked blocks; the only place where maps are materialised.

        Args:
            x: ``(B, C, I, J, K)``.
            indices: block indices from 0, or negative from the end.
            rows: flat grid indices of the query tokens wanted (N rows each otherwise).
            keep_cls: keep the cls row and column as index 0; otherwise they are left out and the rows renormalised.

        Returns:
            asked index -> float32 ``(B, heads, R, N)``, rows summing to 1.
        """
        wanted = self._absolute(indices)
        has_cls = self.cls_token is not None
        if has_cls and rows is not None:
            rows = torch.as_tensor(rows, dtype=torch.long).reshape(-1) + 1
            if keep_cls:
                rows = torch.cat([rows.new_zeros(1), rows])
        maps: dict[int, Tensor] = {}
        tokens = self.embed(x)
        for number, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            if number in wanted:
                attention = block.attn.weights(block.norm1(tokens), rows)
                if has_cls and not keep_cls:
                    attention = attention[..., (1 if rows is None else 0):, 1:]
                    attention = attention / attention.sum(dim=-1, keepdim=True)
                maps[number] = attention
            tokens = block(tokens)
        return {asked: maps[number] for asked, number in zip(indices, wanted)}

    def to_grid(self, tokens: Tensor, grid: Sequence[int] | None = None) -> Tensor:
        """``(B, N, D)`` -> ``(B, D, g1, g2, g3)``; the encoder's own grid by default."""
        grid = self.grid if grid is None else tuple(grid)
        return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)

    def _with_cls(self, tokens: Tensor) -> Tensor:
        if self.cls_token is None:
            return tokens
        return torch.cat([self.cls_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)

    def _run(self, tokens: Tensor, indices: Sequence[int], *, norm: bool, return_final: bool,
             keep_cls: bool) -> tuple[list[Tensor], Tensor | None]:
        wanted = self._absolute(indices)
        first = 1 if self.cls_token is not None and not keep_cls else 0
        taken: dict[int, Tensor] = {}
        for number in range(self.depth if return_final else max(wanted, default=-1) + 1):
            block = self.blocks[number]
            recompute = self.checkpointing and torch.is_grad_enabled()
            tokens = checkpoint(block, tokens, use_reentrant=False) if recompute else block(tokens)
            if number in wanted:
                taken[number] = (self.norm(tokens) if norm else tokens)[:, first:]
        return [taken[number] for number in wanted], self.norm(tokens)[:, first:] if return_final else None

    def _absolute(self, indices: Sequence[int]) -> list[int]:
        wanted = [index + self.depth if index < 0 else index for index in indices]
        if any(not 0 <= index < self.depth for index in wanted):
            raise ValueError(f"the encoder has the blocks 0 to {self.depth - 1}; asked for {list(indices)}")
        return wanted
