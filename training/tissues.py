"""Tissue codes of synthetic anatomy, and how each looks in CT.

A *fine map* is a uint8 array (I, J, K), RAS+, 3 mm, whose codes 1..19 are the classes of the default model and whose
higher codes are what lies between them (fat, muscle, discs, ...): background for the model, but not for the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from training.structures import CLASSES

OUTSIDE = 0
SPLEEN, KIDNEY_RIGHT, KIDNEY_LEFT, GALLBLADDER, LIVER, STOMACH, PANCREAS, DUODENUM = range(1, 9)
SMALL_BOWEL, COLON, BLADDER, AORTA, VENA_CAVA, HEART, LUNG_LEFT, LUNG_RIGHT, VERTEBRAE, BONE, ESOPHAGUS = range(9, 20)
FAT, MUSCLE, SKIN, SOFT, CANAL, DISC, CARTILAGE, VEIN, ARTERY, ADRENAL, PROSTATE, AIRWAY, CAVITY, TABLE, SACRUM = range(
    20, 35
)
PULMONARY = 35  # great vessels of the chest other than the aorta and the inferior vena cava
TOP_SOFT = 36  # soft tissue above a label program's reach: heart, esophagus, or neither
FLUID = 37  # effusion, ascites, cysts
FINE_CODES = 38

KIDNEYS = (KIDNEY_RIGHT, KIDNEY_LEFT)
LUNGS = (LUNG_LEFT, LUNG_RIGHT)


def _possible_table() -> np.ndarray:
    table = np.ones(FINE_CODES, np.uint32)
    for value in range(1, CLASSES):
        table[value] = 1 << value
    table[SACRUM] = 1 << BONE
    # Conventions differ here: discs are given to the spine by some, cartilage of the ribs to bone.
    table[DISC] = 1 | 1 << VERTEBRAE
    table[CARTILAGE] = 1 | 1 << BONE
    table[TOP_SOFT] = 1 | 1 << HEART | 1 << ESOPHAGUS
    return table


POSSIBLE = _possible_table()


def possible_classes(fine: np.ndarray) -> np.ndarray:
    """Bit v of the uint32 result (I, J, K) says that the voxel may be class v; bit 0 is background."""
    return POSSIBLE[fine]


PHASES = ("plain", "arterial", "portal", "delayed")

# Mean HU per tissue: one (low, high) for every phase, or one pair that holds for all. Ranges overlap on purpose.
HU: dict[int, tuple[tuple[float, float], ...]] = {
    SPLEEN: ((35, 58), (95, 180), (100, 145), (75, 115)),
    LIVER: ((25, 70), (55, 90), (85, 135), (70, 115)),
    GALLBLADDER: ((-2, 24),),
    PANCREAS: ((22, 48), (70, 130), (65, 115), (50, 90)),
    ESOPHAGUS: ((20, 45), (35, 70), (45, 85), (40, 75)),
    AORTA: ((30, 50), (220, 420), (120, 190), (85, 140)),
    VENA_CAVA: ((28, 50), (40, 160), (90, 180), (85, 140)),
    VEIN: ((28, 50), (50, 150), (120, 200), (90, 140)),
    ARTERY: ((30, 50), (200, 400), (110, 190), (85, 140)),
    PULMONARY: ((30, 50), (120, 380), (110, 190), (85, 140)),
    HEART: ((28, 52), (90, 200), (90, 160), (80, 130)),
    BLADDER: ((-6, 18),),
    LUNG_LEFT: ((-890, -760),),
    LUNG_RIGHT: ((-890, -760),),
    FAT: ((-118, -82),),
    CAVITY: ((-118, -82),),
    MUSCLE: ((35, 62), (40, 68), (45, 75), (42, 70)),
    TOP_SOFT: ((30, 60), (60, 150), (70, 140), (60, 120)),
    FLUID: ((-5, 28),),
    SKIN: ((-30, 40),),
    SOFT: ((-20, 45), (-10, 60), (0, 75), (-5, 65)),
    CANAL: ((5, 40),),
    DISC: ((50, 110),),
    CARTILAGE: ((50, 130),),
    ADRENAL: ((5, 40), (40, 90), (40, 85), (30, 70)),
    PROSTATE: ((25, 50), (40, 80), (50, 95), (50, 90)),
    AIRWAY: ((-1000, -920),),
    TABLE: ((-700, -100),),
}

# Standard deviation in HU of the texture inside a tissue (before noise), and the length of its grain in voxels.
GRAIN: dict[int, float] = {
    SPLEEN: 4, LIVER: 4, PANCREAS: 14, MUSCLE: 9, FAT: 7, CAVITY: 10, SOFT: 28, HEART: 12, AORTA: 5, VENA_CAVA: 10,
    VEIN: 6, LUNG_LEFT: 25, LUNG_RIGHT: 25, ESOPHAGUS: 12, DISC: 8, CARTILAGE: 25, PROSTATE: 8, TABLE: 60, SKIN: 12,
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """What one synthetic scan was drawn with; `hu` is the mean of each fine code (NaN: filled in parts)."""

    phase: str
    hu: np.ndarray
    noise_hu: float
    slice_mm: float
    sharp: float
    notes: dict = field(default_factory=dict)


def draw_look(rng: np.random.Generator, *, phase: str | None = None) -> Look:
    """Draws a contrast phase, the mean HU of every tissue, and the scanner's noise, slice thickness and kernel."""
    if phase is None:
        phase = str(rng.choice(PHASES, p=(0.3, 0.15, 0.4, 0.15)))
    column = PHASES.index(phase)
    hu = np.full(FINE_CODES, np.nan, np.float32)
    hu[OUTSIDE] = rng.uniform(-1015, -985)
    for code, ranges in HU.items():
        low, high = ranges[column] if len(ranges) > 1 else ranges[0]
        hu[code] = rng.uniform(low, high)
    hu[LUNG_RIGHT] = hu[LUNG_LEFT] + rng.normal(0, 12)
    if rng.random() < 0.12 and phase != "arterial":  # fatty liver
        hu[LIVER] -= rng.uniform(15, 40)
    return Look(
        phase=phase,
        hu=hu,
        noise_hu=float(np.exp(rng.uniform(np.log(3), np.log(22)))),
        slice_mm=float(rng.choice((0.0, 3.0, 5.0, 8.0), p=(0.4, 0.25, 0.27, 0.08))),
        sharp=float(rng.choice((0.0, rng.uniform(0.3, 1.0)), p=(0.75, 0.25))),
    )
