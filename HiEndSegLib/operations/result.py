"""What a segmentation hands back, without torch, so that faces and the engine's client can hold it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..geometry.labels import Label
from ..geometry.volume import Volume


@dataclass(frozen=True)
class SegmentResult:
    """A label map and everything said about it.

    labels: uint8 on exactly the input's lattice; 0 is background, the other values are the legend's.
    legend: the structures asked for (all of the card's where nothing was asked), found or not.
    statistics: one dict per legend entry: id, name, value, voxels, volume_ml, mean_hu (None where nothing was found).
    info: model (id, version, sha256), input, parameters, device, precision, plan, tiles, timings in seconds,
        peak_memory_bytes; plain numbers, strings, lists and dicts only.
    messages: sentences for the person: what was assumed, stepped down, or not found.
    """

    labels: Volume
    legend: list[Label]
    statistics: list[dict] = field(default_factory=list)
    info: dict = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def to_dict(self) -> dict:
        """Everything but the voxels, ready for JSON."""
        return {"legend": [label.to_dict() for label in self.legend], "statistics": self.statistics,
                "info": self.info, "messages": self.messages}

    @classmethod
    def from_dict(cls, data: dict, labels: Volume) -> SegmentResult:
        """The inverse of `to_dict`, with the voxels given back. Raises KeyError where parts are missing."""
        return cls(labels=labels, legend=[Label.from_dict(entry) for entry in data["legend"]],
                   statistics=list(data["statistics"]), info=dict(data["info"]), messages=list(data["messages"]))
