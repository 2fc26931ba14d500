"""Looking into a vision transformer while it works: one way in for every kind of encoder this library runs.

`find_encoder` finds the transformer inside a network, whoever wrote it: ours, UNETR's, MONAI's. `TokenStates` runs it
over one window and keeps what enters each block, from which rows of attention, values and rollouts are computed for
the tokens that are asked about. The blocks themselves run as always, with fused kernels; nothing N x N is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from HiEndSegLib.networks.attention import attention_rows, carried_back
from HiEndSegLib.networks.position import as_triple
from HiEndSegLib.networks.unetr import UNETREncoder
from HiEndSegLib.networks.vit import VisionTransformer3D


class EncoderView:
    """A transformer of pre-norm blocks with one fused projection [q | k | v], as all of them have here.

    patch_size: voxels. depth: blocks. heads. extra: rows before the patch tokens (1 with a cls token).
    """

    def __init__(self, blocks: Sequence[nn.Module], embed: Callable[[Tensor], Tensor], patch_size: Sequence[int],
                 in_channels: int, extra: int):
        self._embed, self._in_channels = embed, in_channels
        self.blocks, self.extra = blocks, extra
        self.patch_size = as_triple(patch_size)
        self.depth, self.heads = len(blocks), int(blocks[0].attn.num_heads)

    def grid(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Tokens along each axis of a window of `size` voxels; ValueError unless it divides evenly."""
        if any(n < p or n % p for n, p in zip(size, self.patch_size)):
            raise ValueError(f"a window of {tuple(size)} voxels cannot be cut into patches of {self.patch_size}")
        return tuple(n // p for n, p in zip(size, self.patch_size))

    def embed(self, x: Tensor) -> Tensor:
        """``(1, C, I, J, K)`` -> what enters block 0, ``(1, extra + N, D)``. An encoder that was trained on fewer
        channels than the network has sees the first ones (see maskmed.PyramidEncoder)."""
        return self._embed(x[:, :self._in_channels])

    def project(self, layer: int, tokens: Tensor, which: int) -> Tensor:
        """q (which = 0), k (1) or v (2) of a block for some of its input tokens ``(n, D)`` -> ``(H, n, d)``."""
        block, width = self.blocks[layer], tokens.shape[1]
        qkv, part = block.attn.qkv, slice(which * width, (which + 1) * width)
        bias = None if qkv.bias is None else qkv.bias[part]
        return F.linear(block.norm1(tokens), qkv.weight[part], bias).unflatten(1, (self.heads, -1)).transpose(0, 1)


def find_encoder(network: nn.Module) -> EncoderView | None:
    """The vision transformer of a network; None where there is none whose attention is defined."""
    for module in network.modules():
        if isinstance(module, VisionTransformer3D):
            return EncoderView(module.blocks, module.embed, module.patch_size, module.in_channels,
                               0 if module.cls_token is None else 1)
        if isinstance(module, UNETREncoder):
            embedding = module.patch_embedding
            volume = embedding.patch_size[0] * embedding.patch_size[1] * embedding.patch_size[2]
            return EncoderView(module.blocks, lambda x, embedding=embedding: embedding(x)[0], embedding.patch_size,
                               embedding.patch_embeddings["1"].in_features // volume, 0)
        vit, patch = getattr(module, "vit", None), getattr(module, "patch_size", None)
        if patch is not None and _is_monai_vit(vit):       # the transformer itself does not know its patch
            return EncoderView(vit.blocks, vit.patch_embedding, patch, _monai_channels(vit, as_triple(patch)), 0)
    return None


def _is_monai_vit(module: nn.Module | None) -> bool:
    """MONAI's ViT, known by its parts, so that MONAI need not be installed to ask."""
    blocks = getattr(module, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks) or hasattr(module, "cls_token") \
            or isinstance(module, (UNETREncoder, VisionTransformer3D)):
        return False
    return hasattr(module, "patch_embedding") and all(
        hasattr(block, "norm1") and isinstance(getattr(getattr(block, "attn", None), "qkv", None), nn.Linear)
        and hasattr(block.attn, "num_heads") for block in blocks)


def _monai_channels(vit: nn.Module, patch: tuple[int, int, int]) -> int:
    layer = vit.patch_embedding.patch_embeddings
    if isinstance(layer, nn.Conv3d):
        return layer.in_channels
    return layer[1].in_features // (patch[0] * patch[1] * patch[2])     # 0 cuts the patches, 1 is the linear layer


class TokenStates:
    """One window on its way through an encoder: the input of every block that was needed so far, and its keys.

    window: ``(1, C, I, J, K)`` on the encoder's device. check: called before every block; may raise, to stop.
    Memory: one (N, D) a block that was passed and one more a block that was looked at.
    """

    def __init__(self, view: EncoderView, window: Tensor, check: Callable[[], object] = lambda: None):
        self.view = view
        self.grid = view.grid(window.shape[2:])
        self._inputs = [view.embed(window)]
        self._keys: dict[int, Tensor] = {}
        self.check = check

    @property
    def count(self) -> int:
        """Patch tokens N of the window."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    def inputs(self, layer: int) -> Tensor:
        """What enters a block, ``(extra + N, D)``."""
        while len(self._inputs) <= layer:
            self.check()
            self._inputs.append(self.view.blocks[len(self._inputs) - 1](self._inputs[-1]))
        return self._inputs[layer][0]

    def rows(self, layer: int, tokens: Sequence[int] | Tensor) -> Tensor:
        """Softmax attention of patch tokens (flat grid indices) to all patch tokens, float32 ``(H, R, N)``.

        A cls token's column is left out and the rest divided by its sum, so that rows sum to 1.
        """
        states = self.inputs(layer)
        chosen = torch.as_tensor(tokens, dtype=torch.long, device=states.device).reshape(-1) + self.view.extra
        rows = attention_rows(self.view.project(layer, states[chosen], 0), self._k(layer, states))
        if self.view.extra:
            rows = rows[..., self.view.extra:]
            rows = rows / rows.sum(-1, keepdim=True)
        return rows

    def rollout(self, layer: int, shares: Tensor) -> Tensor:
        """Attention followed from the outputs of a block down to the image (arXiv 2005.00928), float32 ``(N,)``.

        Every block passes half of each token straight on (its residual) and half through its attention, the mean over
        heads: v <- (v + v A) / 2. shares: ``(N,)`` over the block's outputs, summing to 1. The path may lead through a
        cls token; what ends there is left out.
        """
        carried = F.pad(shares.float(), (self.view.extra, 0))
        for number in range(layer, -1, -1):
            self.check()
            states = self.inputs(number)
            q, k = self.view.project(number, states, 0), self._k(number, states)
            carried = 0.5 * (carried + carried_back(carried, q, k))
        carried = carried[self.view.extra:]
        return carried / carried.sum()

    def values(self, layer: int) -> Tensor:
        """The attention values V of a block, heads side by side, ``(extra + N, D)``."""
        return self.view.project(layer, self.inputs(layer), 2).transpose(0, 1).flatten(1)

    def _k(self, layer: int, states: Tensor) -> Tensor:
        if layer not in self._keys:
            self._keys[layer] = self.view.project(layer, states, 1)
        return self._keys[layer]
