"""What adaptation is held against: networks that learn the ticked structures from the same case and nothing else.

Both draw crops as adaptation does (same augmentation, as many on the structures as anywhere in the body) from the whole
case (nothing is held out, which is in their favor) and learn for the seconds they are given. The last state
counts, and the learning rate follows the clock: up for a tenth, then a cosine to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from HiEndSegLib.errors import OptionError
from HiEndSegLib.geometry.body import body_mask
from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.geometry.resample import resample_like, resample_to_spacing
from HiEndSegLib.models.card import ModelCard
from HiEndSegLib.models.encoders import apply_encoder, load_encoder_weights, read_encoder
from HiEndSegLib.models.loading import Model
from HiEndSegLib.networks.build import build_network
from HiEndSegLib.networks.objective import maskmed_loss
from HiEndSegLib.networks.position import as_triple
from HiEndSegLib.operations.augment import keep_inside, random_grid, sample_codes, sample_image, vary_hounsfield
from HiEndSegLib.operations.peak import peak_memory

from .adaptation_cases import BY_ID, UNKNOWN, LabelledCase
from .adaptation_run import RunConfig, clock_of
from .oneshot_run import dice_ce_loss

#: UNETR's feature size on a CPU, and its window: the encoder's.
FEATURES, WINDOW = 8, (-175.0, 250.0)
#: Seconds where none were given (no quick run to equal).
SECONDS = 300.0

_AIR_HU = -1024.0

Learned = tuple[Model, dict, list[dict]]


def learn_scratch(config: RunConfig, model: Model, case: LabelledCase, structures: Sequence[str],
                  encoder: Path | None = None) -> Learned:
    """The default's own network and head with random weights, trained whole with its own loss and rate."""
    torch.manual_seed(config.seed)
    network = build_network({**model.card.network, "num_classes": len(structures) + 1})
    if config.crop % 24:
        raise OptionError(f"A crop of {config.crop} voxels does not fit this network; take a multiple of 24.")
    card = replace(model.card, id="scratch", labels=_labels(structures), network={
        **model.card.network, "num_classes": len(structures) + 1})
    rng = np.random.default_rng(config.seed)

    def loss(crops: Crops) -> Tensor:
        image, codes = crops.draw()
        with _half(config):
            out = network(image[None].to(config.device))
        offset = tuple(int(o) for o in rng.integers(0, 4, 3))
        return maskmed_loss(out, crops.possible(codes)[None].to(config.device), offset=offset)["loss"]

    return _learn(config, card, network, case, structures, loss, rate=6e-4, decay=0.02)


def learn_unetr(config: RunConfig, model: Model, case: LabelledCase, structures: Sequence[str],
                encoder: Path | None = None) -> Learned:
    """UNETR as published for fine-tuning, on the encoder in that folder."""
    if encoder is None:
        raise OptionError("UNETR is fine-tuned from an encoder here; name its folder with --encoder.")
    entry = dict(read_encoder(encoder).network)
    entry = {"skip_indices": [entry["depth"] * k // 4 for k in (1, 2, 3)], **entry}
    options = {"kind": "unetr12", "out_channels": len(structures) + 1, "img_size": config.crop,
               "patch_size": entry["patch_size"], "in_channels": 1, "feature_size": FEATURES,
               "hidden_size": entry["embed_dim"], "mlp_dim": int(entry["embed_dim"] * entry.get("mlp_ratio", 4.0)),
               "num_layers": entry["depth"], "num_heads": entry["num_heads"], "ln_eps": 1e-6,
               "skip_indices": list(entry["skip_indices"])}
    torch.manual_seed(config.seed)
    network = build_network(options)
    apply_encoder(network, load_encoder_weights(encoder))
    card = replace(model.card, id="unetr", labels=_labels(structures), network=options, windows=[list(WINDOW)],
                   tile=as_triple(config.crop))

    def loss(crops: Crops) -> Tensor:
        image, codes = crops.draw()
        with _half(config):
            logits = network(image[None].to(config.device))
        codes[codes == crops.open] = UNKNOWN
        return dice_ce_loss(logits, codes[None].to(config.device))

    return _learn(config, card, network, case, structures, loss, rate=1e-3, decay=1e-5)


def _labels(structures: Sequence[str]) -> list[Label]:
    return [replace(BY_ID[name], value=number) for number, name in enumerate(structures, 1)]


def _half(config: RunConfig) -> torch.autocast:
    return torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=True)


class Crops:
    """Augmented crops of a case without end.

    `draw()` gives the image (C, S, S, S) in [0, 1] and codes (S, S, S) uint8: 0 for none of the structures, 1, 2, ...
    for them, `open` where nobody said. Every other one is about a structure, each as often as another; no flips,
    left and right are labels. codes: of the whole case, on the card's lattice.
    """

    def __init__(self, case: LabelledCase, card: ModelCard, structures: Sequence[str], size: int, seed: int):
        self.windows, self.size, self.open = card.windows, (size,) * 3, len(structures) + 1
        self.rng, self.count = np.random.default_rng(seed), 0
        image = resample_to_spacing(case.volume, card.spacing)
        self.image = image.array
        number = np.zeros(256, np.uint8)
        number[UNKNOWN] = self.open
        for code, name in enumerate(structures, 1):
            number[BY_ID[name].value] = code
        self.codes = number[resample_like(case.labels, image, order=0, fill=UNKNOWN).array]
        self.centers = [np.argwhere(self.codes == code) for code in range(1, self.open)]
        self.centers = [voxels for voxels in self.centers if len(voxels)]
        found = np.argwhere(body_mask(image))
        self.low, self.high = found.min(0), found.max(0) + 1

    def draw(self) -> tuple[Tensor, Tensor]:
        rng = self.rng
        if self.count % 2 == 0:
            voxels = self.centers[rng.integers(len(self.centers))]
            center = voxels[rng.integers(len(voxels))] + rng.uniform(-self.size[0] / 4, self.size[0] / 4, 3)
        else:
            center = rng.uniform(self.low, self.high)
        self.count += 1
        shape = self.image.shape
        grid = random_grid(rng, keep_inside(center, shape, self.size), shape, self.size, bend=0.5)
        image = vary_hounsfield(sample_image(self.image, grid, _AIR_HU), rng)
        x = torch.stack([((image - low) / (high - low)).clamp(0, 1) for low, high in self.windows])
        return x, sample_codes(self.codes, grid).to(torch.uint8)

    def possible(self, codes: Tensor) -> Tensor:
        """The codes as bit sets."""
        table = torch.tensor([1 << c for c in range(self.open)] + [(1 << self.open) - 1])
        return table[codes.long()]


def clock_rate(done: float, peak: float, warmup: float = 0.1) -> float:
    """The learning rate when `done` of the time (0 to 1) is over."""
    if done < warmup:
        return peak * max(done / warmup, 0.01)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup))))


def _learn(config: RunConfig, card: ModelCard, network: nn.Module, case: LabelledCase, structures: Sequence[str],
           loss_of: Callable[[Crops], Tensor], *, rate: float, decay: float) -> Learned:
    """Trains until the seconds (or steps) are over; preparing the case counts."""
    budget, clock = config.seconds or SECONDS, clock_of(config.device)
    started = clock()
    losses = []
    with peak_memory() as peak:
        crops = Crops(case, card, structures, config.crop, config.seed)
        network.to(config.device).train()
        decayed = [p for p in network.parameters() if p.dim() > 1]
        plain = [p for p in network.parameters() if p.dim() <= 1]
        optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": decay},
                                       {"params": plain, "weight_decay": 0.0}], lr=rate)
        while True:
            done = (clock() - started) / budget
            if config.steps is not None:
                done = len(losses) / config.steps
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = clock_rate(done, rate)
            loss = loss_of(crops)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if torch.isfinite(nn.utils.clip_grad_norm_(network.parameters(), 1.0)):
                optimizer.step()
            losses.append(loss.item())
    network.eval().requires_grad_(False)
    report = {"seconds": round(clock() - started, 1), "steps": len(losses),
              "peak_memory_bytes": peak.bytes, "crop": config.crop,
              "parameters": sum(p.numel() for p in network.parameters())}
    curve = [{"step": first, "loss": round(float(np.mean(losses[first:first + 20])), 4)}
             for first in range(0, len(losses), 20)]
    return Model(card, network, torch.device(config.device)), report, curve
