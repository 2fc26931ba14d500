"""Small real networks for the attention tests: random ones, and one whose attention is known beforehand."""

from __future__ import annotations

import torch
from torch import nn

from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.models.card import ModelCard
from HiEndSegLib.models.loading import Model
from HiEndSegLib.networks.build import build_network
from HiEndSegLib.networks.vit import VisionTransformer3D

WINDOWS = ([-175.0, 250.0],)
#: A MaskMed of 24^3 voxels: 8 tokens, decoder maps of 3^3 and 6^3.
MASKMED = {"kind": "maskmed", "num_classes": 3, "img_size": 24, "channels": [8, 8, 12], "fsad_dim": 12, "fsad_heads": 2,
           "fsad_points": 1, "fsad_depth": 1, "head_dim": 12, "head_heads": 2, "mask_dim": 4, "num_queries": 4,
           "vit": {"name": "vit_tiny_12p", "embed_dim": 24, "depth": 4, "num_heads": 2}, "taps": [0, 1, 2]}


def card(*, tile=16, spacing=2.0, classes=3, windows=WINDOWS, title="Test model", modality="CT"):
    labels = [Label(n, f"part_{n}", f"Part {n}", (40 * n, 90, 30), None) for n in range(1, classes)]
    return ModelCard(id="test", version="1.0.0", title=title, modality=modality, network={"kind": "test"},
                     spacing=(spacing,) * 3, tile=(tile,) * 3, overlap=0.5, windows=[list(w) for w in windows],
                     labels=labels, licence="CC0-1.0", provenance="made by a test",
                     weights={"file": "weights.safetensors", "sha256": "0" * 64, "bytes": 0, "dtype": "float32"})


def model(network, **options) -> Model:
    return Model(card(**options), network.eval(), torch.device("cpu"))


def spread_out(module: nn.Module, std=0.5) -> nn.Module:
    """Weights whose attention is far from uniform, as it is after training."""
    torch.manual_seed(1)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in ("qkv", "cross_q", "cross_kv"):
            nn.init.normal_(layer.weight, std=std)
    return module.eval()


def random_vit(**options) -> VisionTransformer3D:
    torch.manual_seed(0)
    return spread_out(VisionTransformer3D(**{"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 4,
                                             "num_heads": 3, **options}))


def maskmed(**options) -> nn.Module:
    torch.manual_seed(0)
    return spread_out(build_network({**MASKMED, **options}))


class PeakedNet(nn.Module):
    """Every token of every block looks at bright tokens only: where those lie is all there is to its attention.

    A dark patch becomes a zero token and stays one; a bright patch becomes one that layer norm turns into a fixed
    direction, whatever its brightness. q is a constant, k is the component along that direction times `sharp`.
    """

    def __init__(self, *, img_size=16, patch_size=4, depth=3, num_classes=3, sharp=60.0):
        super().__init__()
        self.num_classes = num_classes
        self.vit = VisionTransformer3D(img_size=img_size, patch_size=patch_size, embed_dim=6, depth=depth, num_heads=1,
                                       learned_position=True)
        with torch.no_grad():
            for parameter in self.vit.parameters():
                parameter.zero_()
            self.vit.patch_embed.proj.weight[0] = 1.0 / patch_size ** 3
            for block in self.vit.blocks:
                block.norm1.weight.fill_(1.0)
                block.attn.qkv.bias[0] = sharp          # q of every token
                block.attn.qkv.weight[6, 0] = 1.0       # k: first component after the norm

    def scores(self, x):
        bright = x[:, :1].clamp(0.01, 0.99)
        rest = (1 - bright) / (self.num_classes - 1)
        return torch.cat([rest.expand(-1, self.num_classes - 1, -1, -1, -1), bright], dim=1)


class ConvNet(nn.Module):
    """No transformer; smooth enough to have a gradient."""

    def __init__(self, num_classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.num_classes = num_classes
        self.conv = nn.Conv3d(1, num_classes, 3, padding=1)

    def scores(self, x):
        return self.conv(x).softmax(1)


class RandomVitNet(nn.Module):
    """A random encoder as a model's network."""

    def __init__(self, num_classes=3, **options):
        super().__init__()
        self.num_classes = num_classes
        self.vit = random_vit(**options)
