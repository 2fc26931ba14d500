"""Prepare real CT volumes for training: `python -m training.cases DATA_FOLDER CACHE_FOLDER`.

Each case becomes `CACHE_FOLDER/NAME.npz` with `image` int16 HU (I, J, K) in RAS+ axes at 3 mm, `possible` uint32 of
the same shape (bit v set: the voxel may be class v, see `training.structures`), `affine` (4, 4), `spacing`, `name`
and `weight` (how often to sample the case). What a case does not annotate is unknown, not background.

The two development cases go to `CACHE_FOLDER/dev/` with `image` and `labels` (uint8, 255 = leave out), for scores
alone. Neither they nor the demonstration sample are ever prepared for training.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from HiEndSegLib.geometry.files import atomic_target
from training.classical import Findings, classical
from training.lattice import SPACING, load, resample, resample_codes
from training.seeds import add_marked
from training.structures import ALL_BITS, VALUE, bit, certain, without

DEVELOPMENT = {"ct-abdomen-02": ("spleen", "kidney_right", "kidney_left", "liver"),
               "ct-chest-01": ("lung_left", "lung_right")}
EXCLUDED = frozenset({"ct-abdomen-09", *DEVELOPMENT})
_GUT = ("stomach", "duodenum", "small_bowel", "colon")


@dataclass
class Case:
    """A prepared volume; arrays are (I, J, K) in RAS+ axes at 3 mm."""

    name: str
    image: np.ndarray                     # int16 HU
    possible: np.ndarray                  # uint32 bit masks
    affine: np.ndarray                    # (4, 4), voxel centres to mm
    weight: float = 1.0
    notes: list[str] = field(default_factory=list)

    def known(self) -> float:
        """Fraction of voxels inside the body whose class is certain."""
        inside = self.image > -300
        return float(certain(self.possible)[inside].mean())

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return _save(folder / f"{self.name}.npz", image=self.image, possible=self.possible, affine=self.affine,
                     spacing=np.full(3, SPACING), name=np.array(self.name), weight=np.float32(self.weight))


def load_case(path: Path) -> Case:
    """Read a prepared case back."""
    with np.load(path, allow_pickle=False) as data:
        return Case(str(data["name"]), data["image"], data["possible"], data["affine"], float(data["weight"]))


def _save(path: Path, **arrays) -> Path:
    with atomic_target(path) as temporary:
        np.savez_compressed(temporary, **arrays)
    return path


# ---------------------------------------------------------------------------------------------- label sets

def structure_of(name: str) -> str:
    """Our class for a structure name of the full-body label set; "background" for what we have no class for."""
    if name in VALUE:
        return name
    for prefix, structure in (("lung_upper_lobe_", "lung_"), ("lung_middle_lobe_", "lung_"),
                              ("lung_lower_lobe_", "lung_")):
        if name.startswith(prefix):
            return structure + name[len(prefix):]
    if name in ("sacrum", "vertebrae_S1", "sternum", "skull"):
        return "bone"
    if name.startswith("vertebrae_"):
        return "vertebrae"
    if name.split("_")[0] in ("rib", "hip", "femur", "humerus", "scapula", "clavicula"):
        return "bone"
    return "background"


def _legend(path: Path) -> dict[int, str]:
    return {int(value): name for value, name in json.loads(path.read_text(encoding="utf-8")).items()}


def bits_of(labels: np.ndarray, meaning: dict[int, np.uint32]) -> np.ndarray:
    """Bit masks (uint32) for a label map; a value without meaning is unknown."""
    table = np.full(256, ALL_BITS, np.uint32)
    for value, mask in meaning.items():
        table[value] = mask
    return table[labels]


def _whole_abdomen(folder: Path, image: np.ndarray) -> np.ndarray:
    """61 structures of a program, whole volume. Where its finer run in the top slices disagrees, both are possible."""
    def read(stem: str) -> np.ndarray:
        legend = _legend(folder / f"{stem}.json")
        meaning = {value: bit(structure_of(name)) for value, name in legend.items() if value != 255}
        labels = load(folder / f"{stem}.nii.gz")
        return resample_codes(labels, bits_of(labels.array, meaning))

    possible = read("labels")
    alternative = read("labels_alt")
    both = alternative != ALL_BITS
    possible[both] |= alternative[both]
    nothing = possible == bit("background")
    # The gut holds gas and dense contrast that the program may have missed; bones outside its list exist.
    possible[nothing & (image > 200)] |= bit("bone", "vertebrae")
    possible[nothing & (image < -300)] |= bit(*_GUT, "esophagus", "lung_left", "lung_right")
    # The scan ends at the liver dome: heart apex and esophagus lie in the top slices and are in neither label set.
    top = np.zeros(possible.shape, bool)
    top[25:75, 30:, -8:] = True
    possible[nothing & top & (image > -20)] |= bit("heart", "esophagus")
    return possible


def _thorax(folder: Path, image: np.ndarray) -> np.ndarray:
    """Heart, aorta and T12; great vessels are background; everything else is unlabelled."""
    names = {name: value for value, name in _legend(folder / "labels.json").items()}
    labels = load(folder / "labels.nii.gz")
    meaning = {value: bit("background") for value in names.values()}
    meaning |= {names["heart"]: bit("heart"), names["aorta"]: bit("aorta"),
                names["vertebrae_T12"]: bit("vertebrae"), 0: without("heart", "aorta")}
    return resample_codes(labels, bits_of(labels.array, meaning))


def _planning(folder: Path, image: np.ndarray) -> np.ndarray:
    """Expert contours of lungs, and of bowel near a tumour: what is not drawn is no statement about bowel."""
    names = {name: value for value, name in _legend(folder / "labels.json").items()}
    labels = load(folder / "labels.nii.gz")
    possible = bits_of(labels.array, {names["small_bowel"]: bit("small_bowel"),
                                names["stomach_and_duodenum"]: bit("stomach", "duodenum"),
                                names["lung_left"]: bit("lung_left"), names["lung_right"]: bit("lung_right")})
    slices = np.arange(labels.shape[2])
    # Lungs are drawn from slice 85 up: outside the contour is no lung there.
    drawn = (labels.array == 0) & (slices >= 85)
    possible[drawn] &= without("lung_left", "lung_right")
    return resample_codes(labels, possible)


def _spine(folder: Path, image: np.ndarray) -> np.ndarray:
    """Three whole vertebrae; their neighbours and everything else are unlabelled."""
    names = _legend(folder / "labels.json")
    labels = load(folder / "labels.nii.gz")
    return resample_codes(labels, bits_of(labels.array, {value: bit("vertebrae") for value in names if value}))


LABELLED = {"ct-abdomen-01": _whole_abdomen, "ct-thorax-01": _thorax, "ct-abdomen-08": _planning,
            "ct-spine-01": _spine}
# Lowest slice of the 3 mm volume that is above the sacrum, read off the pictures of `training.overlays`; volumes not
# named here end above the pelvis.
SACRUM_TOP = {"ct-abdomen-01": 54, "ct-abdomen-07": 52, "ct-abdomen-08": 28, "ct-torso-01": 90}
WEIGHT = {"ct-abdomen-01": 6.0, "ct-thorax-01": 2.0, "ct-abdomen-08": 2.0, "ct-spine-01": 0.5,
          "ct-abdomen-04": 2.0, "ct-abdomen-05": 2.0, "ct-abdomen-06": 2.0, "ct-chest-06": 1.5}

_ABDOMEN = ("spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "pancreas", "duodenum",
            "small_bowel", "colon", "urinary_bladder")
# Slices of the 3 mm volumes, read off the pictures with a margin of two slices or more: no abdominal organ from the
# first on, the heart only from the second up to the third, no urinary bladder from the fourth on.
EXTENT = {"ct-abdomen-04": (62, 50, 999, 0), "ct-abdomen-05": (70, 54, 999, 0), "ct-abdomen-06": (57, 38, 999, 0),
          "ct-abdomen-07": (999, 121, 999, 30), "ct-abdomen-08": (115, 90, 126, 40), "ct-chest-03": (15, 0, 34, 0),
          "ct-chest-04": (32, 16, 52, 0), "ct-chest-05": (0, 999, 999, 0), "ct-chest-06": (55, 38, 70, 0),
          "ct-chest-07": (30, 23, 56, 0), "ct-chest-08": (30, 6, 58, 0), "ct-spine-01": (999, 999, 999, 0),
          "ct-thorax-01": (999, 0, 999, 0), "ct-torso-01": (147, 135, 178, 70), "ct-torso-02": (58, 43, 80, 0)}


def within_extent(name: str, possible: np.ndarray) -> np.ndarray:
    """Bit masks without the structures that cannot be in a slice, by `EXTENT`; voxels known otherwise stay."""
    if name not in EXTENT:
        return possible
    abdomen_top, heart_bottom, heart_top, bladder_top = EXTENT[name]
    k = np.arange(possible.shape[2])
    allowed = np.full(len(k), ALL_BITS, np.uint32)
    allowed[k >= abdomen_top] &= without(*_ABDOMEN)
    allowed[(k < heart_bottom) | (k >= heart_top)] &= without("heart")
    allowed[k >= bladder_top] &= without("urinary_bladder")
    cut = possible & allowed
    return np.where(cut == 0, possible, cut).astype(np.uint32)


# ---------------------------------------------------------------------------------------------- putting together

def combine(labels: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Bits both sources allow. Where they contradict each other the drawn label wins."""
    both = labels & found
    return np.where(both == 0, labels, both).astype(np.uint32)


def prepare(folder: Path) -> Case:
    """One case folder (`image.nii.gz` and, for some, labels) as a prepared case."""
    name = folder.name
    if name in EXCLUDED:
        raise ValueError(f"{name} is kept for scores and demonstration; it is never prepared for training.")
    volume = resample(load(folder / "image.nii.gz"))
    image, affine = volume.array, volume.ijk_to_ras
    found: Findings = classical(image, sacrum_top=SACRUM_TOP.get(name))
    possible = found.possible
    if name in LABELLED:
        possible = combine(LABELLED[name](folder, image), possible)
    possible = within_extent(name, add_marked(name, image, possible))
    return Case(name, image, possible, affine, WEIGHT.get(name, 1.0), found.notes)


def prepare_development(folder: Path, cache: Path) -> Path:
    """Image and labels of a development case at 3 mm: for scores in between, never for training."""
    image = resample(load(folder / "image.nii.gz"))
    labels = load(folder / "labels_auto.nii.gz")
    legend = _legend(folder / "labels_auto.json")
    table = np.full(256, 255, np.uint8)
    for value, name in legend.items():
        if value != 255:
            table[value] = VALUE[name]
    small = resample_codes(labels, table[labels.array])
    (cache / "dev").mkdir(parents=True, exist_ok=True)
    return _save(cache / "dev" / f"{folder.name}.npz", image=image.array, labels=small,
                 affine=image.ijk_to_ras, spacing=np.full(3, SPACING), name=np.array(folder.name),
                 classes=np.array([VALUE[name] for name in DEVELOPMENT[folder.name]], np.uint8))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.cases", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with one subfolder per case")
    parser.add_argument("cache", type=Path, help="where the prepared cases go")
    parser.add_argument("--only", nargs="*", help="names of the cases to prepare")
    options = parser.parse_args(arguments)
    folders = [f.parent for f in sorted(options.data.glob("ct-*/image.nii.gz"))]
    for folder in folders:
        if options.only and folder.name not in options.only:
            continue
        if folder.name in DEVELOPMENT:
            prepare_development(folder, options.cache)
            print(f"{folder.name:16s} development case, labels for scores only")
        elif folder.name not in EXCLUDED:
            case = prepare(folder)
            case.save(options.cache)
            print(f"{case.name:16s} {str(case.image.shape):16s} {100 * case.known():5.1f} % of tissue certain  "
                  + "; ".join(case.notes), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
