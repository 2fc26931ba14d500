"""A body with three organs and a model small enough to learn them in seconds: what the adaptation tests share."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
from tiny_models import LABELS, card_dict

from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.models.card import card_from_dict
from HiEndSegLib.models.loading import Model
from HiEndSegLib.networks.build import build_network
from HiEndSegLib.networks.objective import maskmed_loss, pointwise_loss
from HiEndSegLib.operations.adapt import adapt
from HiEndSegLib.operations.adapt_recipe import Recipe

TINY = dict(kind="maskmed", img_size=24, channels=[8, 8, 8], fsad_dim=12, fsad_heads=2, fsad_depth=1, mask_dim=8,
            head_dim=24, head_heads=2, rounds=1, vit=dict(name="vit_tiny_12p", embed_dim=24, depth=2, num_heads=2),
            taps=[0], in_channels=1)
RIGHT = {"value": 3, "id": "kidney_right", "name": "Right kidney", "color": [185, 102, 83]}
SPACING = 6.0
SHAPE = (36, 30, 32)
#: Centers and radii in voxels; i grows to the right side of the patient's left, that is towards R = +.
ORGANS = {"liver": ((25, 18, 20), 6.5), "kidney_left": ((9, 10, 14), 4.5), "kidney_right": ((27, 9, 11), 4.5),
          "stomach": ((10, 20, 20), 5.5)}
#: Each organ has its own, so that a small network tells left from right in seconds.
HU = {"liver": 80, "kidney_left": 160, "kidney_right": 240, "stomach": 340}
LEGEND = [*(Label.from_dict(entry) for entry in [*LABELS, RIGHT]), Label(4, "stomach", "Stomach", (216, 132, 105))]
#: Fast and small; the number of steps is each test's own. Brightness is all that tells these organs apart, so it is
#: not varied by structure.
RECIPE = Recipe(steps=40, crop=24, crops=30, lr=4e-3, lr_middle=3e-3, every=10, ema=0.9, warmup=5, rank=4, spread=0.0,
                curve_steps=0, blend=1.0)


def ball(name, shape=SHAPE, shift=(0, 0, 0)):
    (centre, radius), grid = ORGANS[name], np.indices(shape)
    return sum((g - c - s) ** 2 for g, c, s in zip(grid, centre, shift)) <= radius ** 2


def phantom(*, seed=0, hu=None, shift=(0, 0, 0), organs=("liver", "kidney_left", "kidney_right", "stomach")):
    """(volume, labels): water in air with balls in it; values of the labels are LEGEND's."""
    rng = np.random.default_rng(seed)
    image = np.full(SHAPE, -1000.0)
    image[2:-2, 2:-2] = 0
    labels = np.zeros(SHAPE, np.uint8)
    for name in organs:
        where = ball(name, shift=shift)
        image[where] = (hu or {}).get(name, HU[name])
        labels[where] = next(label.value for label in LEGEND if label.id == name)
    image += rng.normal(0, 8, SHAPE)
    matrix = np.diag([SPACING] * 3 + [1.0])
    return (Volume(image.astype(np.int16), matrix, "phantom", {"modality": "CT"}), Volume(labels, matrix, "labels"))


def untrained(kind="maskmed", structures=3, **network):
    """A model of LEGEND's first structures with random weights."""
    options = {**TINY, "kind": kind, **network}
    if kind == "pointwise":
        options = {key: value for key, value in options.items() if not key.startswith("head") and key != "rounds"}
    options["num_classes"] = structures + 1
    card = card_from_dict(card_dict(network=options, spacing=[SPACING] * 3, tile=[24, 24, 24], overlap=0.25,
                                    labels=[label.to_dict() for label in LEGEND[:structures]],
                                    intensity={"unit": "HU", "windows": [[-200, 400]]}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = build_network(card.network).eval().requires_grad_(False)
    return Model(card, network, torch.device("cpu"))


@functools.lru_cache(maxsize=None)
def parent(kind="pointwise", steps=140):
    """A model that knows liver and kidneys of `phantom()`: trained on plain crops of one."""
    model = untrained(kind)
    volume, labels = phantom()
    low, high = model.card.windows[0]
    image = torch.from_numpy((np.clip(volume.array, low, high) - low) / (high - low)).float()
    possible = torch.from_numpy(1 << np.where(labels.array == 4, 0, labels.array).astype(np.int64))
    network, rng = model.network.train().requires_grad_(True), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps, pct_start=0.2)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(steps):
        start = [int(rng.integers(0, n - 24 + 1)) for n in SHAPE]
        box = tuple(slice(s, s + 24) for s in start)
        out = network(image[box][None, None])
        loss = (maskmed_loss if kind == "maskmed" else pointwise_loss)(
            out, possible[box][None], offset=tuple(int(o) for o in rng.integers(0, 2, 3)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    torch.set_num_threads(before)
    network.eval().requires_grad_(False)
    return model


def run(model, volume, labels, structures, *, speed="quick", steps=40, legend=LEGEND, **options):
    return adapt(model, volume, labels, legend, structures=structures, speed=speed, threads=1, precision="float32",
                 recipe=replace(RECIPE, steps=steps, **options.pop("recipe", {})), **options)


def row(result, name, part="taught"):
    return next(entry for entry in result.report[part] if entry["id"] == name)
