"""Changes to a model's weights: what a version stores instead of weights of its own.

A tensor is either replaced whole, or changed by two thin factors (LoRA, arXiv 2106.09685, section 4.1):
W' = W + (b @ a).reshape(W.shape). Everything is merged when a version is loaded, so that it runs as fast as any model.

In the file: `replace.<tensor>`, `low_rank.<tensor>.a` (r, in) and `low_rank.<tensor>.b` (out, r).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import ModelError

REPLACE, LOW_RANK = "replace.", "low_rank."
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Delta:
    """replaced: name -> tensor of any shape. low_rank: name -> (a (r, in), b (out, r)), out * in = W.numel()."""

    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    low_rank: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def to_tensors(delta: Delta) -> dict[str, Tensor]:
    """The tensors of the file."""
    tensors = {REPLACE + name: tensor for name, tensor in delta.replaced.items()}
    for name, (a, b) in delta.low_rank.items():
        tensors[f"{LOW_RANK}{name}.a"], tensors[f"{LOW_RANK}{name}.b"] = a, b
    return tensors


def from_tensors(tensors: Mapping[str, Tensor], base: Mapping[str, Shape], where: str) -> Delta:
    """The file's tensors as a delta over a base of these shapes. Raises ModelError as `merged_shapes` does."""
    merged_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, base, where)
    return Delta({name[len(REPLACE):]: tensor for name, tensor in tensors.items() if name.startswith(REPLACE)},
                 {name[len(LOW_RANK):-2]: (tensor, tensors[name[:-1] + "b"]) for name, tensor in tensors.items()
                  if name.startswith(LOW_RANK) and name.endswith(".a")})


def merged_shapes(shapes: Mapping[str, Shape], base: Mapping[str, Shape], where: str) -> dict[str, Shape]:
    """Shapes of the merged weights, from those of the file and of the base alone: no tensor is touched.

    Raises ModelError: a tensor of another kind, a factor without its twin, factors that do not fit each other or the
    base's tensor, or that are larger than it.
    """
    merged, low_rank = dict(base), {}
    for name, shape in shapes.items():
        if name.startswith(REPLACE):
            merged[name[len(REPLACE):]] = shape
        elif name.startswith(LOW_RANK) and name[-2:] in (".a", ".b"):
            low_rank.setdefault(name[len(LOW_RANK):-2], {})[name[-1]] = shape
        else:
            raise ModelError(f"{where} hold a tensor {name!r}, which is no change to a model; get the model again from "
                             "where it came.")
    for name, factors in low_rank.items():
        if len(factors) != 2:
            raise ModelError(f"{where} hold one factor of the change to {name} without the other; get the model again "
                             "from where it came.")
        if REPLACE + name in shapes:
            raise ModelError(f"{where} both replace and change {name}; get the model again from where it came.")
        if name not in base:
            raise ModelError(f"{where} change a tensor {name!r} that its base does not have; they were made for "
                             "another model, so get the version again together with its base.")
        _check_factors(name, factors["a"], factors["b"], base[name], where)
    return merged


def merge(base: dict[str, Tensor], delta: Delta) -> dict[str, Tensor]:
    """The weights of base and delta together; what a factor changed is float32, the rest as it was stored.

    `base` is emptied as it goes, so that no tensor is held twice longer than needed.
    """
    for name, (a, b) in delta.low_rank.items():
        base[name] = _changed(base[name], a, b)
    base.update(delta.replaced)
    return base


def flatten(first: Delta, second: Delta, base: Callable[[str], Tensor]) -> Delta:
    """One delta over the base that does what `first` and then `second` (relative to their merged weights) do.

    Factors are concatenated, replaced tensors win, and factors that have grown as large as their tensor become a
    replaced one: adapting again and again costs no more than the base's size. base: gives a tensor by name.
    """
    replaced, low_rank = dict(first.replaced), dict(first.low_rank)
    for name, factors in second.low_rank.items():
        if name in replaced:
            replaced[name] = _changed(replaced[name], *factors)
        elif name in low_rank:
            (a1, b1), (a2, b2) = low_rank[name], factors
            low_rank[name] = torch.cat([a1.float(), a2.float()]), torch.cat([b1.float(), b2.float()], 1)
        else:
            low_rank[name] = factors
    for name, tensor in second.replaced.items():
        low_rank.pop(name, None)
        replaced[name] = tensor
    for name, (a, b) in list(low_rank.items()):
        if a.numel() + b.numel() >= a.shape[1] * b.shape[0]:
            replaced[name] = _changed(base(name), a, b)
            del low_rank[name]
    return Delta(replaced, low_rank)


def _changed(tensor: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return tensor.float() + (b.float() @ a.float()).reshape(tensor.shape)


def _check_factors(name: str, a: Shape, b: Shape, shape: Shape, where: str) -> None:
    fits = len(a) == len(b) == 2 and a[0] == b[1] and len(shape) >= 2 and b[0] == shape[0] \
        and b[0] * a[1] == math.prod(shape) and 1 <= a[0] <= min(b[0], a[1])
    if not fits:
        raise ModelError(f"{where} change {name} by factors of {list(b)} and {list(a)}, which do not fit its "
                         f"{list(shape)} in the base; they were made for another model or are damaged, so get the "
                         "version again together with its base.")
