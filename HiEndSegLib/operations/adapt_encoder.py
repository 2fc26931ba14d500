"""A model to be taught around nothing but a pretrained encoder: the paper's one-shot setting (arXiv 2502.08347).

The ViT comes from the weights; convolutional pyramid, FSAD and head start at random, and the card names no structure
yet. `adapt` then teaches every structure as a new one, with the ViT frozen (quick) or not (full).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Sequence

import torch

from ..errors import ModelError
from ..geometry.labels import Label
from ..models.card import ModelCard, file_sha256
from ..models.encoders import DESCRIPTION_NAME, load_encoder_weights, read_encoder
from ..models.loading import Model
from ..models.official import encoder_shape, is_official, load_encoder, unwrap_state
from ..models.weights import read_checkpoint, read_safetensors
from ..networks.build import build_network

#: What the published encoders were trained on (papers: 1.5 mm, [-175, 250] HU, crops of 96).
SPACING, WINDOW, CROP = 1.5, (-175.0, 250.0), 96


def model_from_encoder(encoder: str | os.PathLike, labels: Sequence[Label] = (), *, seed: int = 0) -> Model:
    """A model that knows nothing but the background, with this encoder inside.

    encoder: a published Hi-End-MAE checkpoint, a file with the encoder's tensors alone, or an encoder folder. labels:
    structures that will be taught; they only have to be fit for a card. seed: of the random part.
    Raises ModelError: no encoder in the file, one whose patches do not divide a crop, damaged weights.
    """
    path = Path(encoder)
    if path.is_dir() or path.name == DESCRIPTION_NAME:
        folder = path if path.is_dir() else path.parent
        card = read_encoder(folder)
        state = {f"encoder.{name}": tensor for name, tensor in load_encoder_weights(folder).items()}
        facts = {"spacing": card.spacing, "crop": card.crop, "heads": card.network["num_heads"],
                 "mlp_ratio": card.network["mlp_ratio"], "modality": card.modality, "licence": card.licence,
                 "provenance": card.provenance, "title": card.title, "window": card.window,
                 "source": {"id": card.id, "version": card.version, "file": card.weights["file"],
                            "sha256": card.weights["sha256"]}}
    else:
        state, facts = _published(path)
    shape = encoder_shape(state)
    if len(set(shape.patch)) != 1 or facts["crop"] % shape.patch[0] or facts["crop"] % 8:
        raise ModelError(f"The encoder cuts its input into patches of {'x'.join(map(str, shape.patch))} voxels, which "
                         f"do not fit a tile of {facts['crop']}; choose another encoder.")
    # A name of the catalogue is asked for; every size that follows is the checkpoint's own.
    vit = {"name": "vit_tiny_12p", "embed_dim": shape.width, "depth": shape.depth, "patch_size": shape.patch[0],
           "num_heads": facts["heads"], "mlp_ratio": facts["mlp_ratio"]}
    config = {"kind": "maskmed", "num_classes": 1, "in_channels": 1, "img_size": facts["crop"], "vit": vit,
              "taps": sorted({shape.depth * n // 4 for n in (1, 2, 3)})}
    network = _build(config, seed)
    try:
        load_encoder(network.encoder.vit, state)
    except ModelError:
        if "encoder_pos_embed" not in state:
            raise
        config["vit"] = {**vit, "learned_position": True}       # its position table was trained, too
        network = _build(config, seed)
        load_encoder(network.encoder.vit, state)
    window = facts["window"] or WINDOW
    card = ModelCard(
        id="from-encoder", version="0", title=f"From the encoder: {facts['title']}", modality=facts["modality"],
        network=config, spacing=(facts["spacing"],) * 3, tile=(facts["crop"],) * 3, overlap=0.5,
        windows=[list(window)], labels=[], licence=facts["licence"],
        provenance=f"Encoder: {facts['provenance']} Everything after it learned from one labeled case.",
        intensity_unit="HU" if facts["modality"] == "CT" else "native",
        weights={"file": "weights.safetensors", "sha256": "0" * 64, "bytes": 0, "dtype": "float32"},
        training={"encoder": {"shape": str(shape), **facts["source"]}})
    return Model(card, network.eval().requires_grad_(False), torch.device("cpu"))


def _build(config: dict, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(config)


def _published(path: Path) -> tuple[dict, dict]:
    """Tensors by their official names and what is known of such files."""
    reader = read_safetensors if path.suffix == ".safetensors" else lambda p: read_checkpoint(p, mmap=True)
    state = unwrap_state(reader(path))
    if "patch_embed.proj.weight" in state:          # the encoder alone, without a prefix
        state = {f"encoder.{name}": tensor for name, tensor in state.items()}
    if not is_official(state):
        found = ", ".join(list(state)[:3]) or "no tensor"
        raise ModelError(f"{path.name} has no Hi-End-MAE encoder in it (it has {found}); choose a published Hi-End-MAE "
                         "checkpoint or an encoder folder.")
    state = {name: tensor.float() for name, tensor in state.items()
             if name.startswith("encoder.") or name == "encoder_pos_embed"}
    bad = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise ModelError(f"{path.name} holds values in {bad[0]} that are not finite; get the file again from where it "
                         "came.")
    shape = encoder_shape(state)
    hidden = state.get("encoder.blocks.0.mlp.fc1.weight")
    if hidden is None:
        raise ModelError(f"{path.name} has no encoder blocks; it is incomplete, so get it again.")
    # The number of heads leaves no trace in the tensors; every published variant has heads of 64 or 96 channels.
    heads = {768: 12, 1536: 16, 144: 6, 384: 6}.get(shape.width) or max(1, shape.width // 64)
    if shape.width % heads:
        raise ModelError(f"{path.name} holds an encoder {shape.width} wide, and its number of attention heads is not "
                         "known; use an encoder folder, which says it.")
    return state, {"spacing": SPACING, "crop": CROP, "heads": heads, "mlp_ratio": hidden.shape[0] / shape.width,
                   "modality": "CT", "licence": "As published with the encoder's weights.", "window": WINDOW,
                   "provenance": "weights published by others, see their terms.", "title": str(shape),
                   "source": {"file": path.name, "sha256": file_sha256(path)}}
