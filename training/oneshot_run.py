"""One run of the one-shot protocol (arXiv 2502.08347, fine-tuning): a UNETR learns from one labelled case.

As published: UNETR on the encoder, the whole network trained at one learning rate, AdamW, Dice + cross-entropy (squared
denominator, background included), crops centred on foreground and background 1:1, small changes of intensity, sliding
window with constant weights, mean Dice over the foreground classes. Different, for the reasons given:
- steps are few, so warm-up and cosine go by step, the learning rate is higher, the gradient's norm is cut at 1, and
  crops on foreground take the classes in turn by chance (by voxels, four of five would show the liver);
- no flips and quarter turns: left and right are labels here;
- voxels without annotation enter neither loss nor score;
- the last network is scored: there is no second labelled case that could choose among earlier ones.

All rows share everything but the encoder's initial weights: decoder, crops and their order follow from the seed alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import monai
import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceLoss
from monai.transforms import Compose, RandCropByLabelClassesd, RandScaleIntensityd, RandShiftIntensityd, SpatialPad
from torch import Tensor

from HiEndSegLib.errors import InputError, OptionError
from HiEndSegLib.models.encoders import apply_encoder
from HiEndSegLib.networks.token_unetr import TokenUNETR
from HiEndSegLib.networks.unetr import UNETR12
from HiEndSegLib.networks.vit import VIT_VARIANTS, VisionTransformer3D

from .evaluate import dice
from .oneshot_cases import UNKNOWN, LabelledCase, Task, read_case, taught_classes

#: Rows that need no file: UNETR's own start (MONAI's, the paper's "scratch"), and the start of the pre-training itself
#: (Xavier, sine-cosine positions) without any pre-training.
SCRATCH, RANDOM = "scratch", "random"
_EPS = 1e-6     # of the encoder's norms, as in pre-training, so that a loaded encoder computes what it did there
_VERSION = 1
CPU = torch.device("cpu")


@dataclass(frozen=True)
class RunConfig:
    """Everything a result depends on. `weights`: SHA-256 of the row's encoder, "" for the rows without one.

    decoder: "unetr", the paper's, with feature_size; or "token", ours, which costs a seventh a voxel on a CPU.
    warmup: fraction of the steps. crop: voxels, a multiple of the patch. network: keywords of the encoder that differ
    from its variant. Threads and folders are not part of it.
    """

    task: Task
    row: str
    weights: str
    seed: int
    steps: int
    crop: int = 72
    crops: int = 1
    decoder: str = "unetr"
    feature_size: int = 8
    variant: str = "vit_tiny_12p"
    network: dict = field(default_factory=dict)
    window: tuple[float, float] = (-175.0, 250.0)
    lr: float = 1e-3
    weight_decay: float = 1e-5
    warmup: float = 0.1
    precision: str = "bf16"
    overlap: float = 0.25

    def __post_init__(self) -> None:
        if self.variant not in VIT_VARIANTS:
            raise OptionError(f"There is no encoder named {self.variant!r}; choose one of {', '.join(VIT_VARIANTS)}.")
        patch = self.encoder["patch_size"]
        if self.crop < patch or self.crop % patch:
            raise OptionError(f"A crop of {self.crop} voxels cannot be cut into patches of {patch}; take "
                              f"{max(patch, round(self.crop / patch) * patch)}.")
        if self.decoder not in ("unetr", "token"):
            raise OptionError(f"The decoder is unetr or token, not {self.decoder}.")
        if self.precision not in ("bf16", "fp32"):
            raise OptionError(f"The precision is bf16 or fp32, not {self.precision}.")
        for name in ("steps", "crops", "feature_size", "lr"):
            if getattr(self, name) <= 0:
                raise OptionError(f"{name} must be positive, not {getattr(self, name)}.")
        if not 0 <= self.overlap < 1 or not 0 <= self.warmup < 1:
            raise OptionError(f"Overlap and warm-up are fractions below 1, not {self.overlap} and {self.warmup}.")

    @property
    def encoder(self) -> dict:
        """Keywords of the encoder."""
        return {"in_channels": 1, **VIT_VARIANTS[self.variant], **self.network}

    @property
    def digest(self) -> str:
        """Eight characters that differ where anything differs that the result depends on."""
        text = json.dumps({**asdict(self), "version": _VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def file_name(self) -> str:
        row = "".join(c if c.isalnum() or c in "-." else "-" for c in self.row)
        return (f"{self.task.data}-{self.task.group}_{self.task.labelled}_{row}_seed{self.seed}_{self.steps}_"
                f"{self.digest}.json")


# ---------------------------------------------------------------------------------------------------------- network


def initial_network(config: RunConfig, weights: Mapping[str, Tensor] | None = None) -> UNETR12 | TokenUNETR:
    """The network a run starts with; `weights`: an encoder's tensors under `VisionTransformer3D` names.

    The token decoder keeps the encoder as it is in pre-training, positions included; its scratch starts as random does.

    UNETR trains its position table. With an encoder it starts as the fixed table of the crop's own token grid, at
    integer coordinates, whatever grid the pre-training had: neighbours keep the distance that the encoder knows.
    (Resampling the table, as `VisionTransformer3D` does with a learned one, would stretch it.)

    Raises ModelError: weights of another width, depth or patch.
    """
    entry = config.encoder
    torch.manual_seed(config.seed)
    if config.decoder == "token":
        vit = {key: value for key, value in entry.items() if key != "skip_indices"}
        network = TokenUNETR(out_channels=1 + len(config.task.classes), taps=entry.get("skip_indices", (3, 6, 9)),
                             vit={"img_size": config.crop, "norm_eps": _EPS, **vit})
        if weights is not None:
            apply_encoder(network.vit, dict(weights))
        return network
    network = UNETR12(out_channels=1 + len(config.task.classes), img_size=config.crop, patch_size=entry["patch_size"],
                      in_channels=entry["in_channels"], feature_size=config.feature_size,
                      hidden_size=entry["embed_dim"], mlp_dim=int(entry["embed_dim"] * entry.get("mlp_ratio", 4.0)),
                      num_layers=entry["depth"], num_heads=entry["num_heads"], ln_eps=_EPS,
                      skip_indices=entry.get("skip_indices", (3, 6, 9)))
    if config.row == RANDOM and weights is None:
        keywords = {key: value for key, value in entry.items() if key != "skip_indices"}
        weights = VisionTransformer3D(img_size=config.crop, **keywords).state_dict()
    if weights is not None:
        apply_encoder(network, dict(weights))
    return network


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear from 0 over the first `warmup` of the steps, then a cosine to 0; step counts from 0."""
    rising = warmup * steps
    if step + 1 <= rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step + 1 - rising) / (steps + 1 - rising)))


# ------------------------------------------------------------------------------------------------- crops, loss, score


def crops_of(case: LabelledCase, config: RunConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless training crops: images (crops, 1, S, S, S), labels (crops, S, S, S) uint8."""
    size = (config.crop,) * 3
    image, labels = case.image[case.box], case.labels[case.box]
    pad = SpatialPad(size, value=0)                 # air, and certainly no structure
    sample = {"image": pad(torch.from_numpy(image)[None]).as_tensor(),
              "label": pad(torch.from_numpy(labels)[None]).as_tensor()}
    flat, classes = sample["label"].flatten(), len(config.task.classes)
    indices = [(flat == number).nonzero().flatten().numpy() for number in range(1, classes + 1)]
    if not any(map(len, indices)):
        raise InputError(f"{case.name} has no labelled voxel of {', '.join(config.task.classes)}; it cannot teach.")
    other = ((flat == 0) | (flat == UNKNOWN)) & (sample["image"].flatten() > 0)
    sample["centres"] = [other.nonzero().flatten().numpy(), *indices]
    draw = Compose([
        RandCropByLabelClassesd(["image", "label"], "label", size, ratios=[classes, *[1] * classes], warn=False,
                                num_classes=classes + 1, num_samples=config.crops, indices_key="centres"),
        RandScaleIntensityd("image", factors=0.1, prob=0.1),
        RandShiftIntensityd("image", offsets=0.1, prob=0.1),
    ]).set_random_state(config.seed)
    while True:
        drawn = draw(sample)
        yield (torch.stack([torch.as_tensor(d["image"]) for d in drawn]).as_subclass(Tensor),
               torch.stack([torch.as_tensor(d["label"])[0] for d in drawn]).as_subclass(Tensor))


_DICE = DiceLoss(squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)


def dice_ce_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Dice + cross-entropy over annotated voxels. logits (B, C, ...), labels (B, ...) with 255 where unknown.

    MONAI's masked loss sets the logits of unknown voxels to zero before the softmax, which still counts them; so the
    softmax is taken here and only known voxels are handed over.
    """
    terms = []
    for scores, truth in zip(logits.float().flatten(2), labels.flatten(1).long()):
        known = truth != UNKNOWN
        if not known.all():
            scores, truth = scores[:, known], truth[known]
        if truth.numel():
            one_hot = F.one_hot(truth, len(scores)).T[None].to(scores.dtype)
            terms.append(_DICE(scores.softmax(0)[None], one_hot) + F.cross_entropy(scores.T, truth))
    return torch.stack(terms).mean() if terms else logits.sum() * 0.0


def half(config: RunConfig, device: torch.device) -> torch.autocast:
    """bfloat16 for what stands it, if the run asks for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


@torch.no_grad()
def predict(network: torch.nn.Module, case: LabelledCase, config: RunConfig,
            device: torch.device = CPU) -> np.ndarray:
    """Class numbers, uint8 on the case's lattice; what lies outside its box is background."""
    inferer = SlidingWindowInferer((config.crop,) * 3, sw_batch_size=1, overlap=config.overlap, mode="constant")
    network.eval()
    with half(config, device):
        logits = inferer(torch.from_numpy(case.image[case.box])[None, None].to(device), lambda x: network(x).float())
    found = np.zeros(case.image.shape, np.uint8)
    found[case.box] = logits[0].argmax(0).cpu().numpy()
    return found


def score(found: np.ndarray, case: LabelledCase, classes: tuple[str, ...]) -> dict[str, float]:
    """Dice of every class that the case's labels hold; what they do not hold cannot be scored."""
    return {name: dice(found == number, case.labels == number, case.labels == UNKNOWN)
            for number, name in enumerate(classes, 1) if (case.labels == number).any()}


def windows_of(case: LabelledCase, config: RunConfig) -> int:
    """Windows a prediction of the case takes."""
    stride = max(1, int(config.crop * (1 - config.overlap)))
    counts = [1 + max(0, math.ceil((s.stop - s.start - config.crop) / stride)) for s in case.box]
    return math.prod(counts)


# --------------------------------------------------------------------------------------------------------------- run


def run(config: RunConfig, cache: Path, weights: Mapping[str, Tensor] | None = None,
        device: torch.device = CPU) -> dict:
    """Train and score; the result as plain values (see `training.oneshot`).

    Raises InputError: a case that is missing, damaged or without labels; a labelled case among the scored ones.
    """
    task = config.task
    teacher = read_case(cache, task.labelled, task.classes, config.window)
    check_task(task, teacher)
    network = initial_network(config, weights).to(device)
    started = time.perf_counter()
    losses = train(network, teacher, config, device)
    trained = time.perf_counter()
    scores = {}
    for name in task.scored:
        case = read_case(cache, name, task.classes, config.window)
        scores[name] = score(predict(network, case, config, device), case, task.classes)
    return {"version": _VERSION, "config": asdict(config), "scores": scores, "mean": mean_dice(scores),
            "loss": _tenths(losses), "spacing": list(teacher.spacing),
            "seconds": {"training": round(trained - started, 2), "scoring": round(time.perf_counter() - trained, 2)},
            "versions": {"torch": torch.__version__, "monai": monai.__version__, "device": device.type}}


def check_task(task: Task, teacher: LabelledCase) -> None:
    """Raises InputError if a run would teach with what it scores, or teach what is not labelled."""
    if task.labelled in task.scored or not task.scored:
        raise InputError(f"{task.labelled} is the labelled case and cannot be scored; name other cases.")
    missing = [name for name in task.classes if name not in taught_classes(teacher, task.classes)]
    if missing:
        raise InputError(f"{task.labelled} has too few labelled voxels of {', '.join(missing)}; leave them out.")


def train(network: UNETR12 | TokenUNETR, teacher: LabelledCase, config: RunConfig,
          device: torch.device = CPU) -> list[float]:
    """Fine-tunes in place; the loss of every step. Raises InputError if the loss stops being a number."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    network.train()
    losses: list[float] = []
    for step, (images, labels) in zip(range(config.steps), crops_of(teacher, config)):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, config.steps, config.lr, config.warmup)
        with half(config, device):
            logits = network(images.to(device))
        loss = dice_ce_loss(logits, labels.to(device))
        if not math.isfinite(loss.item()):
            raise InputError(f"The loss stopped being a number at step {step + 1} of {config.row} (learning rate "
                             f"{config.lr:g}); take a lower --lr or --precision fp32.")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


def mean_dice(scores: Mapping[str, Mapping[str, float]]) -> float:
    """Mean over the scored cases of the mean over their foreground classes."""
    return float(np.mean([np.mean(list(of_case.values())) for of_case in scores.values() if of_case]))


def _tenths(losses: list[float]) -> list[float]:
    """Mean loss of each tenth of the run, oldest first."""
    return [round(float(np.mean(part)), 4) for part in np.array_split(losses, min(10, len(losses)))]
