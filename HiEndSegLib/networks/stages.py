"""A network cut in two for quick adaptation: a front that stays as it is, and a rest that learns on what it gives.

The front's results for a crop are computed once and kept; every training step then costs the rest alone. Measured for
the default model on one core, 72^3, bfloat16: a step of everything 0.71 s, of the rest 0.47 s.
"""

from __future__ import annotations

import math
from typing import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import OptionError
from .mask_head import HeadOutput

#: Parts of the networks around `PyramidEncoder` that follow its front.
_MIDDLE = ("fsad", "full_resolution", "lateral4", "lateral2", "up8", "up4", "up2")


class Stages:
    """front: names of the parts that stay frozen. middle: parts that a low-rank change suffices for. last: parts that
    learn whole. size_step: crops must be multiples of it; None where the network takes its own tile only.

    fresh: only the ViT was ever trained (a model made from an encoder), so all else learns whole and the front ends
    with it.
    """

    def __init__(self, network: nn.Module, config: Mapping, *, fresh: bool = False):
        kind = config.get("kind")
        self.fresh = fresh and kind in ("maskmed", "pointwise")
        self.network, self.kind = network, kind
        self.size_step: int | None = None
        if kind in ("maskmed", "pointwise"):
            self.front_parts = ("encoder.vit", "encoder.pyramid", "encoder.token_proj")
            self.middle = tuple(f"encoder.{name}" for name in _MIDDLE if hasattr(network.encoder, name))
            self.last = ("mask_features", "head" if kind == "maskmed" else "classifier")
            self.size_step = math.lcm(8, *network.encoder.vit.patch_size)
            if fresh:
                self.last = (*self.front_parts[1:], *self.middle, *self.last)
                self.front_parts, self.middle = self.front_parts[:1], ()
        elif kind in ("unetr12", "unetr16"):
            self.front_parts = ("vit",)
            self.middle = tuple(name for name, _ in network.named_children() if name not in ("vit", "out"))
            self.last = ("out",)
        else:
            raise OptionError(f"A network of the kind '{kind}' cannot be adapted; choose a model of the kind maskmed, "
                              "pointwise, unetr12 or unetr16.")
        self.vit_part = self.front_parts[0]

    def front(self, x: Tensor) -> list[Tensor]:
        """(B, C, I, J, K) -> what the rest needs; batch first in every tensor."""
        if self.fresh:
            return [x, *self.network.encoder.tokens(x)]
        if self.kind in ("maskmed", "pointwise"):
            return self.network.encoder.encode(x)
        if self.kind == "unetr12":
            last, hidden, _, _ = self.network.vit(x, self.network.skip_indices)
            return [x, last, *hidden]
        return [x]                                  # MONAI's own forward pass does not come apart; its ViT is frozen

    def rest(self, given: Sequence[Tensor]) -> HeadOutput | Tensor:
        """The answer: HeadOutput, or logits (B, classes, I, J, K)."""
        if self.kind in ("maskmed", "pointwise"):
            encoder = self.network.encoder
            if self.fresh:
                x, *tokens = given
                given = [*encoder.pyramid(x), encoder.project(tokens, x.shape[2:])]
            return self.network.answer(encoder.decode(encoder.refine(list(given))))
        if self.kind == "unetr12":
            x, last, *hidden = given
            grid = tuple(n // p for n, p in zip(x.shape[2:], self.network.patch_size))
            return self.network.decode(x, last, hidden, grid).logits
        return self.network(given[0])

    def whole(self, x: Tensor) -> HeadOutput | Tensor:
        return self.network(x)

    def scores(self, out: HeadOutput | Tensor) -> Tensor:
        """(B, classes, I, J, K), sum 1."""
        return self.network.scores_of(out) if self.kind in ("maskmed", "pointwise") else torch.softmax(out.float(), 1)


def recompute_blocks(network: nn.Module, on: bool) -> None:
    """Whether ViTs in the network keep their blocks' activations for the way back or compute them again."""
    for module in network.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = on
