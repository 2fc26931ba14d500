"""The fully labelled abdomen (`ct-abdomen-01`) as a fine map: a body to put other people's organs into."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from training import tissues as t
from training.cases import structure_of
from training.lattice import load, resample, resample_codes
from training.structures import VALUE

_OTHER = {
    "sacrum": t.SACRUM, "vertebrae_S1": t.SACRUM, "spinal_cord": t.CANAL, "costal_cartilages": t.CARTILAGE,
    "portal_vein_and_splenic_vein": t.VEIN, "iliac_artery_left": t.ARTERY, "iliac_artery_right": t.ARTERY,
    "iliac_vena_left": t.VEIN, "iliac_vena_right": t.VEIN, "prostate": t.PROSTATE,
    "adrenal_gland_left": t.ADRENAL, "adrenal_gland_right": t.ADRENAL,
}  # fmt: skip
_MUSCLES = ("gluteus", "autochthon", "iliopsoas")
TEMPLATE_CASE = "ct-abdomen-01"


@dataclass(frozen=True)
class Template:
    """A body. `fine` is uint8 (I, J, K), RAS+, 3 mm, codes of training/tissues.py; `cavity` (bool, same shape) is
    the room inside the ribs, where lungs may lie."""

    fine: np.ndarray
    cavity: np.ndarray


def fine_code(name: str) -> int:
    """Fine code of a structure of the full-body label set; 0 where it has none."""
    if name in _OTHER:
        return _OTHER[name]
    if name.startswith(_MUSCLES):
        return t.MUSCLE
    return VALUE[structure_of(name)]


def fine_map(codes: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Fills what the labels leave open inside the body by its HU: fat, soft tissue, bone, gas.

    Args:
        codes: uint8 (I, J, K) fine codes, 0 where nothing is labelled.
        image: HU, same shape.

    Returns:
        uint8 (I, J, K).
    """
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 0.7)
    body = ndimage.binary_opening((smooth > -300) | (codes > 0), iterations=2)
    pieces, _ = ndimage.label(body)
    body = pieces == np.argmax(np.bincount(pieces.ravel())[1:]) + 1
    for k in range(body.shape[2]):
        body[:, :, k] = ndimage.binary_fill_holes(body[:, :, k])
    fine = codes.copy()
    fine[~body] = t.OUTSIDE
    open_ = body & (codes == 0)
    fine[open_] = t.FAT
    fine[open_ & (smooth > -35)] = t.MUSCLE
    fine[open_ & (smooth > 180)] = t.BONE
    fine[open_ & (smooth < -300)] = t.COLON  # gas that the label program missed is nearly always in the colon
    depth = ndimage.distance_transform_edt(np.pad(body, ((1, 1), (1, 1), (0, 0))))[1:-1, 1:-1, :]
    fine[(depth <= 1.0) & open_] = t.SKIN
    return fine


def hull(mask: np.ndarray) -> np.ndarray:
    """Convex hull of a 2D mask, filled (bool, same shape)."""
    points = np.argwhere(mask)
    if len(points) < 4:
        return mask.copy()
    try:
        corners = points[ConvexHull(points).vertices]
    except QhullError:
        return mask.copy()
    x, y = np.indices(mask.shape)
    inside = np.ones(mask.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):  # counter-clockwise
        inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) >= 0
    return inside


def load_template(data_folder: Path) -> Template:
    """Reads the labelled abdomen from the data folder."""
    folder = Path(data_folder) / TEMPLATE_CASE
    names = {int(v): n for v, n in json.loads((folder / "labels.json").read_text(encoding="utf-8")).items()}
    table = np.zeros(256, np.uint8)
    for value, name in names.items():
        table[value] = fine_code(name)
    labels = load(folder / "labels.nii.gz")
    image = resample(load(folder / "image.nii.gz")).array
    fine = fine_map(resample_codes(labels, table[labels.array.astype(np.uint8)]), image)
    # The scan ends at the liver dome: what the label program left open in front there may be heart or esophagus.
    top = fine[25:75, 45:, -8:]
    top[(top == t.MUSCLE) & ndimage.binary_dilation(cavity_of(fine), iterations=2)[25:75, 45:, -8:]] = t.TOP_SOFT
    # Fat between the organs holds vessels; the fat under the skin hardly any.
    between = np.isin(fine, (*range(1, 11), t.AORTA, t.VENA_CAVA, t.VEIN))
    for k in range(fine.shape[2]):
        room = hull(between[:, :, k])
        fine[:, :, k][room & (fine[:, :, k] == t.FAT)] = t.CAVITY
    return Template(fine, cavity_of(fine))


def cavity_of(fine: np.ndarray) -> np.ndarray:
    """Room inside the ribs: per slice from the lowest lung up, the hull of the upper organs without spine and wall."""
    cavity = np.zeros(fine.shape, bool)
    organs = np.isin(fine, (t.SPLEEN, t.LIVER, t.STOMACH, *t.LUNGS, t.HEART))
    low = np.nonzero(np.isin(fine, t.LUNGS).any((0, 1)))[0]
    if low.size == 0:
        return cavity
    for k in range(low[0], fine.shape[2]):
        wall = np.isin(fine[:, :, k], (t.VERTEBRAE, t.BONE, t.CANAL, t.DISC, t.CARTILAGE))
        cavity[:, :, k] = hull(organs[:, :, k]) & ~wall
    return cavity
