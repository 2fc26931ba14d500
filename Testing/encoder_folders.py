"""Small exported encoders, written without a pre-training run."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from HiEndSegLib.models.card import describe_weights
from HiEndSegLib.models.encoders import WEIGHTS_NAME, EncoderCard, write_encoder_description
from HiEndSegLib.networks.vit import VisionTransformer3D


def write_encoder(folder: Path, *, seed: int = 5, embed_dim: int = 24, depth: int = 4, num_heads: int = 2, **words
                  ) -> Path:
    """An encoder folder with random weights; words: fields of the description that differ."""
    network = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "patch_size": 12, "in_channels": 1,
               "mlp_ratio": 4.0}
    torch.manual_seed(seed)
    state = VisionTransformer3D(**network, img_size=96, cls_token=True).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, folder / WEIGHTS_NAME)
    card = EncoderCard(**{
        "id": "tiny", "version": "0.0.1", "title": "Tiny encoder", "variant": "vit_tiny_12p", "network": network,
        "modality": "CT", "spacing": 1.5, "window": (-175.0, 250.0), "crop": 96, "licence": "CC0-1.0",
        "provenance": "random weights, made by a test", "weights": describe_weights(folder / WEIGHTS_NAME, "float16"),
        **words})
    write_encoder_description(card, folder)
    return folder
