"""A UNETR whose work stays in the tokens: the light decoder to compare encoders with on a small machine.

UNETR (arXiv 2103.10504; patch 12 as in arXiv 2502.08347) spends nearly all of its time in convolutions at full
resolution, whatever the encoder: 0.4 s of a training step on a 48^3 crop and one CPU core, with 8 features. Here the
same skips, block outputs 3, 6, 9 and the normalised last one, meet on token-sized maps only (1, 2 and 4 times the token
grid), and a voxel of the last map is opened into its (p / 4)^3 image voxels by a sub-pixel layer (arXiv 1609.05158)
beside the image itself, folded in the same way. Ours; no part of the papers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .pyramid import ResidualBlock, depth_to_space, space_to_depth
from .resize import resize_trilinear
from .vit import VisionTransformer3D


class TokenUNETR(nn.Module):
    """(B, C, I, J, K), edges multiples of the patch -> logits (B, out_channels, I, J, K).

    channels: of the maps at 1x, 2x and 4x the token grid. The patch must be a multiple of 4. vit: keywords of
    `VisionTransformer3D`.
    """

    def __init__(self, *, out_channels: int, vit: dict, taps: tuple[int, int, int] = (3, 6, 9),
                 channels: tuple[int, int, int] = (96, 48, 32)):
        super().__init__()
        self.vit = VisionTransformer3D(**vit)
        patch, width = self.vit.patch_size[0], self.vit.embed_dim
        if patch % 4 or len(set(self.vit.patch_size)) > 1:
            raise ValueError(f"the patch must be a cube whose edge is a multiple of 4, not {self.vit.patch_size}")
        self.taps, self.fold = tuple(taps), patch // 4
        wide, middle, narrow = channels
        # One linear per skip opens each token into its 1, 2^3 or 4^3 map voxels (a transposed convolution).
        self.last, self.tap9 = nn.Linear(width, wide), nn.Linear(width, wide)
        self.tap6, self.tap3 = nn.Linear(width, 8 * middle), nn.Linear(width, 64 * narrow)
        self.image = nn.Conv3d(self.vit.in_channels * self.fold ** 3, narrow, 1)
        self.block1, self.block2, self.block4 = (ResidualBlock(c, c) for c in channels)
        self.down12, self.down24 = nn.Conv3d(wide, middle, 1), nn.Conv3d(middle, narrow, 1)
        self.smooth = nn.Conv3d(narrow, out_channels, 1)
        self.detail = nn.Conv3d(2 * narrow, out_channels * self.fold ** 3, 1)
        nn.init.zeros_(self.detail.weight)
        nn.init.zeros_(self.detail.bias)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.vit.patch_embed.grid(x.shape[2:])
        (tap3, tap6, tap9), last = self.vit.forward_intermediates(x, self.taps)

        def opened(tokens: Tensor, factor: int) -> Tensor:
            return depth_to_space(tokens.transpose(1, 2).unflatten(2, grid), factor) if factor > 1 else (
                tokens.transpose(1, 2).unflatten(2, grid))

        image = self.image(space_to_depth(x, self.fold))
        m1 = self.block1(opened(self.last(last) + self.tap9(tap9), 1))
        m2 = opened(self.tap6(tap6), 2)
        m2 = self.block2(m2 + resize_trilinear(self.down12(m1), m2.shape[2:]))
        m4 = opened(self.tap3(tap3), 4)
        m4 = self.block4(m4 + image + resize_trilinear(self.down24(m2), m4.shape[2:]))
        smooth = resize_trilinear(self.smooth(m4), x.shape[2:])
        return smooth + depth_to_space(self.detail(torch.cat([m4, image], 1)), self.fold)
