"""The nineteen structures of the default model: label values, ids, names, colours and SNOMED codes.

Only training code knows this table; a trained model carries it in its card. A training case says for each voxel
which of these it may be as a bit mask: bit v stands for label value v, bit 0 for background (none of the nineteen).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_LEFT = ("7771000", "Left")
_RIGHT = ("24028007", "Right")


@dataclass(frozen=True)
class Structure:
    """One row of the table. `snomed` and `side` are (code, meaning); `side` is None where there is only one."""

    value: int
    id: str
    name: str
    color: tuple[int, int, int]
    snomed: tuple[str, str]
    side: tuple[str, str] | None = None
    largest_component: bool = True

    @property
    def terminology(self) -> dict:
        """Category, type and modifier as the triplets a model card and a segmentation file carry."""
        return {"category": ["SCT", "123037004", "Anatomical Structure"],
                "type": ["SCT", *self.snomed],
                "modifier": ["SCT", *self.side] if self.side else None}


# Bowel leaves and re-enters any field of view and bone is many pieces, so neither is cut to one component.
STRUCTURES: tuple[Structure, ...] = (
    Structure(1, "spleen", "Spleen", (157, 108, 162), ("78961009", "Spleen")),
    Structure(2, "kidney_right", "Right kidney", (185, 102, 83), ("64033007", "Kidney"), _RIGHT),
    Structure(3, "kidney_left", "Left kidney", (185, 102, 83), ("64033007", "Kidney"), _LEFT),
    Structure(4, "gallbladder", "Gallbladder", (139, 150, 98), ("28231008", "Gallbladder")),
    Structure(5, "liver", "Liver", (221, 130, 101), ("10200004", "Liver")),
    Structure(6, "stomach", "Stomach", (216, 132, 105), ("69695003", "Stomach")),
    Structure(7, "pancreas", "Pancreas", (249, 180, 111), ("15776009", "Pancreas")),
    Structure(8, "duodenum", "Duodenum", (255, 253, 229), ("38848004", "Duodenum")),
    Structure(9, "small_bowel", "Small bowel", (205, 167, 142), ("30315005", "Small bowel"),
              largest_component=False),
    Structure(10, "colon", "Colon", (204, 168, 143), ("71854001", "Colon"), largest_component=False),
    Structure(11, "urinary_bladder", "Urinary bladder", (222, 154, 132), ("89837001", "Urinary bladder")),
    Structure(12, "aorta", "Aorta", (224, 97, 76), ("15825003", "Aorta"), largest_component=False),
    Structure(13, "inferior_vena_cava", "Inferior vena cava", (0, 151, 206), ("64131007", "Inferior vena cava")),
    Structure(14, "heart", "Heart", (206, 110, 84), ("80891009", "Heart")),
    Structure(15, "lung_left", "Left lung", (172, 138, 115), ("39607008", "Lung"), _LEFT),
    Structure(16, "lung_right", "Right lung", (202, 164, 140), ("39607008", "Lung"), _RIGHT),
    Structure(17, "vertebrae", "Vertebrae", (255, 255, 207), ("51282000", "Vertebra"), largest_component=False),
    Structure(18, "bone", "Other bone", (241, 214, 145), ("272673000", "Bone"), largest_component=False),
    Structure(19, "esophagus", "Esophagus", (211, 171, 143), ("32849002", "Esophagus"), largest_component=False),
)

VALUE = {structure.id: structure.value for structure in STRUCTURES} | {"background": 0}
CLASSES = len(STRUCTURES) + 1
ALL_BITS = np.uint32((1 << CLASSES) - 1)


def bit(*ids: str) -> np.uint32:
    """Mask with the bits of the named structures ("background" included) set; KeyError for an unknown name."""
    mask = 0
    for name in ids:
        mask |= 1 << VALUE[name]
    return np.uint32(mask)


def without(*ids: str) -> np.uint32:
    """Mask of everything but the named structures."""
    return np.uint32(int(ALL_BITS) & ~int(bit(*ids)))


def certain(possible: np.ndarray) -> np.ndarray:
    """Where exactly one bit is set (bool, same shape): the class of the voxel is known."""
    return (possible != 0) & ((possible & (possible - np.uint32(1))) == 0)


def certain_labels(possible: np.ndarray, unknown: int = 255) -> np.ndarray:
    """uint8 label values where the class is known, `unknown` elsewhere."""
    labels = np.full(possible.shape, unknown, np.uint8)
    for value in range(CLASSES):
        labels[possible == np.uint32(1 << value)] = value
    return labels


def card_labels() -> list[dict]:
    """The table as the `labels` list of a model card."""
    return [{"value": s.value, "id": s.id, "name": s.name, "color": list(s.color),
             "terminology": s.terminology, "largest_component": s.largest_component} for s in STRUCTURES]
