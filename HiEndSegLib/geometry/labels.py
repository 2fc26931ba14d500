"""`Label`: what one value of a label map means, and the same as Slicer's terminology tag."""

from __future__ import annotations

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
