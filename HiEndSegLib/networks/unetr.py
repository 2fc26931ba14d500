"""UNETR on the Hi-End-MAE encoder (arXiv 2502.08347 section on fine-tuning; UNETR itself is arXiv 2103.10504).

What is unusual here:
- with patches of 12 the three doublings of the token grid end at 64 voxels, not 96, so the last step is a trilinear
  resize and a convolution where plain UNETR has a transposed convolution;
- parameters carry MONAI's names, which the published fine-tuned weights use; the blocks are our own;
- token outputs, feature maps and attention come from `forward_features`, not from hooks.

Baselines for comparison; the shipped model is MaskMed's head (see maskmed.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from HiEndSegLib.errors import OptionError
from HiEndSegLib.networks.attention import fused_attention, softmax_rows
from HiEndSegLib.networks.position import as_triple, resize_position


@dataclass
class UNETROutput:
    """Everything one pass computes; g is the token grid, N its cells, D the encoder's width, f the feature size."""

    logits: Tensor  # (B, classes, I, J, K)
    vit_out: Tensor  # (B, N, D), last block after the final norm
    vit_hidden: Tensor  # (skips, B, N, D), raw outputs of the blocks at skip_indices
    features: dict[str, Tensor]  # encoder1..4, decoder5..2: (B, f..8f, ...) each at its own resolution
    attention: dict[int, Tensor] = field(default_factory=dict)  # asked block -> (B, heads, N, N)


class PatchEmbedding(nn.Module):
    """Linear patch embedding in (p1, p2, p3, channel) order plus a learned position table."""

    def __init__(self, *, grid: tuple[int, int, int], patch_size: tuple[int, int, int], in_channels: int, dim: int):
        super().__init__()
        self.grid, self.patch_size = grid, patch_size
        values = in_channels * patch_size[0] * patch_size[1] * patch_size[2]
        # Index 0 is the cutting into patches, which has no weights; the checkpoint's names count it.
        self.patch_embeddings = nn.ModuleDict({"1": nn.Linear(values, dim)})
        self.position_embeddings = nn.Parameter(torch.empty(1, grid[0] * grid[1] * grid[2], dim))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """``(B, C, I, J, K)`` -> tokens ``(B, N, D)`` with positions, and their grid."""
        if any(s < p or s % p for s, p in zip(x.shape[2:], self.patch_size)):
            raise ValueError(f"UNETR cuts its input into patches of {self.patch_size} voxels, and a size of "
                             f"{tuple(x.shape[2:])} is no multiple of that; pad or crop the input first")
        batch, channels = x.shape[:2]
        p1, p2, p3 = self.patch_size
        g1, g2, g3 = (s // p for s, p in zip(x.shape[2:], self.patch_size))
        x = x.reshape(batch, channels, g1, p1, g2, p2, g3, p3).permute(0, 2, 4, 6, 3, 5, 7, 1)
        tokens = self.patch_embeddings["1"](x.reshape(batch, g1 * g2 * g3, p1 * p2 * p3 * channels))
        position = resize_position(self.position_embeddings, self.grid, (g1, g2, g3))
        return tokens + position.to(tokens.dtype), (g1, g2, g3)


class SelfAttention(nn.Module):
    """Multi-head self-attention ``(B, N, D) -> (B, N, D)`` under MONAI's parameter names."""

    def __init__(self, dim: int, *, num_heads: int, qkv_bias: bool):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(fused_attention(self.qkv(x), self.num_heads))

    def weights(self, x: Tensor) -> Tensor:
        """Softmax maps, float32 ``(B, heads, N, N)``."""
        return softmax_rows(self.qkv(x), self.num_heads)


class MlpBlock(nn.Module):
    """Two linears with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(x)))


class TransformerBlock(nn.Module):
    """Pre-norm block: ``x += attn(norm1(x)); x += mlp(norm2(x))``."""

    def __init__(self, dim: int, *, mlp_dim: int, num_heads: int, qkv_bias: bool, ln_eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=ln_eps)
        self.attn = SelfAttention(dim, num_heads=num_heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=ln_eps)
        self.mlp = MlpBlock(dim, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UNETREncoder(nn.Module):
    """The ViT inside UNETR: all patches, no cls token, a trained position table."""

    def __init__(self, *, grid: tuple[int, int, int], patch_size: tuple[int, int, int], in_channels: int, dim: int,
                 mlp_dim: int, num_layers: int, num_heads: int, qkv_bias: bool, ln_eps: float):
        super().__init__()
        self.patch_embedding = PatchEmbedding(grid=grid, patch_size=patch_size, in_channels=in_channels, dim=dim)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, mlp_dim=mlp_dim, num_heads=num_heads, qkv_bias=qkv_bias, ln_eps=ln_eps)
            for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim, eps=ln_eps)

    def forward(self, x: Tensor, taps: Sequence[int], attention: Sequence[int] = ()
                ) -> tuple[Tensor, list[Tensor], dict[int, Tensor], tuple[int, int, int]]:
        """-> normalised last output ``(B, N, D)``, raw outputs at ``taps``, maps of asked blocks, token grid."""
        tokens, grid = self.patch_embedding(x)
        hidden, maps = {}, {}
        for number, block in enumerate(self.blocks):
            if number in attention:
                maps[number] = block.attn.weights(block.norm1(tokens))
            tokens = block(tokens)
            if number in taps:
                hidden[number] = tokens
        return self.norm(tokens), [hidden[number] for number in taps], maps, grid


def make_norm(norm: str | Sequence, channels: int) -> nn.Module:
    """A 3D normalisation by MONAI's spelling: ``"instance"``, ``"batch"``, ``"group"`` or ``(name, {options})``."""
    name, options = (norm, {}) if isinstance(norm, str) else (norm[0], dict(norm[1]) if len(norm) > 1 else {})
    name = name.lower()
    if name == "instance":
        return nn.InstanceNorm3d(channels, **options)
    if name == "batch":
        return nn.BatchNorm3d(channels, **options)
    if name == "group":
        return nn.GroupNorm(**{"num_groups": 1, "num_channels": channels, **options})
    raise OptionError(f"There is no normalisation {name!r} for UNETR; choose instance, batch or group.")


class Convolution(nn.Module):
    """One convolution under the name ``conv`` (MONAI wraps each, and its checkpoints show it)."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int, bias: bool = False):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsampling(nn.Module):
    """Doubling by a transposed convolution with kernel and stride 2."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.ConvTranspose3d(in_channels, out_channels, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ResidualBlock(nn.Module):
    """conv3 - norm - LeakyReLU - conv3 - norm, plus the input (through conv1 - norm if widths differ), LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: str | Sequence):
        super().__init__()
        self.conv1 = Convolution(in_channels, out_channels, kernel_size=3)
        self.conv2 = Convolution(out_channels, out_channels, kernel_size=3)
        self.norm1 = make_norm(norm, out_channels)
        self.norm2 = make_norm(norm, out_channels)
        self.widens = in_channels != out_channels
        if self.widens:
            self.conv3 = Convolution(in_channels, out_channels, kernel_size=1)
            self.norm3 = make_norm(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.leaky_relu(self.norm1(self.conv1(x)), 0.01)
        out = self.norm2(self.conv2(out))
        return F.leaky_relu(out + (self.norm3(self.conv3(x)) if self.widens else x), 0.01)


class ImageBlock(nn.Module):
    """Full-resolution features straight from the image."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: str | Sequence):
        super().__init__()
        self.layer = ResidualBlock(in_channels, out_channels, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class TokenBlock(nn.Module):
    """Tokens on their grid, doubled once and then ``doublings`` times more with a residual block each."""

    def __init__(self, in_channels: int, out_channels: int, *, doublings: int, norm: str | Sequence):
        super().__init__()
        self.transp_conv_init = Upsampling(in_channels, out_channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(Upsampling(out_channels, out_channels), ResidualBlock(out_channels, out_channels, norm=norm))
            for _ in range(doublings))

    def forward(self, x: Tensor) -> Tensor:
        x = self.transp_conv_init(x)
        for block in self.blocks:
            x = block(x)
        return x


class UpBlock(nn.Module):
    """Double, concatenate the skip (upsampled map first), residual block."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: str | Sequence):
        super().__init__()
        self.transp_conv = Upsampling(in_channels, out_channels)
        self.conv_block = ResidualBlock(2 * out_channels, out_channels, norm=norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv_block(torch.cat([self.transp_conv(x), skip], dim=1))


class ResizeBlock(nn.Module):
    """Trilinear resize to the skip's size, conv3 with bias, concatenate the skip, residual block."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: str | Sequence):
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.conv_block = ResidualBlock(2 * out_channels, out_channels, norm=norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=False)
        return self.conv_block(torch.cat([self.conv3d(x), skip], dim=1))


class UNETR12(nn.Module):
    """UNETR whose last step is a resize, so that any patch size fits: ``(B, C, I, J, K) -> (B, classes, I, J, K)``.

    Defaults are the published p 12 / 1536 network (361,234,286 parameters with 14 classes).

    Args:
        img_size: voxels per axis the position table is made for; other multiples of the patch resample it.
        out_channels: classes, background included.
        ln_eps: epsilon of every LayerNorm of the encoder: 1e-5 as fine-tuned, 1e-6 as pre-trained.
        skip_indices: the three blocks (from 0) whose raw outputs feed encoder2, encoder3 and encoder4.
        norm: see `make_norm`.
        last_step: ``"resize"``, or ``"transposed"`` for plain UNETR, whose grid times 16 is the image.
    """

    def __init__(self, *, out_channels: int, img_size: int | Sequence[int] = 96, patch_size: int | Sequence[int] = 12,
                 in_channels: int = 1, feature_size: int = 32, hidden_size: int = 1536, mlp_dim: int = 6144,
                 num_layers: int = 12, num_heads: int = 16, qkv_bias: bool = True, ln_eps: float = 1e-5,
                 norm: str | Sequence = "instance", skip_indices: Sequence[int] = (3, 6, 9),
                 last_step: str = "resize"):
        super().__init__()
        self.img_size, self.patch_size = as_triple(img_size), as_triple(patch_size)
        if any(s < p or s % p for s, p in zip(self.img_size, self.patch_size)):
            raise ValueError(f"an image of {self.img_size} voxels cannot be cut into patches of {self.patch_size}")
        if hidden_size % num_heads:
            raise ValueError(f"{num_heads} attention heads do not divide a width of {hidden_size}")
        self.skip_indices = tuple(skip_indices)
        if len(self.skip_indices) != 3 or any(not 0 <= i < num_layers for i in self.skip_indices):
            raise ValueError(f"UNETR takes three skips from the blocks 0 to {num_layers - 1}, not {self.skip_indices}")
        if last_step not in ("resize", "transposed"):
            raise ValueError(f"the last step is 'resize' or 'transposed', not {last_step!r}")
        self.num_classes = out_channels
        self.vit = UNETREncoder(
            grid=tuple(s // p for s, p in zip(self.img_size, self.patch_size)), patch_size=self.patch_size,
            in_channels=in_channels, dim=hidden_size, mlp_dim=mlp_dim, num_layers=num_layers, num_heads=num_heads,
            qkv_bias=qkv_bias, ln_eps=ln_eps)
        f = feature_size
        self.encoder1 = ImageBlock(in_channels, f, norm=norm)
        self.encoder2 = TokenBlock(hidden_size, 2 * f, doublings=2, norm=norm)
        self.encoder3 = TokenBlock(hidden_size, 4 * f, doublings=1, norm=norm)
        self.encoder4 = TokenBlock(hidden_size, 8 * f, doublings=0, norm=norm)
        self.decoder5 = UpBlock(hidden_size, 8 * f, norm=norm)
        self.decoder4 = UpBlock(8 * f, 4 * f, norm=norm)
        self.decoder3 = UpBlock(4 * f, 2 * f, norm=norm)
        self.decoder2 = (ResizeBlock if last_step == "resize" else UpBlock)(2 * f, f, norm=norm)
        self.out = nn.ModuleDict({"conv": Convolution(f, out_channels, kernel_size=1, bias=True)})
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Truncated normal 0.02 for the encoder (as MONAI); convolutions keep PyTorch's own start."""
        for module in self.vit.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.vit.patch_embedding.position_embeddings, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, I, J, K)`` -> logits ``(B, classes, I, J, K)``."""
        return self.forward_features(x).logits

    def scores(self, x: Tensor) -> Tensor:
        """Class probabilities ``(B, classes, I, J, K)``, float32, summing to 1 per voxel."""
        return self.forward(x).float().softmax(dim=1)

    def forward_features(self, x: Tensor, *, attention: Sequence[int] = ()) -> UNETROutput:
        """One pass with its intermediate results; ``attention`` names the blocks whose maps are wanted."""
        depth = len(self.vit.blocks)
        if any(not 0 <= index < depth for index in attention):
            raise ValueError(f"the encoder has the blocks 0 to {depth - 1}; asked for {list(attention)}")
        vit_out, hidden, maps, grid = self.vit(x, self.skip_indices, attention)
        return self.decode(x, vit_out, hidden, grid, maps)

    def decode(self, x: Tensor, vit_out: Tensor, hidden: Sequence[Tensor], grid: Sequence[int],
               maps: dict[int, Tensor] | None = None) -> UNETROutput:
        """The convolutions: what the encoder gave for `x` on its token grid -> the answer."""
        def volume(tokens: Tensor) -> Tensor:  # (B, N, D) -> (B, D, g1, g2, g3)
            return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)

        kept = {"encoder1": self.encoder1(x)}
        kept["encoder2"] = self.encoder2(volume(hidden[0]))
        kept["encoder3"] = self.encoder3(volume(hidden[1]))
        kept["encoder4"] = self.encoder4(volume(hidden[2]))
        kept["decoder5"] = self.decoder5(volume(vit_out), kept["encoder4"])
        kept["decoder4"] = self.decoder4(kept["decoder5"], kept["encoder3"])
        kept["decoder3"] = self.decoder3(kept["decoder4"], kept["encoder2"])
        kept["decoder2"] = self.decoder2(kept["decoder3"], kept["encoder1"])
        logits = self.out["conv"](kept["decoder2"])
        return UNETROutput(logits, vit_out, torch.stack(list(hidden)), kept, maps or {})


def unetr16(*, out_channels: int, img_size: int | Sequence[int] = 96, in_channels: int = 1, feature_size: int = 32,
            hidden_size: int = 768, mlp_dim: int = 3072, num_heads: int = 12, qkv_bias: bool = True) -> nn.Module:
    """MONAI's own UNETR with patches of 16 as the paper's p 16 baselines use it, plus ``scores``.

    Raises:
        OptionError: MONAI is not installed (it comes with the ``train`` extra).
    """
    try:
        from monai.networks.nets import UNETR
    except ImportError:
        raise OptionError('The network "unetr16" is MONAI\'s; install it with: pip install "hiendseg[train]"') from None

    class UNETR16(UNETR):
        num_classes = out_channels

        def scores(self, x: Tensor) -> Tensor:
            return self.forward(x).float().softmax(dim=1)

    # MONAI 1.4 renamed the option that chooses the linear patch embedding.
    embedding = "proj_type" if "proj_type" in inspect.signature(UNETR.__init__).parameters else "pos_embed"
    return UNETR16(in_channels=in_channels, out_channels=out_channels, img_size=as_triple(img_size),
                   feature_size=feature_size, hidden_size=hidden_size, mlp_dim=mlp_dim, num_heads=num_heads,
                   qkv_bias=qkv_bias, norm_name="instance", **{embedding: "perceptron"})
