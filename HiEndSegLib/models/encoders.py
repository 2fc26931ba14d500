"""Pretrained encoders: a folder with `description.json` and the encoder's weights, read as untrusted, like a model's.

An encoder is no model: it names no structure. It is where training of one starts. Its tensors carry the names of the
official Hi-End-MAE encoder, so `official` fills our networks with them. `read_encoder` needs no torch.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError, OutputError
from ..geometry.files import atomic_target
from .card import inside, verify_weights
from .card_checks import MAX_CARD_BYTES, check_plain, json_from_bytes
from .card_schema import CARD_SCHEMA, ID_PATTERN, VERSION_PATTERN, WEIGHTS_PATTERN

if TYPE_CHECKING:
    from torch import Tensor, nn

DESCRIPTION_NAME = "description.json"
WEIGHTS_NAME = "encoder.safetensors"
FORMAT = "hiendseg-encoder"
FORMAT_VERSION = 1

_SIZE = {"type": "integer", "minimum": 1, "maximum": 8192}
_NETWORK = {"embed_dim": {**_SIZE, "multipleOf": 6}, "depth": {"type": "integer", "minimum": 1, "maximum": 128},
            "num_heads": _SIZE, "patch_size": {"type": "integer", "minimum": 1, "maximum": 64},
            "in_channels": {"type": "integer", "minimum": 1, "maximum": 16},
            "mlp_ratio": {"type": "number", "minimum": 0.5, "maximum": 16}}
_KNOWN = CARD_SCHEMA["properties"]
ENCODER_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "HiEndSeg encoder description",
    "type": "object",
    "required": ["format", "format_version", "id", "version", "title", "variant", "network", "modality", "spacing",
                 "crop", "licence", "provenance", "weights"],
    "additionalProperties": False,
    "properties": {
        "format": {"const": FORMAT},
        "format_version": {"const": FORMAT_VERSION},
        "id": {"type": "string", "pattern": ID_PATTERN},
        "version": {"type": "string", "pattern": VERSION_PATTERN, "maxLength": 64},
        "title": _KNOWN["title"],
        "description": _KNOWN["description"],
        "variant": {"type": "string", "minLength": 1, "maxLength": 100},
        "network": {"type": "object", "required": list(_NETWORK), "additionalProperties": False,
                    "properties": _NETWORK},
        "modality": _KNOWN["modality"],
        "spacing": {"type": "number", "minimum": 0.1, "maximum": 20},                       # mm, isotropic
        "window": {"type": ["array", "null"], "minItems": 2, "maxItems": 2,                 # HU; null: by percentiles
                   "items": {"type": "number", "minimum": -100000, "maximum": 100000}},
        "crop": {"type": "integer", "minimum": 1, "maximum": 1024},                         # voxels
        "licence": _KNOWN["licence"],
        "provenance": _KNOWN["provenance"],
        "training": {"type": "object"},
        "weights": {**_KNOWN["weights"], "properties": {**_KNOWN["weights"]["properties"],
                                                        "file": {"type": "string", "pattern": WEIGHTS_PATTERN}}},
    },
}


@dataclass(frozen=True)
class EncoderCard:
    """What an encoder is and was trained on.

    network: keywords of `VisionTransformer3D` (embed_dim, depth, num_heads, patch_size, in_channels, mlp_ratio).
    spacing: mm. window: the HU that became 0 and 1 (None for MR, scaled between percentiles). crop: voxels.
    training: steps, losses, data with licences, in the exporter's own words. weights: as on a model's card.
    """

    id: str
    version: str
    title: str
    variant: str
    network: dict
    modality: str
    spacing: float
    window: tuple[float, float] | None
    crop: int
    licence: str
    provenance: str
    weights: dict
    description: str = ""
    training: dict = field(default_factory=dict)
    folder: Path | None = None

    @property
    def key(self) -> str:
        """`id@version`."""
        return f"{self.id}@{self.version}"

    @property
    def weights_path(self) -> Path:
        """Path of the weights; `ModelError` when it is missing or leads out of the encoder's folder."""
        if self.folder is None:
            raise ModelError(f"Encoder {self.key} has no folder yet; write it to one before using its weights.")
        return inside(self.folder, self.weights["file"], self.key)


def read_encoder(folder: str | os.PathLike) -> EncoderCard:
    """Read and check `folder/description.json`; the weights are not opened. Raises ModelError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"There is no encoder folder {folder}; give the folder that holds {DESCRIPTION_NAME}.")
    where = f"{DESCRIPTION_NAME} of {folder.name!r}"
    try:
        with open(inside(folder, DESCRIPTION_NAME, folder.name), "rb") as stream:
            raw = stream.read(MAX_CARD_BYTES + 1)
    except OSError as error:
        raise ModelError(f"The description of encoder folder {folder} cannot be read ({error.strerror or error}); "
                         "check the folder's permissions.") from None
    return encoder_from_dict(json_from_bytes(raw, where), folder, where)


def encoder_from_dict(data: object, folder: Path | None = None, where: str = DESCRIPTION_NAME) -> EncoderCard:
    """Check a description's JSON object and make an `EncoderCard` of it. Raises ModelError naming the field."""
    check_plain(data, where, ENCODER_SCHEMA)
    window, network = data.get("window"), data["network"]
    if window is not None and not window[0] < window[1]:
        raise ModelError(f"{where}: field window must go from a lower to a higher value, and it is {window}.")
    if network["embed_dim"] % network["num_heads"]:
        raise ModelError(f"{where}: field network.num_heads ({network['num_heads']}) does not divide "
                         f"network.embed_dim ({network['embed_dim']}).")
    if data["crop"] % network["patch_size"]:
        raise ModelError(f"{where}: field crop ({data['crop']}) is no multiple of network.patch_size "
                         f"({network['patch_size']}).")
    return EncoderCard(
        id=data["id"], version=data["version"], title=data["title"], variant=data["variant"], network=dict(network),
        modality=data["modality"], spacing=float(data["spacing"]),
        window=None if window is None else (float(window[0]), float(window[1])), crop=data["crop"],
        licence=data["licence"], provenance=data["provenance"], weights=dict(data["weights"]),
        description=data.get("description", ""), training=data.get("training", {}), folder=folder)


def encoder_to_dict(card: EncoderCard) -> dict:
    """The JSON object of a description; `encoder_from_dict` gives the card back."""
    return {
        "format": FORMAT, "format_version": FORMAT_VERSION, "id": card.id, "version": card.version,
        "title": card.title, "description": card.description, "variant": card.variant, "network": dict(card.network),
        "modality": card.modality, "spacing": card.spacing,
        "window": None if card.window is None else list(card.window), "crop": card.crop, "licence": card.licence,
        "provenance": card.provenance, "training": card.training, "weights": dict(card.weights)}


def write_encoder_description(card: EncoderCard, folder: str | os.PathLike) -> Path:
    """Check the description and write it, whole or not at all. Returns the file's path."""
    data = encoder_to_dict(card)
    check_plain(data, f"the description of {card.id!r}", ENCODER_SCHEMA)
    path = Path(folder) / DESCRIPTION_NAME
    try:
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (ValueError, TypeError) as error:
        raise OutputError(f"The description {path} could not be written ({error}); nothing was changed.") from None
    with atomic_target(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


# ----------------------------------------------------------------------------------------------- weights (torch)


def load_encoder_weights(folder: str | os.PathLike) -> dict[str, Tensor]:
    """The encoder's tensors by their official names, float32, checked: the bytes against the description's checksum,
    names and shapes against its network, and every value finite.

    Raises ModelError with one sentence.
    """
    import torch

    from ..networks.vit import VisionTransformer3D
    from .weights import read_safetensors

    card = read_encoder(folder)
    state = read_safetensors(verify_weights(card))
    with torch.device("meta"):
        sketch = VisionTransformer3D(**card.network, img_size=card.crop, cls_token=True).state_dict()
    for name, wanted in sketch.items():
        if name not in state:
            raise ModelError(f"Encoder {card.key} lacks the tensor {name}, which its description's network needs; get "
                             "the encoder again from where it came.")
        if state[name].shape != wanted.shape:
            raise ModelError(f"Encoder {card.key} has {name} in the shape {tuple(state[name].shape)}, and its "
                             f"description's network needs {tuple(wanted.shape)}; get the encoder again from where it "
                             "came.")
    unknown = [name for name in state if name not in sketch]
    if unknown:
        raise ModelError(f"Encoder {card.key} holds a tensor {unknown[0]!r} that its description's network does not "
                         "have; get the encoder again from where it came.")
    bad = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise ModelError(f"Encoder {card.key} holds values in {bad[0]} that are not finite; get the encoder again from "
                         "where it came.")
    return {name: tensor.float() for name, tensor in state.items()}


def apply_encoder(network: nn.Module, weights: dict[str, Tensor]) -> str:
    """Fill a `VisionTransformer3D` (with or without cls token) or the encoder of a UNETR; returns a sentence on what
    was loaded. A learned position table starts as the fixed one the encoder was trained with.

    Raises ModelError: another width, depth or patch.
    """
    from ..networks.position import sincos_position_3d
    from ..networks.vit import VisionTransformer3D
    from .official import load_encoder, load_unetr, unetr_grid

    content = {f"encoder.{name}": tensor for name, tensor in weights.items()}
    width = int(weights["patch_embed.proj.bias"].shape[0])
    if isinstance(network, VisionTransformer3D):
        if network.learned_position:
            content["encoder_pos_embed"] = sincos_position_3d(network.grid, width)
        return load_encoder(network, content).sentence
    content["encoder_pos_embed"] = sincos_position_3d(unetr_grid(network)[0], width)
    return load_unetr(network, content).sentence
