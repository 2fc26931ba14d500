"""A light convolutional pyramid beside a plain ViT: strides 2, 4 and 8, without full-resolution convolutions.

A plain ViT knows nothing finer than its patch. The pyramid supplies what the patch hides, at a price a laptop can
pay: the image is folded 2x2x2 into channels (`space_to_depth`), so that the first convolution already works at
stride 2 and no voxel is lost; full resolution returns at the end by the inverse fold (sub-pixel convolution,
arXiv 1609.05158). Measured on 2 CPU cores in bf16: a 3x3x3 convolution of 16 channels at 96^3 costs what one of 32
channels at 48^3 costs, with an eighth of the receptive volume.

Our own design; no part of the three papers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Values of a map (channels times voxels), from and below, that PyTorch's own slow way would take and that are worth it.
SMALL_MAP = 100_000, 600_000


def space_to_depth(x: Tensor, factor: int = 2) -> Tensor:
    """Fold blocks of `factor`^3 voxels into channels: (B, C, I, J, K) -> (B, C*f^3, I/f, J/f, K/f)."""
    b, c, i, j, k = x.shape
    f = factor
    x = x.reshape(b, c, i // f, f, j // f, f, k // f, f).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, c * f ** 3, i // f, j // f, k // f)


def depth_to_space(x: Tensor, factor: int = 2) -> Tensor:
    """The inverse of `space_to_depth`: (B, C*f^3, I, J, K) -> (B, C, I*f, J*f, K*f)."""
    b, c, i, j, k = x.shape
    f = factor
    c //= f ** 3
    x = x.reshape(b, c, f, f, f, i, j, k).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, c, i * f, j * f, k * f)


class Convolution3(nn.Conv3d):
    """A 3x3x3 convolution that keeps the lattice, (B, in, I, J, K) -> (B, out, I, J, K).

    For one small float32 map on a CPU PyTorch (2.4 to 2.13) takes a slow way of its own instead of oneDNN's, for two
    not. So such a map goes through as its two halves. `python -m training.benchmarks convolution`, two
    cores without AVX-512, forward and back, ms: 32 channels at 24^3 188 -> 39, 48 at 18^3 94 -> 41, 96 at 12^3 76 -> 42.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if (len(x) != 1 or not SMALL_MAP[0] <= x.numel() < SMALL_MAP[1] or x.device.type != "cpu"
                or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")):
            return super().forward(x)
        edge = x.shape[2]
        half = (edge + 1) // 2
        padded = F.pad(x, (1, 1, 1, 1, 1, 1 + 2 * half - edge))
        halves = torch.cat([padded[:, :, :half + 2], padded[:, :, half:]])
        first, second = F.conv3d(halves, self.weight, self.bias).split(1)
        return torch.cat([first, second], 2)[:, :, :edge]


class ResidualBlock(nn.Module):
    """Pre-activation residual block, (B, in, I, J, K) -> (B, out, I, J, K).

    The shortcut is not normalised, so the calibrated intensity of CT survives to the end of the pyramid.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(_groups(in_channels), in_channels)
        self.conv1 = Convolution3(in_channels, out_channels)
        self.norm2 = nn.GroupNorm(_groups(out_channels), out_channels)
        self.conv2 = Convolution3(out_channels, out_channels)
        self.act = nn.LeakyReLU(0.01)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.act(self.norm1(x)))
        return self.shortcut(x) + self.conv2(self.act(self.norm2(h)))


def _groups(channels: int) -> int:
    """Groups of at least 8 channels, as many as divide evenly."""
    return next(g for g in (8, 4, 2, 1) if channels % g == 0 and channels // g >= 8 or g == 1)


class ConvPyramid(nn.Module):
    """(B, C, I, J, K) -> maps at strides 2, 4, 8 with `channels` channels; I, J, K multiples of 8."""

    def __init__(self, *, in_channels: int, channels: tuple[int, int, int] = (32, 64, 128),
                 blocks: tuple[int, int, int] = (1, 1, 1)):
        super().__init__()
        self.channels = tuple(channels)
        self.stem = Convolution3(in_channels * 8, channels[0])
        self.stages = nn.ModuleList()
        self.downs = nn.ModuleList()
        for level, width in enumerate(channels):
            self.stages.append(nn.Sequential(*(ResidualBlock(width, width) for _ in range(blocks[level]))))
            if level + 1 < len(channels):
                self.downs.append(nn.Conv3d(width, channels[level + 1], 2, stride=2))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps, finest first: [(B, c2, I/2, ...), (B, c4, I/4, ...), (B, c8, I/8, ...)]."""
        x = self.stem(space_to_depth(x))
        maps = []
        for level, stage in enumerate(self.stages):
            x = stage(x)
            maps.append(x)
            if level < len(self.downs):
                x = self.downs[level](x)
        return maps
