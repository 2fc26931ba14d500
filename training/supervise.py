"""Supervised training of a segmentation model from prepared cases, partial labels included.

    python -m training.supervise CACHE --run runs/torso --minutes 90

CACHE holds what `training.cases` and `training.synthesis` wrote; CACHE/dev, if it is there, holds volumes with labels
that are scored and never trained on. The learning-rate schedule follows the clock, so that a run ends when it was
promised to, whatever else the machine does. `--resume` goes on from RUN/last.pt. `training.export` turns a run into a
model folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from HiEndSegLib.geometry.files import atomic_target
from HiEndSegLib.models.encoders import apply_encoder, load_encoder_weights
from HiEndSegLib.networks.build import build_network
from HiEndSegLib.networks.objective import maskmed_loss, pointwise_loss

from .quick import confident_bits, dense_scores, quick_dice
from .tiles import TileSampler, load_cases

WINDOWS = [[-175.0, 250.0], [-1000.0, 1000.0]]


class Average:
    """Exponential moving average of the weights; what is scored and shipped."""

    def __init__(self, network: torch.nn.Module, decay: float = 0.998):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, network: torch.nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for mine, theirs in zip(self.network.state_dict().values(), network.state_dict().values()):
            if mine.dtype.is_floating_point:
                mine.lerp_(theirs, 1 - decay)
            else:
                mine.copy_(theirs)


def learning_rate(done: float, step: int, peak: float, warmup_steps: int = 150) -> float:
    """Linear warm-up by steps, cosine to 2 % by the fraction of the time that is used up."""
    return peak * min(1.0, (step + 1) / warmup_steps) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def train(args: argparse.Namespace) -> None:
    run = Path(args.run)
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    config = {"kind": "maskmed", "num_classes": args.num_classes, "in_channels": len(WINDOWS),
              **json.loads(args.network)}
    network = build_network(config).to(device)
    average = Average(network, args.ema)
    decayed = [p for p in network.parameters() if p.dim() > 1]
    plain = [p for p in network.parameters() if p.dim() <= 1]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}],
                                  lr=args.lr, betas=(0.9, 0.98))
    cases = load_cases(Path(args.cache))
    for prefix, factor in json.loads(args.weigh).items():
        for case in cases:
            if case.name.startswith(prefix):
                case.weight *= factor
    step, used, taught = 0, 0.0, 0
    last = run / "last.pt"
    if args.resume and last.exists():
        state = torch.load(last, weights_only=True, map_location=device)
        network.load_state_dict(state["network"])
        average.network.load_state_dict(state["average"])
        average.updates = state["step"]
        optimiser.load_state_dict(state["optimiser"])
        step, used, taught = state["step"], state["used"], state["taught"]
    elif args.initial:
        network.load_state_dict(torch.load(args.initial, weights_only=True, map_location=device)["average"])
        average = Average(network, args.ema)
    elif args.encoder:
        print(apply_encoder(network.encoder.vit, load_encoder_weights(args.encoder)), flush=True)
        average = Average(network, args.ema)
    words = {"network": config, "windows": WINDOWS, "args": vars(args)}
    (run / "config.json").write_text(json.dumps(words, indent=1, default=str), encoding="utf-8")
    sampler = TileSampler(cases, WINDOWS, seed=args.seed + step)
    print(f"{len(cases)} cases, {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters, "
          f"step {step}, {used / 60:.0f} of {args.minutes:.0f} min used", flush=True)
    budget, running = args.minutes * 60, {}
    pseudo_times = [float(x) for x in args.pseudo_at.split(",") if x]
    network.train()
    while used < budget:
        started = time.monotonic()
        if taught < len(pseudo_times) and used / budget >= pseudo_times[taught]:
            taught += 1
            self_train(average.network, cases, args.pseudo_threshold)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(used / budget, step, args.lr)
        sampler.size = args.small_tile if used / budget < args.small_until else args.tile
        drawn = [sampler.draw() for _ in range(args.batch)]
        x = torch.stack([d[0] for d in drawn]).to(device)
        possible = torch.stack([d[1] for d in drawn]).to(device)
        offset = tuple(int(o) for o in sampler.rng.integers(0, 4, 3))
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            out = network(x)
        if config["kind"] == "maskmed":
            terms = maskmed_loss(out, possible, offset=offset, matching=args.matching, query_weight=args.query_weight)
        else:
            terms = pointwise_loss(out, possible, offset=offset)
        optimiser.zero_grad(set_to_none=True)
        terms["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if torch.isfinite(norm):
            optimiser.step()
            average.update(network)
        step += 1
        used += time.monotonic() - started
        for name, value in terms.items():
            running[name] = 0.98 * running.get(name, value.item()) + 0.02 * value.item()
        if step % 50 == 0:
            line = {"step": step, "minutes": round(used / 60, 2), "lr": optimiser.param_groups[0]["lr"],
                    **{k: round(v, 4) for k, v in running.items()}, "seconds": round(time.monotonic() - started, 3)}
            with open(run / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            print(line, flush=True)
        if step % args.save_every == 0 or used >= budget:
            with atomic_target(last) as temporary:
                torch.save({"network": network.state_dict(), "average": average.network.state_dict(),
                            "optimiser": optimiser.state_dict(), "step": step, "used": used, "taught": taught},
                           temporary)
        if step % args.score_every == 0 or used >= budget:
            score(average.network, Path(args.cache) / "dev", run, step, args.bf16)


def self_train(network, cases, threshold: float) -> None:
    """Teach the average's confident answers on voxels whose label is open (never on known ones)."""
    for index, case in enumerate(cases):
        unknown = np.bitwise_count(case.possible.astype(np.uint32)) > 1
        if unknown.mean() < 0.02:
            continue
        scores = dense_scores(network, case.image, WINDOWS)
        before = unknown.mean()
        cases[index] = replace(case, possible=confident_bits(case.possible, scores, threshold))
        after = (np.bitwise_count(cases[index].possible.astype(np.uint32)) > 1).mean()
        print(f"self-training {case.name}: open voxels {before:.3f} -> {after:.3f}", flush=True)


def score(network, folder: Path, run: Path, step: int, bf16: bool) -> None:
    """Dice on the development volumes at the model's spacing, appended to RUN/dev.jsonl."""
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as data:
            image, labels = data["image"], data["labels"]
        result = quick_dice(dense_scores(network, image, WINDOWS, bf16=bf16).argmax(0), labels)
        line = {"step": step, "case": path.stem, **{str(k): round(v, 4) for k, v in result.items()}}
        with open(run / "dev.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")
        print("dev", line, flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", help="folder of prepared cases")
    parser.add_argument("--run", required=True, help="folder for checkpoints and logs")
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--num-classes", type=int, default=20, help="classes with the background")
    parser.add_argument("--network", default="{}", help="JSON of network keywords that differ from the default")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--weigh", default="{}", help='JSON of name prefixes and factors, e.g. {"synthetic-": 0.5}')
    parser.add_argument("--tile", type=int, default=96)
    parser.add_argument("--small-tile", type=int, default=72, help="tile of the first part: 2.4 times as many steps")
    parser.add_argument("--small-until", type=float, default=0.5, help="fraction of the time with the small tile")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--matching", choices=["hungarian", "fixed"], default="hungarian")
    parser.add_argument("--query-weight", type=float, default=0.1)
    parser.add_argument("--pseudo-at", default="", help="fractions of the time at which to self-train, e.g. 0.7,0.85")
    parser.add_argument("--pseudo-threshold", type=float, default=0.9)
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--score-every", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--encoder", type=Path, help="an encoder folder (training.pretrain_export) to start the ViT from")
    parser.add_argument("--initial", help="a checkpoint whose averaged weights to start from")
    train(parser.parse_args(argv))


if __name__ == "__main__":
    main()
