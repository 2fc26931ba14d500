"""Tiny models for tests: a card and random or hand-made weights, written to a folder in milliseconds."""

from __future__ import annotations

from pathlib import Path

LABELS = [
    {"value": 1, "id": "liver", "name": "Liver", "color": [221, 130, 101],
     "terminology": {"category": ["SCT", "123037004", "Anatomical Structure"],
                     "type": ["SCT", "10200004", "Liver"], "modifier": None}, "largest_component": True},
    {"value": 2, "id": "kidney_left", "name": "Left kidney", "color": [185, 102, 83],
     "terminology": {"category": ["SCT", "123037004", "Anatomical Structure"],
                     "type": ["SCT", "64033007", "Kidney"], "modifier": ["SCT", "7771000", "Left"]}},
]


def card_dict(**changes) -> dict:
    """A valid card.json; `changes` replace whole top-level entries."""
    data = {
        "format": "hiendseg-model", "format_version": 1, "id": "tiny", "version": "1.0.0", "title": "Tiny test model",
        "description": "Made by a test.", "modality": "CT", "network": {"kind": "tiny", "num_classes": 3},
        "spacing": [3, 3, 3], "tile": [24, 24, 24], "overlap": 0.5,
        "intensity": {"unit": "HU", "windows": [[-175, 250]]}, "labels": [dict(label) for label in LABELS],
        "licence": "Apache-2.0", "provenance": "Made by a test.", "training": {}, "scores": [],
        "weights": {"file": "weights.safetensors", "sha256": "0" * 64, "bytes": 1, "dtype": "float32"},
    }
    data.update(changes)
    return data


def build_tiny(config):
    """A network of one 1x1x1 convolution; `config` as in a card."""
    from torch import nn

    class Tiny(nn.Module):
        def __init__(self, *, num_classes: int, in_channels: int = 1):
            super().__init__()
            self.num_classes = num_classes
            self.conv = nn.Conv3d(in_channels, num_classes, 1)

        def scores(self, x):
            return self.conv(x).softmax(1)

    options = dict(config)
    options.pop("kind")
    return Tiny(**options)


def write_tiny(folder: Path, build=build_tiny, **changes) -> Path:
    """A whole model folder; returns it."""
    import torch

    from HiEndSegLib.models.card import card_from_dict
    from HiEndSegLib.models.loading import save_model

    card = card_from_dict(card_dict(**changes))
    torch.manual_seed(0)
    save_model(card, build(card.network), folder, dtype="float32")
    return folder


def write_bytes_model(folder: Path, content: bytes = b"not really weights", **changes) -> Path:
    """A folder whose card matches a weight file of any bytes: enough for everything that needs no torch."""
    from HiEndSegLib.models.card import card_from_dict, describe_weights, write_card

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(content)
    card = card_from_dict(card_dict(**changes, weights=describe_weights(folder / "weights.safetensors", "float32")))
    write_card(card, folder)
    return folder
