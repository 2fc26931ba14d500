"""Model cards: everything about a model except its weights, read from an untrusted `card.json` without torch.

A model is a folder: `card.json` beside one safetensors file. Whatever is wrong with the card becomes a `ModelError`
whose sentence names the field.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ModelError, OutputError
from ..geometry.files import atomic_target
from ..geometry.labels import Label
from ..tasks import CancelToken
from .card_checks import MAX_CARD_BYTES, check_plain, json_from_bytes, leads_outside, short
from .card_schema import CARD_SCHEMA, FORMAT, FORMAT_VERSION, VERSION_FORMAT_VERSION

CARD_NAME = "card.json"
_CHUNK = 4 * 1024 * 1024


@dataclass(frozen=True)
class ModelCard:
    """What a model is, wants and names.

    spacing: mm along R, A, S. tile: voxels at that spacing. overlap: fraction of a tile shared with its neighbour.
    windows: one (lo, hi) pair per network input channel, in HU for CT. curve: points (value, value shown to the
    network), none for most models, see `geometry.curve`. labels: value = network class, 1…K.
    weights: {"file", "sha256", "bytes", "dtype"}. folder: where it was read from, None for a card made in memory.
    adaptation: for a version, whose weights are changes to a whole model ("base"): where it comes from and how it was
    measured, see `versions`; None for a whole model.
    """

    id: str
    version: str
    title: str
    modality: str
    network: dict
    spacing: tuple[float, float, float]
    tile: tuple[int, int, int]
    overlap: float
    windows: list[list[float]]
    labels: list[Label]
    licence: str
    provenance: str
    weights: dict
    description: str = ""
    intensity_unit: str = "HU"
    curve: list[list[float]] = field(default_factory=list)
    training: dict = field(default_factory=dict)
    scores: list[dict] = field(default_factory=list)
    default: bool = False
    adaptation: dict | None = None
    folder: Path | None = None

    @property
    def is_version(self) -> bool:
        """Whether the weights are changes to another model, which must be there to load this one."""
        return self.adaptation is not None

    @property
    def key(self) -> str:
        """`id@version`: names exactly this model everywhere (registry, results, command line)."""
        return f"{self.id}@{self.version}"

    @property
    def checksum(self) -> str:
        """SHA-256 of what decides about the answers, hexadecimal: of the weights, and where there is a curve of grey
        values of both, because versions may differ by their curves alone."""
        weights = self.weights["sha256"]
        if not self.curve:
            return weights
        both = [weights, [[float(v) for v in pair] for pair in self.curve]]
        return hashlib.sha256(json.dumps(both).encode()).hexdigest()

    @property
    def weights_path(self) -> Path:
        """Path of the weights; `ModelError` when it is missing or leads out of the model's folder."""
        if self.folder is None:
            raise ModelError(f"Model {self.key} has no folder yet; write it to one before using its weights.")
        return inside(self.folder, self.weights["file"], self.key)

    def label(self, id_or_value: str | int) -> Label:
        """The label with this id or value; `ModelError` with the known ids otherwise."""
        for label in self.labels:
            if id_or_value in (label.id, label.value):
                return label
        known = ", ".join(label.id for label in self.labels)
        raise ModelError(f"Model {self.id} has no structure '{id_or_value}'; it knows: {known}.", code="bad-option")


# ---------------------------------------------------------------------------------------------------- reading


def read_card(folder: str | os.PathLike) -> ModelCard:
    """Read and check `folder/card.json`. The weights are not opened (see `verify_weights`).

    Raises ModelError: no card, too large, not JSON, a field that is missing, unknown or out of range.
    """
    folder = Path(folder)
    try:
        path = inside(folder, CARD_NAME, folder.name)
        with open(path, "rb") as stream:
            raw = stream.read(MAX_CARD_BYTES + 1)
    except OSError as error:
        raise ModelError(f"The card of model folder {folder} cannot be read ({error.strerror or error}); "
                         "check the folder's permissions.") from None
    return card_from_bytes(raw, folder)


def card_from_bytes(raw: bytes, folder: Path | None = None, where: str | None = None) -> ModelCard:
    """Parse the bytes of a `card.json`; `where` names it in messages (default: the folder)."""
    where = where or (f"{CARD_NAME} of {folder.name!r}" if folder is not None else CARD_NAME)
    return card_from_dict(json_from_bytes(raw, where), folder, where)


def card_from_dict(data: Any, folder: Path | None = None, where: str | None = None) -> ModelCard:
    """Check a card's JSON object and make a `ModelCard` of it. Raises ModelError naming the field."""
    where = where or (f"{CARD_NAME} of {folder.name!r}" if folder is not None else CARD_NAME)
    _check(data, where)
    return ModelCard(
        id=data["id"], version=data["version"], title=data["title"], description=data.get("description", ""),
        modality=data["modality"], network=data["network"],
        spacing=tuple(float(v) for v in data["spacing"]), tile=tuple(int(v) for v in data["tile"]),
        overlap=float(data["overlap"]), intensity_unit=data["intensity"]["unit"],
        windows=[[float(low), float(high)] for low, high in data["intensity"]["windows"]],
        curve=[[float(x), float(y)] for x, y in data["intensity"].get("curve", [])],
        labels=[Label.from_dict(entry) for entry in sorted(data["labels"], key=lambda entry: entry["value"])],
        licence=data["licence"], provenance=data["provenance"], training=data.get("training", {}),
        scores=data.get("scores", []), weights=dict(data["weights"]), default=data.get("default", False),
        adaptation=data.get("adaptation"), folder=folder)


def card_to_dict(card: ModelCard) -> dict:
    """The JSON object of a card; `card_from_dict(card_to_dict(card))` gives the card back."""
    data = {
        "format": FORMAT, "format_version": VERSION_FORMAT_VERSION if card.is_version else FORMAT_VERSION,
        "id": card.id, "version": card.version, "title": card.title, "description": card.description,
        "modality": card.modality, "network": card.network, "spacing": list(card.spacing), "tile": list(card.tile),
        "overlap": card.overlap,
        "intensity": {"unit": card.intensity_unit, "windows": [list(window) for window in card.windows]},
        "labels": [label.to_dict() for label in card.labels],
        "licence": card.licence, "provenance": card.provenance, "training": card.training, "scores": card.scores,
        "weights": dict(card.weights),
    }
    if card.curve:
        data["intensity"]["curve"] = [list(point) for point in card.curve]
    if card.default:
        data["default"] = True
    if card.is_version:
        data["adaptation"] = card.adaptation
    return data


def write_card(card: ModelCard, folder: str | os.PathLike) -> Path:
    """Check the card and write it to `folder/card.json`, whole or not at all. Returns the file's path."""
    data = card_to_dict(card)
    _check(data, f"the card of {card.id!r}")
    path = Path(folder) / CARD_NAME
    try:
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"The model card {path} could not be written ({short(str(error))}); "
                          "nothing was changed.") from None
    with atomic_target(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


# ---------------------------------------------------------------------------------------------------- weights


def describe_weights(path: str | os.PathLike, dtype: str) -> dict:
    """The card's "weights" entry for an existing file: name, SHA-256, size in bytes, stored number type."""
    path = Path(path)
    return {"file": path.name, "sha256": file_sha256(path), "bytes": path.stat().st_size, "dtype": dtype}


def file_sha256(path: str | os.PathLike, cancel: CancelToken | None = None) -> str:
    """SHA-256 of a file, read in pieces so that a large one costs no memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            if cancel is not None:
                cancel.check()
            digest.update(chunk)
    return digest.hexdigest()


def verify_weights(card: ModelCard, cancel: CancelToken | None = None) -> Path:
    """Check that the weights are the very bytes the card was written for; returns their path.

    Raises ModelError when the file is missing, of another size or altered.
    """
    path = card.weights_path
    try:
        size = path.stat().st_size
        if size != card.weights["bytes"]:
            raise ModelError(f"The weights of model {card.key} have {size} bytes instead of {card.weights['bytes']}; "
                             "the copy is incomplete or altered, so get the model again from where it came.")
        if file_sha256(path, cancel) != card.weights["sha256"]:
            raise ModelError(f"The weights of model {card.key} do not match the checksum on its card; they were "
                             "altered or damaged, so get the model again from where it came.")
    except OSError as error:
        raise ModelError(f"The weights of model {card.key} cannot be read ({error.strerror or error}); "
                         f"check {path}.") from None
    return path


def inside(folder: Path, name: str, model: str) -> Path:
    """`folder/name` if it is a plain file that really lies in the folder (links leading out are refused)."""
    path = folder / name
    if leads_outside(name) or path.resolve().parent != folder.resolve():
        raise ModelError(f"Model {model} names a file outside its own folder ({short(name)}), which no model may do; "
                         "do not use it, and ask its author for a proper copy.")
    if not path.is_file():
        raise ModelError(f"Model {model} has no file {name}; copy it into {folder} or get the model again.")
    return path


# ---------------------------------------------------------------------------------------------------- checking


def _check(data: Any, where: str) -> None:
    """Schema first, then what a schema cannot say. Raises ModelError with one sentence."""
    check_plain(data, where, CARD_SCHEMA)
    values = sorted(entry["value"] for entry in data["labels"])
    if values != list(range(1, len(values) + 1)):
        raise ModelError(f"{where}: the label values must be 1 to {len(values)} without gap or repetition, and they "
                         f"are {short(', '.join(map(str, values)))}.")
    ids = [entry["id"] for entry in data["labels"]]
    doubled = sorted({name for name in ids if ids.count(name) > 1})
    if doubled:
        raise ModelError(f"{where}: the label id {doubled[0]!r} is used more than once; ids must be unique.")
    for number, (low, high) in enumerate(data["intensity"]["windows"]):
        if not low < high:
            raise ModelError(f"{where}: field intensity.windows[{number}] must go from a lower to a higher value, "
                             f"and it is [{low}, {high}].")
    points = data["intensity"].get("curve", [])
    if any(not a[0] < b[0] for a, b in zip(points, points[1:])):
        raise ModelError(f"{where}: field intensity.curve must have points with rising first values.")
    for field_name, value in _loop_counts(data["network"], "network"):
        if value > 128:
            raise ModelError(f"{where}: field {field_name} is {value}; a network deeper than 128 is not accepted.")
    if ("adaptation" in data) != (data["format_version"] == VERSION_FORMAT_VERSION):
        raise ModelError(f"{where}: field adaptation belongs to cards of format version {VERSION_FORMAT_VERSION}, all "
                         f"of which have it, and this card has version {data['format_version']}; correct the card or "
                         "get the model again.")


def _loop_counts(value: Any, path: str):
    """Numbers of blocks or layers in a network configuration, which become loops when it is built."""
    if isinstance(value, dict):
        for key, entry in value.items():
            here = f"{path}.{key}"
            if isinstance(entry, int) and any(word in key for word in ("depth", "layers", "blocks", "levels")):
                yield here, entry
            yield from _loop_counts(entry, here)
