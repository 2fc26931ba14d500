"""Low-rank adapters (arXiv 2106.09685) on the weights of linear and convolution layers.

The weight W stays as it was and frozen; what is used is W + s (b @ a), folded to the shape of W. It is a
parametrization of the weight itself, not a layer around a layer, so it also holds where a forward pass reads the
weight directly (fused projections, mask features). b starts at zero: an adapter changes nothing until it has learned.
"""

from __future__ import annotations

import math
from typing import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """The parametrization: W -> W + scale (b @ a). a: (rank, the rest), b: (first axis of W, rank)."""

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator | None = None):
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        bound = 1 / math.sqrt(columns)
        a = (torch.rand(rank, columns, generator=generator) * 2 - 1) * bound
        self.a = nn.Parameter(a.to(weight.device, weight.dtype))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):       # the change is small; half precision eats it
            return weight + (self.scale * (self.b @ self.a)).reshape(weight.shape)


def attach(network: nn.Module, names: Iterable[str], rank: int, *, scale: float = 1.0,
           generator: torch.Generator | None = None) -> list[str]:
    """Put an adapter on the weight of each named Linear or convolution; returns the names of the weights.

    The frozen weights no longer require gradients, the factors do.
    """
    weights = []
    for name in names:
        module = network.get_submodule(name)
        module.weight.requires_grad_(False)
        parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank, scale, generator))
        weights.append(f"{name}.weight")
    return weights


def adaptable(network: nn.Module, under: Iterable[str]) -> list[str]:
    """Names of the Linear and convolution layers inside the named parts of the network."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose3d)
    prefixes = tuple(under)
    return [name for name, module in network.named_modules() if isinstance(module, kinds)
            and any(name == p or name.startswith(p + ".") for p in prefixes)]


def factors(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight name -> (a, b), copies, with which W + (b @ a).reshape(W.shape) is the weight in use."""
    return {f"{name}.weight": (adapter.a.detach().clone(), (adapter.scale * adapter.b).detach().clone())
            for name, adapter in _adapters(network)}


def merge(network: nn.Module) -> None:
    """Make the weights in use plain weights; the adapters are gone, the answers the same."""
    for name, _ in list(_adapters(network)):
        parametrize.remove_parametrizations(network.get_submodule(name), "weight", leave_parametrized=True)


def detach(network: nn.Module) -> None:
    """Take the adapters off; the weights are again what they were before."""
    for name, _ in list(_adapters(network)):
        parametrize.remove_parametrizations(network.get_submodule(name), "weight", leave_parametrized=False)


def _adapters(network: nn.Module):
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module, "weight") and isinstance(module.parametrizations.weight[0], LowRank):
            yield name, module.parametrizations.weight[0]
