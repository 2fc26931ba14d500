"""Pre-training of an encoder on unlabelled volumes: Hi-End-MAE, or plain MAE with `--dense-stages 0`.

    python -m training.pretrain DATA --run runs/encoder
    torchrun --nproc-per-node 8 -m training.pretrain DATA --run-folder runs/encoder --precision bf16-mixed

DATA: folders (or files) of NIfTI, NRRD or DICOM; what cannot be read is listed and left out. The same command goes on
from RUN/last.pt, exactly: every sample is a function of the seed and its number, so the losses are those of a run that
was never interrupted, bit for bit on the CPU in fp32, and to rounding where the number of processes changed.
`training.pretrain_export` turns a run into an encoder folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from fnmatch import fnmatch
from pathlib import Path

import torch

from HiEndSegLib.errors import HiEndSegError, OptionError
from HiEndSegLib.geometry.files import atomic_target
from HiEndSegLib.networks.hi_end_mae import HI_END_MAE_VARIANTS, HiEndMAE, build_hi_end_mae

from . import pretrain_state as state_files
from .in_words import make_folder
from .pretrain_crops import Augmentation, Crops
from .pretrain_data import (
    LeftOut,
    Preparation,
    Prepared,
    agree_on_modality,
    find_named,
    prepare_all,
    split_held_out,
)
from .pretrain_log import tell as say, warn
from .pretrain_loop import Pace, Training
from .pretrain_ranks import (
    PRECISIONS,
    STRATEGIES,
    agree,
    gather,
    is_first,
    leave_children_alone,
    lost_loader,
    lost_rank,
    make_fabric,
    quieten,
    share,
)
from .pretrain_state import Recipe


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.pretrain", description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("data", nargs="+", help="folders or files of NIfTI, NRRD or DICOM")
    add("--run", "--run-folder", type=Path, required=True, help="folder for checkpoints and logs (write --run-folder "
        "behind torchrun, which takes --run for an option of its own)")
    group = parser.add_argument_group("network")
    add = group.add_argument
    add("--variant", default="vit_tiny_12p", help=f"one of {', '.join(HI_END_MAE_VARIANTS)}")
    add("--dense-stages", type=int, default=3, help="0 is the plain masked auto-encoder")
    add("--mask-ratio", type=float, default=0.75)
    add("--checkpointing", action="store_true", help="recompute activations: less memory, a third more time")
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--spacing", type=float, default=1.5, help="mm")
    add("--window", type=float, nargs=2, default=(-175.0, 250.0), metavar=("LOW", "HIGH"), help="HU that become 0 and 1")
    add("--modality", choices=["CT", "MR"], help="use only these; needed where the data hold both")
    add("--crop", type=int, default=96, help="edge in voxels")
    add("--crops-per-volume", type=int, default=8, help="in a row from each volume")
    add("--hold-out", nargs="+", default=[], metavar="NAME", help="volumes for a validation loss (* allowed)")
    add("--weigh", nargs="+", default=[], metavar="NAME=FACTOR", help="draw these volumes more or less often (* "
        "allowed); volumes are then drawn with repetition instead of epoch by epoch")
    add("--cache", type=Path, help="folder for prepared volumes, on a fast disk (default: the user's cache folder)")
    add("--workers", type=int, default=0, help="processes that prepare and cut, per rank")
    add("--prepare-only", action="store_true", help="fill the cache and stop")
    group = parser.add_argument_group("augmentation (probabilities)")
    for item in fields(Augmentation):
        group.add_argument(f"--p-{item.name}" if item.name != "amount" else "--amount", type=float,
                           default=item.default)
    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--steps", type=int, default=10000)
    add("--batch", type=int, default=16, help="crops per step, over all processes")
    add("--micro-batch", type=int, help="crops at once in each process (default: what divides, up to 8, on a GPU 24)")
    add("--lr", type=float, default=4e-4, help="peak learning rate")
    add("--warmup", type=int, help="steps (default: a fiftieth)")
    add("--weight-decay", type=float, default=0.05)
    add("--decay-weights-only", action="store_true", help="leave biases, norms and tokens undecayed (the paper's code "
        "means to, but decays all)")
    add("--clip", type=float, default=0.0, help="largest gradient norm; 0 for none")
    add("--seed", type=int, default=41)
    group = parser.add_argument_group("machine")
    add = group.add_argument
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--devices", type=int, help="processes on this machine (default: torchrun's, else 1)")
    add("--nodes", type=int, help="machines (default: torchrun's, else 1)")
    add("--strategy", choices=STRATEGIES, default="auto")
    add("--precision", choices=list(PRECISIONS), default="32")
    add("--threads", type=int, help="of each process, on the CPU")
    group = parser.add_argument_group("logs and checkpoints (steps)")
    add = group.add_argument
    add("--log-every", type=int, default=10)
    add("--save-every", type=int, default=500)
    add("--validate-every", type=int, default=500, help="validation loss and pictures")
    add("--validation-crops", type=int, default=8, help="per held-out volume")
    add("--resume-from", type=Path, help=f"a checkpoint other than RUN/{state_files.LAST}")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """0: trained to the end (or to a signal, with a checkpoint). 2: an error, said in one sentence. 130: Ctrl-C."""
    options = parse(argv)
    training: list[Training] = []

    def in_hand() -> str:
        return training[0].checkpoint_words() if training else "nothing was trained yet"

    try:
        return pretrain(options, training)
    except HiEndSegError as error:
        leave_children_alone()
        if is_first() or (training and not getattr(error, "everywhere", False)):
            # A loader's process hands on an error with its whole traceback; the sentence is at its end.
            warn(error.sentence.strip().splitlines()[-1].removeprefix(f"{type(error).__module__}."
                                                                      f"{type(error).__name__}: "))
        return 2
    except KeyboardInterrupt:
        warn(f"Interrupted; {in_hand()}.")
        return 130
    except RuntimeError as error:
        leave_children_alone()
        lost = lost_loader(error, in_hand()) or lost_rank(error, in_hand())
        if lost is None:
            raise
        warn(lost.sentence)
        return 2


def pretrain(options: argparse.Namespace, started: list[Training]) -> int:
    """Everything behind the command line; the run in progress is put into `started`."""
    check(options)
    quieten()
    fabric = make_fabric(device=options.device, devices=options.devices, nodes=options.nodes,
                         precision=options.precision, strategy=options.strategy)
    fabric.launch()
    if options.threads:
        torch.set_num_threads(options.threads)
    processes = fabric.world_size
    micro = agree(fabric, lambda: micro_batch(options, processes, fabric.device.type))
    volumes, left_out, modality = prepare_data(options, fabric)
    if options.prepare_only:
        tell(fabric, f"{len(volumes)} volumes are prepared in {cache_folder(options)}.")
        return 0
    kept, held = split_held_out(volumes, options.hold_out)
    weights = weigh(kept, options.weigh)
    recipe = make_recipe(options, kept, held, modality, weights)
    state, origin = agree(fabric, lambda: find_state(options, recipe, kept))
    if state is not None and state["step"] >= recipe.steps:
        tell(fabric, f"{origin} is already at step {state['step']} of {recipe.steps}; nothing is left to train.")
        return 0
    agree(fabric, lambda: start_folder(options.run, recipe, kept, held, left_out) if is_first() else None)
    torch.manual_seed(options.seed)
    network = build(options)
    augmentation = Augmentation(**recipe.augmentation)
    shared = {"seed": options.seed, "size": options.crop, "patches": network.num_patches, "augmentation": augmentation}
    crops = Crops(kept, per_volume=options.crops_per_volume, weights=list(weights.values()) or None, **shared)
    held_out = Crops(held, **shared) if held else None
    pace = Pace(options.log_every, options.save_every, options.validate_every, options.validation_crops)
    training = Training(fabric, network, crops, held_out, recipe, options.run, pace, micro=micro,
                        workers=options.workers, state=state, origin=origin)
    started.append(training)
    count = sum(p.numel() for p in network.parameters() if p.requires_grad)
    tell(fabric, f"{options.variant} with {options.dense_stages} dense stages ({count / 1e6:.1f} M parameters), "
                 f"{len(kept)} {modality} volumes, {len(held)} held out; {processes} process(es) x "
                 f"{options.batch // (micro * processes)} x {micro} crops; "
                 + (f"going on from step {state['step']}." if state else f"{recipe.steps} steps."))
    try:
        done = training.run()
    finally:
        leave_children_alone()
    if done:
        tell(fabric, f"Done: {options.run / state_files.LAST}.")
    else:
        tell(fabric, f"Stopped at step {training.step} as asked; {training.checkpoint_words()}.")
    return 0


# ----------------------------------------------------------------------------------------------------------- options


def check(options: argparse.Namespace) -> None:
    """OptionError for numbers that cannot be, before anything is started."""
    if options.variant not in HI_END_MAE_VARIANTS:
        raise OptionError(f"There is no variant {options.variant!r}; choose one of {', '.join(HI_END_MAE_VARIANTS)}.")
    if not 0 <= options.dense_stages <= 3:
        raise OptionError(f"--dense-stages goes from 0 (plain MAE) to 3, not {options.dense_stages}.")
    patch = HI_END_MAE_VARIANTS[options.variant]["encoder"]["patch_size"]
    if options.crop < patch or options.crop % patch:
        raise OptionError(f"--crop {options.crop} is no multiple of the variant's patch of {patch} voxels; give one.")
    count = (options.crop // patch) ** 3
    if not math.isfinite(options.mask_ratio) or not 1 <= int(count * (1 - options.mask_ratio)) < count:
        raise OptionError(f"--mask-ratio {options.mask_ratio:g} leaves none or all of the {count} patches visible; the "
                          "paper's is 0.75.")
    for name in ("steps", "batch", "lr", "spacing", "crops_per_volume", "log_every", "save_every", "validate_every",
                 "validation_crops", "micro_batch", "warmup", "devices", "nodes", "threads"):
        value = getattr(options, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise OptionError(f"--{name.replace('_', '-')} must be more than 0, not {value:g}.")
    for name in ("clip", "weight_decay", "workers", "seed"):
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= 0):
            raise OptionError(f"--{name.replace('_', '-')} must be 0 or more, not {value:g}.")
    if not options.window[0] < options.window[1]:
        raise OptionError(f"--window goes from a lower to a higher value, not {options.window[0]:g} to "
                          f"{options.window[1]:g}.")
    for item in fields(Augmentation):
        value = augmentation_of(options)[item.name]
        if not 0 <= value <= 1:
            raise OptionError(f"The augmentation's {item.name} is between 0 and 1, not {value:g}.")


def augmentation_of(options: argparse.Namespace) -> dict[str, float]:
    return {item.name: getattr(options, item.name if item.name == "amount" else f"p_{item.name}")
            for item in fields(Augmentation)}


def micro_batch(options: argparse.Namespace, processes: int, device: str) -> int:
    """Crops at once: as asked, or the largest number up to a limit that divides each process's share."""
    if options.batch % processes:
        raise OptionError(f"A batch of {options.batch} cannot be divided among {processes} processes; give a multiple "
                          "with --batch.")
    part = options.batch // processes
    if options.micro_batch is None:
        return max(n for n in range(1, min(part, 8 if device == "cpu" else 24) + 1) if part % n == 0)
    if part % options.micro_batch:
        raise OptionError(f"Each of {processes} processes has {part} crops per step, which --micro-batch "
                          f"{options.micro_batch} does not divide; give a divisor.")
    return options.micro_batch


def weigh(volumes: Sequence[Prepared], factors: Sequence[str]) -> dict[str, float]:
    """Weight by volume name, {} where no factor is given."""
    weights = {volume.name: 1.0 for volume in volumes}
    for text in factors:
        pattern, _, factor = text.rpartition("=")
        try:
            value = float(factor)
        except ValueError:
            value = math.nan
        fits = [name for name in weights if any(fnmatch(part, pattern) for part in (name, *name.split("/")))]
        if not pattern or not 0 <= value < math.inf or not fits:
            raise OptionError(f"--weigh {text}: " + ("write NAME=FACTOR with a factor of 0 or more."
                              if not pattern or not 0 <= value < math.inf else "no volume to train on has this name."))
        for name in fits:
            weights[name] *= value
    if factors and not any(weights.values()):
        raise OptionError("--weigh leaves no volume with a weight above 0.")
    return weights if factors else {}


def make_recipe(options, kept, held, modality, weights) -> Recipe:
    return Recipe(
        variant=options.variant, dense_stages=options.dense_stages, mask_ratio=options.mask_ratio, crop=options.crop,
        batch=options.batch, steps=options.steps, lr=options.lr,
        warmup=options.warmup or max(1, options.steps // 50), weight_decay=options.weight_decay,
        decay_all=not options.decay_weights_only, clip=options.clip, precision=PRECISIONS[options.precision],
        seed=options.seed, per_volume=options.crops_per_volume, spacing=options.spacing,
        window=tuple(float(v) for v in options.window), modality=modality, augmentation=augmentation_of(options),
        weights={name: value for name, value in weights.items() if value != 1.0},
        data=digest([[v.name, list(v.shape), v.digest] for v in kept]), volumes=len(kept),
        held_out=tuple(v.name for v in held))


def digest(listing: list) -> str:
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]


def build(options: argparse.Namespace) -> HiEndMAE:
    return build_hi_end_mae(options.variant, dense_stages=options.dense_stages, img_size=options.crop,
                            mask_ratio=options.mask_ratio, checkpointing=options.checkpointing)


# -------------------------------------------------------------------------------------------------- data and folders


def cache_folder(options: argparse.Namespace) -> Path:
    if options.cache:
        return options.cache
    import platformdirs
    return Path(platformdirs.user_cache_dir("HiEndSeg", appauthor=False)) / "pretraining"


def prepare_data(options, fabric) -> tuple[list[Prepared], list[LeftOut], str]:
    """All ranks prepare their share; every rank gets the same list. Raises InputError (nothing usable, CT with MR)."""
    how = Preparation(options.spacing, tuple(options.window), options.modality)
    cases = share(agree(fabric, lambda: find_named(options.data)), fabric)
    mine = agree(fabric, lambda: prepare_all(cases, how, cache_folder(options), workers=options.workers,
                                             tell=lambda text: tell(fabric, text)))
    results = sorted((result for part in gather(fabric, mine) for result in part), key=lambda result: result.name)
    left_out = [result for result in results if isinstance(result, LeftOut)]
    if left_out and fabric.is_global_zero:
        warn(f"{len(left_out)} of {len(results)} volumes are left out:")
        for item in left_out:
            warn(f"  {item.name}: {item.sentence}")
    return [r for r in results if isinstance(r, Prepared)], left_out, agree_on_modality(results)


def find_state(options: argparse.Namespace, recipe: Recipe,
               kept: Sequence[Prepared]) -> tuple[dict | None, Path | None]:
    """The checkpoint to go on from, if there is one. Raises ModelError and OptionError."""
    path = options.resume_from or options.run / state_files.LAST
    if not path.exists():
        if options.resume_from:
            raise OptionError(f"There is no checkpoint {path}; check the name.")
        if (options.run / state_files.PREVIOUS).exists():
            raise OptionError(f"{path} is missing and {options.run / state_files.PREVIOUS} is there; go on from it with "
                              "--resume-from, or remove it to start anew.")
        return None, None
    state = state_files.load(path)
    if state["recipe"].get("data") == digest([[v.name, list(v.shape)] for v in kept]):
        recipe = replace(recipe, data=state["recipe"]["data"])      # of before voxels were looked at: names and shapes
    state_files.check_recipe(state["recipe"], recipe, path)
    return state, path


def start_folder(run: Path, recipe: Recipe, kept, held, left_out) -> None:
    """RUN with recipe.json and data.json in it: what is trained, on what, and what was left out."""
    make_folder(run)
    for leftover in run.glob(".hiendseg-*"):                # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)
    about = {"volumes": [asdict(v) for v in kept], "held_out": [asdict(v) for v in held],
             "left_out": [asdict(v) for v in left_out]}
    for name, content in (("recipe.json", recipe.plain()), ("data.json", about)):
        with atomic_target(run / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def tell(fabric, sentence: str) -> None:
    if fabric.is_global_zero:
        say(sentence)


if __name__ == "__main__":
    sys.exit(main())
