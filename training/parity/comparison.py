"""The verdict: which recorded values were compared, how far ours are off, and what that means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

ACTIVATION = 1e-4  # largest absolute difference of an activation or logit


@dataclass
class Comparison:
    """Collects one line per recorded tensor and the reasons, if any, why the recording is not matched."""

    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    largest: float = 0.0

    @property
    def passed(self) -> bool:
        return bool(self.lines) and not self.failures

    def tensor(self, name: str, ours: Tensor, recorded: object, *, tolerance: float = ACTIVATION,
               strides: Sequence[int] = ()) -> None:
        """Compare one tensor.

        ``strides`` are the candidates for a recording that kept every s-th voxel of the three last axes; they are
        tried only when the shapes differ.
        """
        recorded = as_tensor(recorded)
        if recorded is None:
            return self.not_compared(name, "it is not a tensor of numbers")
        if recorded.shape != ours.shape:
            fitting = [s for s in strides if thin(ours, s).shape == recorded.shape]
            if not fitting:
                return self.not_compared(name, f"it was recorded with the shape {tuple(recorded.shape)} "
                                               f"and is {tuple(ours.shape)} here")
            differences = {s: difference(thin(ours, s), recorded) for s in fitting}
            stride = min(differences, key=lambda s: math.inf if math.isnan(differences[s]) else differences[s])
            self.remarks.append(f"{name} was recorded at every {stride}th voxel")
            value = differences[stride]
        else:
            value = difference(ours, recorded)
        self.lines.append(f"{name} {value:.3e}")
        self.largest = value if math.isnan(value) or value > self.largest else self.largest
        if not value <= tolerance:  # also when it is not a number
            self.failures.append(f"{name} differs by {value:.3e}, more than {tolerance:g}")

    def count(self, name: str, off_by: int, allowed: int) -> None:
        """Compare whole numbers; they have another unit and stay out of ``max``."""
        self.lines.append(f"{name} {off_by}")
        if off_by > allowed:
            self.failures.append(f"{name} differs by {off_by}, and only {allowed} can be explained by rounding")

    def not_compared(self, name: str, reason: str) -> None:
        self.failures.append(f"{name} was not compared: {reason}")


def difference(ours: Tensor, recorded: Tensor) -> float:
    """Largest absolute difference; of a half-precision recording only what its own rounding cannot explain."""
    if ours.numel() == 0:
        return 0.0
    wide, other = ours.detach().double(), recorded.detach().double()
    # Equal infinities would give NaN; everything else that is not finite must show.
    gap = torch.where(wide == other, torch.zeros_like(wide), (wide - other).abs())
    if recorded.dtype in (torch.float16, torch.bfloat16):
        info = torch.finfo(recorded.dtype)
        gap = (gap - torch.clamp(other.abs() * info.eps, min=info.smallest_normal * info.eps) / 2).clamp(min=0)
    return float(gap.max())


def thin(x: Tensor, stride: int) -> Tensor:
    """Every stride-th voxel of the three last axes."""
    return x[..., ::stride, ::stride, ::stride] if x.dim() >= 3 else x


def as_tensor(value: object) -> Tensor | None:
    """A tensor from what a recording may hold: a tensor, a number, or (nested) lists of either."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (int, float)):
        return torch.tensor(value)
    if isinstance(value, (list, tuple)) and value:
        parts = [as_tensor(part) for part in value]
        if all(part is not None for part in parts) and len({part.shape for part in parts}) == 1:
            return torch.stack(parts)
    return None
