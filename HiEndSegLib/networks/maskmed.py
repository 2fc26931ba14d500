"""MaskMed on a plain ViT: convolutional pyramid + ViT -> FSAD-Transformer -> light decoder -> masked head.

arXiv 2511.15603 gives the head (shared queries, decoupled mask and class) and the FSAD-Transformer between encoder and
decoder; its backbone is a U-Net. Ours is the Hi-End-MAE encoder (arXiv 2502.08347), which has one resolution only,
so a convolutional pyramid (ours) supplies the finer levels. Which parts are whose:

    image -> ConvPyramid (ours) ---- strides 2, 4, 8 -----+
      |                                                   +-> FSADTransformer -> decoder (ours) -> MaskedMultiScaleHead
      +---> ViT (Hi-End-MAE), blocks 3, 6, 9 and last ----+
                     one level at the patch's stride
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .deformable import FSADTransformer
from .mask_features import FullResolution
from .mask_head import HeadOutput, MaskedMultiScaleHead, fuse, mask_logits
from .pyramid import ConvPyramid, ResidualBlock, depth_to_space
from .resize import resize_trilinear
from .vit import build_vit

#: Layers of the stride-2 map that `scores` works on at a time.
SLAB = 4


class PyramidEncoder(nn.Module):
    """ViT and pyramid side by side, refined by FSAD; everything a head needs.

    vit: a name of VIT_VARIANTS, or a dict with `name` and the VisionTransformer3D keywords that differ from it. The ViT
    sees the first input channel only, so that encoders pretrained on one window fit. taps: block outputs that join the
    last one (arXiv 2502.08347, 3.3).
    finest_value_stride: finest level FSAD samples (1 is the paper's full resolution; 2 and 4 are lighter).
    """

    def __init__(self, *, in_channels: int = 1, img_size: int = 96, vit: str | dict = "vit_tiny_12p",
                 taps: tuple[int, ...] = (3, 6, 9), channels: tuple[int, int, int] = (32, 48, 96),
                 blocks: tuple[int, int, int] = (1, 1, 1), fsad_dim: int = 96, fsad_heads: int = 6,
                 fsad_points: int = 4, fsad_depth: int = 3, finest_value_stride: int = 4):
        super().__init__()
        if finest_value_stride not in (1, 2, 4, 8):
            raise ValueError(f"finest_value_stride must be 1, 2, 4 or 8, not {finest_value_stride}")
        options = dict(vit) if isinstance(vit, dict) else {"name": vit}
        self.vit = build_vit(options.pop("name"), img_size=img_size, in_channels=1, **options)
        self.taps = tuple(taps)
        self.finest_value_stride = finest_value_stride
        self.pyramid = ConvPyramid(in_channels=in_channels, channels=channels, blocks=blocks)
        dim = self.vit.embed_dim
        self.token_proj = nn.ModuleList(nn.Linear(dim, channels[2]) for _ in range(len(taps) + 1))
        levels = list(zip((2, 4, 8), channels))
        kept = [c for stride, c in levels if stride >= finest_value_stride]
        if finest_value_stride == 1:
            kept = [channels[0] // 4] + kept
            self.full_resolution = nn.Conv3d(channels[0], 8 * (channels[0] // 4), 1)
        self.fsad = FSADTransformer(in_channels=kept + [channels[2]], query_levels=2, embed_dim=fsad_dim,
                                    num_heads=fsad_heads, num_points=fsad_points, depth=fsad_depth)
        # Levels meet by sums, as in arXiv 1612.03144: a concatenation at stride 2 costs 2.5 times as much.
        self.lateral4 = nn.Conv3d(channels[2], channels[1], 1)
        self.lateral2 = nn.Conv3d(channels[1], channels[0], 1)
        self.up8 = ResidualBlock(channels[2], channels[2])
        self.up4 = ResidualBlock(channels[1], channels[1])
        self.up2 = ResidualBlock(channels[0], channels[0])

    def tokens(self, x: Tensor) -> list[Tensor]:
        """The ViT's taps and last output, (B, N, D) each."""
        taps, last = self.vit.forward_intermediates(x[:, :1], self.taps)
        return [*taps, last]

    def project(self, tokens: list[Tensor], size: Sequence[int]) -> Tensor:
        """What `tokens` gave for an image of `size` -> the ViT's level: their projections' sum, (B, c8, I/p, ...)."""
        summed = sum(proj(t) for proj, t in zip(self.token_proj, tokens))
        return summed.transpose(1, 2).unflatten(2, self.vit.patch_embed.grid(size))

    def tokens_map(self, x: Tensor) -> Tensor:
        """The ViT's level, (B, c8, I/p, J/p, K/p)."""
        return self.project(self.tokens(x), x.shape[2:])

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B, C, I, J, K), edges multiples of 24 (patch 12) -> maps at strides 2, 4, 8 and the ViT's level.

        The part that says nothing of classes yet; what follows (`refine`, `decode`) can be taught on its results.
        """
        return [*self.pyramid(x), self.tokens_map(x)]

    def refine(self, maps: list[Tensor]) -> list[Tensor]:
        """FSAD: stride 8 and the ViT's level take from all levels; shapes stay."""
        s2, s4, s8, tokens = maps
        levels = [m for stride, m in ((2, s2), (4, s4), (8, s8)) if stride >= self.finest_value_stride]
        if self.finest_value_stride == 1:
            levels = [depth_to_space(self.full_resolution(s2))] + levels
        return [s2, s4, *self.fsad([*levels, tokens])]

    def decode(self, maps: list[Tensor]) -> list[Tensor]:
        """Refined maps -> decoder maps at strides 8, 4, 2."""
        s2, s4, s8, tokens = maps
        d8 = self.up8(s8 + resize_trilinear(tokens, s8.shape[2:]))
        d4 = self.up4(s4 + resize_trilinear(self.lateral4(d8), s4.shape[2:]))
        d2 = self.up2(s2 + resize_trilinear(self.lateral2(d4), s2.shape[2:]))
        return [d8, d4, d2]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, I, J, K), edges multiples of 24 (patch 12) -> decoder maps at strides 8, 4, 2."""
        return self.decode(self.refine(self.encode(x)))


class MaskMed(nn.Module):
    """The default network: `PyramidEncoder` and `MaskedMultiScaleHead`. num_classes counts the background.

    mask_dim: channels of the full-resolution mask features. num_queries: at least num_classes (its default).
    head_scales: strides the queries attend to, in order; rounds: how often (arXiv 2112.01527: 8, 4, 2 three times).
    guests: queries that came with later classes, see `MaskedMultiScaleHead`.
    """

    def __init__(self, *, num_classes: int, mask_dim: int = 16, num_queries: int | None = None, head_dim: int = 96,
                 head_heads: int = 6, head_scales: tuple[int, ...] = (8, 4), rounds: int = 2,
                 guests: Sequence[int] = (), **encoder):
        super().__init__()
        self.encoder = PyramidEncoder(**encoder)
        channels = dict(zip((2, 4, 8), self.encoder.pyramid.channels))
        self.num_classes = num_classes
        self.head_scales = tuple(head_scales)
        self.mask_features = FullResolution(channels[2], mask_dim)
        self.head = MaskedMultiScaleHead(
            num_classes=num_classes, memory_channels=[channels[s] for s in head_scales], mask_dim=mask_dim,
            num_queries=num_queries, embed_dim=head_dim, num_heads=head_heads, rounds=rounds, guests=guests)

    def forward(self, x: Tensor) -> HeadOutput:
        """(B, C, I, J, K) -> HeadOutput."""
        return self.answer(self.encoder(x))

    def answer(self, decoded: list[Tensor]) -> HeadOutput:
        """Decoder maps at strides 8, 4, 2 -> HeadOutput."""
        maps = dict(zip((8, 4, 2), decoded))
        features = self.mask_features(maps[2])
        return self.head([maps[s] for s in self.head_scales], features)

    def scores(self, x: Tensor) -> Tensor:
        """(B, C, I, J, K) -> (B, num_classes, I, J, K), non-negative, sum 1 over classes, channel 0 background."""
        return self.scores_of(self(x))

    @staticmethod
    def scores_of(out: HeadOutput) -> Tensor:
        """The scores an answer stands for."""
        features = out.mask_features
        # Slab by slab: features and logits of all queries at 96^3 are 130 MB, which every elementwise step would carry
        # through main memory; a slab stays in the cache.
        scores = None
        for first in range(0, features.size[0] // 2, SLAB):
            last = min(first + SLAB, features.size[0] // 2)
            slab = fuse(out.final.class_logits, mask_logits(out.final.mask_embeddings, features.slab(first, last)))
            if scores is None:
                scores = slab.new_empty((*slab.shape[:2], *features.size))
            scores[:, :, 2 * first:2 * last] = slab
        return scores


class PointwiseNet(nn.Module):
    """The same encoder with the ordinary head, one 1x1x1 convolution: the baseline of arXiv 2511.15603, section 3."""

    def __init__(self, *, num_classes: int, mask_dim: int = 16, **encoder):
        super().__init__()
        self.encoder = PyramidEncoder(**encoder)
        self.num_classes = num_classes
        self.mask_features = FullResolution(self.encoder.pyramid.channels[0], mask_dim)
        self.classifier = nn.Conv3d(mask_dim, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, I, J, K) -> logits (B, num_classes, I, J, K)."""
        return self.answer(self.encoder(x))

    def answer(self, decoded: list[Tensor]) -> Tensor:
        """Decoder maps at strides 8, 4, 2 -> logits."""
        return self.classifier(self.mask_features(decoded[-1]).full())

    def scores(self, x: Tensor) -> Tensor:
        """Softmax over classes, (B, num_classes, I, J, K)."""
        return self.scores_of(self(x))

    @staticmethod
    def scores_of(out: Tensor) -> Tensor:
        """The scores logits stand for."""
        return out.softmax(1)
