"""What the object queries of a masked head look at and decide, recorded while the head runs.

The head's layers are watched by hooks on their inputs: the head has one forward, and this adds no second one that
could fall behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from HiEndSegLib.networks.attention import attention_rows
from HiEndSegLib.networks.mask_head import HeadOutput, MaskedMultiScaleHead, QueryLayer


@dataclass
class LayerTrace:
    """The cross-attention of one head layer: q ``(H, Q, d)``, k ``(H, N, d)``, allowed ``(Q, N)`` bool, and the grid of
    the decoder map it looks at."""

    q: Tensor
    k: Tensor
    allowed: Tensor
    grid: tuple[int, int, int]


@dataclass(eq=False)      # one run, known by itself and not by its numbers
class HeadTrace:
    """A head's run over one window: its layers in order, and its answer."""

    layers: list[LayerTrace]
    output: HeadOutput

    def rows(self, layer: int, queries: Sequence[int] | Tensor) -> Tensor:
        """Masked softmax attention of object queries to the cells of the layer's map, float32 ``(H, R, N)``."""
        trace = self.layers[layer]
        chosen = torch.as_tensor(queries, dtype=torch.long, device=trace.q.device).reshape(-1)
        return attention_rows(trace.q[:, chosen], trace.k, trace.allowed[chosen])


def find_head(network: nn.Module) -> MaskedMultiScaleHead | None:
    """The head with object queries of a network, if it has one."""
    return next((module for module in network.modules() if isinstance(module, MaskedMultiScaleHead)), None)


def trace_head(network: nn.Module, x: Tensor) -> HeadTrace:
    """Run a network with a masked head over one window ``(1, C, I, J, K)`` and record its cross-attention.

    Raises ValueError for a network without such a head.
    """
    head = find_head(network)
    if head is None:
        raise ValueError("this network has no head with object queries")
    seen: list[tuple[Tensor, ...]] = []
    grids: list[tuple[int, int, int]] = []
    hooks = [layer.register_forward_pre_hook(lambda module, inputs: seen.append((module, *inputs)))
             for layer in head.layers]
    hooks.append(head.register_forward_pre_hook(
        lambda module, inputs: grids.extend(tuple(m.shape[2:]) for m in inputs[0])))
    try:
        output = network(x)
    finally:
        for hook in hooks:
            hook.remove()
    layers = [_cross(layer, *inputs, grids[number % len(grids)]) for number, (layer, *inputs) in enumerate(seen)]
    return HeadTrace(layers, output)


def _cross(layer: QueryLayer, x: Tensor, query_pos: Tensor, memory: Tensor, memory_pos: Tensor, allowed: Tensor,
           grid: tuple[int, int, int]) -> LayerTrace:
    """q and k of the layer's cross-attention from its inputs (batch of one)."""
    width = layer.cross_kv.weight.shape[0] // 2
    k = F.linear(memory[0] + memory_pos, layer.cross_kv.weight[:width], layer.cross_kv.bias[:width])
    q = layer.cross_q(x[0] + query_pos[0])

    def heads(t: Tensor) -> Tensor:
        return t.unflatten(1, (layer.num_heads, -1)).transpose(0, 1)

    return LayerTrace(heads(q), heads(k), allowed[0, 0], grid)
