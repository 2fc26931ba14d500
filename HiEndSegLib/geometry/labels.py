"""`Label`: what one value of a label map means, and the same as Slicer's terminology tag."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container
from dataclasses import dataclass

#: Slicer's own list: its names and colours are found there without loading a file of ours.
CONTEXT = "Segmentation category and type - DICOM master list"
REGION_CONTEXT = "Anatomic codes - DICOM master list"


@dataclass(frozen=True)
class Label:
    """One structure.

    value: its voxels' value in a label map, 1..255.
    id: stable key in snake case ("kidney_left"), also the segment id in Slicer.
    name: for people ("Left kidney").
    color: (r, g, b), 0..255.
    terminology: {"category": [scheme, code, meaning], "type": […], "modifier": […] or None}, or None.
    largest_component: only its largest connected part is kept by the model that made it.
    """

    value: int
    id: str
    name: str
    color: tuple[int, int, int]
    terminology: dict | None = None
    largest_component: bool = False

    @classmethod
    def from_dict(cls, data: dict) -> Label:
        """From a model card's entry; raises KeyError, TypeError or ValueError where it does not fit."""
        red, green, blue = (int(c) for c in data["color"])
        return cls(value=int(data["value"]), id=str(data["id"]), name=str(data["name"]), color=(red, green, blue),
                   terminology=data.get("terminology"), largest_component=bool(data.get("largest_component", False)))

    def to_dict(self) -> dict:
        """The model card's entry; `Label.from_dict` of it gives an equal label."""
        return {"value": self.value, "id": self.id, "name": self.name, "color": list(self.color),
                "terminology": self.terminology, "largest_component": self.largest_component}


def terminology_tag(label: Label) -> str:
    """Slicer's seven parts joined by "~": context, category, type, modifier, region context, region, its modifier.

    A label without terminology is tagged as a tissue of unspecified kind, as Slicer does for a new segment.
    """
    tissue = ["SCT", "85756007", "Tissue"]
    terminology = label.terminology or {"category": tissue, "type": tissue}
    parts = [_code(terminology.get(key)) for key in ("category", "type", "modifier")]
    return "~".join([CONTEXT, *parts, REGION_CONTEXT, "^^", "^^"])


def parse_terminology_tag(tag: str) -> dict | None:
    """The inverse of `terminology_tag`; None where the tag has no category or type."""
    parts = tag.rstrip("|").split("~")
    if len(parts) < 4:
        return None
    category, type_, modifier = (_parse_code(part) for part in parts[1:4])
    if category is None or type_ is None:
        return None
    return {"category": category, "type": type_, "modifier": modifier}


def _code(triple) -> str:
    return "^".join(str(part).replace("^", " ").replace("~", " ") for part in triple) if triple else "^^"


def _parse_code(text: str) -> list[str] | None:
    parts = text.split("^")
    return parts if len(parts) == 3 and parts[1] else None


def structure_id(name: str, terminology: dict | None = None, taken: Container[str] = ()) -> str:
    """A label id (snake case, ASCII, at most 64 characters) for a structure that somebody named, not in `taken`.

    "Rippe, links" becomes "rippe_links". A name without a Latin letter or digit gives way to what the terminology
    calls it, and where there is none to "structure"; a second of the same id becomes "…_2".
    """
    id_ = _snake(name) or _snake(terminology_name(terminology)) or "structure"
    if not id_[0].isalpha():
        id_ = f"structure_{id_}"
    id_ = id_[:60].rstrip("_")
    unique, number = id_, 2
    while unique in taken:
        unique, number = f"{id_}_{number}", number + 1
    return unique


def terminology_name(terminology: dict | None) -> str:
    """"Left Kidney" of a terminology with a modifier; "" without any."""
    if not terminology:
        return ""
    return " ".join(code[2] for code in (terminology.get("modifier"), terminology.get("type")) if code and code[2])


def _snake(text: str) -> str:
    folded = unicodedata.normalize("NFKD", text.casefold()).encode("ascii", "ignore").decode()
    return "_".join(re.findall("[a-z0-9]+", folded))
