"""Pictures of prepared cases, to be looked at: `python -m training.overlays CACHE_FOLDER OUT_FOLDER [NAME…]`.

Upper row: the image with certain classes in colour (background not coloured, vertebra-or-bone in magenta).
Lower row: how many classes a voxel may still be (dark: certain, bright: unknown)."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from training.cases import Case, load_case  # noqa: E402
from training.structures import CLASSES, STRUCTURES, bit, certain_labels  # noqa: E402


def _sections(case: Case) -> list[tuple[str, tuple]]:
    size = case.image.shape
    picks = [(f"axial {k}", (slice(None), slice(None), k)) for k in
             (int(size[2] * f) for f in (0.1, 0.3, 0.5, 0.7, 0.9))]
    picks += [(f"coronal {j}", (slice(None), j, slice(None))) for j in (int(size[1] * f) for f in (0.35, 0.5, 0.65))]
    return picks + [(f"sagittal {i}", (i, slice(None), slice(None))) for i in (int(size[0] * f) for f in (0.4, 0.5))]


def overlay(case: Case, path: Path) -> Path:
    """Draw one case; patient's right is on the left of axial and coronal panels."""
    labels = certain_labels(case.possible)
    count = sum(((case.possible >> np.uint32(v)) & np.uint32(1)).astype(np.uint8) for v in range(CLASSES))
    colors = np.zeros((256, 3), np.float32)
    for s in STRUCTURES:
        colors[s.value] = s.color
    colors[17], colors[18], colors[1], colors[9] = (255, 255, 0), (0, 200, 255), (220, 60, 255), (0, 200, 80)
    colors[15], colors[16], colors[12], colors[14] = (90, 120, 255), (255, 170, 60), (255, 0, 0), (255, 90, 160)
    colors[200] = (255, 0, 255)
    shown = labels.copy()
    shown[case.possible == bit("vertebrae", "bone")] = 200
    picks = _sections(case)
    figure, axes = plt.subplots(4, 5, figsize=(22, 17), facecolor="black")
    for number, (title, index) in enumerate(picks):
        row, column = 2 * (number // 5), number % 5
        grey = np.clip((case.image[index].astype(np.float32) + 175) / 425, 0, 1)
        lung = np.clip((case.image[index].astype(np.float32) + 1000) / 1000, 0, 1) * 0.3
        rgb = np.repeat(np.maximum(grey, lung)[..., None], 3, -1)
        label = shown[index]
        marked = (label > 0) & (label < 255)
        rgb[marked] = 0.55 * rgb[marked] + 0.45 * colors[label[marked]] / 255
        for offset, picture, options in ((0, rgb, {}), (1, count[index], {"cmap": "magma", "vmin": 0, "vmax": 20})):
            panel = axes[row + offset, column]
            turned = np.swapaxes(picture, 0, 1)
            turned = turned if title.startswith("sagittal") else turned[:, ::-1]
            panel.imshow(turned, origin="lower", interpolation="nearest", **options)
            panel.set_title(f"{case.name} {title}", color="white", fontsize=9)
            panel.axis("off")
    figure.tight_layout(pad=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=60)
    plt.close(figure)
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.overlays", description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args(arguments)
    for path in sorted(options.cache.glob("*.npz")):
        if not options.names or path.stem in options.names:
            print(overlay(load_case(path), options.out / f"{path.stem}.png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
