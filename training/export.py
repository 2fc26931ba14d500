"""From a training run to a model folder: averaged weights in half precision and an honest card.

    python -m training.export runs/torso Resources/Models/torso-ct-tiny --about training/torso-ct-tiny.json

ABOUT is a JSON object with the card's words (id, version, title, description, licence, provenance, training, scores):
what was trained on and measured is written by a person, once, beside the recipe.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.models.card import ModelCard
from HiEndSegLib.models.loading import save_model
from HiEndSegLib.networks.build import build_network

from .structures import card_labels


def export(run: Path, folder: Path, about: dict, *, overlap: float = 0.5) -> ModelCard:
    """Write `folder` (card.json and weights.safetensors) from RUN/last.pt. Returns the card as written."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    state = torch.load(run / "last.pt", weights_only=True, map_location="cpu")
    network = build_network(config["network"])
    network.load_state_dict(state["average"])
    card = ModelCard(
        **about, modality="CT", network=config["network"], spacing=(3.0, 3.0, 3.0), tile=(96, 96, 96),
        overlap=overlap, windows=config["windows"], labels=[Label.from_dict(entry) for entry in card_labels()],
        weights={}, folder=None)
    return save_model(card, network, folder, dtype="float16")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--about", type=Path, required=True)
    args = parser.parse_args(argv)
    card = export(args.run, args.folder, json.loads(args.about.read_text(encoding="utf-8")))
    print(f"{card.key}: {card.weights['bytes'] / 1e6:.2f} MB in {args.folder}")


if __name__ == "__main__":
    main()
