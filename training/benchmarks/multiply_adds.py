"""Multiply-adds of a masked auto-encoder for one crop, counted in the modules as they run (without any numbers).

Linears, attention products and the patch embedding count one per multiply-add, a LayerNorm five per element;
activations, softmax and additions count nothing. That is fvcore's way, by which the Hi-End-MAE paper
(arXiv 2502.08347) arrives at its costs. Its printed costs differ from the true ones in two points, see `PAPER`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from HiEndSegLib.networks.hi_end_mae import CrossAttention, HiEndMAE
from HiEndSegLib.networks.vit import Attention


@dataclass(frozen=True)
class Convention:
    """What counts.

    Args:
        cross_products: whether the attention products inside the cross blocks do.
        head_outputs: outputs the last linear is counted with; None for those it has.
    """

    cross_products: bool = True
    head_outputs: int | None = None


HONEST = Convention()
# fvcore does not see a fused attention call, and the authors' cross blocks have such calls while their plain blocks
# have none; and a patch of 12 was counted for every variant.
PAPER = Convention(cross_products=False, head_outputs=12**3)


def decoder_count(network: HiEndMAE, convention: Convention = HONEST, *, all_rows: bool = True) -> int:
    """The decoder with its norm and last linear, for one crop; without the encoder's projections.

    Args:
        network: on the meta device.
        all_rows: predict every row, as the paper counts; training predicts the masked ones alone.
    """
    width, visible = network.decoder_embed_dim, 1 + network.num_visible
    tokens = torch.empty(1, 1 + network.num_patches, width, device="meta")
    layers = [torch.empty(1, visible, width, device="meta")] * network.dense_stages
    with _counting(network.decoder, convention) as counter:
        network.decoder(tokens, layers, first=0 if all_rows else visible)
    return counter.total


def projections_count(network: HiEndMAE) -> int:
    """The linears from the encoder's width to the decoder's."""
    return sum((1 + network.num_visible) * linear.weight.numel() for linear in network.encoder_to_decoder)


def encoder_count(network: HiEndMAE) -> int:
    """Patch embedding, blocks and final norm on the visible patches of one crop."""
    encoder = network.encoder
    tokens = torch.empty(1, 1 + network.num_visible, encoder.embed_dim, device="meta")
    with _counting(encoder, HONEST) as counter:
        for block in encoder.blocks:
            block(tokens)
        encoder.norm(tokens)
    return counter.total + network.num_visible * encoder.patch_embed.proj.weight.numel()


@contextlib.contextmanager
def _counting(network: nn.Module, convention: Convention) -> Iterator[_Counter]:
    """While open, adds up what the modules of a network do."""
    counter, handles = _Counter(convention), []
    for name, module in network.named_modules():
        hook = counter.hook(name, module)
        if hook is not None:
            handles.append(module.register_forward_hook(hook))
    try:
        yield counter
    finally:
        for handle in handles:
            handle.remove()


class _Counter:
    def __init__(self, convention: Convention):
        self.total, self._convention = 0, convention

    def hook(self, name: str, module: nn.Module) -> Callable | None:
        """What counts this module, if anything does."""
        if isinstance(module, nn.Linear):
            return self._head if name == "head" else self._linear
        if isinstance(module, nn.LayerNorm):
            return self._norm
        if name.startswith("cross_attention_blocks.") and not self._convention.cross_products:
            return None
        return {Attention: self._self_attention, CrossAttention: self._cross_attention}.get(type(module))

    def _linear(self, module: nn.Linear, inputs: tuple, output: torch.Tensor) -> None:
        self.total += output.numel() * module.in_features

    def _head(self, module: nn.Linear, inputs: tuple, output: torch.Tensor) -> None:
        outputs = self._convention.head_outputs or module.out_features
        self.total += output.numel() // module.out_features * outputs * module.in_features

    def _norm(self, module: nn.LayerNorm, inputs: tuple, output: torch.Tensor) -> None:
        self.total += 5 * output.numel()

    def _self_attention(self, module: Attention, inputs: tuple, output: torch.Tensor) -> None:
        self.total += 2 * output.numel() * inputs[0].shape[1]  # q k^T, and its product with v

    def _cross_attention(self, module: CrossAttention, inputs: tuple, output: torch.Tensor) -> None:
        self.total += 2 * output.numel() * inputs[1].shape[1]
