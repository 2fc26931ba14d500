"""What the tests of versions share: a base model of a few hundred numbers and adaptations of it, in milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import LABELS, card_dict
from torch import nn

from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.models.card import card_from_dict
from HiEndSegLib.models.loading import save_model
from HiEndSegLib.models.registry import Registry

NETWORK = {"kind": "small", "num_classes": 3, "width": 8}
CASE = {"fingerprint": "0123456789abcdef", "shape": [40, 41, 42], "spacing": [1.5, 1.5, 3.0]}
REPORT = {"sentence": "Better.", "better": True, "seconds": 12.5,
          "taught": [{"id": "liver", "name": "Liver", "new": False, "dice_before": 0.5, "dice_after": 0.75}],
          "protected": []}
TWO = [Label.from_dict(label) for label in LABELS]
THREE = [*TWO, Label(3, "spleen", "Spleen", (1, 2, 3))]


def build_small(config):
    """Two convolutions, so that there is a tensor worth two thin factors; `config` as in a card."""

    class Small(nn.Module):
        def __init__(self, *, num_classes: int, width: int, in_channels: int = 1):
            super().__init__()
            self.num_classes = num_classes
            self.first = nn.Conv3d(in_channels, width, 3, padding=1)
            self.last = nn.Conv3d(width, num_classes, 1)

        def scores(self, x):
            return self.last(self.first(x)).softmax(1)

    options = dict(config)
    options.pop("kind")
    return Small(**options)


def write_base(folder: Path, seed: int = 0, **changes):
    """A base model in half precision, as those that ship."""
    card = card_from_dict(card_dict(**{"id": "base", "title": "Base", "network": NETWORK, "default": True, **changes}))
    torch.manual_seed(seed)
    return save_model(card, build_small(card.network), folder)


def shelf(tmp_path: Path) -> Registry:
    """A registry with the base among the shipped models and nothing of the user's."""
    write_base(tmp_path / "shipped" / "base")
    return Registry(tmp_path / "shipped", tmp_path / "user")


def factors(seed: int, rank: int = 2, shape=(8, 27)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rank, shape[1], generator=generator), torch.randn(shape[0], rank, generator=generator) / 10)


def adaptation(name: str, seed: int = 1, **changes) -> dict:
    """Keywords of `write_version`: the first convolution changed by factors, the last bias replaced."""
    return {"name": name, "network": NETWORK, "labels": TWO, "low_rank": {"first.weight": factors(seed)},
            "replaced": {"last.bias": torch.tensor([0.5, -0.25, float(seed)])}, "report": REPORT, "case": CASE,
            "parameters": {"speed": "quick", "steps": 100}, "date": f"2026-09-{seed:02d}T10:00:00+02:00",
            "build": build_small, **changes}
