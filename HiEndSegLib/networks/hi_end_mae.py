"""Hi-End-MAE (arXiv 2502.08347): masked pre-training whose decoder keeps asking the encoder's layers.

What is unusual here:
- everything behind the random shuffle stays in shuffled order (cls, visible, masked); only a picture is un-shuffled;
- after two self-attention blocks, three decoder blocks also attend to the visible tokens of one encoder layer each,
  from deep to shallow; these tokens are raw: projected, without norm or position, cls included;
- fewer of those blocks (``dense_stages``) mean more self-attention blocks; none is the plain masked auto-encoder (MAE)
  the paper compares with;
- parameters carry the names of the official code, so its checkpoints load as they are.

It knows nothing about volumes, spacing, data or training loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from HiEndSegLib.errors import OptionError
from HiEndSegLib.networks.attention import fused_cross_attention
from HiEndSegLib.networks.position import sincos_position_3d
from HiEndSegLib.networks.vit import VIT_VARIANTS, Attention, Block, Mlp, VisionTransformer3D

# Width and heads. The paper's decoders have a third to half of the encoder's width; ours two thirds, because a token
# must still be told apart from 511 others and hold a patch of 1728 voxels.
_DECODERS = {"hi_end_mae_vit_base_16p": (384, 12), "hi_end_mae_vit_large_16p": (528, 16),
             "hi_end_mae_vit_large_12p": (528, 16), "vit_small_12p": (240, 6), "vit_tiny_12p": (96, 3)}
HI_END_MAE_VARIANTS: dict[str, dict] = {
    name: {"encoder": dict(VIT_VARIANTS[name]), "decoder_embed_dim": width, "decoder_num_heads": heads}
    for name, (width, heads) in _DECODERS.items()}

_EPS = 1e-6  # of the patch normalisation


def build_hi_end_mae(name: str, *, dense_stages: int = 3, **overrides) -> HiEndMAE:
    """A freshly initialised Hi-End-MAE by the name of its encoder; keywords replace entries of the table.

    Raises:
        OptionError: no such variant.
    """
    if name not in HI_END_MAE_VARIANTS:
        raise OptionError(f"There is no Hi-End-MAE named {name!r}; choose one of {', '.join(HI_END_MAE_VARIANTS)}.")
    entry = dict(HI_END_MAE_VARIANTS[name])
    return HiEndMAE(**{**entry.pop("encoder"), **entry, "dense_stages": dense_stages, **overrides})


@dataclass
class MAEOutput:
    """One pre-training pass; rows are in shuffled order."""

    loss: Tensor  # scalar, float32 (float64 for a float64 network)
    prediction: Tensor  # (B, 1 + N, p1 p2 p3 C): cls, visible, masked; or only the M masked rows if asked so
    shuffle: Tensor  # integer (B, N): flat grid index of every row
    num_visible: int  # the first entries of shuffle that the encoder saw


class CrossAttention(nn.Module):
    """Multi-head attention of ``x (B, N, d)`` to ``y (B, S, d)`` -> ``(B, N, d)``."""

    def __init__(self, dim: int, *, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} attention heads do not divide a width of {dim}")
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.proj(fused_cross_attention(self.q(x), self.kv(y), self.num_heads))


class CrossBlock(nn.Module):
    """Pre-norm block of three steps: among the tokens, towards an encoder layer (which gets no norm), MLP."""

    def __init__(self, dim: int, *, num_heads: int, mlp_ratio: float, norm_eps: float):
        super().__init__()
        self.norm0 = nn.LayerNorm(dim, eps=norm_eps)
        self.self_attn = Attention(dim, num_heads=num_heads)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.cross_attn = CrossAttention(dim, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm0(x))
        x = x + self.cross_attn(self.norm1(x), y)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Self-attention blocks, then one cross block per encoder layer handed in, norm and a linear to voxels."""

    def __init__(self, dim: int, *, num_heads: int, self_depth: int, cross_depth: int, mlp_ratio: float,
                 norm_eps: float, out_features: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_eps=norm_eps)
            for _ in range(self_depth))
        self.cross_attention_blocks = nn.ModuleList(
            CrossBlock(dim, num_heads=num_heads, mlp_ratio=mlp_ratio, norm_eps=norm_eps) for _ in range(cross_depth))
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.head = nn.Linear(dim, out_features)

    def forward(self, x: Tensor, layers: Sequence[Tensor], *, first: int = 0, recompute: bool = False,
                record: dict | None = None) -> Tensor:
        """Tokens ``(B, T, d)`` -> voxel values ``(B, T - first, out)``.

        Args:
            layers: projected encoder outputs ``(B, 1 + S, d)``, one per cross block in the blocks' order.
            first: rows before it are needed by the attention and not by the caller.
            recompute: gradient checkpointing.
            record: gets every intermediate result, under the names of the parity recordings.
        """
        after_self, after_cross = [], []
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
            after_self.append(x if record is not None else None)
        for block, layer in zip(self.cross_attention_blocks, layers, strict=True):
            x = checkpoint(block, x, layer, use_reentrant=False) if recompute else block(x, layer)
            after_cross.append(x if record is not None else None)
        normed = self.norm(x[:, first:])
        if record is not None:
            record.update(decoder_after_self=after_self, decoder_after_cross=after_cross, decoder_norm=normed)
        return self.head(normed)


class HiEndMAE(nn.Module):
    """Masked auto-encoder on crops ``(B, C, I, J, K)`` of one size; D and d are the encoder's and decoder's widths.

    N patches of a crop are shuffled, the encoder sees the first ``num_visible`` of them, and the loss is the mean
    squared error on the others, each standardised over its own voxels.

    Args:
        dense_stages: cross blocks, 0 to 3; they take the deepest of ``stage_indices`` first.
        decoder_self_depth: self-attention blocks before them; the default is the paper's ``2 + 2 * (3 - stages)``.
        stage_indices: encoder blocks (from 0) that feed the cross blocks.
        mask_ratio: ``num_visible`` is ``int(N * (1 - mask_ratio))``.
        norm_eps: epsilon of every LayerNorm.
        checkpointing: recompute blocks in the backward pass, trading time for memory.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, decoder_embed_dim: int, decoder_num_heads: int,
                 img_size: int | Sequence[int] = 96, patch_size: int | Sequence[int] = 12, in_channels: int = 1,
                 depth: int = 12, mlp_ratio: float = 4.0, dense_stages: int = 3,
                 decoder_self_depth: int | None = None, stage_indices: Sequence[int] = (3, 6, 9),
                 mask_ratio: float = 0.75, norm_eps: float = 1e-6, checkpointing: bool = False):
        super().__init__()
        stages = sorted(int(index) for index in stage_indices)
        if not 0 <= dense_stages <= len(stages):
            raise ValueError(f"there are 0 to {len(stages)} dense stages (encoder blocks {stages}), not {dense_stages}")
        self.taps = tuple(stages[len(stages) - dense_stages:])  # shallow to deep
        if len(set(stages)) < len(stages) or any(not 0 <= index < depth for index in self.taps):
            raise ValueError(f"the stages are different blocks from 0 to {depth - 1} of the encoder, not {stages}")
        self.encoder = VisionTransformer3D(
            embed_dim=embed_dim, depth=depth, num_heads=num_heads, img_size=img_size, patch_size=patch_size,
            in_channels=in_channels, mlp_ratio=mlp_ratio, norm_eps=norm_eps, cls_token=True,
            checkpointing=checkpointing)
        grid, patch = self.encoder.grid, self.encoder.patch_size
        self.num_patches = grid[0] * grid[1] * grid[2]
        self.num_visible = int(self.num_patches * (1 - mask_ratio))
        if not 0 < self.num_visible < self.num_patches:
            raise ValueError(f"a mask ratio of {mask_ratio} leaves {self.num_visible} of {self.num_patches} patches "
                             "visible; at least one must be visible and one masked")
        self.dense_stages, self.mask_ratio, self.checkpointing = dense_stages, mask_ratio, checkpointing
        self.decoder_embed_dim = decoder_embed_dim
        self.encoder_to_decoder = nn.ModuleList(
            nn.Linear(embed_dim, decoder_embed_dim) for _ in range(dense_stages + 1))  # one per tap, then the output
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.decoder = Decoder(
            decoder_embed_dim, num_heads=decoder_num_heads, cross_depth=dense_stages,
            self_depth=2 + 2 * (3 - dense_stages) if decoder_self_depth is None else decoder_self_depth,
            mlp_ratio=mlp_ratio, norm_eps=norm_eps, out_features=patch[0] * patch[1] * patch[2] * in_channels)
        # Official checkpoints keep both fixed tables beside the weights. The encoder's is the encoder's own tensor.
        self.register_buffer("encoder_pos_embed", self.encoder.pos_embed)
        self.register_buffer("decoder_pos_embed", sincos_position_3d(grid, decoder_embed_dim))
        self.register_load_state_dict_post_hook(_share_table)
        self._init_decoder()  # the encoder has its start, whatever decoder follows

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initial weights as in the paper's code; also refills the fixed tables, e.g. after ``to_empty``."""
        self.encoder.init_weights()
        self.encoder_pos_embed = self.encoder.pos_embed
        self._init_decoder()

    @torch.no_grad()
    def _init_decoder(self) -> None:
        for module in self.decoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        for linear in self.encoder_to_decoder:
            linear.reset_parameters()  # its bias keeps PyTorch's own start
            nn.init.xavier_uniform_(linear.weight)
        nn.init.normal_(self.mask_token, std=0.02)
        self.decoder_pos_embed.copy_(sincos_position_3d(self.encoder.grid, self.decoder_embed_dim))

    def forward(self, x: Tensor, shuffle: Tensor | None = None, *, generator: torch.Generator | None = None,
                full_prediction: bool = True) -> MAEOutput:
        """One pass from crops to the loss.

        Args:
            x: ``(B, C, I, J, K)`` of the size the network was built for.
            shuffle: integer ``(B, N)``, a permutation per sample; drawn from ``generator`` if absent.
            full_prediction: without it only the masked rows, which are all the loss needs, are predicted.
        """
        return self._run(x, shuffle, generator, full_prediction)

    def random_shuffle(self, batch: int, *, generator: torch.Generator | None = None,
                       device: torch.device | str | None = None) -> Tensor:
        """A uniform permutation of the patches per sample, ``(B, N)``; the network's device by default.

        A generator draws on its own device, so one on the CPU gives the same masks wherever the network is.
        """
        device = self.mask_token.device if device is None else device
        drawn_on = device if generator is None else generator.device
        noise = torch.rand(batch, self.num_patches, generator=generator, device=drawn_on)
        return noise.argsort(dim=1).to(device)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, output: MAEOutput, *, keep_visible: bool = False) -> Tensor:
        """The predicted image ``(B, C, I, J, K)`` in the units of ``x``.

        Args:
            keep_visible: show the visible patches as they are instead of their prediction, which no loss trained.

        Raises:
            ValueError: the output holds masked rows only, and ``keep_visible`` is not set.
        """
        return self.encoder.patch_embed.unpatchify(self._image_tokens(x, output, keep_visible), self.encoder.grid)

    @torch.no_grad()
    def trace(self, x: Tensor, shuffle: Tensor) -> dict:
        """Every activation of one pass by the names of the parity recordings, and ``loss``.

        Lists hold one entry per block; ``stage_kv`` is keyed by the encoder block's number as text.
        """
        record: dict = {}
        output = self._run(x, shuffle, None, True, record)
        image = self._image_tokens(x[:1], MAEOutput(output.loss, output.prediction[:1], shuffle[:1], self.num_visible))
        return {**record, "prediction": output.prediction, "loss": output.loss, "reconstruction_tokens": image}

    def _run(self, x: Tensor, shuffle: Tensor | None, generator: torch.Generator | None, full: bool,
             record: dict | None = None) -> MAEOutput:
        self._check(x, shuffle)
        if shuffle is None:
            shuffle = self.random_shuffle(x.shape[0], generator=generator, device=x.device)
        patches = self.encoder.patch_embed.patchify(x)
        seen, unseen = shuffle[:, :self.num_visible], shuffle[:, self.num_visible:]
        wanted = self.taps if record is None else range(self.encoder.depth)
        hidden, last = self.encoder.forward_tokens(take_rows(patches, seen), seen, wanted, keep_cls=True)
        taps = hidden if record is None else [hidden[index] for index in self.taps]
        *layers, projected = (linear(y) for linear, y in zip(self.encoder_to_decoder, [*taps, last], strict=True))
        # The mask tokens' positions are all that tells them apart; cls has none.
        table = self.decoder_pos_embed[0].to(projected.dtype)
        tokens = torch.cat([projected[:, :1], projected[:, 1:] + table[seen],
                            self.mask_token.to(projected.dtype) + table[unseen]], dim=1)
        if record is not None:
            record.update(
                encoder_hidden_states=torch.stack(hidden), encoder_out=last, last_projected=projected,
                stage_kv={str(index): y for index, y in zip(self.taps, layers)}, decoder_in=tokens)
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        prediction = self.decoder(tokens, layers[::-1], first=0 if full else 1 + self.num_visible,
                                  recompute=recompute, record=record)
        loss = masked_loss(prediction[:, -unseen.shape[1]:], take_rows(patches, unseen))
        return MAEOutput(loss, prediction, shuffle, self.num_visible)

    def _image_tokens(self, x: Tensor, output: MAEOutput, keep_visible: bool = False) -> Tensor:
        """Predicted patches ``(B, N, p1 p2 p3 C)`` on the grid, with the true patches' mean and spread."""
        patches = self.encoder.patch_embed.patchify(x)
        rows = output.prediction.shape[1]
        if rows <= self.num_patches and not keep_visible:
            raise ValueError("only masked patches were predicted; ask for full_prediction, or keep the visible ones")
        masked = output.shuffle[:, output.num_visible:]
        order = masked if keep_visible else output.shuffle
        predicted = output.prediction[:, rows - order.shape[1]:].to(patches.dtype)
        true = take_rows(patches, order)
        # Unbiased here and biased in the loss, as in the paper's code.
        predicted = predicted * (true.std(dim=-1, keepdim=True) + _EPS) + true.mean(dim=-1, keepdim=True)
        return patches.scatter(1, order[..., None].expand_as(predicted), predicted)

    def _check(self, x: Tensor, shuffle: Tensor | None) -> None:
        size = (self.encoder.in_channels, *self.encoder.img_size)
        if x.dim() != 5 or tuple(x.shape[1:]) != size:
            raise ValueError(f"this network takes crops of (batch, {', '.join(map(str, size))}), not {tuple(x.shape)}")
        if shuffle is not None and tuple(shuffle.shape) != (x.shape[0], self.num_patches):
            raise ValueError(f"a batch of {x.shape[0]} needs a permutation of ({x.shape[0]}, {self.num_patches}), "
                             f"not {tuple(shuffle.shape)}")


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """``rows (B, N, C)`` at ``index (B, S)`` -> ``(B, S, C)``; whole rows are copied, which `gather` would not do."""
    batch, count, width = rows.shape
    start = torch.arange(batch, device=index.device)[:, None] * count
    return rows.reshape(-1, width).index_select(0, (index + start).flatten()).view(batch, -1, width)


def masked_loss(prediction: Tensor, patches: Tensor) -> Tensor:
    """Mean squared error against patches ``(B, M, V)`` standardised each over its V values (biased variance).

    At least float32, also inside autocast.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    target = F.layer_norm(patches.to(dtype), patches.shape[-1:], eps=_EPS)
    return F.mse_loss(prediction.to(dtype), target)


def _share_table(network: HiEndMAE, _keys: object) -> None:
    """Moving a network to a device splits a tensor with two names in two; after loading the stored one counts."""
    network.encoder.pos_embed = network.encoder_pos_embed
