"""Tiny labelled cases and encoders for the one-shot protocol: balls that stand for organs, in grey."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.structures import VALUE, bit

TINY = {"embed_dim": 24, "depth": 4, "num_heads": 2}
SKIPS = {"skip_indices": [1, 2, 3]}
ORGANS = {"spleen": (200, (9, 9, 10)), "liver": (120, (22, 20, 14)), "kidney_left": (-120, (10, 24, 20)),
          "kidney_right": (-150, (24, 8, 22))}


def phantom(seed: int, shape=(34, 32, 30)) -> tuple[np.ndarray, np.ndarray]:
    """HU int16 and class values uint8: every organ a ball of radius 6 about its place."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    image, labels = rng.normal(0, 10, shape), np.zeros(shape, np.uint8)
    for name, (hu, centre) in ORGANS.items():
        ball = ((grid - (np.array(centre) + rng.normal(0, 1, 3))) ** 2).sum(-1) < 36
        image[ball], labels[ball] = hu, VALUE[name]
    return image.astype(np.int16), labels


def write_case(folder: Path, name: str, seed: int, *, without: tuple[str, ...] = (), dev: tuple[str, ...] = (),
               unknown: bool = False) -> Path:
    """A prepared case. without: organs that are background. dev: write it as a development case with these classes.
    unknown: the lower third of the slices is not annotated."""
    image, labels = phantom(seed)
    for organ in without:
        labels[labels == VALUE[organ]] = 0
    common = {"image": image, "affine": np.diag([3.0, 3.0, 3.0, 1.0]), "spacing": np.full(3, 3.0), "name": name}
    if dev:
        kept = np.where(np.isin(labels, [VALUE[organ] for organ in dev]), labels, 0).astype(np.uint8)
        kept[:, :, :10] = 255 if unknown else kept[:, :, :10]
        path = folder / "dev" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, labels=kept, classes=np.array([VALUE[organ] for organ in dev], np.uint8), **common)
        return path
    possible = (np.uint32(1) << labels.astype(np.uint32)).astype(np.uint32)
    if unknown:
        possible[:, :, :10] |= bit("spleen", "liver")
    path = folder / f"{name}.npz"
    np.savez(path, possible=possible, weight=np.float32(1), **common)
    return path


def write_synthetic(folder: Path, maps=("01", "02", "03", "04"), images: int = 2) -> Path:
    """Images of several organ maps; map 03 has no left kidney in its first image."""
    for number, name in enumerate(maps):
        for image in range(images):
            write_case(folder, f"synthetic-{name}-0-{image}", 10 * number + image, without=(
                "kidney_right", *(("kidney_left",) if name == "03" and image == 0 else ())))
    return folder
